"""HASAC on Bi-DexHands, in one file: two Shadow Hands, one agent a hand.

HASAC (arXiv 2306.10715) is a cooperative multi-agent soft actor-critic: a centralised twin critic and one actor per
agent, updated one after another. HIS (Historical Interaction-Enhanced Shapley Policy Gradient, arXiv 2511.07778) adds a
second actor term: the Box-Cox transformed log-probability of the *historical* actions in the replay buffer, times the
agent's Shapley Q-value, estimated from the critic with the actions of the agents outside a sampled coalition masked to
zero. `diff baselines/hasac_bidexhands.py his_bidexhands.py` shows all that it adds.

`# Eq. (8)` is an equation of the HIS paper; READING n and DEVIATION n are explained in docs/paper_notes.md; DIFFERS is
where the scripts of the benchmarks differ. Shapes: B batch, E environments, N agents, S state, O_i observation and A_i
action dims of agent i, M coalitions, K n-step window.
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

from common import checkpoint, cli, harl, runlog
from common.bidexhands import NUM_AGENTS, BiDexHandsVecEnv, IsaacBiDexHandsVecEnv  # DIFFERS: the benchmark
from common.device import check_replay_memory, pick_device
from common.gradients import gradient_norms
from common.profile import Profile
from common.streams import Streams
from common.vecenv import NonFiniteError, VecEnv, check_finite
from common.video import EpisodeRecorder

SCRIPT = Path(__file__).stem


# ---- arguments -------------------------------------------------------------------------------------------------------
@dataclass
class Args(harl.Preset):
    scenario: str = "ShadowHandOver"  # DIFFERS: the benchmark
    """task, ShadowHand...; picks the paper's values for all with a table below"""
    seed: int = 1
    """the one seed: every random stream (environments, exploration, minibatch, ...) is derived from it"""
    total_timesteps: int = 10_000_000
    """environment steps over all environments, warm-up included"""
    num_envs: int = 20  # DIFFERS: the paper's value
    """E, parallel environments ("rollout threads", Tables 2, 4, 6)"""
    sim: Literal["mujoco", "mujoco_warp", "isaacgym"] = "mujoco"  # DIFFERS: the benchmark
    """mujoco: our port, on the CPU; mujoco_warp: the same on a GPU; isaacgym: the original, in a Python of its own"""
    sim_threads: int = 1  # DIFFERS: the benchmark
    """CPU threads of --sim mujoco; they change no result"""
    base_force_scale: float = 0.25  # DIFFERS: the benchmark
    """factor on force and torque of a hand's floating base, calibrated (docs/bidexhands.md); mujoco, mujoco_warp"""
    isaac_done_semantics: bool = False  # DIFFERS: the benchmark
    """book-keeping as in HARL: time limits terminate, and one transition an episode leads from its end to the next"""
    isaac_python: str = ""  # DIFFERS: the benchmark
    """with --sim isaacgym: the Python 3.6 to 3.8 that has Isaac Gym (docs/isaacgym.md)"""
    isaac_task_root: str = ""  # DIFFERS: the benchmark
    """with --sim isaacgym: a clone of HARL or DexterousHands"""
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
    """environment steps of uniform random actions; --train-interval vector steps later comes an update (Table 1)"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer D (Table 1)"""
    batch_size: int = 1000
    """B, transitions in an update (Tables 2, 4, 5)"""
    gamma: float = 0.95  # DIFFERS: the paper's value
    """discount factor (Tables 2, 4, 6)"""
    n_step: int = 20  # DIFFERS: the paper's value
    """K, length of the n-step return (Tables 2, 4, 5)"""
    tau: float = 0.005
    """Polyak coefficient of the target critic (Table 1)"""
    hidden_sizes: tuple[int, int] = (256, 256)
    """hidden layers of actors and critics (Table 1)"""
    actor_lr: float = 5e-4  # DIFFERS: the paper's value
    """Adam step size of the actors (Tables 2, 4, 5)"""
    critic_lr: float = 5e-4  # DIFFERS: the paper's value
    """Adam step size of the twin critic (Tables 2, 4, 6)"""
    auto_alpha: bool = True
    """tune the temperatures, Eq. (13); otherwise all stay at --alpha (Tables 3, 4, 5)"""
    alpha: float = 0.2
    """temperature where it is not tuned (Tables 3, 5)"""
    alpha_lr: float = 3e-4
    """Adam step size of the log temperatures (Tables 3, 4, 5)"""
    train_interval: int = 50
    """vector steps between two rounds of updates (Table 1)"""
    update_per_train: int = 1
    """updates per vector step, made up for at the round (Table 1)"""
    policy_frequency: int = 2
    """critic updates per update of actors, temperatures and targets (Table 1; READING 9)"""
    mini_epochs: int = 1
    """e, gradient steps of an actor in one update (Algorithm 1; READING 9)"""


