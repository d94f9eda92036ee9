"""Builders that several test files share: toy environments, small learners, random batches, double precision."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import his_mamujoco as hm
from common.streams import Streams
from common.vecenv import RenderError, StepResult, VecEnv

CPU = torch.device("cpu")


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """float64 wherever a dtype is not given."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class ToyEnv(VecEnv):
    """E copies of a task of `length` steps: random observations, a reward that is a function of the joint action.

    Episodes of environment e start `e` steps late (`stagger`), so that the environments end at different times.
    """

    max_episode_steps, render_fps = 1000, 10

    def __init__(
        self,
        num_envs: int,
        action_dims: Sequence[int],
        reward: Callable[[np.ndarray], np.ndarray],
        *,
        obs_dims: Sequence[int] | None = None,
        state_dim: int = 2,
        length: int = 1,
        terminates: bool = True,
        constant_obs: bool = False,
        stagger: bool = False,
    ):
        self.num_envs, self.num_agents, self.state_dim = num_envs, len(action_dims), state_dim
        self.action_dims, self.obs_dims = list(action_dims), list(obs_dims or [2] * len(action_dims))
        self.action_low = [-np.ones(dim, np.float32) for dim in action_dims]
        self.action_high = [np.ones(dim, np.float32) for dim in action_dims]
        self.reward, self.length, self.terminates = reward, length, terminates
        self.constant_obs, self.stagger = constant_obs, stagger
        self.rng, self.clock = np.random.default_rng(0), np.zeros(num_envs, dtype=int)

    def observe(self) -> tuple[list[np.ndarray], np.ndarray]:
        shapes = [(self.num_envs, dim) for dim in (*self.obs_dims, self.state_dim)]
        draw = np.ones if self.constant_obs else self.rng.standard_normal
        *obs, state = [np.asarray(draw(shape), dtype=np.float32) for shape in shapes]
        return obs, state

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        self.rng = np.random.default_rng(seed)
        self.clock = np.arange(self.num_envs) % self.length if self.stagger else np.zeros(self.num_envs, dtype=int)
        return self.observe()

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        reward = self.reward(self._join_actions(actions)).astype(np.float32)
        self.clock += 1
        ended = self.clock == self.length
        self.clock[ended] = 0
        (obs, state), (final_obs, final_state) = self.observe(), self.observe()
        for fresh, final in zip([*obs, state], [*final_obs, final_state]):
            final[~ended] = fresh[~ended]
        never = np.zeros_like(ended)
        ends = (ended, never) if self.terminates else (never, ended)
        return StepResult(obs, state, reward, *ends, final_obs, final_state)

    def get_state(self) -> dict[str, Any]:
        return {"clock": self.clock.copy(), "rng": self.rng.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.clock = np.array(state["clock"])
        self.rng.bit_generator.state = state["rng"]

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        raise RenderError("a toy has no picture")


def noisy_env(num_envs: int = 3, action_dims: Sequence[int] = (1, 2, 1), length: int = 5) -> ToyEnv:
    """A task on which an update has something to do: mixed sizes, ends at different times, an informative reward."""
    return ToyEnv(
        num_envs,
        action_dims,
        lambda joint: np.tanh(joint).sum(1) - (joint**2).sum(1),
        obs_dims=[3 + i for i in range(len(action_dims))],
        state_dim=4,
        length=length,
        stagger=True,
    )


def small_args(**values: Any) -> hm.Args:
    """Arguments of a run that takes milliseconds an update."""
    defaults: dict[str, Any] = dict(
        num_envs=3,
        hidden_sizes=(16, 16),
        batch_size=32,
        n_step=3,
        buffer_size=3000,
        device="cpu",
        eval_envs=1,
        eval_episodes=1,
    )
    return hm.Args(**(defaults | values))


def filled_buffer(
    env: VecEnv, steps: int, args: hm.Args, seed: int = 0, kind: type[hm.ReplayBuffer] = hm.ReplayBuffer
) -> hm.ReplayBuffer:
    """A replay buffer with `steps` vector steps of uniform random actions."""
    buffer = kind(env, max(steps, 2), args.n_step, args.gamma, CPU)
    rng = np.random.default_rng(seed)
    obs, state = env.reset(seed)
    for _ in range(steps):
        actions = [rng.uniform(-1, 1, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]
        step = env.step(actions)
        ends = (step.terminated, step.truncated)
        buffer.add(obs, state, actions, step.reward, step.final_obs, step.final_state, *ends)
        obs, state = step.obs, step.state
    return buffer


def small_learner(env: VecEnv, args: hm.Args) -> hm.Learner:
    return hm.Learner(env, Streams(args.seed, CPU), args, CPU)


def parameters_of(learner: hm.Learner) -> list[Tensor]:
    """Everything an update changes, copied."""
    modules = (*learner.actors, learner.critic, learner.target_critic)
    return [p.detach().clone() for module in modules for p in module.parameters()] + [
        learner.log_alpha.detach().clone()
    ]


def random_batch(env: VecEnv, batch_size: int, seed: int = 0) -> hm.Batch:
    """Rows of unrelated numbers in the shapes and the default dtype that an update expects."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return hm.Batch(
        obs=[normal(batch_size, dim) for dim in env.obs_dims],
        state=normal(batch_size, env.state_dim),
        actions=torch.tanh(normal(batch_size, sum(env.action_dims))),
        reward=normal(batch_size),
        discount=torch.rand(batch_size, generator=generator),
        next_obs=[normal(batch_size, dim) for dim in env.obs_dims],
        next_state=normal(batch_size, env.state_dim),
    )


def log_density(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(u; mean, exp(log_std)) by the script, summed over action dims."""
    return hm.gaussian_log_prob((u - mean) / log_std.exp(), log_std)
