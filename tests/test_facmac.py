"""facmac.py: the monotone mixture, updates against an oracle, a solved game, and the script as a user runs it."""

import dataclasses
import json
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, ToyEnv, double_precision, noisy_env, random_batch
from onpolicy_helpers import BaselineDriver, Errand
from script_helpers import (
    ROOT,
    assert_same_run,
    checkpoint,
    differences,
    metrics,
    step_files,
    training_state,
    tree_bytes,
)
from test_onpolicy_twins import his_parts, parts
from torch import Tensor

from baselines import facmac
from common import benchmarks, cli
from common.mpe import MPEVecEnv
from common.streams import Streams
from common.vecenv import StepResult, VecEnv
from experiments import suites

# A run of some seconds in which everything happens: 4 environments, uniform actions until step 200, updates from step
# 100 on, 5 after every 20 steps, a buffer that wraps. At step 400 there have been 75 updates, at 800 there are 175.
TINY: dict[str, Any] = dict(
    scenario="simple_spread",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    warmup_steps=200,
    learning_starts=100,
    train_interval=5,
    update_per_train=1,
    batch_size=16,
    hidden_sizes=(16, 16),
    mixing_dim=8,
    hypernet_dim=8,
    buffer_size=600,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
DRIVER = BaselineDriver(facmac, MPEVecEnv, TINY)


def small_args(**values: Any) -> facmac.Args:
    """Arguments of a run that takes milliseconds an update."""
    defaults: dict[str, Any] = dict(hidden_sizes=(8, 6), mixing_dim=5, hypernet_dim=4, device="cpu")
    return facmac.Args(**(defaults | values))


def small_learner(env: VecEnv, args: facmac.Args) -> facmac.Learner:
    return facmac.Learner(env, Streams(args.seed, CPU), args, CPU)


def toy(action_dims: Sequence[int]) -> ToyEnv:
    """A task of agents that see 3, 4, ... numbers."""
    return noisy_env(action_dims=action_dims)


def random_rows(env: VecEnv, batch_size: int, seed: int = 0) -> facmac.Batch:
    """Rows of unrelated numbers."""
    return facmac.Batch(**random_batch(env, batch_size, seed)._asdict())


# ---- the mixture


def random_mixer(mixer: str, seed: int, num_agents: int = 4, state_dim: int = 3) -> facmac.Mixer:
    """Weights far from those of the initialisation, of either sign."""
    torch.manual_seed(seed)
    network = facmac.Mixer(num_agents, state_dim, small_args(mixer=mixer))
    for parameter in network.parameters():
        parameter.data.normal_()
    return network


def numerical_slopes(network: facmac.Mixer, utilities: Tensor, state: Tensor, step: float = 1e-6) -> Tensor:
    """dQ_tot / dQ_i by central differences, (B, N)."""
    columns = []
    with torch.no_grad():
        for i in range(utilities.shape[1]):
            shift = torch.zeros_like(utilities)
            shift[:, i] = step
            columns.append((network(utilities + shift, state) - network(utilities - shift, state)) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_mixture_is_monotone_in_every_utility(seed: int) -> None:
    with double_precision():
        utilities, state = 3 * torch.randn(200, 4), torch.randn(200, 3)
        slopes = numerical_slopes(random_mixer("qmix", seed), utilities, state)
        assert slopes.min() > -1e-7
        assert (slopes.amax(0) > 0.1).all()  # and each agent counts
        assert numerical_slopes(random_mixer("nonmonotonic", seed), utilities, state).min() < -0.1


@pytest.mark.parametrize("mixer", ["qmix", "nonmonotonic"])
def test_mixture_is_qmixs_formula(mixer: str) -> None:
    with double_precision():
        network = random_mixer(mixer, 7)
        utilities, state = torch.randn(20, 4), torch.randn(20, 3)
        found = network(utilities, state).detach().numpy()
    weights = {name: value.numpy() for name, value in network.state_dict().items()}

    def two_layers(name: str, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(weights[f"{name}.0.weight"] @ x + weights[f"{name}.0.bias"], 0)
        return weights[f"{name}.2.weight"] @ hidden + weights[f"{name}.2.bias"]

    size = np.abs if mixer == "qmix" else np.asarray
    for row in range(20):
        s, q = state[row].numpy(), utilities[row].numpy()
        z = q @ size(two_layers("w1", s).reshape(4, 5)) + weights["b1.weight"] @ s + weights["b1.bias"]
        z = np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1)
        assert found[row] == pytest.approx(size(two_layers("w2", s)) @ z + two_layers("value", s)[0], rel=1e-12)


def test_a_single_agent_is_not_mixed() -> None:
    env = toy([2])
    critic = small_learner(env, small_args()).critic
    assert critic.mixer is None and {name.split(".")[0] for name, _ in critic.named_parameters()} == {"utilities"}
    batch = random_rows(env, 9)
    q_tot, utilities = critic(batch.obs, batch.state, [batch.actions])
    x = torch.cat([batch.obs[0], batch.actions], dim=1)
    assert utilities.shape == (9, 1) and torch.equal(q_tot, utilities[:, 0])
    weights = [p.detach() for p in critic.parameters()]
    hidden = torch.relu(torch.relu(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3])
    torch.testing.assert_close(q_tot.detach(), (hidden @ weights[4].T + weights[5])[:, 0])


# ---- an update against an oracle: one row and one agent at a time, gradients by torch, Adam and clipping by hand


class Oracle:
    """FACMAC as its specification says it, on flat dictionaries of float64 parameters."""

    def __init__(self, learner: facmac.Learner, env: VecEnv, args: facmac.Args):
        self.env, self.args = env, args
        named = {"actors": learner.actors, "utilities": learner.critic.utilities}
        self.nets = {key: [dict(m.state_dict()) for m in modules] for key, modules in named.items()}
        self.nets["mixer"] = [] if learner.critic.mixer is None else [dict(learner.critic.mixer.state_dict())]
        self.nets = {k: [{n: p.clone() for n, p in net.items()} for net in nets] for k, nets in self.nets.items()}
        self.targets = {k: [{n: p.clone() for n, p in net.items()} for net in nets] for k, nets in self.nets.items()}
        self.moments: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.steps = 0

    def agent_net(self, nets: list[dict[str, Tensor]], agent: int, parts: Sequence[tuple[Tensor, int]]) -> Tensor:
        """The agent's network on its inputs, each filled up with zeros to the largest agent's where agents share."""
        if self.args.share_param:
            parts = [(torch.cat([part, torch.zeros(width - len(part))]), width) for part, width in parts]
        net, x = nets[agent if len(nets) > 1 else 0], torch.cat([part for part, _ in parts])
        for layer in (0, 2, 4):
            x = net[f"net.{layer}.weight"] @ x + net[f"net.{layer}.bias"]
            x = torch.clamp(x, min=0) if layer < 4 else x
        return x

    def mu(self, nets: dict[str, list[dict[str, Tensor]]], agent: int, obs: Tensor) -> Tensor:
        out = self.agent_net(nets["actors"], agent, [(obs, max(self.env.obs_dims))])
        return torch.tanh(out)[: self.env.action_dims[agent]]

    def q_tot(self, nets: dict[str, list[dict[str, Tensor]]], obs: list[Tensor], s: Tensor, a: list[Tensor]) -> Tensor:
        widths = max(self.env.obs_dims), max(self.env.action_dims)
        agents = range(self.env.num_agents)
        q = torch.cat([self.agent_net(nets["utilities"], i, [(obs[i], widths[0]), (a[i], widths[1])]) for i in agents])
        if not nets["mixer"]:
            return q[0]
        (net,) = nets["mixer"]

        def hyper(name: str) -> Tensor:
            hidden = torch.clamp(net[f"{name}.0.weight"] @ s + net[f"{name}.0.bias"], min=0)
            return net[f"{name}.2.weight"] @ hidden + net[f"{name}.2.bias"]

        z = q @ hyper("w1").abs().reshape(len(q), -1) + net["b1.weight"] @ s + net["b1.bias"]
        z = torch.where(z > 0, z, torch.exp(z.clamp(max=0)) - 1)
        return z @ hyper("w2").abs() + hyper("value")[0]

    def target(self, batch: Any) -> Tensor:
        values = []
        for row in range(len(batch.reward)):
            obs = [o[row] for o in batch.next_obs]
            a = [self.mu(self.targets, i, o) for i, o in enumerate(obs)]
            value = self.q_tot(self.targets, obs, batch.next_state[row], a)
            values.append(batch.reward[row] + batch.discount[row] * value)
        return torch.stack(values).detach()

    def critic_loss(self, batch: Any) -> Tensor:
        target, error = self.target(batch), torch.zeros(())
        for row in range(len(target)):
            obs, a = [o[row] for o in batch.obs], list(batch.actions[row].split(self.env.action_dims))
            error = error + (self.q_tot(self.nets, obs, batch.state[row], a) - target[row]) ** 2
        return error / len(target)

    def actor_loss(self, batch: Any) -> Tensor:
        value, squares, count = torch.zeros(()), torch.zeros(()), 0
        for row in range(len(batch.reward)):
            obs = [o[row] for o in batch.obs]
            a = [self.mu(self.nets, i, o) for i, o in enumerate(obs)]
            value = value + self.q_tot(self.nets, obs, batch.state[row], a)
            squares, count = squares + sum((x**2).sum() for x in a), count + sum(len(x) for x in a)
        return -value / len(batch.reward) + self.args.action_reg * squares / count

    def descend(self, loss: Any, batch: Any, keys: Sequence[str], rate: float) -> float:
        """One clipped step of Adam; returns the loss before it."""
        places = [(net, name) for key in keys for net in self.nets[key] for name in net]
        for net, name in places:
            net[name] = net[name].clone().requires_grad_(True)
        value = loss(batch)
        gradients = torch.autograd.grad(value, [net[name] for net, name in places])
        norm = float(torch.cat([g.flatten() for g in gradients]).square().sum().sqrt())
        for (net, name), g in zip(places, gradients, strict=True):
            g = g * min(1.0, self.args.max_grad_norm / (norm + 1e-6))
            key = id(net), name
            m, v = self.moments.get(key, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[key] = m, v
            m, v = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
            net[name] = net[name].detach() - rate * m / (v.sqrt() + self.args.adam_eps)
        return float(value.detach())

    def update(self, batch: Any) -> tuple[float, float]:
        self.steps += 1
        critic = self.descend(self.critic_loss, batch, ("utilities", "mixer"), self.args.critic_lr)
        actor = self.descend(self.actor_loss, batch, ("actors",), self.args.actor_lr)
        for key, nets in self.targets.items():
            for target, net in zip(nets, self.nets[key], strict=True):
                for name in target:
                    target[name] = (1 - self.args.tau) * target[name] + self.args.tau * net[name]
        return critic, actor


CASES = {
    "shared": ([2, 2, 2], dict()),
    "shared-unlike": ([1, 2, 1], dict()),
    "each its own": ([1, 2, 1], dict(share_param=False)),
    "one agent": ([2], dict()),
    "clipped": ([2, 2], dict(max_grad_norm=1e-3, adam_eps=1e-8)),
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_oracle(case: str) -> None:
    action_dims, values = CASES[case]
    with double_precision():
        env = toy(action_dims)
        args = small_args(**dict(tau=0.1, action_reg=0.5, adam_eps=1e-2, max_grad_norm=1e3) | values)
        learner = small_learner(env, args)
        oracle = Oracle(learner, env, args)

        class Buffer:
            def __init__(self, batch: facmac.Batch):
                self.batch = batch

            def sample(self, batch_size: int, generator: torch.Generator) -> facmac.Batch:
                return self.batch

        found: dict[str, Tensor] = {}
        for step in range(4):  # from the second on the targets differ from the networks
            batch = random_rows(env, 6, seed=step)
            target = facmac.critic_target(batch, learner.target_actors, learner.target_critic)
            torch.testing.assert_close(target, oracle.target(batch))
            buffer: Any = Buffer(batch)
            found = learner.update(buffer)
            critic_loss, actor_loss = oracle.update(batch)
            assert float(found["losses/critic"]) == pytest.approx(critic_loss, rel=1e-9)
            assert float(found["losses/actor"]) == pytest.approx(actor_loss, rel=1e-9)
        critic, target_critic = learner.critic, learner.target_critic
        for modules, nets in (
            (learner.actors, oracle.nets["actors"]),
            (critic.utilities, oracle.nets["utilities"]),
            ([] if critic.mixer is None else [critic.mixer], oracle.nets["mixer"]),
            (learner.target_actors, oracle.targets["actors"]),
            (target_critic.utilities, oracle.targets["utilities"]),
            ([] if target_critic.mixer is None else [target_critic.mixer], oracle.targets["mixer"]),
        ):
            for module, net in zip(modules, nets, strict=True):
                torch.testing.assert_close(dict(module.state_dict()), net, rtol=1e-9, atol=1e-11)
        assert (case == "clipped") == (float(found["diag/grad_norm_actor"]) > args.max_grad_norm)


# ---- the centralised policy gradient


@pytest.mark.parametrize("share", [True, False])
def test_the_actor_gradient_flows_through_all_agents_at_once(share: bool) -> None:
    with double_precision():
        env = toy([2, 2, 2])
        args = small_args(share_param=share, action_reg=0.0, max_grad_norm=1e9)
        learner, batch = small_learner(env, args), random_rows(env, 8)
        for parameter in learner.critic.parameters():
            parameter.data.mul_(3)  # away from the beginning, where the mixture is nearly linear
        seen: list[list[Tensor]] = []

        class Still:  # in place of an optimiser: keeps the gradients and moves nothing
            def zero_grad(self) -> None:
                for actor in learner.actors:
                    actor.zero_grad()

            def step(self) -> None:
                seen.append([p.grad.clone() for a in learner.actors for p in a.parameters() if p.grad is not None])

        still: Any = Still()
        facmac.update_actors(learner.actors, still, learner.critic, batch, args)
        dims = learner.critic.action_dims

        def objective(current: Sequence[int]) -> float:
            """Mean Q_tot where only the agents `current` act by their policies, the others as in the replay buffer."""
            policy, past = facmac.joint_action(learner.actors, batch.obs, dims), batch.actions.split(dims, dim=1)
            chosen = [policy[i] if i in current else past[i] for i in range(3)]
            return float(learner.critic(batch.obs, batch.state, chosen)[0].mean())

        def numerical(parameter: Tensor, index: int, current: Sequence[int], step: float = 1e-5) -> float:
            flat = parameter.data.view(-1)
            values = []
            for sign in (1, -1):
                flat[index] += sign * step
                values.append(objective(current))
                flat[index] -= sign * step
            return (values[0] - values[1]) / (2 * step)

        with torch.no_grad():
            alone_differs = 0
            for position, parameter in enumerate(p for actor in learner.actors for p in actor.parameters()):
                for index in range(0, parameter.numel(), 7):
                    gradient = float(seen[0][position].view(-1)[index])
                    assert gradient == pytest.approx(-numerical(parameter, index, (0, 1, 2)), rel=1e-4, abs=1e-8)
                    alone = sum(numerical(parameter, index, (i,)) for i in range(3))  # MADDPG's gradient
                    alone_differs += abs(gradient + alone) > 1e-5
            assert alone_differs > 10


def test_the_critic_is_not_moved_by_the_actors() -> None:
    env, args = toy([2, 2]), small_args()
    learner, batch = small_learner(env, args), random_rows(env, 8)
    before = [p.detach().clone() for p in learner.critic.parameters()]
    rest = learner.actor_optimizer, learner.critic, batch, args, True
    found = facmac.update_actors(learner.actors, *rest)
    assert all(torch.equal(p, q) for p, q in zip(before, learner.critic.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in learner.critic.parameters())
    assert all(found[f"credit/slope_{i}"] > 0 for i in range(2))


def test_actions_explore_by_clipped_normal_noise() -> None:
    env, args = toy([2, 2]), small_args(exploration_noise=0.1)
    learner = small_learner(env, args)
    obs = [torch.ones(50_000, dim) for dim in env.obs_dims]
    greedy = learner.act(obs, deterministic=True)
    assert all(np.abs(a).max() < 0.7 and np.ptp(a, axis=0).max() == 0 for a in greedy)
    noise = np.concatenate([a - g for a, g in zip(learner.act(obs), greedy, strict=True)], axis=1)
    np.testing.assert_allclose(noise.std(0), 0.1, rtol=0.02)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.002)
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.02
    learner.args = dataclasses.replace(args, exploration_noise=3.0)
    for action in learner.act(obs):
        assert action.min() == -1 and action.max() == 1


# ---- a game with a known best policy


def average_reward(run: facmac.Run, steps: int = 100) -> float:
    """Mean reward of the deterministic policies."""
    obs, _ = run.env.reset(0)
    total = 0.0
    for _ in range(steps):
        result = run.env.step(run.learner.act(facmac.to_tensors(obs, CPU), deterministic=True))
        obs, total = result.obs, total + float(result.reward.mean())
    return total / steps


@pytest.mark.parametrize(("share", "seed"), [(True, 1), (False, 2)])
def test_the_team_learns_its_errand(share: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """r = -(sum of actions - sum of what each agent alone sees)^2: the best policy is worth 0, doing nothing -1."""
    monkeypatch.setattr(facmac, "make_env", lambda args, num_envs: Errand(num_envs))
    args = facmac.Args(
        seed=seed,
        num_envs=10,
        warmup_steps=500,
        buffer_size=20_000,
        batch_size=64,
        gamma=0.5,
        hidden_sizes=(32, 32),
        mixing_dim=16,
        hypernet_dim=16,
        share_param=share,
        train_interval=10,
        critic_lr=2e-3,
        adam_eps=1e-8,
        max_grad_norm=10.0,
        tau=0.01,
        device="cpu",
    )
    run = facmac.Run(args, CPU)
    assert average_reward(run) < -0.7
    while run.learner.update_step < 400:
        facmac.act_and_store(run)
        while run.progress.pending_updates:
            run.learner.update(run.buffer)
            run.progress.pending_updates -= 1
    assert average_reward(run) > -0.2


# ---- command line

FACMAC_MAMUJOCO = {"Ant-2x4", "Ant-4x2", "HalfCheetah-2x3", "HalfCheetah-6x1", "Walker2d-2x3", "ManyAgentSwimmer-10x2"}


def parse(*argv: str) -> dict[str, Any]:
    return dataclasses.asdict(cli.parse(facmac.Args, facmac.PRESETS, facmac.LIMITS, argv))


def test_presets_are_the_authors() -> None:
    expected: dict[str, Any] = dict(
        actor_lr=0.001,
        critic_lr=0.001,
        adam_eps=0.01,
        batch_size=100,
        buffer_size=1_000_000,
        train_interval=1,
        update_per_train=1,
        learning_starts=1000,
        warmup_steps=10_000,
        exploration_noise=0.1,
        gamma=0.99,
        n_step=1,
        max_grad_norm=0.5,
        tau=0.001,
        hidden_sizes=(400, 400),
        mixer="qmix",
        mixing_dim=64,
        hypernet_dim=64,
        share_param=True,
        action_reg=0.001,
        num_envs=1,
        total_timesteps=2_000_000,
    )
    particle: dict[str, Any] = dict(  # facmac_pp.yaml
        gamma=0.85,
        actor_lr=0.01,
        critic_lr=0.01,
        hidden_sizes=(64, 64),
        hypernet_dim=0,  # hypernet_layers 1
        batch_size=800,  # 32 episodes of 25 steps
        buffer_size=125_000,
        train_interval=25,
        update_per_train=0.04,
        learning_starts=775,  # an update after each episode, from the 32nd on
        warmup_steps=800,
    )
    mpe = {"simple_spread", "simple_reference", "simple_speaker_listener"}
    assert facmac.PRESETS.keys() == mpe | FACMAC_MAMUJOCO
    for scenario in facmac.PRESETS:
        args = parse("--scenario", scenario)
        assert {key: args[key] for key in expected} == (expected | particle if scenario in mpe else expected)
        where = ("mpe", "full") if scenario in mpe else ("mamujoco", "joints")
        assert (args["benchmark"], args["obs_mode"]) == where


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "Ant-8x1"], ["--scenario Ant-8x1", *FACMAC_MAMUJOCO, "simple_spread"]),
        (["--scenario", "ShadowHandOver"], ["--scenario ShadowHandOver", *FACMAC_MAMUJOCO]),
        (["--benchmark", "bidexhands"], ["--benchmark bidexhands", "one of mpe, mamujoco"]),
        (["--benchmark", "mpe", "--scenario", "Ant-4x2"], ["--scenario Ant-4x2", "--benchmark mpe", "simple_spread"]),
        (["--benchmark", "mamujoco", "--scenario", "simple_spread"], ["--scenario simple_spread", *FACMAC_MAMUJOCO]),
        (["--obs-mode", "joints"], ["--obs-mode joints", "simple_spread", "--benchmark mamujoco"]),
        (["--scenario", "Ant-2x4", "--obs-mode", "own"], ["--obs-mode own", "full, local, joints"]),
        (["--mixer", "vdn"], ["--mixer vdn", "qmix, nonmonotonic"]),
        (["--exploration-noise", "-1"], ["--exploration-noise -1", "at least 0"]),
        (["--tau", "2"], ["--tau 2", "between 0 and 1"]),
        (["--hidden-sizes", "8", "0"], ["--hidden-sizes 8 0", "at least 1"]),
        (["--eval-episodes", "7", "--eval-envs", "2"], ["--eval-episodes 7", "--eval-envs 2"]),
        (["--buffer-size", "3", "--num-envs", "4"], ["--buffer-size 3", "--num-envs 4"]),
        (["--buffer-size", "1000000000000"], ["--buffer-size 1000000000000", "would fit"]),
    ],
)
def test_refused_in_one_line(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = DRIVER.usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_alone_takes_its_first_scenario(tmp_path: Path) -> None:
    command = DRIVER.command(tmp_path, total_timesteps=4)
    assert command[:2] == ["--scenario", "simple_spread"]
    assert facmac.main(["--benchmark", "mamujoco", *command[2:]]) == 0
    assert (tmp_path / "facmac/mamujoco/HalfCheetah-2x3/seed3-joints/finished.json").exists()


@pytest.mark.parametrize("suite", ["fig5", "smoke-fig5"])
def test_the_suites_have_command_lines_that_it_takes(suite: str) -> None:
    runs = [run for run in suites.expand(suites.SUITES[suite]) if run.variant == "facmac"]
    assert {run.scenario for run in runs} == FACMAC_MAMUJOCO and {run.script for run in runs} == {"baselines/facmac.py"}
    for run in runs:
        args = cli.parse(facmac.Args, facmac.PRESETS, facmac.LIMITS, run.command("runs")[1:])
        facmac.check_args(args)
        assert args.benchmark == "mamujoco" and args.total_timesteps == run.total_steps
    assert suites.VARIANTS["facmac"].num_envs == facmac.Args().num_envs


# ---- the script at work


@pytest.mark.parametrize("values", [{"scenario": "Walker2d-2x3"}, {"scenario": "simple_speaker_listener"}], ids=str)
@pytest.mark.parametrize("share", [True, False])
def test_every_benchmark_trains(values: dict[str, Any], share: bool, tmp_path: Path) -> None:
    short = dict(total_timesteps=320, eval_every=320, save_every=320, share_param=share)
    assert facmac.main(DRIVER.command(tmp_path, **(values | short))) == 0
    (folder,) = (path.parent for path in tmp_path.rglob("config.json"))
    suffix = "-joints" if values["scenario"] == "Walker2d-2x3" else ""
    assert folder.parts[-2:] == (values["scenario"], f"seed3{suffix}")
    learner = checkpoint.load(folder / "checkpoints/step_320.pt")["learner"]
    assert learner["update_step"] == 55  # from step 100 on one every 4 steps
    assert len({name.split(".")[0] for name in learner["actors"]}) == (1 if share else 2)
    assert all(bool(torch.isfinite(x).all()) for x in learner["actors"].values())
    config = json.loads((folder / "config.json").read_text())
    assert "baselines/facmac.py" in config["command"] and config["script"] == "facmac"


def test_updates_begin_and_uniform_actions_end_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facmac, "make_env", lambda args, num_envs: noisy_env(num_envs))

    def first(**values: Any) -> tuple[int, int]:
        """The step after which the first update is due, and the first step taken by the policies."""
        run = facmac.Run(small_args(num_envs=1, **values), CPU)
        acted: list[int] = []
        act = run.learner.act
        monkeypatch.setattr(run.learner, "act", lambda obs: (acted.append(run.progress.global_step), act(obs))[1])
        due = None
        while not acted:
            facmac.act_and_store(run)
            due = run.progress.global_step if due is None and run.progress.pending_updates else due
        return due or 0, acted[0] + 1

    assert first(warmup_steps=30, learning_starts=10) == (11, 31)
    assert first(warmup_steps=30, learning_starts=10, train_interval=4) == (14, 31)
    assert first(warmup_steps=30, learning_starts=1000) == (31, 31)
    assert first(warmup_steps=0) == (1, 1)
    assert first(**facmac.PARTICLE_VALUES) == (800, 801)


@pytest.mark.parametrize(
    ("interval", "rate", "expected"), [(1, 1.0, 40), (4, 1.0, 40), (5, 0.2, 8), (4, 0.1, 10), (4, 0.6, 20)]
)
def test_updates_keep_their_rate(monkeypatch: pytest.MonkeyPatch, interval: int, rate: float, expected: int) -> None:
    """In 40 steps: interval x rate a round, rounded, and never less than one."""
    monkeypatch.setattr(facmac, "make_env", lambda args, num_envs: noisy_env(num_envs))
    values = dict(train_interval=interval, update_per_train=rate, warmup_steps=0)
    run, due = facmac.Run(small_args(num_envs=1, **values), CPU), 0
    for _ in range(40):
        run.progress.pending_updates = 0
        facmac.act_and_store(run)
        due += run.progress.pending_updates
    assert due == expected


def test_linear_hypernetworks_have_no_hidden_layer() -> None:
    torch.manual_seed(0)
    mixer = facmac.Mixer(2, 3, small_args(hypernet_dim=0))
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters() if "weight" in name and name[0] in "wb"} == {
        "w1.0.weight": (10, 3),
        "w2.0.weight": (5, 3),
        "b1.weight": (5, 3),
    }
    utilities, state = torch.randn(6, 2), torch.randn(6, 3)
    w1, w2 = (mixer.get_parameter(f"{name}.0.weight") for name in ("w1", "w2"))
    c1, c2 = (mixer.get_parameter(f"{name}.0.bias") for name in ("w1", "w2"))
    expected = []
    for q, s in zip(utilities, state):
        hidden = torch.nn.functional.elu(q @ (w1 @ s + c1).abs().view(2, 5) + mixer.b1(s))
        expected.append(hidden @ (w2 @ s + c2).abs() + mixer.value(s)[0])
    torch.testing.assert_close(mixer(utilities, state), torch.stack(expected))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that nothing interrupted."""
    return DRIVER.train(tmp_path_factory.mktemp("facmac"))


def test_the_tiny_run_is_worth_continuing(undisturbed: Path) -> None:
    saved = [checkpoint.load(path) for path in step_files(undisturbed)]
    assert [state["progress"]["global_step"] for state in saved] == [400, 800]
    assert [state["learner"]["update_step"] for state in saved] == [75, 175]
    assert [(state["buffer"]["position"], state["buffer"]["size"]) for state in saved] == [(100, 100), (50, 150)]


def test_one_seed_gives_one_run_and_another_another(undisturbed: Path, tmp_path: Path) -> None:
    assert_same_run(DRIVER.train(tmp_path), undisturbed)
    other = training_state(step_files(DRIVER.train(tmp_path, seed=4))[-1])
    assert differences(other["learner"], training_state(step_files(undisturbed)[-1])["learner"]) != []


@pytest.mark.parametrize(
    ("moment", "at", "pending", "updates"),
    [
        pytest.param("step", 20, 0, 0, id="in-the-warm-up"),
        pytest.param("step", 37, 0, 10, id="between-rounds"),
        pytest.param("step", 40, 5, 10, id="before-updates"),
        pytest.param("update", 13, 2, 13, id="in-a-round-of-updates"),
        pytest.param("evaluation", 7, 0, 25, id="in-an-evaluation"),
    ],
)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    moment: str, at: int, pending: int, updates: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signum = signal.SIGINT if moment == "update" else signal.SIGTERM

    def stop(*_: object) -> None:
        signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        if moment == "update":
            DRIVER.on_update(patch, at, stop)
        else:
            DRIVER.on_env_step(patch, 4 if moment == "step" else 2, at, stop)
        assert facmac.main(DRIVER.command(tmp_path)) == 128 + signum
    folder = DRIVER.folder_of(tmp_path)
    saved = checkpoint.load(step_files(folder)[-1])
    assert (saved["progress"]["pending_updates"], saved["learner"]["update_step"]) == (pending, updates)
    assert not (folder / "finished.json").exists()
    assert facmac.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed)


def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path: Path) -> None:
    folder = DRIVER.folder_of(tmp_path / "killed")
    words = DRIVER.script(*DRIVER.command(tmp_path / "killed", total_timesteps=2_000_000))
    killed = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (paths := step_files(folder)) or metrics(folder)[-1]["global_step"] <= int(paths[-1].stem[5:]):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (folder / "finished.json").exists()
    at_kill = checkpoint.load(step_files(folder)[-1])["progress"]["global_step"]
    total = (at_kill // 400 + 1) * 400
    reference = DRIVER.train(tmp_path / "reference", total_timesteps=total)
    assert facmac.main(["--resume", str(folder), "--total-timesteps", str(total)]) == 0
    assert_same_run(folder, reference)


def test_looking_at_a_run_does_not_change_it(undisturbed: Path, tmp_path: Path) -> None:
    folder = DRIVER.train(tmp_path, eval_every=100, eval_episodes=4, log_every=60, save_every=100, profile=True)
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, undisturbed))
    for key in ("learner", "streams", "buffer", "env", "obs", "state"):
        assert differences(state[key], expected[key]) == [], key


def test_only_its_own_runs_are_continued(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = json.loads((undisturbed / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"script": "mappo"}))
    for flag in ("--resume", "--evaluate"):
        line = DRIVER.usage_error(capsys, [flag, str(tmp_path)])
        assert str(tmp_path) in line and "does not fit this script" in line and "mappo" in line
    before = tree_bytes(undisturbed)
    line = DRIVER.usage_error(capsys, ["--resume", str(undisturbed), "--tau", "0.5"])
    assert "--tau 0.5" in line and "0.001" in line
    assert "--run-name" in DRIVER.usage_error(capsys, DRIVER.command(undisturbed.parents[3]))
    assert tree_bytes(undisturbed) == before


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("final_obs", "observation of agent 2 in environment 1"),
        ("final_state", "state in environment 1"),
        ("reward", "reward in environment 1"),
    ],
)
def test_a_bad_value_from_the_environment_stops_the_run(
    field: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original, steps = MPEVecEnv.step, []

    def step(self: Any, actions: Any) -> StepResult:
        result = original(self, actions)
        if self.num_envs == 4:
            steps.append(1)
            if len(steps) == 103:
                array = getattr(result, field)
                (array[2] if isinstance(array, list) else array)[1] = np.nan
        return result

    monkeypatch.setattr(MPEVecEnv, "step", step)
    assert facmac.main(DRIVER.command(tmp_path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and "global_step 412" in error, error
    folder = DRIVER.folder_of(tmp_path)
    assert [path.name for path in step_files(folder)] == ["step_400.pt"] and not (folder / "finished.json").exists()


@pytest.mark.parametrize("part", ["critic", "actor"])
def test_a_bad_loss_stops_the_run(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def poison(learner: facmac.Learner, buffer: Any) -> None:
        network = learner.actors[0] if part == "actor" else learner.critic
        next(network.parameters()).data[0, 0] = np.nan

    DRIVER.on_update(monkeypatch, 80, poison)
    assert facmac.main(DRIVER.command(tmp_path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"losses/{part} is not finite" in error and "update_step 80" in error, error
    folder = DRIVER.folder_of(tmp_path)
    assert [path.name for path in step_files(folder)] == ["step_400.pt"]
    assert len(torch.load(folder / "nonfinite_batch.pt", weights_only=True)["reward"]) == 16


# ---- what it leaves behind


def test_folder_metrics_and_profile(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = DRIVER.train(tmp_path, profile=True)
    output = capsys.readouterr().out
    files = {path.name for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *("step_400.pt", "step_800.pt", "best.pt", "policy.safetensors"),
    }
    text = (ROOT / "docs/baselines.md").read_text().partition("### Metrics of facmac.py")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\|\s*`((?:losses|credit|diag)/[^`]+)`\s*\|", text, re.MULTILINE))
    written = {re.sub(r"_\d+$", "_<i>", key) for key in set().union(*metrics(folder))}
    common = {"charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/updates_per_s"}
    common |= {"eval/return_mean", "eval/return_std", "global_step", "update_step", "wall_s"}
    assert written - common == documented and common < written
    shares = dict(re.findall(r"^([a-z ]+?) +[\d.]+ s +([\d.]+) %$", output, re.MULTILINE))
    assert shares.keys() >= {"environment", "acting", "storing", "updates", "evaluation", "checkpoints"}
    lines = [line for line in metrics(folder) if "losses/critic" in line]
    assert [line["global_step"] for line in lines] == [200, 300, 400, 500, 600, 700, 800]  # at 100 none has been made
    assert all(line[f"credit/slope_{i}"] >= 0 for line in lines for i in range(3))


def test_the_best_policy_can_be_evaluated_again(undisturbed: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert facmac.main(["--evaluate", str(undisturbed)]) == 0
    found = re.findall(r"^episode \d+: return (-?[\d.]+), length 25$", capsys.readouterr().out, re.MULTILINE)
    rows = np.loadtxt(undisturbed / "eval.csv", delimiter=",", skiprows=1)  # global_step, episode, return, length
    best = max((rows[rows[:, 0] == step, 2] for step in np.unique(rows[:, 0])), key=np.mean)
    assert [float(x) for x in found] == pytest.approx(best.tolist(), abs=0.006)


def test_help_is_the_documentation() -> None:
    source = (ROOT / "baselines/facmac.py").read_text()
    for field in facmac.Args.__annotations__:
        assert re.search(rf'^    {field}: [^\n]+\n    """', source, re.MULTILINE), field
    assert facmac.Args.__mro__[1] is benchmarks.BenchmarkArgs