# The paper's values, Table 3, where they differ from the defaults above, and HARL's budgets (DEVIATION 7).
PRESETS: dict[str, dict[str, Any]] = {scenario: {} for scenario in NUM_AGENTS} | {  # DIFFERS: the paper's values
    "ShadowHandOver": dict(total_timesteps=50_000_000),
    "ShadowHandCatchOver2Underarm": dict(total_timesteps=20_000_000),
    "ShadowHandTwoCatchUnderarm": dict(auto_alpha=False, alpha=5e-5),
}
# Smallest and largest value of each number; None is open.
LIMITS: dict[str, tuple[float | None, float | None]] = {  # DIFFERS: the environment's fields
    **dict.fromkeys(
        "total_timesteps num_envs torch_threads eval_every eval_episodes eval_envs log_every save_every batch_size "
        "n_step hidden_sizes train_interval update_per_train policy_frequency mini_epochs "
        "sim_threads".split(),
        (1, None),
    ),
    **dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), (1e-12, None)),
    **dict.fromkeys(("seed", "base_force_scale", "warmup_steps", "alpha"), (0, None)),
    **dict.fromkeys(("gamma", "tau"), (0, 1)),
    "buffer_size": (1, None),
}
# What may change between a run and its continuation without changing what is learnt.
RESUMABLE = tuple(  # DIFFERS: the environment's fields
    "total_timesteps device torch_threads eval_every log_every save_every track capture_video profile "
    "sim_threads isaac_python isaac_task_root".split()
)


def check_args(args: Args) -> None:
    """Raise `cli.UsageError` for values that are each allowed but do not fit together."""
    envs = min(args.eval_envs, args.eval_episodes)
    if args.eval_episodes % envs:
        raise cli.UsageError(f"--eval-episodes {args.eval_episodes}: must be a multiple of --eval-envs {envs}")
    if args.buffer_size < args.num_envs:
        raise cli.UsageError(f"--buffer-size {args.buffer_size}: must be at least --num-envs {args.num_envs}")


# ---- environment -----------------------------------------------------------------------------------------------------
# DIFFERS: the benchmark
def make_env(args: Args, num_envs: int) -> VecEnv:
    """E copies of the task (DEVIATION 9: MuJoCo in place of Isaac Gym unless --sim isaacgym)."""
    if args.sim == "isaacgym":
        paths = (args.isaac_python, args.isaac_task_root)
        return IsaacBiDexHandsVecEnv(args.scenario, num_envs, *paths, args.isaac_done_semantics)
    if args.isaac_python or args.isaac_task_root:
        raise cli.UsageError("--isaac-python and --isaac-task-root need --sim isaacgym")
    rest = (args.sim, args.sim_threads, args.base_force_scale, args.isaac_done_semantics)
    try:
        return BiDexHandsVecEnv(args.scenario, num_envs, *rest)
    except ImportError as error:
        raise cli.UsageError(f"--sim {args.sim}: {error}") from error


# DIFFERS: the benchmark
def task_and_variant(args: Args) -> tuple[str, list[str]]:
    """The task, and what sets the environment apart from the default one: words for the name of the run folder.

    Our port is not the original: its runs are named BiDexMJ/<task>, those of Isaac Gym BiDexHands/<task>.
    """
    words = [args.sim] if args.sim == "mujoco_warp" else []
    if args.sim != "isaacgym" and args.base_force_scale != 0.25:
        words.append(f"force{args.base_force_scale:g}")
    if args.isaac_done_semantics:
        words.append("isaacdone")
    return f"{'BiDexHands' if args.sim == 'isaacgym' else 'BiDexMJ'}/{args.scenario}", words


