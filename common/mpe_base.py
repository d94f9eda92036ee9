"""What the particle environments of `common.mpe` share: the tasks, the meaning of actions, saved states, pictures.

Shape letters as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.mpe_picture import AGENT_COLORS, draw
from common.vecenv import VecEnv, saved_array

NUM_LANDMARKS = 3
RULES = ("mpe2", "harl")


@dataclass(frozen=True)
class Task:
    """What tells one scenario from another. Speaker k knows which landmark agent `followers[k]` has to reach."""

    mpe2_name: str
    obs_dims: tuple[int, ...]
    movers: tuple[int, ...]
    speakers: tuple[int, ...] = ()
    followers: tuple[int, ...] = ()
    channels: int = 0
    agent_radius: float = 0.05
    landmark_radius: float = 0.05
    goal_colors: tuple[float, float] = (0.0, 0.0)
    """Observed colour of a landmark: the entry of its own number has the second value, the two others the first."""


TASKS = {
    "simple_spread": Task("simple_spread_v3", (18, 18, 18), movers=(0, 1, 2), agent_radius=0.15),
    "simple_reference": Task(
        *("simple_reference_v3", (21, 21), (0, 1)),
        speakers=(0, 1),
        followers=(1, 0),
        channels=10,
        goal_colors=(0.25, 0.75),
    ),
    "simple_speaker_listener": Task(
        *("simple_speaker_listener_v4", (3, 11), (1,)),
        speakers=(0,),
        followers=(1,),
        channels=3,
        agent_radius=0.075,
        landmark_radius=0.04,
        goal_colors=(0.15, 0.65),
    ),
}
SCENARIOS = tuple(TASKS)
NUM_AGENTS = {name: len(task.obs_dims) for name, task in TASKS.items()}

MOVES = 5  # entries of a moving agent's action: nothing, left, right, down, up


class ParticleVecEnv(VecEnv):
    """What the two back ends share: sizes, the meaning of actions, the saved state and the picture.

    Every agent's actions are in [-1, 1], values beyond are clipped. Under the rules `mpe2` they are mapped affinely
    onto the [0, 1] of the package. A force is the difference of two opposite entries and a message is what is said, so
    that the zero action is no force and a message of 0.5 in all channels. Under `harl` they are clipped to [0, 1], as
    happens in HARL to its actors' [-1, 1]: all that is negative is the same as zero, and zero is no force, no message.
    """

    max_episode_steps = 25
    render_fps = 10
    agent_colors: Sequence[tuple[int, ...]] = AGENT_COLORS
    """What fills the agents in pictures, RGB in 0..255."""

    def __init__(self, scenario: str, num_envs: int, rules: str):
        if scenario not in TASKS:
            raise ValueError(f"unknown scenario {scenario!r}; allowed: {', '.join(SCENARIOS)}")
        if rules not in RULES:
            raise ValueError(f"unknown rules {rules!r}; allowed: {', '.join(RULES)}")
        if num_envs < 1:
            raise ValueError(f"num_envs must be >= 1, got {num_envs}")
        self.scenario, self.num_envs, self.rules = scenario, num_envs, rules
        self.task = task = TASKS[scenario]
        self.num_agents = NUM_AGENTS[scenario]
        self.state_dim = sum(task.obs_dims)
        self.obs_dims = list(task.obs_dims)
        self.own_action_dims = [
            MOVES * (i in task.movers) + task.channels * (i in task.speakers) for i in range(self.num_agents)
        ]
        """The sizes without padding."""
        self.action_dims = list(self.own_action_dims)
        if rules == "harl":  # everything is padded to the largest agent
            self.obs_dims = [max(self.obs_dims)] * self.num_agents
            self.action_dims = [max(self.action_dims)] * self.num_agents
        self.action_low = [np.full(dim, -1.0, dtype=np.float32) for dim in self.action_dims]
        self.action_high = [np.full(dim, 1.0, dtype=np.float32) for dim in self.action_dims]
        self._obs_ends = np.cumsum(task.obs_dims).tolist()  # of each agent in the state
        self.action_starts = [sum(self.action_dims[:i]) for i in range(self.num_agents)]  # in the joint action
        self._rngs: list[np.random.Generator] = []

    def get_state(self) -> dict[str, Any]:
        """See `VecEnv.get_state`; the two back ends can exchange their states."""
        self._require_reset()
        world = {key: value.copy() for key, value in self._get_world().items()}
        rngs = [rng.bit_generator.state for rng in self._rngs]
        return {"scenario": self.scenario, "rules": self.rules, **world, "rngs": rngs}

    def set_state(self, state: Mapping[str, Any]) -> None:
        for key in ("scenario", "rules"):
            if state.get(key) != getattr(self, key):
                raise ValueError(f"environment state is of {key} {state.get(key)!r}, not {getattr(self, key)!r}")
        world = {key: saved_array(state, key, (self.num_envs, *s), t) for key, (s, t) in self.world_shapes().items()}
        if len(state.get("rngs", ())) != self.num_envs:
            raise ValueError(f"environment state entry 'rngs': expected {self.num_envs} random generator states")
        rngs = [np.random.Generator(np.random.PCG64()) for _ in range(self.num_envs)]
        for rng, rng_state in zip(rngs, state["rngs"]):
            rng.bit_generator.state = rng_state
        self._rngs = rngs
        self._set_world(world)

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        """See `VecEnv.render`; the camera shows [-1.3, 1.3] and backs off when an agent leaves that."""
        self._require_reset()
        task, world = self.task, {key: value[0] for key, value in self._get_world().items()}
        return draw(
            width,
            height,
            agents=world["positions"],
            agent_radius=task.agent_radius,
            landmarks=world["landmarks"],
            landmark_radius=task.landmark_radius,
            goals=dict(zip(task.followers, world["goals"].tolist())),
            messages=dict(zip(task.speakers, world["messages"])),
            solid=self.scenario == "simple_spread",
            colors=self.agent_colors,
        )

    def world_shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape without E and type of what makes up the world."""
        points = (self.num_agents, 2)
        speakers = len(self.task.speakers)
        return {
            "positions": (points, np.float64),
            "velocities": (points, np.float64),
            "landmarks": ((NUM_LANDMARKS, 2), np.float64),
            "goals": ((speakers,), np.int64),  # the landmark that speaker k knows
            "messages": ((speakers, self.task.channels), np.float64),  # what was said in the last step
            "steps": ((), np.int64),
        }

    def _get_world(self) -> dict[str, np.ndarray]:
        """The entries of `world_shapes`, each (E, ...)."""
        raise NotImplementedError

    def _set_world(self, world: dict[str, np.ndarray]) -> None:
        raise NotImplementedError

    def _require_reset(self) -> None:
        if not self._rngs:
            raise RuntimeError("the environment has no state yet: call reset(seed) first")

    def _box_actions(self, actions: Sequence[np.ndarray]) -> np.ndarray:
        """The joint action as the packages take it: float32 (E, sum of A_i) in [0, 1]."""
        joint = self._join_actions(actions)
        if self.rules == "mpe2":
            joint += 1.0
            joint *= 0.5
        return joint.clip(0.0, 1.0, out=joint).astype(np.float32)

    def _split_obs(self, state: np.ndarray) -> list[np.ndarray]:
        """The agents' observations: the pieces of the state, float32 (E, S), copied and padded with zeros."""
        obs = []
        for end, own, dim in zip(self._obs_ends, self.task.obs_dims, self.obs_dims):
            piece = state[:, end - own : end]
            if own == dim:
                obs.append(piece.copy())
            else:
                obs.append(np.zeros((self.num_envs, dim), dtype=np.float32))
                obs[-1][:, :own] = piece
        return obs
