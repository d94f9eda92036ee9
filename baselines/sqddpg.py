"""SQDDPG in one file, for all three benchmarks: `--benchmark mpe|mamujoco|bidexhands`.

SQDDPG (Shapley Q-value deep deterministic policy gradient; Wang et al., *Shapley Q-value: A Local Reward Approach to
Solve Global Reward Games*, AAAI 2020, arXiv 1907.05707) credits each agent with its own Shapley Q-value. A network
Phi_i of each agent stands for what the agent adds to a coalition; its mean over sampled coalitions is the Shapley
Q-value Q_i, the sum of all Q_i is fitted to the team's return, and the deterministic policy of agent i climbs Q_i.

Read `# ---- Shapley Q-values`, then `update_critics` and `update_actors`. The published code is for discrete actions;
this is the continuous port, with DDPG's actor and noise. HIS has no Phi: it masks the actions in its one critic
(`diff baselines/sqddpg.py his_mpe.py`). DEVIATION S-n is explained in docs/baselines.md. Shapes: B batch, E
environments, N agents, S state, O_i observation and A_i action dims of agent i, A the largest A_i, M permutations a
state, K n-step window.
"""

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python baselines/<script>.py` finds common

from common import benchmarks, checkpoint, cli, runlog
from common.benchmarks import make_env, task_and_variant
from common.device import check_replay_memory, pick_device
from common.profile import Profile
from common.streams import Streams
from common.vecenv import NonFiniteError, VecEnv, check_finite
from common.video import EpisodeRecorder

SCRIPT = "sqddpg"


# ---- arguments -------------------------------------------------------------------------------------------------------
@dataclass
class Args(benchmarks.BenchmarkArgs):
    seed: int = 1
    """the one seed: every random stream (environments, exploration, minibatch, ...) is derived from it"""
    total_timesteps: int = 10_000_000
    """environment steps over all environments, warm-up included"""
    num_envs: int = 20
    """E, parallel environments"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one"""
    torch_threads: int = 1
    """CPU threads of torch"""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """of torch.set_float32_matmul_precision: medium can be faster on AMD CPUs; it may round (bf16: AMX, TF32: CUDA)"""
    compile: bool = False
    """torch.compile the networks (CUDA only)"""
    eval_every: int = 10_000
    """environment steps between evaluations"""
    eval_episodes: int = 40
    """deterministic episodes of one evaluation, an equal number from each evaluation environment"""
    eval_envs: int = 20
    """evaluation environments (no more are made than --eval-episodes)"""
    log_every: int = 5_000
    """environment steps between two lines of metrics.jsonl, which follow a round of updates"""
    save_every: int = 100_000
    """environment steps between checkpoints (each holds the replay buffer)"""
    runs_dir: str = "runs"
    """parent of all run folders"""
    run_name: str = ""
    """suffix of the run folder"""
    resume: str = ""
    """run folder to continue, bit-exactly on a CPU; all that decides what is learnt comes from its config.json"""
    evaluate: str = ""
    """run folder whose best policy to evaluate, instead of training"""
    track: bool = False
    """mirror the metrics to wandb"""
    capture_video: bool = False
    """write an mp4 of one evaluation episode at each evaluation"""
    profile: bool = False
    """print at the end where the time went: environment, acting, updates, ..."""

    warmup_steps: int = 10_000
    """environment steps with uniform random actions before the first update"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer D"""
    batch_size: int = 1000
    """B, transitions in an update"""
    gamma: float = 0.99
    """discount factor"""
    n_step: int = 1
    """K, length of the n-step return"""
    tau: float = 0.005
    """Polyak coefficient of the target networks"""
    hidden_sizes: tuple[int, int] = (256, 256)
    """hidden layers of actors and of every Phi_i"""
    actor_lr: float = 5e-4
    """Adam step size of the actors"""
    critic_lr: float = 1e-3
    """Adam step size of the Phi_i"""
    train_interval: int = 50
    """vector steps between two rounds of updates"""
    update_per_train: int = 1
    """updates per vector step, made up for at the round"""
    policy_frequency: int = 2
    """critic updates per update of actors and targets; 10 in the published code (DEVIATION S-4)"""

    num_coalitions: int = 3
    """M, sampled permutations a state ("sample size")"""
    exploration_noise: float = 0.1
    """standard deviation of the Gaussian noise on actions while training"""
    grad_clip: float = 0.0
    """hold every element of a gradient within +- this; 0 does not, the published code has 1 (DEVIATION S-4)"""


# M is that of HIS on each benchmark; docs/baselines.md gives the source of each value.
BENCHMARKS: dict[str, dict[str, Any]] = {
    "mamujoco": dict(num_coalitions=1),
    "bidexhands": dict(num_coalitions=2, gamma=0.95),
}
PRESETS = benchmarks.presets(BENCHMARKS, {})
# Smallest and largest value of each number; None is open.
POSITIVE = (1e-12, None)
LIMITS: dict[str, tuple[float | None, float | None]] = benchmarks.LIMITS | {
    **dict.fromkeys(
        "total_timesteps num_envs torch_threads eval_every eval_episodes eval_envs log_every save_every batch_size "
        "n_step hidden_sizes train_interval update_per_train policy_frequency num_coalitions".split(),
        (1, None),
    ),
    **dict.fromkeys(("actor_lr", "critic_lr"), POSITIVE),
    **dict.fromkeys(("seed", "warmup_steps", "exploration_noise", "grad_clip"), (0, None)),
    **dict.fromkeys(("gamma", "tau"), (0, 1)),
    "buffer_size": (1, None),
}
# What may change between a run and its continuation without changing what is learnt.
RESUMABLE = benchmarks.RESUMABLE + tuple(
    "total_timesteps device torch_threads eval_every log_every save_every track capture_video profile".split()
)


def check_args(args: Args) -> None:
    """Raise `cli.UsageError` for values that are each allowed but do not fit together."""
    benchmarks.check(args)
    if args.resume or args.evaluate:
        benchmarks.check_origin(args.resume or args.evaluate, SCRIPT)
    envs = min(args.eval_envs, args.eval_episodes)
    if args.eval_episodes % envs:
        raise cli.UsageError(f"--eval-episodes {args.eval_episodes}: must be a multiple of --eval-envs {envs}")
    if args.buffer_size < args.num_envs:
        raise cli.UsageError(f"--buffer-size {args.buffer_size}: must be at least --num-envs {args.num_envs}")


# ---- environment -----------------------------------------------------------------------------------------------------
def to_tensors(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(a).to(device) for a in arrays]


# ---- networks --------------------------------------------------------------------------------------------------------
def mlp(sizes: Sequence[int], last: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between them and `last` after the last one."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU(inplace=True))]
    return nn.Sequential(*layers[:-1], last)


class Actor(nn.Module):
    """Deterministic policy mu_i(o_i), a in [-1, 1]."""

    __call__: Callable[[Tensor], Tensor]

    def __init__(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.net = mlp([obs_dim, *hidden_sizes, action_dim], nn.Tanh())

    def forward(self, obs: Tensor) -> Tensor:
        """obs (B, O_i) -> action (B, A_i)"""
        return self.net(obs)


class MarginalContribution(nn.Module):
    """Phi_i(s, a_(C + i)): what agent i adds to the agents C that joined before it (DEVIATION S-2: of the state)."""

    __call__: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, state_dim: int, slots_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.net = mlp([state_dim + slots_dim, *hidden_sizes, 1], nn.Identity())

    def forward(self, state: Tensor, slots: Tensor) -> Tensor:
        """state (B, S), slots (M, B, N A) of `slots_of` -> Phi_i (M, B)"""
        x = torch.cat([state.expand(len(slots), *state.shape), slots], dim=-1)
        return self.net(x).squeeze(-1)


# ---- replay buffer ---------------------------------------------------------------------------------------------------
class Batch(NamedTuple):
    obs: list[Tensor]  # over agents (B, O_i)
    state: Tensor  # (B, S)
    actions: Tensor  # (B, sum A_i), the joint action a^D
    reward: Tensor  # (B,) n-step return R
    discount: Tensor  # (B,) gamma^m (1 - terminated) after m rewards: the factor of the bootstrap value
    next_obs: list[Tensor]  # over agents (B, O_i), at the end of the window
    next_state: Tensor  # (B, S)


class ReplayBuffer:
    """Ring of vector steps with n-step returns computed when sampling; row t * E + e is step t of environment e.

    Storage doubles as it fills, up to `max_steps` vector steps, so that a run takes the memory it uses.
    """

    FIRST_STEPS = 1024

    def __init__(self, env: VecEnv, max_steps: int, n_step: int, gamma: float, device: torch.device):
        self.num_envs, self.max_steps, self.n_step, self.device = env.num_envs, max_steps, n_step, device
        self.obs_dims = list(env.obs_dims)
        self.widths = self.row_widths(env)
        self.discounts = gamma ** torch.arange(n_step + 1, dtype=torch.float32, device=device)
        self.position = self.size = self.capacity = 0  # vector steps
        self.data: dict[str, Tensor] = {}

    @staticmethod
    def row_widths(env: VecEnv) -> dict[str, int]:
        """float32 columns of each part of a transition."""
        obs, actions = sum(env.obs_dims), sum(env.action_dims)
        parts = dict(obs=obs, state=env.state_dim, actions=actions, reward=1, next_obs=obs, next_state=env.state_dim)
        return parts | dict(terminated=1, ended=1)

    def grow(self, steps: int) -> None:
        self.capacity = steps
        for key, width in self.widths.items():
            rows = torch.zeros(steps * self.num_envs, width, device=self.device)
            if key in self.data:
                rows[: len(self.data[key])] = self.data[key]
            self.data[key] = rows

    def add(self, obs, state, actions, reward, next_obs, next_state, terminated, truncated) -> None:
        """Store one vector step: obs, actions, next_obs lists over agents of (E, .); states (E, S); the rest (E,)."""
        if self.position == self.capacity:
            self.grow(min(max(2 * self.capacity, self.FIRST_STEPS), self.max_steps))
        step = dict(obs=np.concatenate(obs, 1), state=state, actions=np.concatenate(actions, 1), reward=reward)
        step |= dict(next_obs=np.concatenate(next_obs, 1), next_state=next_state, terminated=terminated)
        rows = slice(self.position * self.num_envs, (self.position + 1) * self.num_envs)
        for key, value in (step | dict(ended=terminated | truncated)).items():
            self.data[key][rows] = torch.as_tensor(value, dtype=torch.float32).reshape(self.num_envs, -1)
        self.size = max(self.size, self.position + 1)
        self.position = (self.position + 1) % self.max_steps

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """B windows of up to K steps; a window stops where its episode ends and at the newest stored step."""
        start = torch.randint(self.size * self.num_envs, (batch_size,), generator=generator, device=self.device)
        step, env = start // self.num_envs, start % self.num_envs
        steps = (step[:, None] + torch.arange(self.n_step, device=self.device)) % self.size  # (B, K)
        rows = steps * self.num_envs + env[:, None]
        newest = (self.position - 1) % self.size
        last = (self.data["ended"][:, 0][rows] > 0) | (steps == newest)
        alive = (last.cumsum(1) - last.long()) == 0  # True up to and with the first step that ends the window
        length = alive.sum(1)  # m
        reward = (self.data["reward"][:, 0][rows] * alive * self.discounts[:-1]).sum(1)  # sum_{k<m} gamma^k r_{t+k}
        end = rows.gather(1, length[:, None] - 1)[:, 0]

        def rows_of(key: str, index: Tensor) -> Tensor:
            return self.data[key].index_select(0, index)

        return Batch(
            obs=list(rows_of("obs", start).split(self.obs_dims, 1)),
            state=rows_of("state", start),
            actions=rows_of("actions", start),
            reward=reward,
            discount=self.discounts[length] * (1 - rows_of("terminated", end)[:, 0]),
            next_obs=list(rows_of("next_obs", end).split(self.obs_dims, 1)),
            next_state=rows_of("next_state", end),
        )

    def state_dict(self) -> dict[str, Any]:
        return dict(position=self.position, size=self.size, data=self.data)  # no copy: it may be most of the memory

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.position, self.size = saved["position"], saved["size"]
        self.data = {key: rows.to(self.device) for key, rows in saved["data"].items()}
        self.capacity = len(self.data["reward"]) // self.num_envs if self.data else 0


# ---- Shapley Q-values ------------------------------------------------------------------------------------------------
def draw_orders(num: int, batch_size: int, num_agents: int, generator: torch.Generator) -> Tensor:
    """Uniformly random permutations of the agents, (num, B, N): orders[m, b, p] is the agent at position p.

    The agents before agent i form coalition C with probability |C|! (N - |C| - 1)! / N!, its weight in the Shapley
    value. The code of 2019 had the inverse here, the position of an agent in place of the agent at a position.
    """
    return torch.rand(num, batch_size, num_agents, generator=generator, device=generator.device).argsort(-1)


def padded(actions: Tensor, action_dims: Sequence[int]) -> Tensor:
    """Joint actions (B, sum A_i) -> (B, N, A): slots of one size, zero behind a shorter action (DEVIATION S-3)."""
    widest = max(action_dims)
    return torch.stack([F.pad(a, (0, widest - a.shape[1])) for a in actions.split(list(action_dims), dim=1)], dim=1)


def slots_of(agent: int, actions: Tensor, orders: Tensor) -> Tensor:
    """What Phi_i sees of the joint action: the actions in the order of joining, those after agent i's own zero.

    A slot is a position in the permutation, not an agent: agent i's own action is in the last slot that is not masked.

    Args:
        actions (B, N, A) of `padded`; orders (M, B, N) of `draw_orders`.

    Returns:
        (M, B, N A), differentiable in `actions`.
    """
    num, _, num_agents = orders.shape
    index = orders[..., None].expand(*orders.shape, actions.shape[-1])
    listed = actions.expand(num, *actions.shape).gather(2, index)  # (M, B, N, A)
    own_position = (orders == agent).long().argmax(-1, keepdim=True)  # (M, B, 1)
    joined = torch.arange(num_agents, device=orders.device) <= own_position
    return torch.where(joined[..., None], listed, 0.0).flatten(2)


def marginal_contributions(
    critics: Sequence[MarginalContribution], state: Tensor, actions: Tensor, orders: Tensor
) -> Tensor:
    """Phi_i of every agent in every permutation, (N, M, B); one permutation serves all agents.

    The mean over M is the Shapley Q-value Q_i(s, a).
    """
    return torch.stack([critic(state, slots_of(i, actions, orders)) for i, critic in enumerate(critics)])


def efficiency_gap(contributions: Tensor) -> Tensor:
    """How far the agents' contributions (N, M, B) are from being those to one value function; a scalar.

    In every permutation marginal contributions of one v sum to v(N) - v(nobody). Nothing makes free networks do so:
    this is the mean distance of the sum in a permutation from its mean over permutations.
    """
    total = contributions.sum(0)  # (M, B)
    return (total - total.mean(0)).abs().mean()


# ---- updates ---------------------------------------------------------------------------------------------------------
def critic_target(
    batch: Batch,
    actors: Sequence[Actor],
    critics: Sequence[MarginalContribution],
    orders: Tensor,
    action_dims: Sequence[int],
) -> Tensor:
    """y = R + gamma^m (1 - terminated) sum_i Q_i(s', mu(s')), (B,); actors and critics are the target networks."""
    with torch.no_grad():
        actions = torch.cat([actor(obs) for actor, obs in zip(actors, batch.next_obs, strict=True)], dim=1)
        contributions = marginal_contributions(critics, batch.next_state, padded(actions, action_dims), orders)
        return batch.reward + batch.discount * contributions.mean(1).sum(0)


def gradient_step(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
    """One step down `loss`, each element of the gradient held within +-`clip` unless that is 0.

    Returns the norm of the gradient before that, a scalar.
    """
    optimizer.zero_grad()
    loss.backward()
    parameters = optimizer.param_groups[0]["params"]
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
    if clip > 0:
        nn.utils.clip_grad_value_(parameters, clip)
    optimizer.step()
    return norm


def update_critics(
    critics: Sequence[MarginalContribution],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    target: Tensor,
    orders: Tensor,
    args: Args,
    action_dims: Sequence[int],
) -> dict[str, Tensor]:
    """One step of every Phi_i down one error that they share: that of the sum of the Shapley Q-values."""
    contributions = marginal_contributions(critics, batch.state, padded(batch.actions, action_dims), orders)
    shapley = contributions.mean(1)  # (N, B)
    q = shapley.sum(0)
    assert q.shape == target.shape  # (B,) against (B, 1) would broadcast to (B, B)
    loss = F.mse_loss(q, target)
    norm = gradient_step(loss, optimizer, args.grad_clip)
    metrics = {"losses/critic": loss.detach(), "losses/q_mean": q.detach().mean(), "diag/grad_norm_critic": norm}
    metrics |= {f"credit/shapley_{i}": value for i, value in enumerate(shapley.detach().mean(1))}
    if len(orders) > 1:  # one permutation has no other to differ from
        metrics["credit/efficiency_gap"] = efficiency_gap(contributions.detach())
    return metrics


def update_actors(
    actors: Sequence[Actor],
    optimizers: Sequence[torch.optim.Optimizer],
    critics: Sequence[MarginalContribution],
    batch: Batch,
    orders: Tensor,
    args: Args,
    action_dims: Sequence[int],
) -> dict[str, Tensor]:
    """One step of every actor up its own Shapley Q-value, all at once: the others act as before the update."""
    for critic in critics:
        critic.requires_grad_(False)
    actions = [actor(obs) for actor, obs in zip(actors, batch.obs, strict=True)]
    fixed = [action.detach() for action in actions]
    metrics: dict[str, Tensor] = {}
    for agent, optimizer in enumerate(optimizers):
        joint = padded(torch.cat([*fixed[:agent], actions[agent], *fixed[agent + 1 :]], dim=1), action_dims)
        loss = -critics[agent](batch.state, slots_of(agent, joint, orders)).mean()  # -mean Q_i(s, mu(s))
        metrics[f"diag/grad_norm_{agent}"] = gradient_step(loss, optimizer, args.grad_clip)
        metrics[f"losses/actor_{agent}"] = loss.detach()
    for critic in critics:
        critic.requires_grad_(True)
    return metrics


@torch.no_grad()
def update_target(online: nn.Module, target: nn.Module, tau: float) -> None:
    """theta' <- (1 - tau) theta' + tau theta"""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, tau)


class Learner:
    """Networks and optimisers: what an update changes."""

    def __init__(self, env: VecEnv, streams: Streams, args: Args, device: torch.device):
        self.args, self.streams, self.action_dims = args, streams, list(env.action_dims)
        torch.manual_seed(streams.networks)
        sizes, slots = args.hidden_sizes, env.num_agents * max(env.action_dims)
        dims = zip(env.obs_dims, env.action_dims, strict=True)
        self.actors = [Actor(obs_dim, action_dim, sizes).to(device) for obs_dim, action_dim in dims]
        self.critics = [MarginalContribution(env.state_dim, slots, sizes).to(device) for _ in range(env.num_agents)]
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        for module in (*self.target_actors, *self.target_critics):
            module.requires_grad_(False)

        self.actor_optimizers = [torch.optim.Adam(a.parameters(), lr=args.actor_lr, fused=True) for a in self.actors]
        # Adam treats each number by itself: one for all Phi_i is the same as one for each
        phi_parameters = nn.ModuleList(self.critics).parameters()
        self.critic_optimizer = torch.optim.Adam(phi_parameters, lr=args.critic_lr, fused=True)
        self.update_step = 0  # gradient steps of the critics
        self.batch: Batch | None = None  # of the last update
        if args.compile and device.type == "cuda":
            for module in (*self.actors, *self.critics, *self.target_actors, *self.target_critics):
                module.compile()

    def draw_orders(self) -> Tensor:
        """Fresh permutations for one pass, (M, B, N)."""
        return draw_orders(
            self.args.num_coalitions, self.args.batch_size, len(self.action_dims), self.streams.coalitions
        )

    def update(self, buffer: ReplayBuffer) -> dict[str, Tensor]:
        """One training step; returns metrics as scalar tensors."""
        args, rest = self.args, (self.args, self.action_dims)
        self.update_step += 1
        self.batch = batch = buffer.sample(args.batch_size, self.streams.minibatch)
        targets = (self.target_actors, self.target_critics)
        target = critic_target(batch, *targets, self.draw_orders(), self.action_dims)
        metrics = update_critics(self.critics, self.critic_optimizer, batch, target, self.draw_orders(), *rest)
        if self.update_step % args.policy_frequency == 0:
            optimizers, orders = self.actor_optimizers, self.draw_orders()
            metrics |= update_actors(self.actors, optimizers, self.critics, batch, orders, *rest)
            for online, target_net in zip((*self.actors, *self.critics), (*self.target_actors, *self.target_critics)):
                update_target(online, target_net, args.tau)
        losses = {key: value for key, value in metrics.items() if key.startswith(("losses/critic", "losses/actor"))}
        if not torch.isfinite(torch.stack(list(losses.values()))).all():
            first = next(key for key, value in losses.items() if not torch.isfinite(value))
            raise NonFiniteError(f"{first} is not finite")
        return metrics

    def act(self, obs: Sequence[Tensor], deterministic: bool = False) -> list[np.ndarray]:
        """Over agents (E, O_i) -> actions (E, A_i) in [-1, 1]."""
        with torch.no_grad():
            actions = [actor(o) for actor, o in zip(self.actors, obs, strict=True)]
            if not deterministic:
                generator = self.streams.exploration
                noise = [torch.randn(a.shape, generator=generator, device=a.device) for a in actions]
                scale = self.args.exploration_noise
                actions = [(a + scale * e).clamp(-1, 1) for a, e in zip(actions, noise, strict=True)]
            return [a.cpu().numpy() for a in actions]

    def modules(self) -> dict[str, Any]:
        names = ("actors", "critics", "target_actors", "target_critics")
        named: dict[str, Any] = {name: nn.ModuleList(getattr(self, name)) for name in names}
        named |= dict(critic_optimizer=self.critic_optimizer)
        return named | {f"actor_optimizer_{i}": optimizer for i, optimizer in enumerate(self.actor_optimizers)}

    def state_dict(self) -> dict[str, Any]:
        saved = {name: module.state_dict() for name, module in self.modules().items()}
        return saved | dict(update_step=self.update_step)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(saved[name])
        self.update_step = saved["update_step"]


# ---- evaluation ------------------------------------------------------------------------------------------------------
class Evaluation(NamedTuple):
    returns: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,)
    successes: np.ndarray  # (episodes,) bool, or (0,) where the task has no notion of success


def evaluate(
    learner: Learner,
    env: VecEnv,
    seed: int,
    episodes: int,
    device: torch.device,
    on_step: Callable[[int, int], None] = lambda episode, step: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """An equal number of deterministic episodes from each environment.

    Taking the first episodes that end, whichever environment they come from, would favour short ones. `on_step` is told
    episode and step of environment 0 before each step. None when `stopped()`.
    """
    obs, _ = env.reset(seed)
    quota = episodes // env.num_envs
    returns: list[list[float]] = [[] for _ in range(env.num_envs)]
    lengths: list[list[int]] = [[] for _ in range(env.num_envs)]
    successes: list[list[bool]] = [[] for _ in range(env.num_envs)]
    running, steps = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    while min(map(len, returns)) < quota:
        if stopped():
            return None
        on_step(len(returns[0]), int(steps[0]))
        result = env.step(learner.act(to_tensors(obs, device), deterministic=True))
        check_finite("reward in an evaluation", [result.reward])
        obs = result.obs
        running, steps = running + result.reward, steps + 1
        for i in np.flatnonzero(result.terminated | result.truncated):
            if len(returns[i]) < quota:
                returns[i].append(float(running[i]))
                lengths[i].append(int(steps[i]))
                successes[i] += [] if env.last_success is None else [bool(env.last_success[i])]
            running[i], steps[i] = 0.0, 0
    return Evaluation(*map(np.concatenate, (returns, lengths, successes)))


# ---- checkpoint ------------------------------------------------------------------------------------------------------
@dataclass
class Progress:
    """The counters of a run."""

    global_step: int = 0  # environment steps over all environments
    vector_step: int = 0  # steps of all environments together since the warm-up
    pending_updates: int = 0  # owed for steps already taken: a signal may come between two updates
    last_log: int = 0
    last_eval: int = 0
    last_save: int = 0
    best_return: float = -math.inf


class Run:
    """All that training depends on; `state_dict` is what a checkpoint holds."""

    def __init__(self, args: Args, device: torch.device):
        self.args, self.device, self.streams, self.progress = args, device, Streams(args.seed, device), Progress()
        self.env = make_env(args, args.num_envs)
        self.learner = Learner(self.env, self.streams, args, device)
        self.buffer = ReplayBuffer(self.env, args.buffer_size // args.num_envs, args.n_step, args.gamma, device)
        self.obs, self.state = self.env.reset(self.streams.environment)
        self.episode_return, self.episode_length = np.zeros(args.num_envs), np.zeros(args.num_envs, dtype=np.int64)
        self.profile = Profile()
        self.finished: list[list[float]] = []  # [return, length] of the episodes that ended since the last log line
        self.metrics: dict[str, Tensor] = {}  # the newest value of each since the last log line

    def due(self, every: int, last: int) -> bool:
        return self.progress.global_step // every > last // every

    def state_dict(self, full: bool = True) -> dict[str, Any]:
        saved = dict(args=asdict(self.args), progress=asdict(self.progress), learner=self.learner.state_dict())
        saved |= dict(streams=self.streams.state_dict(), device=self.device.type)
        if full:
            saved |= dict(buffer=self.buffer.state_dict(), env=self.env.get_state(), obs=self.obs, state=self.state)
            saved |= dict(episode_return=self.episode_return, episode_length=self.episode_length)
            saved |= dict(finished=self.finished, metrics=self.metrics)
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.progress = Progress(**saved["progress"])
        for name in ("learner", "streams", "buffer"):
            getattr(self, name).load_state_dict(saved[name])
        self.env.set_state(saved["env"])
        self.obs, self.state = [o.numpy() for o in saved["obs"]], saved["state"].numpy()
        self.episode_return, self.episode_length = (saved[f"episode_{key}"].numpy() for key in ("return", "length"))
        self.finished, self.metrics = saved["finished"], saved["metrics"]

    def save(self, folder: Path, log: runlog.RunLog) -> None:
        """Write checkpoints/step_<n>.pt and drop older ones; a full disk costs this checkpoint, not the run."""
        self.progress.last_save = self.progress.global_step
        name = f"step_{self.progress.global_step}.pt"
        log.progress(self.progress.global_step, "saving")
        try:
            with self.profile("checkpoints"):
                checkpoint.save(folder / "checkpoints", name, self.state_dict() | dict(log=log.offsets()))
            checkpoint.prune(folder / "checkpoints", keep=2)
        except OSError as error:
            log.message(
                f"could not save {name} ({error.strerror or error}): the last checkpoint stays, the run goes on"
            )

    def save_best(self, folder: Path, log: runlog.RunLog) -> None:
        """Write best.pt (without the replay buffer) and policy.safetensors (the actors alone, for sharing)."""
        about = {"scenario": self.args.scenario, "global_step": str(self.progress.global_step)}
        about["eval_return_mean"] = repr(self.progress.best_return)
        try:
            checkpoint.save(folder / "checkpoints", "best.pt", self.state_dict(full=False))
            tensors = nn.ModuleList(self.learner.actors).state_dict()
            checkpoint.save_policy(folder / "checkpoints/policy.safetensors", tensors, about)
        except OSError as error:
            log.message(f"could not save the best policy ({error.strerror or error}): the run goes on")


def restore(run: Run, folder: Path) -> dict[str, Any]:
    """Put `run` where the newest usable checkpoint of `folder` left it (at the start if it made none)."""
    if not any((folder / "checkpoints").glob("step_*.pt")):
        print(f"{folder} has no checkpoint yet: starting from the beginning")
        return {"global_step": 0, "wall_s": 0.0, "metrics.jsonl": 0, "eval.csv": 0}
    path, saved = checkpoint.load_newest(folder / "checkpoints")
    if saved["device"] != run.device.type:  # the states of the random generators do not carry over
        raise cli.UsageError(
            f"--device {run.device.type}: {path} was made on {saved['device']} and continues there only"
        )
    print(f"continuing from {path}")
    checkpoint.fill(run, saved, path)
    return saved["log"]


# ---- main ------------------------------------------------------------------------------------------------------------
def act_and_store(run: Run) -> None:
    """One step of all environments: act, step, store; every `train_interval` steps updates fall due."""
    args, progress = run.args, run.progress
    if progress.global_step < args.warmup_steps:
        shapes = [(args.num_envs, dim) for dim in run.env.action_dims]
        uniform = [torch.rand(s, generator=run.streams.exploration, device=run.device) for s in shapes]
        actions = [(2 * u - 1).cpu().numpy() for u in uniform]
    else:
        with run.profile("acting"):
            actions = run.learner.act(to_tensors(run.obs, run.device))
        progress.vector_step += 1
        if progress.vector_step % args.train_interval == 0:
            progress.pending_updates = args.train_interval * args.update_per_train
    with run.profile("environment"):
        step = run.env.step(actions)
    progress.global_step += args.num_envs
    check_finite("observation", step.final_obs)
    check_finite("state", [step.final_state])
    check_finite("reward", [step.reward])
    ends = (step.terminated, step.truncated)
    with run.profile("storing"):
        run.buffer.add(run.obs, run.state, actions, step.reward, step.final_obs, step.final_state, *ends)
    run.obs, run.state = step.obs, step.state
    run.episode_return += step.reward
    run.episode_length += 1
    for i in np.flatnonzero(step.terminated | step.truncated):
        run.finished.append([float(run.episode_return[i]), float(run.episode_length[i])])
        run.episode_return[i], run.episode_length[i] = 0.0, 0


def evaluate_and_record(
    run: Run, recorder: EpisodeRecorder, folder: Path, log: runlog.RunLog, stopped: Callable[[], bool]
) -> None:
    """One evaluation, its rows, its video and the best policy; nothing of it when `stopped()` comes true."""
    args, progress = run.args, run.progress
    log.progress(progress.global_step, "evaluating")
    seed, watch = run.streams.evaluation, (recorder.observe, stopped)
    with run.profile("evaluation"):
        result = evaluate(run.learner, recorder.env, seed, args.eval_episodes, run.device, *watch)
    if result is None:  # the continued run evaluates this step
        return
    returns, lengths, successes = result
    progress.last_eval = progress.global_step
    log.log_eval(progress.global_step, returns, lengths)
    numbers = {"eval/return_mean": returns.mean(), "eval/return_std": returns.std()}
    if len(successes):
        numbers["eval/success_rate"] = successes.mean()
    log.log(progress.global_step, run.learner.update_step, numbers)
    recorder.write(folder / f"videos/step_{progress.global_step}.mp4")
    if returns.mean() > progress.best_return:
        progress.best_return = float(returns.mean())
        run.save_best(folder, log)


def train(run: Run, folder: Path, log: runlog.RunLog) -> int:
    """Update, log, evaluate, save, act, until done or told to stop; returns the exit status.

    A signal is heeded after every update, environment step and evaluation step. What it cuts short is still due when
    the run is continued, so a continued run does exactly what an undisturbed one does.
    """
    args, progress = run.args, run.progress
    eval_env = make_env(args, min(args.eval_envs, args.eval_episodes))
    recorder = EpisodeRecorder(eval_env, args.capture_video, log.message)
    clock = (time.monotonic(), progress.global_step, run.learner.update_step)
    with cli.StopSignal() as stop:
        while True:
            log_due = run.due(args.log_every, progress.last_log) and progress.vector_step % args.train_interval == 0
            while progress.pending_updates and not stop.received:
                with run.profile("updates"):
                    run.metrics |= run.learner.update(run.buffer)
                progress.pending_updates -= 1
            done = progress.global_step >= args.total_timesteps
            if not progress.pending_updates:
                if log_due:
                    charts, clock = rates(run, clock)
                    values = {key: float(value) for key, value in (charts | run.metrics).items()}
                    log.log(progress.global_step, run.learner.update_step, values)
                    run.finished, run.metrics, progress.last_log = [], {}, progress.global_step
                if run.due(args.eval_every, progress.last_eval) or (done and progress.last_eval < progress.global_step):
                    evaluate_and_record(run, recorder, folder, log, lambda: stop.received)
            if stop.received or done or run.due(args.save_every, progress.last_save):
                run.save(folder, log)
            if stop.received:
                log.stopped()
                return stop.exit_status
            if done:
                log.finish()
                return 0
            act_and_store(run)
            log.progress(progress.global_step, "training" if progress.vector_step else "warm-up")


def rates(run: Run, clock: tuple[float, int, int]) -> tuple[dict[str, float], tuple[float, int, int]]:
    """charts/* since the last log line, and the new clock."""
    now = (time.monotonic(), run.progress.global_step, run.learner.update_step)
    seconds, steps, updates = (b - a for a, b in zip(clock, now, strict=True))
    charts = {"charts/SPS": steps / seconds, "charts/updates_per_s": updates / seconds}
    if run.finished:
        charts |= dict(zip(("charts/episodic_return", "charts/episodic_length"), np.mean(run.finished, 0), strict=True))
    return charts, now


def evaluate_run(args: Args) -> int:
    """`--evaluate RUN_FOLDER`: print the returns of the best policy of a run."""
    folder = Path(args.evaluate)
    policy = folder / "checkpoints/policy.safetensors"
    tensors, about = checkpoint.load_policy(policy)
    device = pick_device(args.device, args.torch_threads, args.matmul_precision)
    env = make_env(args, min(args.eval_envs, args.eval_episodes))
    streams = Streams(args.seed, device)
    learner = Learner(env, streams, args, device)
    checkpoint.fill(nn.ModuleList(learner.actors), tensors, policy)
    recorder = EpisodeRecorder(env, args.capture_video, print)
    result = evaluate(learner, env, streams.evaluation, args.eval_episodes, device, recorder.observe)
    assert result is not None
    returns, lengths, successes = result
    for episode, (value, length) in enumerate(zip(returns, lengths, strict=True)):
        print(f"episode {episode}: return {value:.2f}, length {length}")
    success = f", success rate {successes.mean():.3f}" if len(successes) else ""
    print(f"policy of step {about['global_step']}: mean return {returns.mean():.2f}, std {returns.std():.2f}{success}")
    recorder.write(folder / f"videos/evaluate_{about['global_step']}.mp4")
    env.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Train, continue or evaluate a run; returns the exit status (0, 3 non-finite, 128 + signal); misuse: 2."""
    words = benchmarks.with_scenario(sys.argv[1:] if argv is None else argv)
    args = cli.parse(Args, PRESETS, LIMITS, words, prog=f"{SCRIPT}.py", resumable=RESUMABLE)
    log = run = folder = None
    try:
        check_args(args)
        if args.evaluate:
            return evaluate_run(args)
        device = pick_device(args.device, args.torch_threads, args.matmul_precision, args.compile)
        rows = args.buffer_size // args.num_envs * args.num_envs
        check_replay_memory(rows, 4 * sum(ReplayBuffer.row_widths(make_env(args, 1)).values()), device)
        config = runlog.describe(asdict(args), sys.argv if argv is None else [f"baselines/{SCRIPT}.py", *argv])
        config |= {"script": SCRIPT}
        run, offsets = Run(args, device), None
        if args.resume:
            folder = Path(args.resume)
            offsets = restore(run, folder)
            runlog.record_resumption(folder, config, offsets)
        else:
            task, words = task_and_variant(args)
            folder = runlog.run_folder(
                args.runs_dir, SCRIPT, task, args.seed, "-".join([*words, *args.run_name.split()])
            )
            runlog.create(folder, config)
        log = runlog.RunLog(folder, args.total_timesteps, offsets=offsets, track=args.track, config=config)
        log.message(f"run folder: {folder}, starting at step {run.progress.global_step}")
        status = train(run, folder, log)
        if args.profile:
            log.message(run.profile.report())
        return status
    except (cli.UsageError, checkpoint.CheckpointError) as error:
        cli.fail(f"{SCRIPT}.py", str(error))
    except NonFiniteError as error:
        step = f" at global_step {run.progress.global_step}, update_step {run.learner.update_step}" if run else ""
        print(f"{SCRIPT}.py: stopped{step}: {error}; the checkpoints are untouched", file=sys.stderr)
        if run is not None and folder is not None and run.learner.batch is not None:
            with contextlib.suppress(OSError):  # the transitions of the last update, to look into
                checkpoint.save(folder, "nonfinite_batch.pt", run.learner.batch._asdict())
        return 3
    except KeyboardInterrupt:  # before there is anything to save
        return 130
    finally:
        if log is not None:
            log.close()


if __name__ == "__main__":
    sys.exit(main())
