"""Multi-agent particle environments (MPE): discs in a plane that cover landmarks or tell each other where to go.

Three cooperative tasks with continuous actions, in two sets of rules: `mpe2`, those of today's package mpe2 1.1.1
(https://mpe2.farama.org), and `harl`, those of PettingZoo 1.22.2 as HARL (https://github.com/PKU-MARL/HARL) and by that
the published results use them. `MPEVecEnv` steps E copies at once in numpy; `MPE2VecEnv` steps E environments of the
package itself, which must be installed for it.

Shape letters: E environments, N agents, 3 landmarks, K speakers, C channels of a message, S state size, O_i and A_i
observation and action size of agent i. Positions are in world units; everything starts within [-1, 1].
"""

import importlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from common.mpe_base import MOVES, NUM_AGENTS, NUM_LANDMARKS, RULES, SCENARIOS, TASKS, ParticleVecEnv
from common.vecenv import StepResult

__all__ = ["NUM_AGENTS", "RULES", "SCENARIOS", "TASKS", "MPE2VecEnv", "MPEVecEnv"]

_STEP = 0.1  # seconds
_DRAG = 0.75  # share of the velocity that is left after a step
_MAX_FORCE = 5.0
_CONTACT_FORCE, _CONTACT_MARGIN = 1e2, 1e-3

# The three pairs of agents that can collide in simple_spread, and which agent a pair's force pushes which way.
_FIRST, _SECOND = np.array([0, 0, 1]), np.array([1, 2, 2])
_PUSH = np.array([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, -1.0]])
_OTHERS = np.array([[1, 2], [0, 2], [0, 1]])


