"""Bi-DexHands on MuJoCo: two Shadow Hands, nine tasks, one agent a hand.

The tasks (observations, rewards, ends) are those of DexterousHands and HARL; the simulator is not, so returns are not
those of Isaac Gym. Results are to be labelled `BiDexMJ/<task>`; docs/bidexhands.md says what is equal, what is
calibrated and what is unknown.

Shape letters: E environments, N = 2 hands (= agents), A action size of one hand, S state size, O observation size.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.bidexhands import tasks
from common.bidexhands.rotations import conjugate, cross, rotate, to_wxyz
from common.bidexhands.scenes import compile_model, sensor_layout, start_qpos, start_qvel
from common.bidexhands.simulator import Simulator, ThreadedMuJoCo
from common.bidexhands.tasks import SCENARIOS, TASKS, Physics
from common.bidexhands.warp import WarpMuJoCo
from common.mamujoco_robots import mujoco
from common.vecenv import RenderError, StepResult, VecEnv, saved_array

SIMS = ("mujoco", "mujoco_warp", "isaacgym")
LABEL = "BiDexMJ"  # results of the port are named BiDexMJ/<scenario>, never Bi-DexHands


class BiDexHandsVecEnv(VecEnv):
    """E copies of one of the nine `SCENARIOS`.

    Actions lie in [-1, 1] (clipped): on a movable base force (3) and torque (3) in world axes, then the 20 joint
    targets over the joints' ranges. `base_force_scale` multiplies force and torque; 0.25 is calibrated to the
    original's untrained behaviour, 1 is the original's number. An agent sees its own hand and the objects, not the
    other hand.

    `isaac_done_semantics`: bookkeeping as in HARL. The time limit counts as termination, a step that ends an episode
    returns its last observation, and the next step starts the new episode before it applies its action, so one
    transition an episode leads from an end to the next beginning.

    `sim`: "mujoco" runs on `sim_threads` threads, which change no result; "mujoco_warp" on a GPU (see warp.py).

    After a step `last_success` (bool (E,)) says whether the task's condition of success has held in the episode that
    the step belongs to, up to and including the step.
    """

    num_agents = 2
    render_fps = round(1 / tasks.CONTROL_DT)
    last_success: np.ndarray

    def __init__(
        self,
        scenario: str,
        num_envs: int,
        sim: str = "mujoco",
        sim_threads: int = 1,
        base_force_scale: float = 0.25,
        isaac_done_semantics: bool = False,
    ):
        if scenario not in SCENARIOS:
            raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")
        if sim not in SIMS:
            raise ValueError(f"unknown sim {sim!r}; allowed: {', '.join(SIMS)}")
        if sim == "isaacgym":
            raise ValueError("sim 'isaacgym' is not one of this class's: mujoco, mujoco_warp")
        if num_envs < 1 or sim_threads < 1:
            raise ValueError(f"num_envs and sim_threads must be >= 1, got {num_envs} and {sim_threads}")
        if not (np.isfinite(base_force_scale) and base_force_scale >= 0):
            raise ValueError(f"base_force_scale must be finite and >= 0, got {base_force_scale}")
        self.scenario, self.num_envs, self.sim_threads = scenario, num_envs, sim_threads
        self.base_force_scale, self.isaac_done_semantics = base_force_scale, isaac_done_semantics
        self.task = task = TASKS[scenario]
        self.label = f"{LABEL}/{scenario}"
        self.max_episode_steps = task.max_episode_steps
        self.action_dims, self.obs_dims, self.state_dim = [task.action_dim] * 2, [task.obs_dim] * 2, task.state_dim
        self.action_low = [np.full(task.action_dim, -1, dtype=np.float32) for _ in range(2)]
        self.action_high = [np.full(task.action_dim, 1, dtype=np.float32) for _ in range(2)]

        self.model = compile_model(scenario)
        self._simulator: Simulator
        if sim == "mujoco":
            self._simulator = ThreadedMuJoCo(self.model, num_envs, sim_threads)
        else:
            self._simulator = WarpMuJoCo(self.model, num_envs)
        self._map_columns()
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._success = np.zeros(num_envs, dtype=bool)
        self._pending = np.zeros(num_envs, dtype=bool)  # episodes that ended and were not started anew (Isaac's way)
        self._goal_rot = np.zeros((num_envs, 4))
        self._everyone = list(range(num_envs))
        self._rngs: list[np.random.Generator] = []
        self._renderer: Any = None
        self.last_success = np.zeros(num_envs, dtype=bool)

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """See `VecEnv.reset`."""
        self._rngs = [np.random.default_rng(seed + i) for i in range(self.num_envs)]
        self.last_success = np.zeros(self.num_envs, dtype=bool)
        self._start_episodes(self._everyone)
        return self._observe_start(self._everyone)

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        """See `VecEnv.step`. A task that ends on the last step of the time limit counts as terminated."""
        action = self._join_actions(actions).reshape(self.num_envs, 2, -1).clip(-1.0, 1.0)  # (E, N, A)
        self._require_reset()
        self._start_episodes(np.flatnonzero(self._pending).tolist())
        self._simulate(action)
        self._steps += 1

        physics = self._read(self._everyone)
        outcome = tasks.evaluate(self.task, physics, self._goal_rot)
        self._success |= outcome.success
        self.last_success = self._success.copy()
        terminated, truncated = outcome.ended, (self._steps >= self.max_episode_steps) & ~outcome.ended
        final_obs, final_state = tasks.observe(self.task, physics, self._goal_rot, action)
        obs, state = [o.copy() for o in final_obs], final_state.copy()
        if self.isaac_done_semantics:
            terminated, truncated = terminated | truncated, np.zeros_like(truncated)
            self._pending = terminated.copy()
        elif ended := np.flatnonzero(terminated | truncated).tolist():
            self._start_episodes(ended)
            start_obs, state[ended] = self._observe_start(ended)
            for o, start in zip(obs, start_obs):
                o[ended] = start
        reward = outcome.reward.astype(np.float32)
        return StepResult(obs, state, reward, terminated, truncated, final_obs, final_state)

    def get_state(self) -> dict[str, Any]:
        self._require_reset()
        return {
            "scenario": self.scenario,
            "physics": self._simulator.get_state(),
            "steps": self._steps.copy(),
            "success": self._success.copy(),
            "pending": self._pending.copy(),
            "goal_rot": self._goal_rot.copy(),
            "rngs": [rng.bit_generator.state for rng in self._rngs],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("scenario") != self.scenario:
            raise ValueError(f"environment state is of scenario {state.get('scenario')!r}, not {self.scenario!r}")
        physics = saved_array(state, "physics", (self.num_envs, self._simulator.state_size), np.float64)
        steps = saved_array(state, "steps", (self.num_envs,), np.int64)
        success = saved_array(state, "success", (self.num_envs,), bool)
        pending = saved_array(state, "pending", (self.num_envs,), bool)
        goal_rot = saved_array(state, "goal_rot", (self.num_envs, 4), np.float64)
        if len(state.get("rngs", ())) != self.num_envs:
            raise ValueError(f"environment state entry 'rngs': expected {self.num_envs} random generator states")
        self._rngs = [np.random.Generator(np.random.PCG64()) for _ in range(self.num_envs)]
        for rng, rng_state in zip(self._rngs, state["rngs"]):
            rng.bit_generator.state = rng_state
        self._simulator.set_state(physics)
        self._steps, self._success, self._pending, self._goal_rot = steps, success, pending, goal_rot
        self.last_success = success.copy()

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        """See `VecEnv.render`; a fixed camera shows both hands and the objects, egg goals are drawn translucent."""
        if self._renderer is None or (self._renderer.width, self._renderer.height) != (width, height):
            self._close_renderer()
            buffer = self.model.vis.global_
            buffer.offwidth, buffer.offheight = max(buffer.offwidth, width), max(buffer.offheight, height)
            try:
                self._renderer = mujoco.Renderer(self.model, height, width)
            except Exception as error:  # each back end fails with errors of its own
                raise RenderError(
                    "cannot render: no working OpenGL; install libegl1 libegl-mesa0 libgl1-mesa-dri (MUJOCO_GL=egl) "
                    f"or libosmesa6 (MUJOCO_GL=osmesa); MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}"
                ) from error
        self._renderer.update_scene(self._simulator.picture_data(), camera="view")
        return self._renderer.render()

    def close(self) -> None:
        self._close_renderer()
        self._simulator.close()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _require_reset(self) -> None:
        if not self._rngs:
            raise RuntimeError("the environment has no state yet: call reset(seed) first")

    def _map_columns(self) -> None:
        """Where things stand in the simulator's vectors."""
        model, task = self.model, self.task
        self._blocks, order, first = {}, [], 0
        for name, shape in sensor_layout(task).items():
            size = int(np.prod(shape))
            self._blocks[name] = (slice(first, first + size), shape)
            index = np.arange(first, first + size).reshape(shape)
            if not name.startswith("joint"):  # MuJoCo's quaternions are (w, x, y, z)
                index[..., 3:7] = index[..., [4, 5, 6, 3]]
            order.append(index.ravel())
            first += size
        self._sensor_order = np.concatenate(order)

        low, high = model.actuator_ctrlrange.T
        self._target_middle, self._target_half = (low + high) / 2, (high - low) / 2
        scale = np.repeat([tasks.FORCE_UNIT * task.force_scale, tasks.TORQUE_UNIT * task.torque_scale], 3)
        self._wrench_scale = scale * self.base_force_scale
        self._start_qpos, self._start_qvel = start_qpos(model, task), start_qvel(model, task)
        joints = [model.joint(f"hand{h}_{name}").qposadr[0] for h in range(2) for name, *_ in tasks.JOINTS]
        self._joint_columns = np.array(joints)
        self._driven_columns = self._joint_columns.reshape(2, -1)[:, tasks.DRIVEN].ravel()
        names = ["object", "object2"][: len(task.objects)]
        free = [] if task.kind == "door" else [model.joint(f"{name}_free").qposadr[0] for name in names]
        self._object_columns = [int(a) for a in free]

    def _start_episodes(self, envs: Sequence[int]) -> None:
        """Put these environments at the start of new episodes."""
        if not envs:
            return
        qpos, qvel = np.tile(self._start_qpos, (len(envs), 1)), np.tile(self._start_qvel, (len(envs), 1))
        for i, row in zip(envs, qpos):
            start = tasks.draw_start(self.task, self._rngs[i])
            row[self._joint_columns] = np.tile(start.joint_pos, 2)
            for a in self._object_columns:
                row[a : a + 3] += start.object_offset
                row[a + 3 : a + 7] = to_wxyz(start.object_rot)
            self._goal_rot[i] = start.goal_rot
            self._steps[i], self._success[i], self._pending[i] = 0, False, False
        # The targets are the positions, as in the original; MuJoCo clips them to the joint ranges.
        self._simulator.start(envs, qpos, qvel, qpos[:, self._driven_columns], self._goal_rot[envs][:, [3, 0, 1, 2]])

    def _simulate(self, action: np.ndarray) -> None:
        """One control step of all environments under actions (E, N, A)."""
        targets = self._target_middle + self._target_half * action[..., -20:].reshape(self.num_envs, -1)
        self._simulator.step(targets, None if self.task.fixed_base else action[..., :6] * self._wrench_scale)

    def _read(self, envs: Sequence[int]) -> Physics:
        """What the tasks' formulas need, of these environments."""
        reading = self._simulator.read(envs)
        sensors = reading.sensors.take(self._sensor_order, axis=1)
        blocks = {name: sensors[:, part].reshape(len(envs), *shape) for name, (part, shape) in self._blocks.items()}
        # The original's sensors report force, then torque, in the axes and about the origin of the distal link.
        force = reading.wrenches[..., 3:]
        torque = reading.wrenches[..., :3] - cross(blocks["tips"][..., :3] - reading.centres, force)
        to_local = conjugate(blocks["tips"][..., 3:7])[..., None, :]
        local = rotate(to_local, np.stack([force, torque], axis=-2))
        return Physics(**blocks, tip_force=local.reshape(*local.shape[:3], 6))

    def _observe_start(self, envs: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Observations and state of environments whose episode has just begun, no action taken yet."""
        actions = np.zeros((len(envs), 2, self.task.action_dim))
        return tasks.observe(self.task, self._read(envs), self._goal_rot[envs], actions)
