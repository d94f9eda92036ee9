"""MAPPO in one file, for all three benchmarks: `--benchmark mpe|mamujoco|bidexhands`.

MAPPO (multi-agent proximal policy optimisation; Yu et al., arXiv 2103.01955) in the form of HARL's baseline is
cooperative on-policy learning: one value function of the global state, and actors that all maximise PPO's clipped
objective of the same advantage, each as if the others stood still. Where the agents are alike, one actor serves them
all (`--share-param`).

`diff baselines/mappo.py baselines/happo.py` shows what HAPPO is beyond MAPPO: order and factor in `update_actors`.
DEVIATION n is explained in docs/baselines.md. Shapes: T steps of a rollout, E environments, B = T E rows, N agents,
S state, O_i observation and A_i action dims of agent i.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from common.device import pick_device
from common.profile import Profile
from common.streams import Streams
from common.valuenorm import ValueNorm
from common.vecenv import NonFiniteError, VecEnv, check_finite
from common.video import EpisodeRecorder

SCRIPT = "mappo"  # DIFFERS: the algorithm


# ---- arguments -------------------------------------------------------------------------------------------------------
@dataclass
class Args(benchmarks.BenchmarkArgs):
    seed: int = 1
    """the one seed: every random stream (environments, exploration, minibatch, ...) is derived from it"""
    total_timesteps: int = 10_000_000
    """environment steps over all environments"""
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
    eval_every: int = 100_000
    """environment steps between evaluations"""
    eval_episodes: int = 40
    """deterministic episodes of one evaluation, an equal number from each evaluation environment"""
    eval_envs: int = 20
    """evaluation environments (no more are made than --eval-episodes)"""
    log_every: int = 5_000
    """environment steps between two lines of metrics.jsonl, which follow an update"""
    save_every: int = 100_000
    """environment steps between checkpoints"""
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

    rollout_steps: int = 200
    """T, steps of every environment between two rounds of updates"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate"""
    time_limits: Literal["mask", "terminate", "bootstrap"] = "mask"
    """a step cut off by the time limit gets no advantage (HARL), counts as an end, or bootstraps (DEVIATION 2)"""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of actors and critic"""
    std_x_coef: float = 1.0
    """x of the policy's standard deviation y sigmoid(w / x), w a parameter that starts at x"""
    std_y_coef: float = 0.5
    """y of the same: the largest standard deviation"""
    critic_lr: float = 5e-4
    """Adam step size of the critic"""
    adam_eps: float = 1e-5
    """epsilon of Adam"""
    lr_decay: bool = False
    """let the step sizes fall linearly to 0 at --total-timesteps"""
    critic_epochs: int = 5
    """passes over a rollout in one round of updates of the critic"""
    critic_minibatches: int = 1
    """gradient steps in one such pass"""
    clip: float = 0.2  # DIFFERS: the algorithm
    """epsilon, how far the ratio may move from 1, and the value from what it was"""
    value_coef: float = 1.0
    """factor on the critic's loss"""
    huber_delta: float = 10.0
    """where the critic's loss goes from square to linear, in standard deviations of the return"""
    value_norm: bool = True
    """let the critic predict normalised returns"""
    max_grad_norm: float = 10.0
    """largest norm of a gradient; longer ones are scaled down"""

    actor_lr: float = 5e-4  # DIFFERS: the algorithm
    """Adam step size of the actors"""
    epochs: int = 5  # DIFFERS: the algorithm
    """passes over a rollout in one round of updates of an actor"""
    minibatches: int = 1  # DIFFERS: the algorithm
    """gradient steps in one such pass"""
    entropy_coef: float = 0.01  # DIFFERS: the algorithm
    """factor on the entropy bonus"""
    share_param: bool = True  # DIFFERS: the algorithm
    """one actor for all agents, whose observations and actions must have one size"""