class MPEVecEnv(ParticleVecEnv):
    """E copies of one of the three `SCENARIOS`, stepped at once in numpy. The reward is the sum over the agents.

    `rules="mpe2"`: environment i starts where mpe2's `reset(seed=seed + i)` starts. `rules="harl"` differs in this:
    an agent of simple_spread also collides with itself (-1.5 a step in all), a step changes the velocity before the
    position instead of after it, the direction of a movement is mirrored, actions have another range (see the base
    class), the first ones of an agent count and the rest is padding, and observations are padded with zeros.
    """

    def __init__(self, scenario: str, num_envs: int, rules: str = "mpe2"):
        super().__init__(scenario, num_envs, rules)
        task = self.task
        for key, (shape, dtype) in self.world_shapes().items():
            setattr(self, f"_{key}", np.zeros((num_envs, *shape), dtype=dtype))
        self._positions: np.ndarray
        self._velocities: np.ndarray
        self._landmarks: np.ndarray
        self._goals: np.ndarray
        self._messages: np.ndarray
        self._steps: np.ndarray
        # Columns of the joint action that push a mover in the positive and negative direction of x and y.
        low = np.array([[self.action_starts[i] + 1, self.action_starts[i] + 3] for i in task.movers])
        self._push_up, self._push_down = (low + 1, low) if rules == "mpe2" else (low, low + 1)
        said = [self.action_starts[i] + MOVES * (i in task.movers) for i in task.speakers]
        self._said = np.array(said, dtype=np.int64)[:, None] + np.arange(task.channels)
        self._colors = np.full((NUM_LANDMARKS, 3), task.goal_colors[0])
        np.fill_diagonal(self._colors, task.goal_colors[1])
        self._collide = scenario == "simple_spread"
        self._all = np.arange(num_envs)[:, None]

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """See `VecEnv.reset`; the positions are those of the rules' own package for `reset(seed=seed + i)`."""
        self._rngs = [np.random.Generator(np.random.PCG64(seed + i)) for i in range(self.num_envs)]
        for i in range(self.num_envs):
            self._reset_env(i)
        state = self._observe(self._to_landmarks())
        return self._split_obs(state), state

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        box = self._box_actions(actions)
        self._require_reset()
        force = np.zeros_like(self._velocities)
        force[:, self.task.movers] = box.take(self._push_up, axis=1) - box.take(self._push_down, axis=1)
        force *= _MAX_FORCE
        if self._collide:
            force += self._contact_forces()
        velocities = _DRAG * self._velocities + _STEP * force
        self._positions = self._positions + _STEP * (self._velocities if self.rules == "mpe2" else velocities)
        self._velocities = velocities
        self._messages = box.take(self._said, axis=1).astype(np.float64)
        self._steps += 1

        to_landmarks = self._to_landmarks()
        reward = self._reward(to_landmarks).astype(np.float32)
        final_state = self._observe(to_landmarks)
        truncated = self._steps >= self.max_episode_steps
        if truncated.any():
            for i in np.flatnonzero(truncated).tolist():
                self._reset_env(i)
            state = self._observe(self._to_landmarks())
        else:
            state = final_state.copy()
        obs, final_obs = self._split_obs(state), self._split_obs(final_state)
        return StepResult(obs, state, reward, np.zeros_like(truncated), truncated, final_obs, final_state)

    def _get_world(self) -> dict[str, np.ndarray]:
        return {key: getattr(self, f"_{key}") for key in self.world_shapes()}

    def _set_world(self, world: dict[str, np.ndarray]) -> None:
        for key, value in world.items():
            setattr(self, f"_{key}", value)

    def _reset_env(self, i: int) -> None:
        """Start a new episode in environment i, drawing in the packages' order: goals, agents, landmarks."""
        rng = self._rngs[i]
        self._goals[i] = [rng.integers(NUM_LANDMARKS) for _ in self.task.speakers]
        points = rng.uniform(-1.0, 1.0, (self.num_agents + NUM_LANDMARKS, 2))
        self._positions[i], self._landmarks[i] = points[: self.num_agents], points[self.num_agents :]
        self._velocities[i] = 0.0
        self._messages[i] = 0.0
        self._steps[i] = 0

    def _contact_forces(self) -> np.ndarray:
        """What pushes agents apart that touch, (E, N, 2): a soft wall at twice the radius."""
        delta = self._positions.take(_FIRST, axis=1) - self._positions.take(_SECOND, axis=1)  # (E, pairs, 2)
        distance = np.sqrt(np.vecdot(delta, delta))
        gap = (distance - 2 * self.task.agent_radius) / _CONTACT_MARGIN
        strength = _CONTACT_FORCE * _CONTACT_MARGIN * np.logaddexp(0.0, -gap) / distance
        return _PUSH @ (delta * strength[..., None])

    def _to_landmarks(self) -> np.ndarray:
        """From each agent to each landmark, (E, N, 3, 2)."""
        return self._landmarks[:, None] - self._positions[:, :, None]

    def _reward(self, to_landmarks: np.ndarray) -> np.ndarray:
        """The sum of the agents' rewards, (E,)."""
        if self._collide:
            distance = np.sqrt(np.vecdot(to_landmarks, to_landmarks))  # (E, N, 3)
            delta = self._positions.take(_FIRST, axis=1) - self._positions.take(_SECOND, axis=1)
            collisions = (np.sqrt(np.vecdot(delta, delta)) < 2 * self.task.agent_radius).sum(axis=1)
            with_itself = 1.5 if self.rules == "harl" else 0.0
            return -1.5 * distance.min(axis=1).sum(axis=1) - collisions - with_itself
        missing = to_landmarks[self._all, self.task.followers, self._goals]  # (E, K, 2)
        square = np.vecdot(missing, missing)
        return -np.sqrt(square).sum(axis=1) if self.scenario == "simple_reference" else -2.0 * square[:, 0]

    def _observe(self, to_landmarks: np.ndarray) -> np.ndarray:
        """The state, float32 (E, S): the agents' observations without padding, side by side."""
        to_landmarks = to_landmarks.reshape(self.num_envs, self.num_agents, 2 * NUM_LANDMARKS)
        if self.scenario == "simple_speaker_listener":
            parts = [self._colors[self._goals[:, 0]], self._velocities[:, 1], to_landmarks[:, 1], self._messages[:, 0]]
            return np.concatenate(parts, axis=1, dtype=np.float32)
        if self.scenario == "simple_reference":
            parts = [self._velocities, to_landmarks, self._colors[self._goals], self._messages[:, ::-1]]
        else:
            others = self._positions.take(_OTHERS, axis=1) - self._positions[:, :, None]
            others = others.reshape(self.num_envs, self.num_agents, 4)
            unused_messages = np.zeros_like(others)
            parts = [self._velocities, self._positions, to_landmarks, others, unused_messages]
        return np.concatenate(parts, axis=2, dtype=np.float32).reshape(self.num_envs, self.state_dim)


