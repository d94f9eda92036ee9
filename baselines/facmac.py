"""FACMAC in one file, for the particle environments and Multi-Agent MuJoCo: `--benchmark mpe|mamujoco`.

FACMAC (factored multi-agent centralised policy gradients; Peng et al., NeurIPS 2021, arXiv 2003.06709) is cooperative
off-policy learning with deterministic policies, DDPG for a team: the critic is QMIX's, one utility Q_i(o_i, a_i) an
agent and a mixing network that makes Q_tot(s, a) of them, monotone in each; and all actors climb Q_tot at once, each
from the current actions of all others.

Read `Mixer`, `Critic` and `update_actors`: with a single agent the rest is DDPG. `diff his_mamujoco.py
baselines/facmac.py` shows what is not HIS. DEVIATION Fn, where it is not the authors' code, is explained in
docs/baselines.md. Shapes: B batch, E environments, N agents, S state, O_i observation and A_i action dims of agent i,
H units of the mixing network.
"""

import contextlib
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

SCRIPT = "facmac"


# ---- arguments -------------------------------------------------------------------------------------------------------
@dataclass
class Args(benchmarks.BenchmarkArgs):
    benchmark: Literal["mpe", "mamujoco"] = "mpe"
    """family of tasks; need not be given where --scenario is"""
    seed: int = 1
    """the one seed: every random stream (environments, exploration, minibatch, ...) is derived from it"""
    total_timesteps: int = 2_000_000
    """environment steps over all environments, warm-up included"""
    num_envs: int = 1
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
    """environment steps with uniform random actions"""
    learning_starts: int = 1_000
    """environment steps before the first update; --warmup-steps where that is less"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer"""
    batch_size: int = 100
    """B, transitions in an update"""
    gamma: float = 0.99
    """discount factor"""
    n_step: int = 1
    """length of the n-step return; FACMAC has 1"""
    tau: float = 0.001
    """Polyak coefficient of the targets of actors and critic"""
    hidden_sizes: tuple[int, ...] = (400, 400)
    """hidden layers of actors and utilities"""
    mixing_dim: int = 64
    """H, hidden units of the mixing network"""
    hypernet_dim: int = 64
    """hidden units of the networks that make the mixing network's weights of the state; 0: linear maps make them"""
    mixer: Literal["qmix", "nonmonotonic"] = "qmix"
    """qmix: Q_tot is monotone in each utility; nonmonotonic: weights of either sign (an ablation of the paper)"""
    share_param: bool = True
    """one actor and one utility network for all agents, inputs and actions filled up with zeros to the largest"""
    actor_lr: float = 1e-3
    """Adam step size of the actors"""
    critic_lr: float = 1e-3
    """Adam step size of utilities and mixing network"""
    adam_eps: float = 1e-2
    """epsilon of Adam; this large it makes steps shorter wherever gradients are smaller"""
    max_grad_norm: float = 0.5
    """largest norm of a gradient; longer ones are scaled down"""
    action_reg: float = 1e-3
    """factor on the mean square of the actions in the actors' loss"""
    exploration_noise: float = 0.1
    """standard deviation of the normal noise on actions after the warm-up; an action beyond [-1, 1] is clipped"""
    train_interval: int = 1
    """vector steps between two rounds of updates"""
    update_per_train: float = 1
    """updates per vector step, made up for at the round (at least one a round)"""


# The authors' code has six partitions of MAMuJoCo and one set of values for all, the defaults above; its agents see
# their own joints. It has none of the three MPE tasks: these get its values for the particle task that it has, predator
# and prey, episodes of 25 steps as well, as far as an actor without memory has them (docs/baselines.md): minibatches of
# 32 episodes from the newest 5000, an update an episode from the 32nd on.
TASKS: dict[str, Sequence[str]] = {
    "mpe": tuple(benchmarks.NUM_AGENTS["mpe"]),
    "mamujoco": "HalfCheetah-2x3 HalfCheetah-6x1 Ant-2x4 Ant-4x2 Walker2d-2x3 ManyAgentSwimmer-10x2".split(),
}
PARTICLE_VALUES = dict(
    warmup_steps=32 * 25, learning_starts=31 * 25, buffer_size=5000 * 25, batch_size=32 * 25,
    train_interval=25, update_per_train=1 / 25,
    gamma=0.85, hidden_sizes=(64, 64), hypernet_dim=0, actor_lr=1e-2, critic_lr=1e-2,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    scenario: values
    for scenario, values in benchmarks.presets(
        {"mamujoco": dict(obs_mode="joints"), "mpe": PARTICLE_VALUES}, {}
    ).items()
    if any(scenario in scenarios for scenarios in TASKS.values())
}
# Smallest and largest value of each number; None is open.
POSITIVE = (1e-12, None)
LIMITS: dict[str, tuple[float | None, float | None]] = benchmarks.LIMITS | {
    **dict.fromkeys(
        "total_timesteps num_envs torch_threads eval_every eval_episodes eval_envs log_every save_every batch_size "
        "n_step hidden_sizes mixing_dim train_interval".split(),
        (1, None),
    ),
    **dict.fromkeys(("actor_lr", "critic_lr", "adam_eps", "max_grad_norm", "update_per_train"), POSITIVE),
    **dict.fromkeys("seed hypernet_dim warmup_steps learning_starts action_reg exploration_noise".split(), (0, None)),
    **dict.fromkeys(("gamma", "tau"), (0, 1)),
    "buffer_size": (1, None),
}
# What may change between a run and its continuation without changing what is learnt.
RESUMABLE = tuple(
    "total_timesteps device torch_threads eval_every log_every save_every track capture_video profile".split()
)