# HARL's tuned values where they differ from the defaults above; docs/baselines.md gives the source of each.
BENCHMARKS: dict[str, dict[str, Any]] = {
    "mamujoco": dict(hidden_sizes=(128, 128, 128)),
    "bidexhands": dict(
        num_envs=256, total_timesteps=50_000_000, hidden_sizes=(256, 256, 256), gamma=0.95, time_limits="terminate"
    ),
}
ANT = dict(clip=0.1, entropy_coef=0.0)  # DIFFERS: the algorithm
CHEETAH = dict(clip=0.05, epochs=15, critic_epochs=15)  # DIFFERS: the algorithm
WALKER_2X3 = dict(  # DIFFERS: the algorithm
    clip=0.05,
    entropy_coef=0.0,
    actor_lr=1e-3,
    critic_lr=1e-3,
    minibatches=2,
    critic_minibatches=2,
    lr_decay=True,
)
EPISODE_STEPS = {  # a rollout holds one episode of the hands
    **dict.fromkeys(("ShadowHandOver", "ShadowHandTwoCatchUnderarm", "ShadowHandCatchOver2Underarm"), 75),
    **{"ShadowHandPen": 125, "ShadowHandCatchAbreast": 150, "ShadowHandLiftUnderarm": 500},
    **dict.fromkeys(("ShadowHandDoorCloseInward", "ShadowHandDoorOpenInward", "ShadowHandDoorOpenOutward"), 250),
}
PRESETS = benchmarks.presets(  # DIFFERS: the algorithm
    BENCHMARKS,
    {scenario: dict(rollout_steps=steps) for scenario, steps in EPISODE_STEPS.items()}
    | dict.fromkeys(("Ant-2x4", "Ant-4x2", "Ant-8x1"), ANT)
    | dict.fromkeys(("HalfCheetah-2x3", "HalfCheetah-3x2", "HalfCheetah-6x1"), CHEETAH)
    | {"Walker2d-2x3": WALKER_2X3, "Walker2d-6x1": dict(clip=0.1)}
    | {"simple_speaker_listener": dict(share_param=False)},
)
# Smallest and largest value of each number; None is open.
POSITIVE = (1e-12, None)
LIMITS: dict[str, tuple[float | None, float | None]] = benchmarks.LIMITS | {  # DIFFERS: the algorithm
    **dict.fromkeys(
        "total_timesteps num_envs torch_threads eval_every eval_episodes eval_envs log_every save_every rollout_steps "
        "hidden_sizes epochs minibatches critic_epochs critic_minibatches".split(),
        (1, None),
    ),
    **dict.fromkeys(
        "std_x_coef std_y_coef actor_lr critic_lr adam_eps clip huber_delta max_grad_norm".split(),
        POSITIVE,
    ),
    **dict.fromkeys(("seed", "entropy_coef", "value_coef"), (0, None)),
    **dict.fromkeys(("gamma", "gae_lambda"), (0, 1)),
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
    envs, rows = min(args.eval_envs, args.eval_episodes), args.num_envs * args.rollout_steps
    if args.eval_episodes % envs:
        raise cli.UsageError(f"--eval-episodes {args.eval_episodes}: must be a multiple of --eval-envs {envs}")
    for field in ("minibatches", "critic_minibatches"):
        if getattr(args, field, 1) > rows:
            flag = field.replace("_", "-")
            raise cli.UsageError(f"--{flag} {getattr(args, field)}: must be at most the {rows} rows of a rollout")


# ---- environment -----------------------------------------------------------------------------------------------------
def to_tensors(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(a).to(device) for a in arrays]


# ---- networks --------------------------------------------------------------------------------------------------------
def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A linear layer with orthogonal weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """LayerNorm of the input, then linear, ReLU and LayerNorm for each hidden layer."""
    layers: list[nn.Module] = [nn.LayerNorm(sizes[0])]
    for inputs, outputs in pairwise(sizes):
        layers += [linear(inputs, outputs, math.sqrt(2)), nn.ReLU(), nn.LayerNorm(outputs)]
    return nn.Sequential(*layers)


class Policy(NamedTuple):
    """A diagonal Gaussian over unbounded actions; the environment clips them (DEVIATION 4)."""

    mean: Tensor  # (B, A_i)
    std: Tensor  # (A_i,)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log N(actions; mean, std) of each action dimension, (B, A_i)."""
        z = (actions - self.mean) / self.std
        return -0.5 * z.square() - self.std.log() - 0.5 * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        """Entropy summed over action dims, a scalar: it does not depend on the observation."""
        return (0.5 + 0.5 * math.log(2 * math.pi) + self.std.log()).sum()


class Actor(nn.Module):
    """Policy pi_i(a_i | o_i) with a standard deviation of its own that no observation changes."""

    __call__: Callable[[Tensor], Policy]

    def __init__(self, obs_dim: int, action_dim: int, args: Args):
        super().__init__()
        self.std_coefs = (args.std_x_coef, args.std_y_coef)
        self.body = mlp([obs_dim, *args.hidden_sizes])
        self.mean = linear(args.hidden_sizes[-1], action_dim, gain=0.01)
        self.log_std = nn.Parameter(torch.full((action_dim,), args.std_x_coef))

    def forward(self, obs: Tensor) -> Policy:
        """obs (B, O_i) -> mean (B, A_i), std (A_i,)"""
        x, y = self.std_coefs
        return Policy(self.mean(self.body(obs)), y * torch.sigmoid(self.log_std / x))


class Critic(nn.Module):
    """V(s), in units of `ValueNorm`."""

    __call__: Callable[[Tensor], Tensor]

    def __init__(self, state_dim: int, args: Args):
        super().__init__()
        self.net = nn.Sequential(mlp([state_dim, *args.hidden_sizes]), linear(args.hidden_sizes[-1], 1, gain=1.0))

    def forward(self, state: Tensor) -> Tensor:
        """state (..., S) -> V (...)"""
        return self.net(state).squeeze(-1)


# ---- rollout buffer --------------------------------------------------------------------------------------------------
class RolloutBuffer:
    """T vector steps of the current policies; used for one round of updates, then overwritten."""

    def __init__(self, env: VecEnv, rollout_steps: int, device: torch.device):
        obs, actions = sum(env.obs_dims), sum(env.action_dims)
        widths = dict(obs=obs, state=env.state_dim, actions=actions, reward=1, final_state=env.state_dim)
        widths |= dict(terminated=1, truncated=1)
        self.shape = (rollout_steps, env.num_envs)
        self.data = {key: torch.zeros(*self.shape, width, device=device) for key, width in widths.items()}
        self.position = 0  # vector steps held

    @property
    def full(self) -> bool:
        return self.position == self.shape[0]

    def add(self, obs, state, actions, reward, final_state, terminated, truncated) -> None:
        """Store one vector step: obs, actions lists over agents of (E, .); states (E, S); the rest (E,)."""
        step = dict(obs=np.concatenate(obs, 1), state=state, actions=np.concatenate(actions, 1), reward=reward)
        step |= dict(final_state=final_state, terminated=terminated, truncated=truncated)
        for key, value in step.items():
            rows = torch.as_tensor(value, dtype=torch.float32)
            self.data[key][self.position] = rows.reshape(self.shape[1], -1)
        self.position += 1

    def column(self, key: str) -> Tensor:
        """(T, E) of what has one number an environment and step."""
        return self.data[key][..., 0]

    def rows(self, key: str, widths: Sequence[int]) -> list[Tensor]:
        """Over agents (B, width)."""
        return [part.contiguous() for part in self.data[key].flatten(0, 1).split(list(widths), dim=1)]

    def state_dict(self) -> dict[str, Any]:
        return dict(position=self.position, data={key: rows[: self.position] for key, rows in self.data.items()})

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.position = saved["position"]
        for key, rows in saved["data"].items():
            self.data[key][: self.position] = rows.to(self.data[key].device)


class Batch(NamedTuple):
    """A rollout, ready for the updates."""

    obs: list[Tensor]  # over agents (B, O_i)
    actions: list[Tensor]  # over agents (B, A_i), not clipped
    advantage: Tensor  # (B,) of mean 0 and standard deviation 1
    state: Tensor  # (B, S)
    value: Tensor  # (B,) the critic's output before the updates
    returns: Tensor  # (B,) what it is to predict, in units of the reward


# ---- updates ---------------------------------------------------------------------------------------------------------
def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, args: Args
) -> Tensor:
    """Generalised advantage estimate (T, E) of arguments (T, E); `next_value` is that of the true successor state."""
    ended = torch.maximum(terminated, truncated)
    final = ended if args.time_limits == "terminate" else terminated  # no value after these steps
    delta = reward + args.gamma * next_value * (1 - final) - value
    carry = args.gamma * args.gae_lambda * (1 - ended)  # no advantage comes from another episode
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + carry[t] * running
        if args.time_limits == "mask":
            running = running * (1 - truncated[t])  # DEVIATION 2: as if the value had been right
        advantage[t] = running
    return advantage


