"""Multi-Agent MuJoCo: a robot whose joints are shared out among agents, as the HIS and HARL papers use it.

The physics, rewards and terminations are those of Gymnasium's v4 environments (equal to the v2 ones of HARL), the
partitions and the fully observable setting those of HARL (https://github.com/PKU-MARL/HARL), and the optional local
observations those of Gymnasium-Robotics `mamujoco_v1` (https://robotics.farama.org/envs/MaMuJoCo). One `MjModel` serves
E `MjData`, stepped in one thread: the learner, not the physics, is what costs time.

Shape letters: E environments, N agents, S state size, O_i observation size, U actuators (sum of the action sizes).
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.mamujoco_robots import NUM_AGENTS, ROBOTS, SCENARIOS, load_model, local_obs_index, mujoco
from common.vecenv import RenderError, StepResult, VecEnv, saved_array

__all__ = ["NUM_AGENTS", "OBS_MODES", "SCENARIOS", "MAMuJoCoVecEnv"]

OBS_MODES = ("full", "local", "joints")

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION.value  # includes the solver's warm start


class MAMuJoCoVecEnv(VecEnv):
    """E copies of one of the nine `SCENARIOS`.

    `obs_mode="full"` is HARL's setting: agent i sees the whole state and its one-hot index, standardised over the
    features of that one vector. `obs_mode="local"` is `mamujoco_v1`'s: agent i sees position, velocity (Ant: also
    contact forces, clipped to [-1, 1]) of its own joints, the positions of the joints up to `obs_neighbors` links away,
    and the torso; raw values, not standardised. The state is in both modes HARL's: the whole state, standardised.
    `obs_mode="joints"` is FACMAC's (https://github.com/oxwhirl/facmac): agent i sees position and velocity of its own
    joints and nothing else, and the state is not standardised either.

    Actions beyond [-1, 1] are clipped by MuJoCo but cost what their unclipped size says, as in Gymnasium.
    """

    max_episode_steps = 1000

    def __init__(self, scenario: str, num_envs: int, obs_mode: str = "full", obs_neighbors: int = 1):
        if scenario not in SCENARIOS:
            raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")
        if obs_mode not in OBS_MODES:
            raise ValueError(f"unknown obs_mode {obs_mode!r}; allowed: {', '.join(OBS_MODES)}")
        if num_envs < 1 or obs_neighbors < 0:
            raise ValueError(f"num_envs must be >= 1 and obs_neighbors >= 0, got {num_envs} and {obs_neighbors}")
        self.scenario, self.num_envs, self.obs_mode = scenario, num_envs, obs_mode
        self._robot_name, partition = scenario.split("-")
        self.num_agents, joints_per_agent = map(int, partition.split("x"))
        self.robot = ROBOTS[self._robot_name]
        self.model = model = load_model(self._robot_name)
        self.state_dim = model.nq - self.robot.hidden_qpos + model.nv + self.robot.state_padding
        self.action_dims = [joints_per_agent] * self.num_agents
        ctrlrange = model.actuator_ctrlrange.astype(np.float32).reshape(self.num_agents, joints_per_agent, 2)
        self.action_low, self.action_high = list(ctrlrange[..., 0].copy()), list(ctrlrange[..., 1].copy())
        self._dt = model.opt.timestep * self.robot.frame_skip  # seconds per environment step
        self.render_fps = round(1 / self._dt)

        self._sees_contacts = obs_mode == "local" and self._robot_name == "Ant"
        own = np.arange(model.nu).reshape(self.num_agents, -1)
        if obs_mode == "full":
            self._obs_index = full_obs_indices(self.state_dim, self.num_agents)
        elif obs_mode == "joints":
            self._obs_index = [local_obs_index(model, self.robot, o, neighbors=0, torso=False) for o in own]
        else:
            self._obs_index = [local_obs_index(model, self.robot, o, obs_neighbors, self._sees_contacts) for o in own]
        self.obs_dims = [len(index) for index in self._obs_index]

        # Views into MuJoCo's memory, made once: asking MuJoCo for one takes nearly as long as copying its values.
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._views = {name: [getattr(d, name).ravel() for d in self._data] for name in ("qpos", "qvel", "cfrc_ext")}
        self._ctrl = [d.ctrl for d in self._data]
        self._torso = [d.xpos[1] for d in self._data]
        self._init_qpos, self._init_qvel = self._data[0].qpos.copy(), self._data[0].qvel.copy()
        # Raw state and the one-hot index of agent 0; `full_obs_indices` makes the other agents' vectors of it.
        self._features = np.zeros((num_envs, self.state_dim + self.num_agents))
        self._features[:, self.state_dim] = 1.0
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._rngs: list[np.random.Generator] = []
        self._renderer: Any = None

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """See `VecEnv.reset`; environment i starts bit-equal to Gymnasium's v4 `reset(seed=seed + i)`."""
        self._rngs = [np.random.Generator(np.random.PCG64(seed + i)) for i in range(self.num_envs)]
        for i in range(self.num_envs):
            self._reset_env(i)
        self._read_physics()
        return self._observe()

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        """See `VecEnv.step`. On the last step of the time limit a fall counts as truncation, as in HARL."""
        action = self._join_actions(actions)  # (E, U)
        self._require_reset()
        x_before = self._forward_x
        for data, ctrl, row in zip(self._data, self._ctrl, action):
            ctrl[:] = row
            mujoco.mj_step(self.model, data, self.robot.frame_skip)
            if self._sees_contacts:
                mujoco.mj_rnePostConstraint(self.model, data)
        self._steps += 1
        self._read_physics()

        velocity = (self._forward_x - x_before) / self._dt
        ctrl_cost = self.robot.ctrl_cost * np.square(action).sum(axis=1)
        reward = (velocity + self.robot.alive_reward - ctrl_cost).astype(np.float32)
        truncated = self._steps >= self.max_episode_steps
        terminated = self._fallen() & ~truncated
        final_obs, final_state = self._observe()

        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            for i in ended.tolist():
                self._reset_env(i)
            self._read_physics()
            obs, state = self._observe()
        else:
            obs, state = [o.copy() for o in final_obs], final_state.copy()
        return StepResult(obs, state, reward, terminated, truncated, final_obs, final_state)

    @property
    def raw_state(self) -> np.ndarray:
        """Gymnasium's observation, padded: the current state before standardisation, float64 (E, S)."""
        return self._features[:, : self.state_dim].copy()

    def get_state(self) -> dict[str, Any]:
        self._require_reset()
        physics = np.empty((self.num_envs, mujoco.mj_stateSize(self.model, _PHYSICS)))
        for data, row in zip(self._data, physics):
            mujoco.mj_getState(self.model, data, row, _PHYSICS)
        return {
            "scenario": self.scenario,
            "physics": physics,
            "forward_x": self._forward_x.copy(),
            "steps": self._steps.copy(),
            "rngs": [rng.bit_generator.state for rng in self._rngs],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `VecEnv.set_state`; the state may come from another `obs_mode` of the same scenario."""
        if state.get("scenario") != self.scenario:
            raise ValueError(f"environment state is of scenario {state.get('scenario')!r}, not {self.scenario!r}")
        size = mujoco.mj_stateSize(self.model, _PHYSICS)
        physics = saved_array(state, "physics", (self.num_envs, size), np.float64)
        forward_x = saved_array(state, "forward_x", (self.num_envs,), np.float64)
        steps = saved_array(state, "steps", (self.num_envs,), np.int64)
        if len(state.get("rngs", ())) != self.num_envs:
            raise ValueError(f"environment state entry 'rngs': expected {self.num_envs} random generator states")
        self._rngs = [np.random.Generator(np.random.PCG64()) for _ in range(self.num_envs)]
        for rng, data, row, rng_state in zip(self._rngs, self._data, physics, state["rngs"]):
            rng.bit_generator.state = rng_state
            mujoco.mj_setState(self.model, data, row, _PHYSICS)
            mujoco.mj_forward(self.model, data)  # body positions, for rendering; the next step does not need it
        self._steps = steps
        self._read_physics()
        self._forward_x = forward_x  # Ant's lags the positions, so it cannot be read off them

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        """See `VecEnv.render`; the camera follows the robot."""
        if self._renderer is None or (self._renderer.width, self._renderer.height) != (width, height):
            self.close()
            buffer = self.model.vis.global_
            buffer.offwidth, buffer.offheight = max(buffer.offwidth, width), max(buffer.offheight, height)
            try:
                self._renderer = mujoco.Renderer(self.model, height, width)
            except Exception as error:  # each back end fails with errors of its own
                raise RenderError(
                    "cannot render: no working OpenGL; install libegl1 libegl-mesa0 libgl1-mesa-dri (MUJOCO_GL=egl) "
                    f"or libosmesa6 (MUJOCO_GL=osmesa); MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}"
                ) from error
        self._renderer.update_scene(self._data[0], camera="track")
        # Shadows are more than half of the time where a CPU draws; the reflection shows where the ground is.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        return self._renderer.render()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _require_reset(self) -> None:
        if not self._rngs:
            raise RuntimeError("the environment has no state yet: call reset(seed) first")

    def _reset_env(self, i: int) -> None:
        """Start a new episode in environment i, drawing in Gymnasium's order: positions, then velocities."""
        robot, model, data, rng = self.robot, self.model, self._data[i], self._rngs[i]
        mujoco.mj_resetData(model, data)
        data.qpos[:] = self._init_qpos + rng.uniform(-robot.reset_noise, robot.reset_noise, model.nq)
        if robot.gaussian_qvel:
            data.qvel[:] = self._init_qvel + robot.reset_noise * rng.standard_normal(model.nv)
        else:
            data.qvel[:] = self._init_qvel + rng.uniform(-robot.reset_noise, robot.reset_noise, model.nv)
        mujoco.mj_forward(model, data)
        self._steps[i] = 0

    def _gather(self, name: str) -> np.ndarray:
        """A fresh float64 (E, ...) copy of one field of all `MjData`."""
        return np.concatenate(self._views[name]).reshape(self.num_envs, -1)

    def _read_physics(self) -> None:
        """Copy positions, velocities and the features made of them out of MuJoCo's memory."""
        self._qpos, self._qvel = self._gather("qpos"), self._gather("qvel")
        if self._robot_name == "Ant":
            # Gymnasium rewards the torso's Cartesian position, which lags qpos by one physics substep.
            self._forward_x = np.array([position[0] for position in self._torso])
        else:
            self._forward_x = self._qpos[:, 0]
        nq, nv, clip = self.model.nq - self.robot.hidden_qpos, self.model.nv, self.robot.qvel_clip
        self._features[:, :nq] = self._qpos[:, self.robot.hidden_qpos :]
        self._features[:, nq : nq + nv] = self._qvel if clip == np.inf else self._qvel.clip(-clip, clip)

    def _observe(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Observations and state of the physics last read: N arrays float32 (E, O_i) and float32 (E, S)."""
        raw = self._features[:, : self.state_dim]
        state = (raw if self.obs_mode == "joints" else standardise(raw)).astype(np.float32)
        if self.obs_mode == "full":
            source = standardise(self._features)
        elif self._sees_contacts:
            source = np.concatenate([self._qpos, self._qvel, self._gather("cfrc_ext").clip(-1.0, 1.0)], axis=1)
        else:
            source = np.concatenate([self._qpos, self._qvel], axis=1)
        source = source.astype(np.float32)
        return [source.take(index, axis=1) for index in self._obs_index], state

    def _fallen(self) -> np.ndarray:
        """Which robots fell, bool (E,)."""
        if self._robot_name == "Ant":
            height = self._qpos[:, 2]
            finite = np.isfinite(self._qpos).all(axis=1) & np.isfinite(self._qvel).all(axis=1)
            return ~(finite & (height >= 0.2) & (height <= 1.0))
        if self._robot_name == "Walker2d":
            height, angle = self._qpos[:, 1], self._qpos[:, 2]
            return ~((height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0))
        return np.zeros(self.num_envs, dtype=bool)


def standardise(x: np.ndarray) -> np.ndarray:
    """Each row minus its own mean, divided by its own population standard deviation; (E, D) float64."""
    centred = x - x.sum(axis=1, keepdims=True) / x.shape[1]  # half the time of x.mean and x.std
    return centred / np.sqrt(np.vecdot(centred, centred) / x.shape[1])[:, None]


def full_obs_indices(state_dim: int, num_agents: int) -> list[np.ndarray]:
    """For each agent, where its features stand in the standardised (state, 1, 0, ..., 0).

    The vectors of the agents hold the same values in another order, so one standardisation serves them all.
    """
    indices = np.full((num_agents, state_dim + num_agents), state_dim + 1)  # the entry of a zero
    indices[:, :state_dim] = np.arange(state_dim)
    indices[np.arange(num_agents), state_dim + np.arange(num_agents)] = state_dim  # the entry of the one
    return list(indices)
