"""ppo.py: the joint agent, PPO's numbers against numpy, the adaptive step size, a game, and as a user runs it."""

import copy
import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from helpers import CPU, double_precision
from onpolicy_helpers import BaselineDriver, Errand, flat_parameters, random_rollout, small_args
from script_helpers import ROOT, assert_same_run, checkpoint, differences, metrics, step_files, training_state
from test_onpolicy import BY_HAND, NEXT, REWARD, TERMINATED, TRUNCATED, VALUE, tensor
from test_onpolicy_twins import UNLIKE_HIS, his_parts, parts, unmarked_differences
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from baselines import ppo
from common import benchmarks, cli
from common.mpe import MPEVecEnv
from common.streams import Streams
from experiments import suites

# As those of onpolicy_helpers: rollouts of 60 steps, checkpoints in the middle of rollouts.
TINY: dict[str, Any] = dict(
    scenario="simple_spread",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    rollout_steps=15,
    hidden_sizes=(16, 16),
    epochs=2,
    minibatches=2,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
DRIVER = BaselineDriver(ppo, MPEVecEnv, TINY)


def joint_errand(num_envs: int) -> ppo.JointAgent:
    return ppo.JointAgent(Errand(num_envs))


# ---- the joint agent


@pytest.mark.parametrize("scenario", ["simple_speaker_listener", "HalfCheetah-3x2", "ShadowHandOver"])
def test_the_joint_agent_sees_the_state_and_acts_for_all(scenario: str) -> None:
    values: dict[str, Any] = ppo.PRESETS[scenario]
    args = ppo.Args(**values, scenario=scenario)
    joint, plain = ppo.make_env(args, 2), benchmarks.make_env(args, 2)
    assert joint.num_agents == 1 and joint.obs_dims == [joint.state_dim] == [plain.state_dim]
    assert joint.action_dims == [sum(plain.action_dims)] and joint.max_episode_steps == plain.max_episode_steps
    (obs,), state = joint.reset(4)
    _, plain_state = plain.reset(4)
    assert np.array_equal(obs, plain_state) and np.array_equal(state, plain_state)
    rng, ends = np.random.default_rng(0), np.cumsum(plain.action_dims)[:-1]
    for _ in range(3):
        action = rng.uniform(-1, 1, (2, joint.action_dims[0])).astype(np.float32)
        one, other = joint.step([action]), plain.step(np.split(action, ends, axis=1))
        assert np.array_equal(one.obs[0], other.state) and np.array_equal(one.final_obs[0], other.final_state)
        assert np.array_equal(one.reward, other.reward) and np.array_equal(one.terminated, other.terminated)
        assert differences(joint.last_success, plain.last_success) == []
    saved, action = joint.get_state(), rng.uniform(-1, 1, (2, joint.action_dims[0])).astype(np.float32)
    first = joint.step([action])
    joint.set_state(saved)
    assert np.array_equal(joint.step([action]).state, first.state)
    with pytest.raises(ValueError, match="agent 0"):
        joint.step([action[:, 1:]])
    joint.close()
    plain.close()


# ---- the rollout


@pytest.mark.parametrize("time_limits", BY_HAND)
def test_advantages_by_hand(time_limits: str) -> None:
    args = small_args(ppo, gamma=0.5, gae_lambda=0.5, time_limits=time_limits)
    reward, value, following, terminated, truncated = map(tensor, (REWARD, VALUE, NEXT, TERMINATED, TRUNCATED))
    found = ppo.advantages(reward, value, following, terminated, truncated, args)
    np.testing.assert_allclose(found.numpy(), np.array(BY_HAND[time_limits]).T, atol=1e-12)


def test_returns_and_advantages_of_a_rollout() -> None:
    """By the definition in numpy, every end terminal, as for the hands."""
    args, env = small_args(ppo, time_limits="terminate", gamma=0.9, gae_lambda=0.8), joint_errand(6)
    buffer = random_rollout(ppo, env, args)
    torch.manual_seed(0)
    critic = ppo.Critic(env.state_dim, args)
    batch = ppo.make_batch(buffer, critic, env, args)
    with torch.no_grad():
        value, following = (critic(buffer.data[key]).numpy() for key in ("state", "final_state"))
    reward = buffer.column("reward").numpy()
    ended = buffer.column("terminated").numpy() + buffer.column("truncated").numpy()
    assert ended.sum() > 8
    advantage = np.zeros((13, 6))
    for t in reversed(range(12)):
        delta = reward[t] + 0.9 * following[t] * (1 - ended[t]) - value[t]
        advantage[t] = delta + 0.9 * 0.8 * (1 - ended[t]) * advantage[t + 1]
    advantage = advantage[:12]
    np.testing.assert_allclose(batch.returns, (advantage + value).ravel(), atol=1e-5)
    np.testing.assert_allclose(batch.advantage, ((advantage - advantage.mean()) / advantage.std()).ravel(), atol=1e-4)
    for key, rows in (("obs", batch.obs[0]), ("actions", batch.actions[0]), ("state", batch.state)):
        assert torch.equal(rows[6 * 3 + 2], buffer.data[key][3, 2])


def test_minibatches_are_in_the_order_of_time() -> None:
    rows = np.arange(11)
    assert [rows[part].tolist() for part in ppo.minibatches(11, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [rows[part].tolist() for part in ppo.minibatches(4, 1)] == [[0, 1, 2, 3]]


# ---- the policy


@pytest.mark.parametrize(("covariance", "std"), [("squared", 0.64), ("plain", 0.8)])
def test_policy_is_the_gaussian_it_says(covariance: str, std: float) -> None:
    torch.manual_seed(0)
    actor = ppo.Actor(3, 2, small_args(ppo, covariance=covariance, init_noise_std=0.8))
    policy, actions = actor(torch.randn(5, 3)), torch.randn(5, 2)
    assert policy.std.tolist() == pytest.approx([std, std])
    assert actor.log_std.tolist() == pytest.approx([math.log(0.8)] * 2)
    joint = MultivariateNormal(policy.mean, scale_tril=torch.diag(policy.std))
    np.testing.assert_allclose(
        policy.log_prob(actions).sum(-1).detach(), joint.log_prob(actions).detach(), rtol=1e-5, atol=1e-6
    )
    assert float(policy.entropy().detach()) == pytest.approx(float(joint.entropy()[0].detach()))


def test_noise_has_the_standard_deviation_of_the_policy() -> None:
    env = joint_errand(4000)
    learner = ppo.Learner(env, Streams(0, CPU), small_args(ppo), CPU)
    obs = [torch.ones(4000, env.state_dim)]
    noise = learner.act(obs)[0] - learner.act(obs, deterministic=True)[0]
    assert noise.std(0) == pytest.approx(0.64, rel=0.05) and np.abs(noise).max() > 1  # not clipped by the script


def test_networks_are_elu_without_normalisation() -> None:
    args = small_args(ppo, hidden_sizes=(12, 8))
    torch.manual_seed(0)
    actor, critic = ppo.Actor(5, 2, args), ppo.Critic(5, args)
    kinds = {type(m) for net in (actor, critic) for m in net.modules() if not list(m.children())}
    assert kinds == {nn.Linear, nn.ELU}
    first, second = (layer.weight.detach() for layer in actor.body if isinstance(layer, nn.Linear))
    np.testing.assert_allclose(first.T @ first, 2 * np.eye(5), atol=1e-5)
    np.testing.assert_allclose(second @ second.T, 2 * np.eye(8), atol=1e-5)
    np.testing.assert_allclose(actor.mean.weight.detach() @ actor.mean.weight.detach().T, 1e-4 * np.eye(2), atol=1e-8)
    x = torch.randn(3, 5)
    layer = actor.body[0]
    assert isinstance(layer, nn.Linear)
    expected = np.where((z := (x @ first.T + layer.bias.detach()).numpy()) > 0, z, np.expm1(z))
    np.testing.assert_allclose(actor.body[1](layer(x)).detach(), expected, atol=1e-6)
    for layer in (m for net in (actor, critic) for m in net.modules() if isinstance(m, nn.Linear)):
        bias, bound = layer.bias.detach().abs(), layer.in_features**-0.5  # as the original leaves them
        assert 0 < bias.max() <= bound


# ---- the update


def old_and_new(num: int = 50) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(num, 3), 0.3 * torch.randn(3), torch.randn(num, 3), 0.3 * torch.randn(3)


def test_kl_divergence_is_that_of_torch() -> None:
    old_mean, old_log_std, mean, log_std = old_and_new()
    expected = kl_divergence(Normal(old_mean, old_log_std.exp()), Normal(mean, log_std.exp())).sum(-1).mean()
    assert float(ppo.kl_divergence(old_mean, old_log_std, mean, log_std)) == pytest.approx(float(expected), rel=1e-5)


def test_kl_divergence_of_equal_policies_is_exactly_zero() -> None:
    mean, log_std, *_ = old_and_new()
    assert float(ppo.kl_divergence(mean, log_std, mean * (1 + 3e-7), log_std)) == 0.0  # a rounded mean is equal, too


@pytest.mark.parametrize(
    ("lr", "kl", "expected"),
    [
        (3e-4, 0.0, 3e-4),
        (3e-4, 0.0079, 4.5e-4),
        (3e-4, 0.0081, 3e-4),
        (3e-4, 0.0319, 3e-4),
        (3e-4, 0.0321, 2e-4),
        (9e-3, 0.001, 1e-2),
        (1.2e-5, 5.0, 1e-5),
        (3e-4, math.nan, 3e-4),
    ],
)
def test_step_size_follows_the_kl_divergence(lr: float, kl: float, expected: float) -> None:
    assert ppo.adapted_lr(lr, kl, ppo.Args()) == pytest.approx(expected)


class Parts:
    """Actor, critic, optimiser and a random batch of 24 rows."""

    def __init__(self, **values: Any):
        self.args, env = small_args(ppo, num_envs=6, rollout_steps=4, **values), joint_errand(6)
        torch.manual_seed(0)
        self.actor, self.critic = ppo.Actor(6, 3, self.args), ppo.Critic(6, self.args)
        self.optimizer = ppo.adam(nn.ModuleList([self.actor, self.critic]), self.args.lr, self.args)
        self.batch = ppo.make_batch(random_rollout(ppo, env, self.args), self.critic, env, self.args)

    def update(self) -> dict[str, torch.Tensor]:
        return ppo.update_policy(self.actor, self.critic, self.optimizer, self.batch, self.args)


def mean_std(actor: ppo.Actor, obs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        policy = actor(obs)
    return policy.mean.numpy(), policy.std.numpy()


def numpy_loss(parts: Parts, rows: slice, old: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """max(-A rho, -A clip(rho)) and the mean square error of the value, on some rows."""
    actions, advantage = parts.batch.actions[0].numpy()[rows], parts.batch.advantage.numpy()[rows]

    def log_density(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        return (-0.5 * ((actions - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(1)

    new = mean_std(parts.actor, parts.batch.obs[0][rows])
    rho = np.exp(log_density(*new) - log_density(old[0][rows], old[1]))
    surrogate = np.maximum(-advantage * rho, -advantage * rho.clip(0.8, 1.2)).mean()
    with torch.no_grad():
        value = parts.critic(parts.batch.state[rows]).numpy()
    return float(surrogate), float(((parts.batch.returns.numpy()[rows] - value) ** 2).mean())


@pytest.mark.parametrize("covariance", ["squared", "plain"])
def test_the_loss_is_numpys_and_its_gradient_that_of_differences(covariance: str) -> None:
    """The second gradient step, where ratios are not 1, with plain gradient descent in place of Adam."""
    with double_precision():
        p = Parts(epochs=1, minibatches=1, schedule="fixed", covariance=covariance, entropy_coef=0.1, max_grad_norm=1e9)
        old = mean_std(p.actor, p.batch.obs[0])
        everything = nn.ModuleList([p.actor, p.critic])
        p.optimizer = torch.optim.SGD(everything.parameters(), lr=0.05)
        start = copy.deepcopy(everything.state_dict())
        p.update()
        moved = copy.deepcopy(everything.state_dict())
        everything.load_state_dict(start)
        p.args.epochs = 2
        info = p.update()
        after = copy.deepcopy(everything.state_dict())
        everything.load_state_dict(moved)
        rows = slice(None)
        surrogate, square = numpy_loss(p, rows, old)
        assert float(info["losses/actor_0"]) == pytest.approx(surrogate, abs=1e-9)
        assert float(info["losses/critic"]) == pytest.approx(square, rel=1e-9)

        def total() -> float:
            surrogate, square = numpy_loss(p, rows, old)
            entropy = (0.5 + 0.5 * np.log(2 * np.pi) + np.log(mean_std(p.actor, p.batch.obs[0])[1])).sum()
            return surrogate + 2.0 * square - 0.1 * entropy

        for name, parameter in everything.named_parameters():
            index, h = (0,) * parameter.ndim, 1e-6
            at = float(parameter.detach()[index])
            around = []
            for shift in (h, -h):
                parameter.data[index] = at + shift
                around.append(total())
            parameter.data[index] = at
            slope = (around[0] - around[1]) / (2 * h)
            assert float(after[name][index]) == pytest.approx(at - 0.05 * slope, abs=1e-7), name


def test_one_norm_for_the_gradient_of_actor_and_critic() -> None:
    with double_precision():
        p = Parts(epochs=1, minibatches=1, schedule="fixed", max_grad_norm=0.5)
        everything = nn.ModuleList([p.actor, p.critic])
        p.optimizer = torch.optim.SGD(everything.parameters(), lr=1.0)
        before = flat_parameters(everything)
        assert float(p.update()["diag/grad_norm"]) > 1
        assert float((flat_parameters(everything) - before).norm()) == pytest.approx(0.5, rel=1e-4)


def test_the_step_size_is_looked_at_before_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    original = ppo.adapted_lr

    def adapted_lr(lr: float, kl: float, args: Any) -> float:
        seen.append((lr, kl))
        return original(lr, kl, args)

    monkeypatch.setattr(ppo, "adapted_lr", adapted_lr)
    p = Parts(epochs=3, minibatches=4)
    info = p.update()
    assert len(seen) == 12 and seen[0] == (3e-4, 0.0) and seen[1][0] == 3e-4 and all(kl > 0 for _, kl in seen[1:])
    assert {lr for lr, _ in seen} != {3e-4}
    assert p.optimizer.param_groups[0]["lr"] == float(info["diag/learning_rate"])
    for (lr, kl), (following, _) in zip(seen, seen[1:]):
        assert following == original(lr, kl, p.args)
    seen.clear()
    fixed = Parts(epochs=3, minibatches=4, schedule="fixed")
    fixed.update()
    assert seen == [] and fixed.optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize("covariance", ["squared", "plain"])
def test_what_steers_the_step_size_is_the_divergence_of_normals_of_width_exp_w(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where actions are drawn with exp(2 w): P-2."""
    p, seen = Parts(epochs=2, minibatches=4, covariance=covariance, lr=3e-3), []
    old, rows = copy.deepcopy(p.actor), p.batch.obs[0].split(6) * 2

    def adapted_lr(lr: float, kl: float, args: Any) -> float:
        with torch.no_grad():
            before, now = (
                Normal(actor(rows[len(seen)]).mean.double(), actor.log_std.double().exp()) for actor in (old, p.actor)
            )
        seen.append((kl, float(kl_divergence(before, now).sum(-1).mean())))
        return lr

    monkeypatch.setattr(ppo, "adapted_lr", adapted_lr)
    p.update()
    assert len(seen) == 8 and seen[-1][0] > 1e-3
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_pass_visits_the_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    p, visited = Parts(epochs=2, minibatches=4), []
    original = ppo.Critic.forward

    def forward(self: Any, state: torch.Tensor) -> torch.Tensor:
        visited.append(state)
        return original(self, state)

    monkeypatch.setattr(ppo.Critic, "forward", forward)
    p.update()
    assert len(visited) == 8 and torch.equal(torch.cat(visited), p.batch.state.repeat(2, 1))


# ---- a game


@pytest.mark.parametrize("seed", [1, 2])
def test_the_joint_agent_finds_the_best_policy(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three agents are paid -(sum_i a_i - sum_i x_i)^2; `Errand`."""
    monkeypatch.setattr(benchmarks, "make_env", lambda args, num_envs: Errand(num_envs))
    values: dict[str, Any] = dict(num_envs=16, rollout_steps=16, hidden_sizes=(32, 32), gamma=0.9, seed=seed)
    run = ppo.Run(small_args(ppo, **values), CPU)

    def reward_a_step() -> float:
        result = ppo.evaluate(run.learner, joint_errand(100), 7, 100, CPU)
        assert result is not None
        return float(result.returns.mean()) / 2

    assert reward_a_step() < -0.7  # about -1, what doing nothing gets
    while run.learner.iteration < 60:
        ppo.act_and_store(run)
        if run.buffer.full:
            run.learner.update(run.buffer)
    assert reward_a_step() > -0.1  # the optimum is 0


# ---- as a user runs it

HANDS: dict[str, Any] = dict(num_envs=256, rollout_steps=64, hidden_sizes=(1024, 1024, 512), gamma=0.96, epochs=5)
HANDS |= dict(minibatches=4, init_noise_std=0.8, total_timesteps=100_000_000, time_limits="terminate", adam_eps=1e-8)
HANDS |= dict(clip=0.2, value_coef=2.0, entropy_coef=0.0, max_grad_norm=1.0, lr=3e-4, desired_kl=0.016, lr_min=1e-5)
HANDS |= dict(lr_max=1e-2, gae_lambda=0.95, schedule="adaptive", covariance="squared")
LIFT: dict[str, Any] = dict(rollout_steps=160, hidden_sizes=(1024, 512, 512), gamma=0.998, epochs=10)
LIFT |= dict(init_noise_std=1.0)


def test_presets_of_the_hands_are_those_of_dexteroushands() -> None:
    for scenario in benchmarks.NUM_AGENTS["bidexhands"]:
        args = vars(cli.parse(ppo.Args, ppo.PRESETS, ppo.LIMITS, ["--scenario", scenario]))
        expected = HANDS | (LIFT if scenario == "ShadowHandLiftUnderarm" else {})
        assert {key: args[key] for key in expected} == expected, scenario
        nsteps = 20 if scenario == "ShadowHandLiftUnderarm" else 8
        assert args["num_envs"] * args["rollout_steps"] == 2048 * nsteps  # samples of an update
    assert len(ppo.PRESETS) == 21


def test_the_suites_know_its_command_line() -> None:
    for suite in ("fig4", "smoke-fig4"):
        runs = [run for run in suites.expand(suites.SUITES[suite]) if run.variant == "ppo"]
        assert len({run.scenario for run in runs}) == 9
        for run in runs:
            path, *argv = run.command("somewhere")
            assert path == "baselines/ppo.py" and (ROOT / path).exists()
            args = cli.parse(ppo.Args, ppo.PRESETS, ppo.LIMITS, benchmarks.with_scenario(argv), resumable=ppo.RESUMABLE)
            ppo.check_args(args)
            assert {name: vars(args)[name] for name in run.settings} == run.settings


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "simple_tag"], ["--scenario simple_tag", "simple_spread", "Ant-4x2"]),
        (["--benchmark", "mpe", "--scenario", "Ant-4x2"], ["--scenario Ant-4x2", "--benchmark mpe", "simple_spread"]),
        (["--scenario", "Ant-4x2", "--obs-mode", "local"], ["--obs-mode local", "full"]),
        (["--eval-episodes", "7", "--eval-envs", "2"], ["--eval-episodes 7", "--eval-envs 2"]),
        (["--minibatches", "100000"], ["--minibatches 100000", "4000"]),
        (["--lr-min", "0.1"], ["--lr-min 0.1", "--lr-max 0.01"]),
        (["--covariance", "none"], ["--covariance none", "squared", "plain"]),
        (["--desired-kl", "0"], ["--desired-kl 0", "at least"]),
        (["--share-param"], ["--share-param", "no such flag"]),
    ],
)
def test_refused_in_one_line(
    argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = DRIVER.usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scenario", ["simple_speaker_listener", "Walker2d-2x3", "ShadowHandOver"])
def test_every_benchmark_trains(scenario: str, tmp_path: Path) -> None:
    steps = dict(total_timesteps=320, eval_every=320, save_every=320, rollout_steps=20)
    folder = DRIVER.train(tmp_path, scenario=scenario, **steps)
    state = checkpoint.load(folder / "checkpoints/step_320.pt")
    assert state["learner"]["iteration"] == 4 and state["learner"]["update_step"] == 4 * 2 * 2
    assert all(bool(torch.isfinite(x).all()) for x in state["learner"]["actors"].values())
    config = json.loads((folder / "config.json").read_text())
    assert "baselines/ppo.py" in config["command"] and config["script"] == "ppo"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return DRIVER.train(tmp_path_factory.mktemp("undisturbed"))


def test_one_seed_gives_one_run_and_another_another(undisturbed: Path, tmp_path: Path) -> None:
    assert_same_run(DRIVER.train(tmp_path), undisturbed)
    other = training_state(step_files(DRIVER.train(tmp_path, seed=4))[-1])
    assert differences(other["learner"], training_state(step_files(undisturbed)[-1])["learner"]) != []


@pytest.mark.parametrize(
    ("moment", "at", "position", "iteration"),
    [("rollout", 37, 7, 2), ("rollout", 45, 15, 2), ("update", 13, 0, 4), ("evaluation", 7, 5, 3)],
    ids=["in-a-rollout", "before-updates", "in-an-update", "in-an-evaluation"],
)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    moment: str,
    at: int,
    position: int,
    iteration: int,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signum = signal.SIGINT if moment == "update" else signal.SIGTERM

    def stop(*_: object) -> None:
        signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        if moment == "update":
            DRIVER.on_update(patch, at, stop)
        else:
            DRIVER.on_env_step(patch, 4 if moment == "rollout" else 2, at, stop)
        assert ppo.main(DRIVER.command(tmp_path)) == 128 + signum
    folder = DRIVER.folder_of(tmp_path)
    saved = checkpoint.load(step_files(folder)[-1])
    assert (saved["buffer"]["position"], saved["learner"]["iteration"]) == (position, iteration)
    assert not (folder / "finished.json").exists()
    assert ppo.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed)


def test_the_adapted_step_size_outlives_a_stop(undisturbed: Path) -> None:
    """Otherwise the tests above would continue with the first one and see no difference."""
    saved = checkpoint.load(step_files(undisturbed)[0])["learner"]["optimizer"]
    assert saved["param_groups"][0]["lr"] != 3e-4


def test_looking_at_a_run_does_not_change_it(undisturbed: Path, tmp_path: Path) -> None:
    folder = DRIVER.train(tmp_path, eval_every=100, eval_episodes=4, log_every=60, save_every=100, profile=True)
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, undisturbed))
    for key in ("learner", "streams", "buffer", "env", "obs", "state"):
        assert differences(state[key], expected[key]) == [], key


@pytest.mark.parametrize("part", ["critic", "actor"])
def test_a_bad_number_stops_the_run(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def poison(learner: Any, buffer: Any) -> None:
        if part == "critic":
            learner.critic.net[1].weight.data[0, 0] = np.nan
        else:
            buffer.data["actions"][3, 2, -1] = np.nan

    DRIVER.on_update(monkeypatch, 33, poison)
    assert ppo.main(DRIVER.command(tmp_path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is not finite" in error and "losses/" in error, error
    folder = DRIVER.folder_of(tmp_path)
    assert [path.name for path in step_files(folder)] == ["step_400.pt"]
    assert len(torch.load(folder / "nonfinite_batch.pt", weights_only=True)["advantage"]) == 60


def test_folder_and_metrics_are_documented(undisturbed: Path) -> None:
    files = {path.name for path in undisturbed.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *("step_400.pt", "step_800.pt", "best.pt", "policy.safetensors"),
    }
    text = (ROOT / "docs/baselines.md").read_text()
    rows = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|\s*([^|]+?)\s*\|", text, re.MULTILINE)
    documented = {key for key, scripts in rows if "ppo" in scripts.split(", ")}
    written = set().union(*metrics(undisturbed)) - {"global_step", "update_step", "wall_s"}
    assert {re.sub(r"_\d+$", "_<i>", key) for key in written} == documented


def test_the_best_policy_can_be_evaluated_again(undisturbed: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert ppo.main(["--evaluate", str(undisturbed)]) == 0
    found = re.findall(r"^episode \d+: return (-?[\d.]+), length 25$", capsys.readouterr().out, re.MULTILINE)
    rows = np.loadtxt(undisturbed / "eval.csv", delimiter=",", skiprows=1)  # global_step, episode, return, length
    best = max((rows[rows[:, 0] == step, 2] for step in np.unique(rows[:, 0])), key=np.mean)
    assert [float(x) for x in found] == pytest.approx(best.tolist(), abs=0.006)


def test_a_run_of_another_script_is_refused(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = json.loads((undisturbed / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"script": "mappo"}))
    for flag in ("--resume", "--evaluate"):
        line = DRIVER.usage_error(capsys, [flag, str(tmp_path)])
        assert str(tmp_path) in line and "does not fit this script" in line and "mappo" in line


# ---- the house


def test_what_differs_from_mappo_is_marked() -> None:
    one, other = parts("mappo"), parts("ppo")
    own = [key for key in unmarked_differences(one, other) if key in other]  # what only MAPPO has is marked there
    assert own == ["JointAgent.docstring"]  # a new class, marked as a whole
    common = [[key for key in script if key in one and key in other] for script in (one, other)]
    assert common[0] == common[1], "not in the same order"


def test_what_is_marked_differs_from_mappo() -> None:
    one, other = parts("mappo"), parts("ppo")
    same = [key for key, (tree, text) in other.items() if "DIFFERS:" in text and key in one and one[key][0] == tree]
    assert same == []


def test_the_frame_is_that_of_the_his_scripts() -> None:
    his, script = his_parts(), parts("ppo")
    both = [key for key in his if key in script]
    unequal = {key for key in both if his[key][0] != script[key][0] and not key.startswith("Args.")}
    expected = UNLIKE_HIS - {"restore", "update_actors", "update_critic"} | {"make_env", "common.vecenv"}
    assert unequal == expected, unequal ^ expected
    equal = set(both) - unequal
    assert {"evaluate", "evaluate_and_record", "evaluate_run", "rates", "Run.save", "Run.due"} <= equal