@torch.no_grad()
def make_batch(buffer: RolloutBuffer, critic: Critic, value_norm: ValueNorm, env: VecEnv, args: Args) -> Batch:
    """Values, returns and normalised advantages of a full rollout."""
    output = critic(buffer.data["state"])
    value, next_value = value_norm.denormalize(output), value_norm.denormalize(critic(buffer.data["final_state"]))
    ends = (buffer.column("terminated"), buffer.column("truncated"))
    advantage = advantages(buffer.column("reward"), value, next_value, *ends, args)
    normalised = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-5)
    return Batch(
        obs=buffer.rows("obs", env.obs_dims),
        actions=buffer.rows("actions", env.action_dims),
        advantage=normalised.flatten(),
        state=buffer.data["state"].flatten(0, 1),
        value=output.flatten(),
        returns=(advantage + value).flatten(),
    )


def minibatches(rows: int, count: int, generator: torch.Generator) -> Iterator[Tensor | slice]:
    """Indices of `count` random parts of equal size; what does not divide is left out."""
    if count == 1:
        yield slice(None)
    else:
        order = torch.randperm(rows, generator=generator, device=generator.device)
        yield from order[: rows // count * count].chunk(count)


def ratio_of(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """pi_new / pi_old of an agent's action: the product of its dimensions' ratios, (..., A_i) -> (...)."""
    return torch.exp((log_prob - old_log_prob).sum(-1))


def update_actor(  # DIFFERS: the algorithm
    agent: int,
    actor: Actor,
    optimizer: torch.optim.Optimizer,
    obs: Tensor,
    actions: Tensor,
    advantage: Tensor,
    generator: torch.Generator,
    args: Args,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's update of one actor from obs (B, O_i), actions (B, A_i), advantage (B,).

    Returns pi_new / pi_old (B,) of the actions, and metrics.
    """
    with torch.no_grad():
        old_log_prob = actor(obs).log_prob(actions)
    loss = entropy = norm = clipped = torch.zeros((), device=obs.device)
    for _ in range(args.epochs):
        for rows in minibatches(len(obs), args.minibatches, generator):
            policy = actor(obs[rows])
            ratio = ratio_of(policy.log_prob(actions[rows]), old_log_prob[rows])
            bounded = ratio.clamp(1 - args.clip, 1 + args.clip)
            loss = -torch.minimum(ratio * advantage[rows], bounded * advantage[rows]).mean()
            entropy = policy.entropy()
            optimizer.zero_grad()
            (loss - args.entropy_coef * entropy).backward()
            norm = nn.utils.clip_grad_norm_(actor.parameters(), args.max_grad_norm)
            optimizer.step()
            clipped = (ratio.detach() != bounded.detach()).float().mean()
    with torch.no_grad():
        ratio = ratio_of(actor(obs).log_prob(actions), old_log_prob)
    return ratio, {
        f"losses/actor_{agent}": loss.detach(),
        f"losses/entropy_{agent}": entropy.detach(),
        f"diag/grad_norm_{agent}": norm,
        f"diag/clip_fraction_{agent}": clipped,
        f"diag/kl_{agent}": (ratio - 1 - ratio.log()).mean(),  # unbiased for KL(old || new), never negative
    }


def update_actors(  # DIFFERS: the algorithm
    actors: Sequence[Actor],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    streams: Streams,
    args: Args,
) -> dict[str, Tensor]:
    """Update of all actors from the same advantages."""
    metrics: dict[str, Tensor] = {}
    tasks = [(obs, actions, batch.advantage) for obs, actions in zip(batch.obs, batch.actions, strict=True)]
    if args.share_param:  # a row holds all agents: (B, N, O), (B, N, A), (B, 1)
        tasks = [(torch.stack(batch.obs, 1), torch.stack(batch.actions, 1), batch.advantage[:, None])]
    for agent, task in enumerate(tasks):
        _, info = update_actor(agent, actors[agent], optimizers[agent], *task, streams.minibatch, args)
        metrics |= info
    return metrics


def update_critic(
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    value_norm: ValueNorm,
    batch: Batch,
    generator: torch.Generator,
    args: Args,
) -> dict[str, Tensor]:
    """Fit V to the returns, each step kept within `clip` of the output before the updates; returns metrics."""
    loss = norm = torch.zeros((), device=batch.state.device)
    for _ in range(args.critic_epochs):
        for rows in minibatches(len(batch.state), args.critic_minibatches, generator):
            value, old_value = critic(batch.state[rows]), batch.value[rows]
            value_norm.update(batch.returns[rows])
            target = value_norm.normalize(batch.returns[rows])
            near = old_value + (value - old_value).clamp(-args.clip, args.clip)
            errors = [F.huber_loss(v, target, reduction="none", delta=args.huber_delta) for v in (value, near)]
            loss = torch.maximum(*errors).mean()
            optimizer.zero_grad()
            (args.value_coef * loss).backward()
            norm = nn.utils.clip_grad_norm_(critic.parameters(), args.max_grad_norm)
            optimizer.step()
    return {
        "losses/critic": loss.detach(),
        "losses/value_mean": batch.returns.mean(),
        "diag/grad_norm_critic": norm,
    }


def adam(module: nn.Module, lr: float, args: Args) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=lr, eps=args.adam_eps, fused=True)


def make_actors(  # DIFFERS: the algorithm
    env: VecEnv, args: Args, device: torch.device
) -> tuple[list[Actor], list[torch.optim.Optimizer]]:
    """An actor for each agent, or one for all, and its optimiser."""
    dims = list(zip(env.obs_dims, env.action_dims, strict=True))
    if args.share_param:
        if len(set(dims)) > 1:
            raise cli.UsageError(f"--share-param: the agents of {args.scenario} differ in size, {dims}")
        dims = dims[:1]
    actors = [Actor(obs_dim, action_dim, args).to(device) for obs_dim, action_dim in dims]
    return actors, [adam(actor, args.actor_lr, args) for actor in actors]


class Learner:
    """Networks, optimisers and value statistics: what an update changes."""

    def __init__(self, env: VecEnv, streams: Streams, args: Args, device: torch.device):
        self.args, self.streams, self.env = args, streams, env
        torch.manual_seed(streams.networks)
        self.actors, self.actor_optimizers = make_actors(env, args, device)
        self.critic = Critic(env.state_dim, args).to(device)
        self.value_norm = ValueNorm(device, args.value_norm)
        self.critic_optimizer = adam(self.critic, args.critic_lr, args)
        self.iteration = 0  # rounds of updates
        self.update_step = 0  # gradient steps of the critic
        self.batch: Batch | None = None  # of the last round
        if args.compile and device.type == "cuda":
            for module in (*self.actors, self.critic):
                module.compile()

    def update(self, buffer: RolloutBuffer) -> dict[str, Tensor]:
        """One round of updates on a full rollout, which it uses up; returns metrics as scalar tensors."""
        args, streams = self.args, self.streams
        if args.lr_decay:
            self.decay()
        self.batch = batch = make_batch(buffer, self.critic, self.value_norm, self.env, args)
        metrics = update_actors(self.actors, self.actor_optimizers, batch, streams, args)
        rest = (self.value_norm, batch, streams.minibatch, args)
        metrics |= update_critic(self.critic, self.critic_optimizer, *rest)
        self.iteration += 1
        self.update_step += args.critic_epochs * args.critic_minibatches
        buffer.position = 0
        losses = {key: value for key, value in metrics.items() if key.startswith(("losses/critic", "losses/actor"))}
        if not torch.isfinite(torch.stack(list(losses.values()))).all():
            first = next(key for key, value in losses.items() if not torch.isfinite(value))
            raise NonFiniteError(f"{first} is not finite")
        return metrics

    def decay(self) -> None:
        """The step sizes of this round: the first has the full ones, after the last they would be 0."""
        args = self.args
        rounds = max(args.total_timesteps // (args.num_envs * args.rollout_steps), 1)
        for optimizer in (*self.actor_optimizers, self.critic_optimizer):
            group = optimizer.param_groups[0]
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * (1 - self.iteration / rounds)

    def act(self, obs: Sequence[Tensor], deterministic: bool = False) -> list[np.ndarray]:
        """Over agents (E, O_i) -> actions (E, A_i), not clipped."""
        actions = []
        with torch.no_grad():
            for agent, o in enumerate(obs):
                mean, std = self.actors[agent % len(self.actors)](o)  # one actor may serve all
                if not deterministic:
                    noise = torch.randn(mean.shape, generator=self.streams.exploration, device=mean.device)
                    mean = mean + std * noise
                actions.append(mean.cpu().numpy())
        return actions

    def modules(self) -> dict[str, Any]:
        named = dict(actors=nn.ModuleList(self.actors), critic=self.critic, value_norm=self.value_norm)
        named |= dict(critic_optimizer=self.critic_optimizer)
        return named | {f"actor_optimizer_{i}": optimizer for i, optimizer in enumerate(self.actor_optimizers)}

    def state_dict(self) -> dict[str, Any]:
        saved = {name: module.state_dict() for name, module in self.modules().items()}
        return saved | dict(iteration=self.iteration, update_step=self.update_step)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(saved[name])
        self.iteration, self.update_step = saved["iteration"], saved["update_step"]


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
        self.buffer = RolloutBuffer(self.env, args.rollout_steps, device)
        self.obs, self.state = self.env.reset(self.streams.environment)
        self.episode_return, self.episode_length = np.zeros(args.num_envs), np.zeros(args.num_envs, dtype=np.int64)
        self.profile = Profile()
        self.finished: list[list[float]] = []  # [return, length] of the episodes that ended since the last log line
        self.metrics: dict[str, Tensor] = {}  # of the last round of updates

    def due(self, every: int, last: int) -> bool:
        return self.progress.global_step // every > last // every

    def state_dict(self, full: bool = True) -> dict[str, Any]:
        saved = dict(args=asdict(self.args), progress=asdict(self.progress), learner=self.learner.state_dict())
        saved |= dict(streams=self.streams.state_dict(), device=self.device.type)
        if full:
            saved |= dict(buffer=self.buffer.state_dict(), env=self.env.get_state(), obs=self.obs, state=self.state)
            saved |= dict(episode_return=self.episode_return, episode_length=self.episode_length)
            saved |= dict(finished=self.finished)
        return saved

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.progress = Progress(**saved["progress"])
        for name in ("learner", "streams", "buffer"):
            getattr(self, name).load_state_dict(saved[name])
        self.env.set_state(saved["env"])
        self.obs, self.state = [o.numpy() for o in saved["obs"]], saved["state"].numpy()
        self.episode_return, self.episode_length = (saved[f"episode_{key}"].numpy() for key in ("return", "length"))
        self.finished = saved["finished"]

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
        """Write best.pt (without rollout and environments) and policy.safetensors (the actors alone, for sharing)."""
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
    if run.args.lr_decay and saved["args"]["total_timesteps"] != run.args.total_timesteps:
        total = saved["args"]["total_timesteps"]
        raise cli.UsageError(f"--total-timesteps {run.args.total_timesteps}: --lr-decay of {path} ends at {total}")
    print(f"continuing from {path}")
    checkpoint.fill(run, saved, path)
    return saved["log"]


# ---- main ------------------------------------------------------------------------------------------------------------
def act_and_store(run: Run) -> None:
    """One step of all environments: act, step, store."""
    args, progress = run.args, run.progress
    with run.profile("acting"):
        actions = run.learner.act(to_tensors(run.obs, run.device))
    with run.profile("environment"):
        step = run.env.step(actions)
    progress.global_step += args.num_envs
    check_finite("observation", step.final_obs)
    check_finite("state", [step.final_state])
    check_finite("reward", [step.reward])
    ends = (step.terminated, step.truncated)
    with run.profile("storing"):
        run.buffer.add(run.obs, run.state, actions, step.reward, step.final_state, *ends)
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

    A signal is heeded after every round of updates, environment step and evaluation step. What it cuts short is still
    due when the run is continued, so a continued run does exactly what an undisturbed one does.
    """
    args, progress = run.args, run.progress
    eval_env = make_env(args, min(args.eval_envs, args.eval_episodes))
    recorder = EpisodeRecorder(eval_env, args.capture_video, log.message)
    clock = (time.monotonic(), progress.global_step, run.learner.update_step)
    with cli.StopSignal() as stop:
        while True:
            if run.buffer.full and not stop.received:
                with run.profile("updates"):
                    run.metrics = run.learner.update(run.buffer)
                if run.due(args.log_every, progress.last_log):
                    charts, clock = rates(run, clock)
                    values = {key: float(value) for key, value in (charts | run.metrics).items()}
                    log.log(progress.global_step, run.learner.update_step, values)
                    run.finished, progress.last_log = [], progress.global_step
            done = progress.global_step >= args.total_timesteps
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
            log.progress(progress.global_step, "training")


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
            with contextlib.suppress(OSError):  # the rollout of the last updates, to look into
                checkpoint.save(folder, "nonfinite_batch.pt", run.learner.batch._asdict())
        return 3
    except KeyboardInterrupt:  # before there is anything to save
        return 130
    finally:
        if log is not None:
            log.close()


if __name__ == "__main__":
    sys.exit(main())