def check_args(args: Args) -> None:
    """Raise `cli.UsageError` for values that are each allowed but do not fit together."""
    if args.scenario not in TASKS[args.benchmark]:
        tasks = ", ".join(TASKS[args.benchmark])
        raise cli.UsageError(f"--scenario {args.scenario}: not of --benchmark {args.benchmark}, which has {tasks}")
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


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Over agents (B, D_i) -> (N, B, max D_i), shorter rows filled up with zeros (DEVIATION F5)."""
    width = max(part.shape[1] for part in parts)
    return torch.stack([F.pad(part, (0, width - part.shape[1])) for part in parts])


class Actor(nn.Module):
    """Deterministic policy a_i = mu_i(o_i) in [-1, 1]."""

    __call__: Callable[[Tensor], Tensor]

    def __init__(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.net = mlp([obs_dim, *hidden_sizes, action_dim], nn.Tanh())

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O_i) -> action (..., A_i)"""
        return self.net(obs)


class Utility(nn.Module):
    """Q_i(o_i, a_i): what one agent's own observation and action say of the team's return."""

    __call__: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.net = mlp([obs_dim + action_dim, *hidden_sizes, 1], nn.Identity())

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs (..., O_i), action (..., A_i) -> Q_i (...)"""
        return self.net(torch.cat([obs, action], dim=-1)).squeeze(-1)


class Mixer(nn.Module):
    """Q_tot = |W_2(s)| elu(|W_1(s)| Q + b_1(s)) + V(s): QMIX's network (Rashid et al., arXiv 1803.11485)."""

    __call__: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, num_agents: int, state_dim: int, args: Args):
        super().__init__()
        self.num_agents, self.monotone = num_agents, args.mixer == "qmix"
        hidden = [args.hypernet_dim] if args.hypernet_dim else []
        self.w1 = mlp([state_dim, *hidden, num_agents * args.mixing_dim], nn.Identity())
        self.b1 = nn.Linear(state_dim, args.mixing_dim)
        self.w2 = mlp([state_dim, *hidden, args.mixing_dim], nn.Identity())
        self.value = mlp([state_dim, args.mixing_dim, 1], nn.Identity())

    def forward(self, utilities: Tensor, state: Tensor) -> Tensor:
        """utilities (B, N), state (B, S) -> Q_tot (B,)"""
        w1, w2 = self.w1(state).unflatten(1, (self.num_agents, -1)), self.w2(state)  # (B, N, H), (B, H)
        if self.monotone:  # no weight below 0 and elu monotone: dQ_tot / dQ_i >= 0
            w1, w2 = w1.abs(), w2.abs()
        hidden = F.elu((utilities[:, None] @ w1)[:, 0] + self.b1(state))  # (B, H)
        return (hidden * w2).sum(1) + self.value(state)[:, 0]