def to_tensors(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(a).to(device) for a in arrays]


# ---- networks --------------------------------------------------------------------------------------------------------
def mlp(sizes: Sequence[int], last: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between them and `last` after the last one."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU(inplace=True))]
    return nn.Sequential(*layers[:-1], last)


class Actor(nn.Module):
    """Squashed Gaussian policy pi_i(a_i | o_i): a = tanh(u), u ~ N(mean, exp(log_std)), a in [-1, 1]."""

    __call__: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __init__(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        self.body = mlp([obs_dim, *hidden_sizes], nn.Tanh())  # HARL: the last hidden layer is tanh ("final activation")
        self.head = nn.Linear(hidden_sizes[-1], 2 * action_dim)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (B, O_i) -> mean (B, A_i), log_std (B, A_i)"""
        mean, log_std = self.head(self.body(obs)).chunk(2, dim=-1)
        return mean, log_std.clamp(-20, 2)


class TwinCritic(nn.Module):
    """Q_1 and Q_2 of the state and the joint action."""

    __call__: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __init__(self, state_dim: int, joint_action_dim: int, hidden_sizes: Sequence[int]):
        super().__init__()
        sizes = [state_dim + joint_action_dim, *hidden_sizes, 1]
        self.q1, self.q2 = mlp(sizes, nn.Identity()), mlp(sizes, nn.Identity())

    def forward(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """state (B, S), actions (B, sum A_i) -> Q_1 (B,), Q_2 (B,)"""
        x = torch.cat([state, actions], dim=-1)
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)


def min_q(critic: TwinCritic, state: Tensor, actions: Tensor) -> Tensor:
    """min(Q_1, Q_2), (B,); READING 4: the value of every coalition too."""
    return torch.minimum(*critic(state, actions))


def gaussian_log_prob(z: Tensor, log_std: Tensor) -> Tensor:
    """log N(u; mean, exp(log_std)) of u = mean + exp(log_std) z, summed over action dims, (B, A) -> (B,)."""
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)  # Eq. (27)


def squash_correction(u: Tensor) -> Tensor:
    """log |det d tanh(u) / du| summed over action dims, (B, A) -> (B,), exact where 1 - tanh(u)^2 rounds to 0."""
    return (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)  # Eq. (29)


class Sample(NamedTuple):
    action: Tensor  # (B, A_i) in [-1, 1]
    log_prob: Tensor  # (B,)
    pre_tanh: Tensor  # (B, A_i)


def sample_action(mean: Tensor, log_std: Tensor, generator: torch.Generator) -> Sample:
    """Reparametrised sample of the squashed Gaussian and its log-probability (DEVIATION 1: no log(scale))."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    u = mean + torch.exp(log_std) * noise
    log_prob = gaussian_log_prob(noise, log_std) - squash_correction(u)
    return Sample(torch.tanh(u), log_prob, u)


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
def critic_target(
    batch: Batch, actors: Sequence[Actor], target_critic: TwinCritic, alpha: Tensor, generator: torch.Generator
) -> Tensor:
    """y = R + gamma^m (1 - terminated) V(s'), (B,); alpha () is the critic's own temperature."""
    with torch.no_grad():
        samples = [sample_action(*actor(obs), generator) for actor, obs in zip(actors, batch.next_obs, strict=True)]
        log_prob = torch.stack([sample.log_prob for sample in samples]).sum(0)
        q = min_q(target_critic, batch.next_state, torch.cat([sample.action for sample in samples], dim=1))
        return batch.reward + batch.discount * (q - alpha * log_prob)  # Eq. (11), Eq. (12); DEVIATION 4: n-step


def update_critic(
    critic: TwinCritic, optimizer: torch.optim.Optimizer, batch: Batch, target: Tensor
) -> dict[str, Tensor]:
    """One step of both critics on full joint actions only: no masked target is ever fitted."""
    q1, q2 = critic(batch.state, batch.actions)
    assert q1.shape == q2.shape == target.shape  # (B,) against (B, 1) would broadcast to (B, B)
    loss = F.mse_loss(q1, target) + F.mse_loss(q2, target)  # Eq. (11)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"losses/critic": loss.detach(), "losses/q_mean": torch.minimum(q1, q2).detach().mean()}


def update_actors(
    actors: Sequence[Actor],
    optimizers: Sequence[torch.optim.Optimizer],
    critic: TwinCritic,
    batch: Batch,
    alpha: Tensor,
    streams: Streams,
    args: Args,
    diagnose: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sequential update of all actors in a random order, Algorithm 1 lines 11-21, Eq. (10).

    Args:
        alpha: (N,) temperatures. diagnose: also measure the gradients of the loss's terms (a backward pass each).

    Returns:
        log_prob (N, B) of the actions sampled from the policies before their updates, and the metrics.
    """
    critic.requires_grad_(False)
    policies = [actor(obs) for actor, obs in zip(actors, batch.obs, strict=True)]  # valid until the agent's own step
    samples = [sample_action(*policy, streams.policy) for policy in policies]
    actions = [sample.action.detach() for sample in samples]  # a~: agent by agent those of the new policies
    log_probs = torch.stack([sample.log_prob.detach() for sample in samples])
    metrics: dict[str, Tensor] = {}
    order: list[int] = torch.randperm(len(actors), generator=streams.agent_order).tolist()
    for agent in order:
        for epoch in range(args.mini_epochs):  # e of Algorithm 1; READING 9
            if epoch > 0:
                policies[agent] = actors[agent](batch.obs[agent])
                samples[agent] = sample_action(*policies[agent], streams.policy)
            sample = samples[agent]
            joint = torch.cat([*actions[:agent], sample.action, *actions[agent + 1 :]], dim=1)
            q = min_q(critic, batch.state, joint)
            terms = {"main": -(q - alpha[agent] * sample.log_prob).mean()}  # Eq. (10), first term
            loss = torch.stack([*terms.values()]).sum()
            if diagnose:
                norms = gradient_norms(actors[agent], terms)
                metrics |= {f"diag/{key}_{agent}": value for key, value in norms.items()}
            optimizers[agent].zero_grad()
            loss.backward()
            optimizers[agent].step()
            metrics[f"losses/actor_{agent}"] = loss.detach()
        if agent != order[-1]:  # redrawn from the updated policy for the agents still to come
            with torch.no_grad():
                actions[agent] = sample_action(*actors[agent](batch.obs[agent]), streams.policy).action
    critic.requires_grad_(True)
    return log_probs, metrics


def update_temperature(
    log_alpha: Tensor, optimizer: torch.optim.Optimizer, log_probs: Tensor, target_entropy: Tensor
) -> None:
    """One step of the N + 1 log temperatures; the last is the critic's, with the sums over agents.

    log_alpha (N + 1,); target_entropy (N + 1,), the -dim(A_i) and their sum; log_probs (N, B).
    """
    mean_log_prob = torch.cat([log_probs.mean(1), log_probs.sum(0).mean()[None]])
    loss = -(log_alpha * (mean_log_prob + target_entropy)).sum()  # Eq. (13), on log alpha as HARL
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def update_target(critic: TwinCritic, target_critic: TwinCritic, tau: float) -> None:
    """Q' <- (1 - tau) Q' + tau Q, Algorithm 1 line 22 (DEVIATION 5: its rho is our 1 - tau)"""
    for target, online in zip(target_critic.parameters(), critic.parameters(), strict=True):
        target.lerp_(online, tau)


class Learner:
    """Networks, optimisers and temperatures: what an update changes."""

    def __init__(self, env: VecEnv, streams: Streams, args: Args, device: torch.device):
        self.args, self.streams = args, streams
        torch.manual_seed(streams.networks)
        sizes = args.hidden_sizes
        dims = zip(env.obs_dims, env.action_dims, strict=True)
        self.actors = [Actor(obs_dim, action_dim, sizes).to(device) for obs_dim, action_dim in dims]
        self.critic = TwinCritic(env.state_dim, sum(env.action_dims), sizes).to(device)
        self.target_critic = TwinCritic(env.state_dim, sum(env.action_dims), sizes).to(device)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        start = 0.0 if args.auto_alpha else math.log(max(args.alpha, 1e-38))
        self.log_alpha = torch.full((env.num_agents + 1,), start, device=device, requires_grad=args.auto_alpha)
        target_entropy = [-float(dim) for dim in env.action_dims]
        self.target_entropy = torch.tensor([*target_entropy, sum(target_entropy)], device=device)

        self.actor_optimizers = [torch.optim.Adam(a.parameters(), lr=args.actor_lr, fused=True) for a in self.actors]
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=args.critic_lr, fused=True)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=args.alpha_lr)
        self.update_step = 0  # gradient steps of the critic
        self.batch: Batch | None = None  # of the last update
        if args.compile and device.type == "cuda":
            for module in (*self.actors, self.critic, self.target_critic):
                module.compile()

    def update(self, buffer: ReplayBuffer, diagnose: bool = False) -> dict[str, Tensor]:
        """One training step; returns metrics as scalar tensors."""
        args, streams = self.args, self.streams
        self.update_step += 1
        alpha = self.log_alpha.detach().exp()
        self.batch = batch = buffer.sample(args.batch_size, streams.minibatch)
        target = critic_target(batch, self.actors, self.target_critic, alpha[-1], streams.policy)
        metrics = update_critic(self.critic, self.critic_optimizer, batch, target)
        if self.update_step % args.policy_frequency == 0:  # READING 9
            rest = (self.critic, batch, alpha[:-1], streams, args, diagnose)
            log_probs, actor_metrics = update_actors(self.actors, self.actor_optimizers, *rest)
            metrics |= actor_metrics | {"losses/alpha_critic": alpha[-1]}
            for agent in range(len(self.actors)):
                metrics |= {f"losses/alpha_{agent}": alpha[agent], f"losses/entropy_{agent}": -log_probs[agent].mean()}
            if args.auto_alpha:
                update_temperature(self.log_alpha, self.alpha_optimizer, log_probs, self.target_entropy)
            update_target(self.critic, self.target_critic, args.tau)
        losses = {key: value for key, value in metrics.items() if key.startswith(("losses/critic", "losses/actor"))}
        if not torch.isfinite(torch.stack(list(losses.values()))).all():
            first = next(key for key, value in losses.items() if not torch.isfinite(value))
            raise NonFiniteError(f"{first} is not finite")
        return metrics

    def act(self, obs: Sequence[Tensor], deterministic: bool = False) -> list[np.ndarray]:
        """Over agents (E, O_i) -> actions (E, A_i) in [-1, 1]."""
        with torch.no_grad():
            policies = [actor(o) for actor, o in zip(self.actors, obs, strict=True)]
            if deterministic:
                return [torch.tanh(mean).cpu().numpy() for mean, _ in policies]
            return [sample_action(*policy, self.streams.exploration).action.cpu().numpy() for policy in policies]

    def modules(self) -> dict[str, Any]:
        named = dict(actors=nn.ModuleList(self.actors), critic=self.critic, target_critic=self.target_critic)
        named |= dict(critic_optimizer=self.critic_optimizer, alpha_optimizer=self.alpha_optimizer)
        return named | {f"actor_optimizer_{i}": optimizer for i, optimizer in enumerate(self.actor_optimizers)}

    def state_dict(self) -> dict[str, Any]:
        saved = {name: module.state_dict() for name, module in self.modules().items()}
        return saved | dict(log_alpha=self.log_alpha.detach(), update_step=self.update_step)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(saved[name])
        self.log_alpha.data.copy_(saved["log_alpha"])
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
    """An equal number of deterministic episodes from each environment (DEVIATION 7).

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
                diagnose = log_due and progress.pending_updates <= args.policy_frequency
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
    args = cli.parse(Args, PRESETS, LIMITS, argv, prog=f"{SCRIPT}.py", resumable=RESUMABLE)
    log = run = folder = None
    try:
        check_args(args)
        if args.evaluate:
            return evaluate_run(args)
        device = pick_device(args.device, args.torch_threads, args.matmul_precision, args.compile)
        rows = args.buffer_size // args.num_envs * args.num_envs
        check_replay_memory(rows, 4 * sum(ReplayBuffer.row_widths(make_env(args, 1)).values()), device)
        config = runlog.describe(asdict(args), sys.argv if argv is None else [f"{SCRIPT}.py", *argv])
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