# ---- the frame that it shares with the other scripts

# What facmac.py has in common with his_mpe.py by name but not by content, and why.
UNLIKE_HIS = {
    # settings of another algorithm, and for two benchmarks; other modules
    *("SCRIPT", "Args", "PRESETS: dict[str, dict[str, Any]]", "check_args", "common"),
    *("LIMITS: dict[str, tuple[float | None, float | None]]", "main"),
    # deterministic actors, one critic, no temperatures
    *(
        "Actor.docstring",
        "Actor.__init__",
        "Actor.forward",
        "critic_target",
        "update_critic",
        "update_actors",
        "update_target",
    ),
    *(f"Learner.{name}" for name in ("docstring", "__init__", "update", "act", "modules")),
    *("Learner.state_dict", "Learner.load_state_dict"),
    # updates begin before the warm-up ends, actors move in each of them
    *("act_and_store", "train"),
}


def test_the_frame_is_that_of_the_his_scripts() -> None:
    """Replay buffer, evaluation, saving, logging and the arguments for them are equal to those of his_mpe.py."""
    his, script = his_parts(), parts("facmac")
    both = [key for key in his if key in script]
    unequal = {key for key in both if his[key][0] != script[key][0]}
    fields = {key for key in unequal if key.startswith("Args.")}
    assert unequal - fields == UNLIKE_HIS, (unequal - fields) ^ UNLIKE_HIS
    equal = set(both) - unequal
    assert {"evaluate", "evaluate_and_record", "evaluate_run", "rates", "Run.save", "Run.due", "restore"} <= equal
    assert {"Run.__init__", "Run.state_dict", "Run.load_state_dict", "ReplayBuffer.sample", "ReplayBuffer.add"} <= equal
    shared = {f"Args.{key}" for key in ("seed: int", "torch_threads: int", "eval_episodes: int", "resume: str")}
    assert shared <= equal and len(equal) > 60


def test_the_blocks_stand_in_the_order_of_the_house() -> None:
    lines = (ROOT / "baselines/facmac.py").read_text().splitlines()
    blocks = [line.strip("# -") for line in lines if line.startswith("# ---- ")]
    assert blocks == "arguments,environment,networks,replay buffer,updates,evaluation,checkpoint,main".split(",")