class Critic(nn.Module):
    """Utilities of all agents, one network for all or one each, and their mixture; a single agent needs no mixture."""

    __call__: Callable[[Sequence[Tensor], Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]

    def __init__(self, env: VecEnv, args: Args):
        super().__init__()
        sizes = network_sizes(env, args)
        self.utilities = nn.ModuleList(Utility(obs, action, args.hidden_sizes) for obs, action in sizes)
        self.mixer = Mixer(env.num_agents, env.state_dim, args) if env.num_agents > 1 else None
        self.action_dims = list(env.action_dims)

    def forward(self, obs: Sequence[Tensor], state: Tensor, actions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """obs, actions over agents (B, .), state (B, S) -> Q_tot (B,), utilities (B, N)"""
        if len(self.utilities) == 1:
            utilities = self.utilities[0](stacked(obs), stacked(actions)).T
        else:
            each = zip(self.utilities, obs, actions, strict=True)
            utilities = torch.stack([utility(o, a) for utility, o, a in each], dim=1)
        return self.mix(utilities, state), utilities

    def mix(self, utilities: Tensor, state: Tensor) -> Tensor:
        """(B, N) and (B, S) -> Q_tot (B,)"""
        return utilities[:, 0] if self.mixer is None else self.mixer(utilities, state)


def network_sizes(env: VecEnv, args: Args) -> list[tuple[int, int]]:
    """(observation, action) dims of each network: the largest once where agents share, else those of each agent."""
    if args.share_param:
        return [(max(env.obs_dims), max(env.action_dims))]
    return list(zip(env.obs_dims, env.action_dims, strict=True))


def joint_action(actors: Sequence[Actor], obs: Sequence[Tensor], action_dims: Sequence[int]) -> list[Tensor]:
    """mu_i(o_i) of every agent: over agents (B, O_i) -> (B, A_i); a single actor is that of all."""
    if len(actors) == 1:
        return [action[:, :dim] for action, dim in zip(actors[0](stacked(obs)), action_dims, strict=True)]
    return [actor(o) for actor, o in zip(actors, obs, strict=True)]


# ---- replay buffer ---------------------------------------------------------------------------------------------------
class Batch(NamedTuple):
    obs: list[Tensor]  # over agents (B, O_i)
    state: Tensor  # (B, S)
    actions: Tensor  # (B, sum A_i), the historical joint action a^D
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


# ---- updates ---------------------------------------------------------------------------------------------------------
def critic_target(batch: Batch, target_actors: Sequence[Actor], target_critic: Critic) -> Tensor:
    """y = R + gamma^m (1 - terminated) Q'_tot(s', mu'(o')), (B,): the targets' own greedy actions, no noise."""
    with torch.no_grad():
        actions = joint_action(target_actors, batch.next_obs, target_critic.action_dims)
        q_tot, _ = target_critic(batch.next_obs, batch.next_state, actions)
        return batch.reward + batch.discount * q_tot


def update_critic(
    critic: Critic, optimizer: torch.optim.Optimizer, batch: Batch, target: Tensor, max_grad_norm: float
) -> dict[str, Tensor]:
    """One step of utilities and mixing network together, on the actions of the replay buffer."""
    q_tot, utilities = critic(batch.obs, batch.state, batch.actions.split(critic.action_dims, dim=1))
    assert q_tot.shape == target.shape  # (B,) against (B, 1) would broadcast to (B, B)
    loss = F.mse_loss(q_tot, target)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(critic.parameters(), max_grad_norm)
    optimizer.step()
    metrics = {"losses/critic": loss.detach(), "losses/q_mean": q_tot.detach().mean(), "diag/grad_norm_critic": norm}
    return metrics | {f"credit/utility_{i}": value for i, value in enumerate(utilities.detach().mean(0))}


def update_actors(
    actors: Sequence[Actor],
    optimizer: torch.optim.Optimizer,
    critic: Critic,
    batch: Batch,
    args: Args,
    diagnose: bool = False,
) -> dict[str, Tensor]:
    """One step of all actors along the centralised policy gradient: Q_tot of the current actions of *all* agents.

    (MADDPG would take the other agents' actions from the replay buffer.) `diagnose`: also measure dQ_tot / dQ_i.
    """
    critic.requires_grad_(False)
    actions = joint_action(actors, batch.obs, critic.action_dims)
    q_tot, utilities = critic(batch.obs, batch.state, actions)
    joint = torch.cat(actions, dim=1)  # (B, sum A_i)
    loss = -q_tot.mean() + args.action_reg * joint.square().mean()
    metrics: dict[str, Tensor] = {}
    if diagnose:
        leaf = utilities.detach().requires_grad_()  # apart from the graph above, which --compile makes one node
        (slopes,) = torch.autograd.grad(critic.mix(leaf, batch.state).sum(), leaf)
        metrics = {f"credit/slope_{i}": value for i, value in enumerate(slopes.mean(0))}
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for actor in actors for p in actor.parameters()], args.max_grad_norm)
    optimizer.step()
    critic.requires_grad_(True)
    metrics |= {"losses/actor": loss.detach(), "diag/grad_norm_actor": norm}
    return metrics | {"diag/action_size": joint.detach().abs().mean()}


