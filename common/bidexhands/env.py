"""Bi-DexHands on MuJoCo: two Shadow Hands, nine tasks, one agent a hand.

The tasks (observations, rewards, ends) are those of DexterousHands and HARL; the simulator is not, so returns are not
those of Isaac Gym. Results are to be labelled `BiDexMJ/<task>`; docs/bidexhands.md says what is equal, what is
calibrated and what is unknown.

One `MjModel` serves E `MjData`, stepped by `sim_threads` threads. MuJoCo gives Python's lock back while it computes;
no environment sees another, so results are bit-equal for any number of threads.

Shape letters: E environments, N = 2 hands (= agents), A action size of one hand, S state size, O observation size.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from common.bidexhands import tasks
from common.bidexhands.rotations import conjugate, cross, rotate, to_wxyz
from common.bidexhands.scenes import DISTALS, SUBSTEPS, compile_model, sensor_layout, start_qpos, start_qvel
from common.bidexhands.tasks import SCENARIOS, TASKS, Physics
from common.mamujoco_robots import mujoco
from common.vecenv import RenderError, StepResult, VecEnv, saved_array

SIMS = ("mujoco", "mujoco_warp", "isaacgym")
LABEL = "BiDexMJ"  # results of the port are named BiDexMJ/<scenario>, never Bi-DexHands

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value  # includes the solver's warm start


class BiDexHandsVecEnv(VecEnv):
    """E copies of one of the nine `SCENARIOS`.

    Actions lie in [-1, 1] (clipped): on a movable base force (3) and torque (3) in world axes, then the 20 joint
    targets over the joints' ranges. `base_force_scale` multiplies force and torque; 0.25 is calibrated to the
    original's untrained behaviour, 1 is the original's number. An agent sees its own hand and the objects, not the
    other hand.

    `isaac_done_semantics`: bookkeeping as in HARL. The time limit counts as termination, a step that ends an episode
    returns its last observation, and the next step starts the new episode before it applies its action, so one
    transition an episode leads from an end to the next beginning.

    After a step `last_success` (bool (E,)) says whether the task's condition of success has held in the episode that
    the step belongs to, up to and including the step.
    """

    num_agents = 2
    render_fps = round(1 / tasks.CONTROL_DT)

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
        if sim != "mujoco":
            raise ValueError(f"sim {sim!r} is not this class's; it runs 'mujoco' only")
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
        self._data = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self._map_memory()
        self._pool = ThreadPoolExecutor(sim_threads, "bidexhands") if sim_threads > 1 else None
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._success = np.zeros(num_envs, dtype=bool)
        self._pending = np.zeros(num_envs, dtype=bool)  # episodes that ended and were not started anew (Isaac's way)
        self._goal_rot = np.zeros((num_envs, 4))
        self._rngs: list[np.random.Generator] = []
        self._renderer: Any = None
        self.last_success = np.zeros(num_envs, dtype=bool)

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """See `VecEnv.reset`."""
        self._rngs = [np.random.default_rng(seed + i) for i in range(self.num_envs)]
        self.last_success = np.zeros(self.num_envs, dtype=bool)
        everyone = range(self.num_envs)
        for i in everyone:
            self._start_episode(i)
        return self._observe_start(everyone)

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        """See `VecEnv.step`. A task that ends on the last step of the time limit counts as terminated."""
        action = self._join_actions(actions).reshape(self.num_envs, 2, -1).clip(-1.0, 1.0)  # (E, N, A)
        self._require_reset()
        for i in np.flatnonzero(self._pending).tolist():
            self._start_episode(i)
        self._apply(action)
        self._simulate()
        self._steps += 1

        physics = self._read(range(self.num_envs))
        outcome = tasks.evaluate(self.task, physics, self._goal_rot)
        self._success |= outcome.success
        self.last_success = self._success.copy()
        terminated, truncated = outcome.ended, (self._steps >= self.max_episode_steps) & ~outcome.ended
        final_obs, final_state = tasks.observe(self.task, physics, self._goal_rot, action)
        obs, state = [o.copy() for o in final_obs], final_state.copy()
        if self.isaac_done_semantics:
            terminated, truncated = terminated | truncated, np.zeros_like(truncated)
            self._pending = terminated.copy()
        elif (ended := np.flatnonzero(terminated | truncated)).size:
            for i in ended.tolist():
                self._start_episode(i)
            start_obs, state[ended] = self._observe_start(ended.tolist())
            for o, start in zip(obs, start_obs):
                o[ended] = start
        reward = outcome.reward.astype(np.float32)
        return StepResult(obs, state, reward, terminated, truncated, final_obs, final_state)

    def get_state(self) -> dict[str, Any]:
        self._require_reset()
        physics = np.empty((self.num_envs, mujoco.mj_stateSize(self.model, _INTEGRATION)))
        for data, row in zip(self._data, physics):
            mujoco.mj_getState(self.model, data, row, _INTEGRATION)
        return {
            "scenario": self.scenario,
            "physics": physics,
            "steps": self._steps.copy(),
            "success": self._success.copy(),
            "pending": self._pending.copy(),
            "goal_rot": self._goal_rot.copy(),
            "rngs": [rng.bit_generator.state for rng in self._rngs],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("scenario") != self.scenario:
            raise ValueError(f"environment state is of scenario {state.get('scenario')!r}, not {self.scenario!r}")
        size = mujoco.mj_stateSize(self.model, _INTEGRATION)
        physics = saved_array(state, "physics", (self.num_envs, size), np.float64)
        steps = saved_array(state, "steps", (self.num_envs,), np.int64)
        success = saved_array(state, "success", (self.num_envs,), bool)
        pending = saved_array(state, "pending", (self.num_envs,), bool)
        goal_rot = saved_array(state, "goal_rot", (self.num_envs, 4), np.float64)
        if len(state.get("rngs", ())) != self.num_envs:
            raise ValueError(f"environment state entry 'rngs': expected {self.num_envs} random generator states")
        self._rngs = [np.random.Generator(np.random.PCG64()) for _ in range(self.num_envs)]
        for rng, data, row, rng_state in zip(self._rngs, self._data, physics, state["rngs"]):
            rng.bit_generator.state = rng_state
            mujoco.mj_setState(self.model, data, row, _INTEGRATION)
            mujoco.mj_step1(self.model, data)
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
        self._renderer.update_scene(self._data[0], camera="view")
        return self._renderer.render()

    def close(self) -> None:
        self._close_renderer()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None  # a later step would run in the caller's thread

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _require_reset(self) -> None:
        if not self._rngs:
            raise RuntimeError("the environment has no state yet: call reset(seed) first")

    def _map_memory(self) -> None:
        """Views into MuJoCo's memory, made once, and where things stand in it."""
        model, task = self.model, self.task
        distals = [model.body(f"hand{h}_{distal}").id for h in range(2) for distal in DISTALS]
        self._distals, roots = np.array(distals), model.body_rootid[distals]
        forearms = [model.body(f"hand{h}_forearm").id for h in range(2)]
        self._views: dict[str, list[np.ndarray]] = {
            "sensordata": [d.sensordata for d in self._data],
            "cfrc_ext": [d.cfrc_ext.ravel() for d in self._data],
            "subtree_com": [d.subtree_com.ravel() for d in self._data],
        }
        self._ctrl = [d.ctrl for d in self._data]
        self._base_wrench = [d.xfrc_applied[forearms[0] :: forearms[1] - forearms[0]][:2] for d in self._data]
        self._com_columns = (3 * roots[:, None] + np.arange(3)).ravel()
        self._force_columns = (6 * self._distals[:, None] + np.arange(6)).ravel()

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
        self._actuated_columns = self._joint_columns.reshape(2, -1)[:, tasks.DRIVEN].ravel()
        names = ["object", "object2"][: len(task.objects)]
        free = [] if task.kind == "door" else [model.joint(f"{name}_free").qposadr[0] for name in names]
        self._object_columns = [int(a) for a in free]

    def _start_episode(self, i: int) -> None:
        """Put environment i at the start of a new episode, up to date for `mj_step2` and for reading."""
        model, data = self.model, self._data[i]
        start = tasks.draw_start(self.task, self._rngs[i])
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = self._start_qpos, self._start_qvel
        data.qpos[self._joint_columns] = np.tile(start.joint_pos, 2)
        for a in self._object_columns:
            data.qpos[a : a + 3] += start.object_offset
            data.qpos[a + 3 : a + 7] = to_wxyz(start.object_rot)
        if self.task.kind == "egg":
            data.mocap_quat[:] = to_wxyz(start.goal_rot)
        data.ctrl[:] = data.qpos[self._actuated_columns]  # as in the original; MuJoCo clips targets to the joint ranges
        mujoco.mj_forward(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        self._goal_rot[i] = start.goal_rot
        self._steps[i], self._success[i], self._pending[i] = 0, False, False

    def _apply(self, action: np.ndarray) -> None:
        """Write targets and base forces of the actions (E, N, A) into every `MjData`."""
        targets = self._target_middle + self._target_half * action[..., -20:].reshape(self.num_envs, -1)
        for ctrl, row in zip(self._ctrl, targets):
            ctrl[:] = row
        if not self.task.fixed_base:
            for view, wrench in zip(self._base_wrench, action[..., :6] * self._wrench_scale):
                view[:] = wrench

    def _simulate(self) -> None:
        """One control step of every environment; whichever thread is free takes the next environment."""
        queue = iter(range(self.num_envs))
        if self._pool is None:
            self._simulate_from(queue)
        else:
            workers = [self._pool.submit(self._simulate_from, queue) for _ in range(self.sim_threads)]
            for worker in workers:
                worker.result()

    def _simulate_from(self, queue: Iterator[int]) -> None:
        """Substeps by halves, the second half first: afterwards positions, velocities and sensors are current at no
        further cost, where `mj_step` would leave them one substep behind."""
        model, step1, step2 = self.model, mujoco.mj_step1, mujoco.mj_step2
        for i in queue:
            data = self._data[i]
            for substep in range(SUBSTEPS):
                step2(model, data)
                if substep == SUBSTEPS - 1:  # contact forces of the last substep, while its contacts are in memory
                    mujoco.mj_rnePostConstraint(model, data)
                step1(model, data)

    def _gather(self, name: str, envs: Sequence[int]) -> np.ndarray:
        """A fresh float64 (len(envs), ...) copy of one field."""
        views = self._views[name]
        return np.concatenate([views[i] for i in envs]).reshape(len(envs), -1)

    def _read(self, envs: Sequence[int]) -> Physics:
        """What the tasks' formulas need, of these environments."""
        sensors = self._gather("sensordata", envs).take(self._sensor_order, axis=1)
        blocks = {name: sensors[:, part].reshape(len(envs), *shape) for name, (part, shape) in self._blocks.items()}
        # MuJoCo's contact wrench on a body: torque, then force, in world axes about the centre of mass of the whole
        # hand. The original's sensors: force, then torque, in the axes and about the origin of the distal link.
        shape = (len(envs), 2, len(DISTALS), -1)
        wrench = self._gather("cfrc_ext", envs).take(self._force_columns, axis=1).reshape(shape)
        com = self._gather("subtree_com", envs).take(self._com_columns, axis=1).reshape(shape)
        force = wrench[..., 3:]
        torque = wrench[..., :3] - cross(blocks["tips"][..., :3] - com, force)
        to_local = conjugate(blocks["tips"][..., 3:7])[..., None, :]
        local = rotate(to_local, np.stack([force, torque], axis=-2))
        return Physics(**blocks, tip_force=local.reshape(*shape[:3], 6))

    def _observe_start(self, envs: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Observations and state of environments whose episode has just begun, no action taken yet."""
        actions = np.zeros((len(envs), 2, self.task.action_dim))
        return tasks.observe(self.task, self._read(envs), self._goal_rot[list(envs)], actions)
