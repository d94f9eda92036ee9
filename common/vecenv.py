"""The vector-environment contract: E copies of one cooperative multi-agent task, stepped together.

Shape letters: E environments, N agents, O_i and A_i the observation and action size of agent i, S the state size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np


class NonFiniteError(RuntimeError):
    """A NaN or an infinity appeared where training cannot go on; the message names the agent and the tensor."""


class RenderError(RuntimeError):
    """No frame can be drawn on this machine; the message is one line that says what to install."""


class StepResult(NamedTuple):
    """What one `VecEnv.step` returns. Every array is a fresh copy that nothing changes afterwards.

    An environment whose episode ended has already been reset: `obs` and `state` then belong to the new episode, while
    `final_obs` and `final_state` are the true successors of the action in every environment. A replay buffer therefore
    stores the final ones unconditionally and bootstraps wherever `terminated` is False.
    """

    obs: list[np.ndarray]
    """N arrays float32 (E, O_i): what the agents act on next."""
    state: np.ndarray
    """float32 (E, S): the global state that belongs to `obs`."""
    reward: np.ndarray
    """float32 (E,): the reward that all agents share."""
    terminated: np.ndarray
    """bool (E,): the task itself ended, so the return after it is zero."""
    truncated: np.ndarray
    """bool (E,): the time limit ended the episode; never True together with `terminated`."""
    final_obs: list[np.ndarray]
    """N arrays float32 (E, O_i): the observations before any reset."""
    final_state: np.ndarray
    """float32 (E, S): the global state before any reset."""


class VecEnv(ABC):
    """E independent copies of one task with N agents, stepped together; a step that ends an episode starts the next."""

    num_envs: int
    num_agents: int
    obs_dims: list[int]
    action_dims: list[int]
    state_dim: int
    action_low: list[np.ndarray]
    """N arrays float32 (A_i,): the smallest useful action."""
    action_high: list[np.ndarray]
    """N arrays float32 (A_i,): the largest useful action."""
    max_episode_steps: int
    render_fps: int
    """Frames per second at which rendered steps play in real time."""
    last_success: np.ndarray | None = None
    """bool (E,): whether the episode that the last step belongs to has been a success; None: a task without success."""

    @abstractmethod
    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Start E new episodes; environment i draws from its own stream, seeded with `seed + i`.

        Returns `obs` (N arrays float32 (E, O_i)) and `state` (float32 (E, S)).
        """

    @abstractmethod
    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        """Apply one action per agent, N arrays (E, A_i).

        Raises ValueError for a wrong count or shape and `NonFiniteError` for a NaN or infinite action.
        """

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs, as plain Python values, lists and numpy arrays.

        The last observation is not part of it: the caller holds that one.
        """

    @abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `get_state` returned; CPU tensors may replace its arrays. ValueError if it cannot fit."""

    @abstractmethod
    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        """A picture of environment 0, uint8 (height, width, 3). Raises `RenderError` where nothing can be drawn."""

    def close(self) -> None:
        """Free what the environment holds outside Python, such as a graphics context. Safe to call twice."""
        return

    def _join_actions(self, actions: Sequence[np.ndarray]) -> np.ndarray:
        """Check the agents' actions and put them side by side in agent order: float64 (E, sum of A_i)."""
        if len(actions) != self.num_agents:
            raise ValueError(f"expected actions of {self.num_agents} agents, got {len(actions)}")
        for agent, (action, dim) in enumerate(zip(actions, self.action_dims)):
            if np.shape(action) != (self.num_envs, dim):
                raise ValueError(
                    f"actions of agent {agent}: expected shape {(self.num_envs, dim)} (environments, action size), "
                    f"got {np.shape(action)}"
                )
        joined = np.concatenate(actions, axis=1, dtype=np.float64)
        if not np.isfinite(joined).all():
            self._raise_non_finite_action(actions)
        return joined

    def _raise_non_finite_action(self, actions: Sequence[np.ndarray]) -> NoReturn:
        agent, action = next((i, np.asarray(a)) for i, a in enumerate(actions) if not np.isfinite(a).all())
        env = int(np.flatnonzero(~np.isfinite(action).all(axis=1))[0])
        raise NonFiniteError(f"action of agent {agent} in environment {env} is not finite: {action[env].tolist()}")


def saved_array(state: Mapping[str, Any], key: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Entry `key` of a saved environment state as a fresh array; ValueError if it is missing or of another shape."""
    if key not in state:
        raise ValueError(f"environment state has no entry {key!r}")
    array = np.asarray(state[key]).astype(dtype)
    if array.shape != shape:
        raise ValueError(f"environment state entry {key!r}: expected shape {shape}, got {array.shape}")
    return array


def check_finite(what: str, arrays: Sequence[np.ndarray]) -> None:
    """Raise `NonFiniteError` naming agent and environment if one of N arrays (E, ...), one an agent, is not finite."""
    for agent, array in enumerate(arrays):
        finite = np.isfinite(array)
        if not finite.all():
            whose = f" of agent {agent}" if len(arrays) > 1 else ""
            raise NonFiniteError(f"{what}{whose} in environment {int(np.argwhere(~finite)[0, 0])} is not finite")