@torch.no_grad()
def update_target(network: nn.Module, target_network: nn.Module, tau: float) -> None:
    """theta' <- (1 - tau) theta' + tau theta"""
    for target, online in zip(target_network.parameters(), network.parameters(), strict=True):
        target.lerp_(online, tau)


class Learner:
    """Networks and optimisers: what an update changes."""

    def __init__(self, env: VecEnv, streams: Streams, args: Args, device: torch.device):
        self.args, self.streams = args, streams
        torch.manual_seed(streams.networks)
        sizes = network_sizes(env, args)

        def new_actors() -> list[Actor]:
            return [Actor(obs, action, args.hidden_sizes).to(device) for obs, action in sizes]

        self.actors, self.critic = new_actors(), Critic(env, args).to(device)
        self.target_actors, self.target_critic = new_actors(), Critic(env, args).to(device)
        for network, target in self.network_pairs():
            target.load_state_dict(network.state_dict())
            target.requires_grad_(False)
        parameters = [p for actor in self.actors for p in actor.parameters()]
        self.actor_optimizer = torch.optim.Adam(parameters, args.actor_lr, eps=args.adam_eps, fused=True)
        critic_parameters = self.critic.parameters()
        self.critic_optimizer = torch.optim.Adam(critic_parameters, args.critic_lr, eps=args.adam_eps, fused=True)
        self.update_step = 0  # gradient steps of the critic, and of the actors
        self.batch: Batch | None = None  # of the last update
        if args.compile and device.type == "cuda":
            for module in (*self.actors, *self.target_actors, self.critic, self.target_critic):
                module.compile()

    def network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Every network with its target."""
        return [*zip(self.actors, self.target_actors, strict=True), (self.critic, self.target_critic)]

    def update(self, buffer: ReplayBuffer, diagnose: bool = False) -> dict[str, Tensor]:
        """One training step; returns metrics as scalar tensors."""
        args, streams = self.args, self.streams
        self.update_step += 1
        self.batch = batch = buffer.sample(args.batch_size, streams.minibatch)
        target = critic_target(batch, self.target_actors, self.target_critic)
        metrics = update_critic(self.critic, self.critic_optimizer, batch, target, args.max_grad_norm)
        metrics |= update_actors(self.actors, self.actor_optimizer, self.critic, batch, args, diagnose)
        for network, target_network in self.network_pairs():
            update_target(network, target_network, args.tau)
        losses = {key: value for key, value in metrics.items() if key.startswith(("losses/critic", "losses/actor"))}
        if not torch.isfinite(torch.stack(list(losses.values()))).all():
            first = next(key for key, value in losses.items() if not torch.isfinite(value))
            raise NonFiniteError(f"{first} is not finite")
        return metrics

    def act(self, obs: Sequence[Tensor], deterministic: bool = False) -> list[np.ndarray]:
        """Over agents (E, O_i) -> actions (E, A_i) in [-1, 1]."""
        with torch.no_grad():
            actions = joint_action(self.actors, obs, self.critic.action_dims)
            if not deterministic:
                generator, scale = self.streams.exploration, self.args.exploration_noise
                noise = [torch.randn(a.shape, generator=generator, device=a.device) for a in actions]
                actions = [(a + scale * x).clamp(-1, 1) for a, x in zip(actions, noise, strict=True)]
            return [action.cpu().numpy() for action in actions]

    def modules(self) -> dict[str, Any]:
        named = dict(actors=nn.ModuleList(self.actors), critic=self.critic)
        named |= dict(target_actors=nn.ModuleList(self.target_actors), target_critic=self.target_critic)
        return named | dict(actor_optimizer=self.actor_optimizer, critic_optimizer=self.critic_optimizer)

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
    vector_step: int = 0  # steps of all environments together since updates began
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
    if progress.global_step >= min(args.learning_starts, args.warmup_steps):
        progress.vector_step += 1
        if progress.vector_step % args.train_interval == 0:
            progress.pending_updates = max(1, round(args.train_interval * args.update_per_train))
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
                diagnose = log_due and progress.pending_updates == 1
                with run.profile("updates"):
                    run.metrics |= run.learner.update(run.buffer, diagnose)
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
    first_tasks = {benchmark: scenarios[0] for benchmark, scenarios in TASKS.items()}
    words = benchmarks.with_scenario(sys.argv[1:] if argv is None else argv, first_tasks)
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