class MPE2VecEnv(ParticleVecEnv):
    """The same on E parallel environments of the package mpe2 itself, rules `mpe2` only; ImportError without it."""

    def __init__(self, scenario: str, num_envs: int):
        super().__init__(scenario, num_envs, "mpe2")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            module = importlib.import_module(f"mpe2.{self.task.mpe2_name}")
        except ImportError as error:
            raise ImportError(f"the mpe2 back end needs the package mpe2: pip install mpe2==1.1.1 ({error})") from error
        make = module.parallel_env
        self._envs = [make(continuous_actions=True, max_cycles=self.max_episode_steps) for _ in range(num_envs)]
        self._names: list[str] = self._envs[0].possible_agents

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        state = np.stack([self._joined(env.reset(seed=seed + i)[0]) for i, env in enumerate(self._envs)])
        self._read_rngs()
        return self._split_obs(state), state

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        box = self._box_actions(actions)
        self._require_reset()
        final_state = np.empty((self.num_envs, self.state_dim), dtype=np.float32)
        reward = np.empty(self.num_envs, dtype=np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        own = np.split(box, self.action_starts[1:], axis=1)
        for i, env in enumerate(self._envs):
            obs, rewards, ends, cuts, _ = env.step({name: action[i] for name, action in zip(self._names, own)})
            final_state[i] = self._joined(obs)
            reward[i] = sum(rewards.values())
            terminated[i], truncated[i] = any(ends.values()), any(cuts.values())
        state = final_state.copy()
        for i in np.flatnonzero(terminated | truncated).tolist():
            state[i] = self._joined(self._envs[i].reset()[0])
        obs, final_obs = self._split_obs(state), self._split_obs(final_state)
        return StepResult(obs, state, reward, terminated, truncated, final_obs, final_state)

    def _joined(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([obs[name] for name in self._names])

    def _read_rngs(self) -> None:
        self._rngs = [env.unwrapped.np_random for env in self._envs]

    def _get_world(self) -> dict[str, np.ndarray]:
        worlds = [env.unwrapped.world for env in self._envs]
        speakers = self.task.speakers
        values = {
            "positions": [[a.state.p_pos for a in w.agents] for w in worlds],
            "velocities": [[a.state.p_vel for a in w.agents] for w in worlds],
            "landmarks": [[l.state.p_pos for l in w.landmarks] for w in worlds],
            "goals": [[w.landmarks.index(w.agents[i].goal_b) for i in speakers] for w in worlds],
            "messages": [[w.agents[i].state.c for i in speakers] for w in worlds],
            "steps": [env.unwrapped.steps for env in self._envs],
        }
        return {
            key: np.array(values[key], dtype=dtype).reshape(self.num_envs, *shape)
            for key, (shape, dtype) in self.world_shapes().items()
        }

    def _set_world(self, world: dict[str, np.ndarray]) -> None:
        for e, (env, rng) in enumerate(zip(self._envs, self._rngs)):
            env.reset()  # so that the wrappers and the order of the agents are those of a running episode
            raw = env.unwrapped
            raw.np_random, raw.steps = rng, int(world["steps"][e])
            for i, agent in enumerate(raw.world.agents):
                agent.state.p_pos = world["positions"][e, i].copy()
                agent.state.p_vel = world["velocities"][e, i].copy()
            for landmark, position in zip(raw.world.landmarks, world["landmarks"][e]):
                landmark.state.p_pos = position.copy()
            for k, i in enumerate(self.task.speakers):
                raw.world.agents[i].goal_b = raw.world.landmarks[world["goals"][e, k]]
                raw.world.agents[i].state.c = world["messages"][e, k].copy()
