"""sqddpg.py: its coalitions, Shapley values of a toy game, updates against oracles, a game, and as a user runs it."""

import copy
import functools
import itertools
import json
import math
import re
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn as nn
from helpers import CPU, ToyEnv, double_precision, filled_buffer
from helpers import random_batch as his_batch
from onpolicy_helpers import BaselineDriver
from scipy import stats
from script_helpers import ROOT, assert_same_run, checkpoint, differences, metrics, step_files, training_state
from test_onpolicy_twins import his_parts, parts
from torch import Tensor

from baselines import sqddpg
from common.mpe import MPEVecEnv
from common.streams import Streams

# A run of some seconds in which everything happens: warm-up to step 200, then every 20 steps a round of 5 updates.
TINY: dict[str, Any] = dict(
    scenario="simple_spread",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    warmup_steps=200,
    train_interval=5,
    batch_size=32,
    hidden_sizes=(16, 16),
    buffer_size=600,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
DRIVER = BaselineDriver(sqddpg, MPEVecEnv, TINY)
N = 4  # agents of the toy game: two agents, and orders that are their own inverse, would hide a wrong permutation
VALUE = np.random.default_rng(5).standard_normal(2**N) * 3  # v of each coalition, a bit an agent; v(nobody) is not 0


def exact_shapley_values() -> np.ndarray:
    """By the definition, over all coalitions."""
    phi = np.zeros(N)
    for i, bits in itertools.product(range(N), range(2**N)):
        if not bits >> i & 1:
            size = bits.bit_count()
            weight = math.factorial(size) * math.factorial(N - size - 1) / math.factorial(N)
            phi[i] += weight * (VALUE[bits | 1 << i] - VALUE[bits])
    return phi


def all_orders(n: int = N) -> Tensor:
    """Every permutation once, (n!, 1, n)."""
    return torch.tensor(list(itertools.permutations(range(n))))[:, None]


def coded_actions(batch: int) -> Tensor:
    """Agent j's action is 2^j, (batch, N, 1): the slots of a Phi_i then say who is in its coalition."""
    return (2.0 ** torch.arange(N)).expand(batch, N)[..., None]


def game_contribution(state: Tensor, slots: Tensor) -> Tensor:
    """v(C + i) - v(C), read from the slots alone: i is in the last one that is not zero."""
    bits = slots.sum(-1).long().numpy()
    last = np.take_along_axis(slots.numpy(), (slots != 0).sum(-1, keepdim=True).numpy() - 1, -1)[..., 0].astype(int)
    return torch.tensor(VALUE[bits] - VALUE[bits - last])


GAME: Any = [game_contribution] * N


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- coalitions


def test_orders_are_uniform_permutations() -> None:
    orders = sqddpg.draw_orders(3, 8000, 4, generator())
    assert orders.shape == (3, 8000, 4)
    assert torch.equal(orders.sort(-1).values, torch.arange(4).expand(3, 8000, 4))
    _, counts = np.unique(orders.flatten(0, 1).numpy(), axis=0, return_counts=True)
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("agent", range(N))
def test_coalitions_have_the_probabilities_of_the_shapley_value(agent: int) -> None:
    """|C|! (n - |C| - 1)! / n!, counted from what Phi_i is given."""
    orders = sqddpg.draw_orders(5, 8000, N, generator(1))
    coalition = sqddpg.slots_of(agent, coded_actions(8000), orders).sum(-1).long().flatten() - 2**agent
    others = [bits for bits in range(2**N) if not bits >> agent & 1]
    sizes = [bits.bit_count() for bits in others]
    expected = np.array([math.factorial(s) * math.factorial(N - s - 1) / math.factorial(N) for s in sizes])
    counts = np.bincount(coalition.numpy(), minlength=2**N)
    assert counts.sum() == counts[others].sum() == 40_000
    assert stats.chisquare(counts[others], expected * 40_000).pvalue > 1e-3
    assert stats.chisquare(counts[others]).pvalue < 1e-9  # sampling every coalition alike would be found


@pytest.mark.parametrize("agent", range(N))
def test_slots_are_positions_of_the_permutation(agent: int) -> None:
    """Against a loop; every agent has two numbers."""
    rng = np.random.default_rng(2)
    actions = rng.standard_normal((6, N, 2))
    orders = np.stack([[rng.permutation(N) for _ in range(6)] for _ in range(3)])
    expected = np.zeros((3, 6, N, 2))
    for m, b in np.ndindex(3, 6):
        for position, member in enumerate(orders[m, b]):
            expected[m, b, position] = actions[b, member]
            if member == agent:
                break
    found = sqddpg.slots_of(agent, torch.tensor(actions), torch.tensor(orders))
    np.testing.assert_array_equal(found, expected.reshape(3, 6, 2 * N))


def test_slots_by_hand() -> None:
    order = torch.tensor([[[2, 0, 3, 1]]])  # not its own inverse
    found = [sqddpg.slots_of(i, torch.tensor([[[10.0], [11.0], [12.0], [13.0]]]), order).tolist() for i in range(N)]
    assert found == [[[[12, 10, 0, 0]]], [[[12, 10, 13, 11]]], [[[12, 0, 0, 0]]], [[[12, 10, 13, 0]]]]


def test_short_actions_are_padded() -> None:
    joint = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert sqddpg.padded(joint, [1, 3, 2]).tolist() == [[[1, 0, 0], [2, 3, 4], [5, 6, 0]]]


# ---- the Shapley value


def test_all_permutations_give_the_exact_shapley_value() -> None:
    found = sqddpg.marginal_contributions(GAME, torch.zeros(1, 1), coded_actions(1), all_orders())
    assert found.shape == (N, 24, 1)
    np.testing.assert_allclose(found.mean(1)[:, 0], exact_shapley_values(), atol=1e-12)
    np.testing.assert_allclose(found.sum(0), VALUE[-1] - VALUE[0], atol=1e-12)  # in every single permutation


def test_samples_converge_to_the_shapley_value() -> None:
    orders = sqddpg.draw_orders(20, 4000, N, generator(3))
    found = sqddpg.marginal_contributions(GAME, torch.zeros(4000, 1), coded_actions(4000), orders).numpy()
    exact, error = exact_shapley_values(), found.std((1, 2)) / math.sqrt(80_000)
    assert (np.abs(found.mean((1, 2)) - exact) < 4 * error).all() and error.max() < 0.03
    few = np.abs(found[:, :1].mean(1) - exact[:, None]).mean()
    many = np.abs(found.mean(1) - exact[:, None]).mean()
    assert many / few == pytest.approx(1 / math.sqrt(20), rel=0.1)
    np.testing.assert_allclose(found.mean(1).sum(0), VALUE[-1] - VALUE[0], atol=1e-9)


def test_the_permutation_of_2019_is_not_the_shapley_value() -> None:
    """Positions where agents are due: agent i's slots end with another's action; only an own inverse hides that.

    They are those of `slots_of` with the actions sorted by the inverse permutation, up to the position of i.
    """
    wrong, exact = np.zeros(N), exact_shapley_values()
    for order in itertools.permutations(range(N)):
        inverse = torch.tensor(np.argsort(order))
        for i in range(N):
            at = order.index(i)
            slots = sqddpg.slots_of(int(inverse[at]), coded_actions(1), inverse[None, None])
            wrong[i] += float(game_contribution(torch.zeros(1, 1), slots)) / 24
    assert np.abs(wrong - exact).max() > 0.3


def test_efficiency_gap_is_zero_for_contributions_to_one_value_function_only() -> None:
    orders = sqddpg.draw_orders(3, 50, N, generator(4))
    true = sqddpg.marginal_contributions(GAME, torch.zeros(50, 1), coded_actions(50), orders)
    assert float(sqddpg.efficiency_gap(true)) < 1e-12
    # two agents, two permutations, one state: sums 3 and 7
    assert float(sqddpg.efficiency_gap(torch.tensor([[[1.0], [3.0]], [[2.0], [4.0]]]))) == 2.0


# ---- updates


def toy() -> ToyEnv:
    """Agents of three sizes."""
    return ToyEnv(3, [1, 3, 2], lambda joint: joint.sum(1), obs_dims=[2, 3, 4], state_dim=5)


def random_batch(env: ToyEnv, batch_size: int) -> Any:
    """Rows of unrelated numbers."""
    return his_batch(env, batch_size)


def learner_of(env: ToyEnv, **values: Any) -> sqddpg.Learner:
    defaults: dict[str, Any] = dict(hidden_sizes=(6, 6), batch_size=16, num_coalitions=3, device="cpu")
    return sqddpg.Learner(env, Streams(1, CPU), sqddpg.Args(**(defaults | values)), CPU)


def linear_critics(width: int) -> list[Any]:
    torch.manual_seed(3)
    critics = [sqddpg.MarginalContribution(5, 9, (4, 4)) for _ in range(3)]
    for critic in critics:
        critic.net = nn.Sequential(nn.Linear(width, 1, bias=False))
    return critics


def test_all_phi_share_the_error_of_the_sum() -> None:
    """Linear Phi_i: the step down mean(delta^2) is 2 mean(delta x_i) by hand, delta that of the sum."""
    with double_precision():
        env, critics = toy(), linear_critics(5 + 9)
        batch, orders = random_batch(env, 16), sqddpg.draw_orders(2, 16, 3, generator())
        before = [critic.net[0].weight.detach().numpy()[0].copy() for critic in critics]
        parameters = [p for critic in critics for p in critic.parameters()]
        target = torch.randn(16, generator=generator(5))
        args = sqddpg.Args(grad_clip=0.0)
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        info = sqddpg.update_critics(critics, optimizer, batch, target, orders, args, env.action_dims)
        actions, x = sqddpg.padded(batch.actions, env.action_dims), []
        for i in range(3):  # inputs averaged over permutations
            slots = sqddpg.slots_of(i, actions, orders).mean(0)
            x.append(torch.cat([batch.state, slots], 1).numpy())
    q_i = np.stack([x[i] @ before[i] for i in range(3)])
    delta = q_i.sum(0) - target.numpy()
    for i in range(3):
        step = 0.1 * 2 * (delta[:, None] * x[i]).mean(0)
        np.testing.assert_allclose(critics[i].net[0].weight.detach().numpy()[0], before[i] - step, atol=1e-12)
    assert float(info["losses/critic"]) == pytest.approx((delta**2).mean())
    assert float(info["losses/q_mean"]) == pytest.approx(q_i.sum(0).mean())
    assert [float(info[f"credit/shapley_{i}"]) for i in range(3)] == pytest.approx(q_i.mean(1).tolist())


def test_one_adam_is_an_adam_for_each_agent() -> None:
    env = toy()
    learner, batch = learner_of(env), random_batch(env, 16)
    apart = copy.deepcopy(learner.critics)
    optimizers = [torch.optim.Adam(critic.parameters(), lr=1e-3) for critic in apart]
    actions = sqddpg.padded(batch.actions, env.action_dims)
    for k in range(3):
        orders, target = sqddpg.draw_orders(2, 16, 3, generator(k)), batch.reward
        rest = (orders, learner.args, env.action_dims)
        sqddpg.update_critics(learner.critics, learner.critic_optimizer, batch, target, *rest)
        errors = sqddpg.marginal_contributions(apart, batch.state, actions, orders).mean(1).sum(0) - target
        for optimizer in optimizers:
            optimizer.zero_grad()
        errors.square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(learner.critics, apart):
        for a, b in zip(one.parameters(), other.parameters()):
            np.testing.assert_allclose(a.detach(), b.detach(), atol=1e-6)


def test_target_is_that_of_the_target_networks() -> None:
    with double_precision():
        env, critics = toy(), linear_critics(5 + 9)
        batch, orders = random_batch(env, 16), sqddpg.draw_orders(2, 16, 3, generator())
        batch = batch._replace(discount=torch.where(torch.arange(16) < 8, 0.0, 0.9))
        actors: Any = [lambda obs, i=i: obs[:, : env.action_dims[i]].tanh() for i in range(3)]
        found = sqddpg.critic_target(batch, actors, critics, orders, env.action_dims).numpy()
    mu = [np.tanh(batch.next_obs[i].numpy()[:, : env.action_dims[i]]) for i in range(3)]
    for b in range(16):
        total = 0.0
        for m, i in itertools.product(range(2), range(3)):
            x = [*batch.next_state[b].numpy(), *np.zeros(9)]
            for position, agent in enumerate(orders[m, b].tolist()):
                x[5 + 3 * position : 5 + 3 * position + len(mu[agent][b])] = mu[agent][b]
                if agent == i:
                    break
            total += float(critics[i].net[0].weight.detach().numpy()[0] @ np.array(x)) / 2
        assert found[b] == pytest.approx(float(batch.reward[b]) + (0.9 * total if b >= 8 else 0.0))


def test_actors_climb_their_own_shapley_value_all_at_once() -> None:
    """Against differences: the others' actions are those of the policies before the update."""
    with double_precision():
        env = toy()
        learner, batch = learner_of(env), random_batch(env, 16)
        orders, before = sqddpg.draw_orders(2, 16, 3, generator()), copy.deepcopy(learner.actors)
        frozen = copy.deepcopy(learner.critics)
        optimizers = [torch.optim.SGD(actor.parameters(), lr=0.5) for actor in learner.actors]
        rest = (batch, orders, learner.args, env.action_dims)
        info = sqddpg.update_actors(learner.actors, optimizers, learner.critics, *rest)

        def value(agent: int) -> float:
            with torch.no_grad():
                joint = torch.cat([actor(obs) for actor, obs in zip(before, batch.obs)], 1)
                actions = sqddpg.padded(joint, env.action_dims)
                return float(frozen[agent](batch.state, sqddpg.slots_of(agent, actions, orders)).mean())

        for i in range(3):
            assert float(info[f"losses/actor_{i}"]) == pytest.approx(-value(i))
            for name, parameter in before[i].named_parameters():
                index, h = (0,) * parameter.ndim, 1e-5
                start = float(parameter.detach()[index])
                around = []
                for shift in (h, -h):
                    parameter.data[index] = start + shift
                    around.append(value(i))
                parameter.data[index] = start
                slope = (around[0] - around[1]) / (2 * h)
                moved = float(dict(learner.actors[i].named_parameters())[name].detach()[index]) - start
                assert moved == pytest.approx(0.5 * slope, abs=1e-8), (i, name)
    for one, other in zip(learner.critics, frozen):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
        assert all(p.requires_grad for p in one.parameters())


def test_gradients_of_critics_and_actors_are_held() -> None:
    env = toy()
    learner, batch = learner_of(env, grad_clip=1e-4), random_batch(env, 16)
    orders = sqddpg.draw_orders(2, 16, 3, generator())
    optimizers = [torch.optim.SGD(actor.parameters(), lr=1.0) for actor in learner.actors]
    before = copy.deepcopy((learner.actors, learner.critics))
    sqddpg.update_actors(learner.actors, optimizers, learner.critics, batch, orders, learner.args, env.action_dims)
    optimizer = torch.optim.SGD([p for critic in learner.critics for p in critic.parameters()], lr=1.0)
    sqddpg.update_critics(learner.critics, optimizer, batch, batch.reward, orders, learner.args, env.action_dims)
    for old, new in zip(before, (learner.actors, learner.critics)):
        pairs = zip(*([p for module in each for p in module.parameters()] for each in (old, new)))
        moved = torch.cat([(q - p).detach().abs().flatten() for p, q in pairs])
        assert moved.max() == pytest.approx(1e-4, rel=1e-2)


def test_gradient_step_holds_each_element() -> None:
    p = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD([p], lr=1.0)
    assert float(sqddpg.gradient_step((p * torch.tensor([3.0, -0.4])).sum(), optimizer, 1.0)) == pytest.approx(
        math.hypot(3, 0.4)
    )
    assert p.tolist() == pytest.approx([0.0, 1.4])
    sqddpg.gradient_step((p * torch.tensor([3.0, -0.4])).sum(), optimizer, 0.0)
    assert p.tolist() == pytest.approx([-3.0, 1.8])


def test_targets_follow_with_every_actor_update_only() -> None:
    env = toy()
    learner = learner_of(env, policy_frequency=2, tau=0.25, batch_size=8)
    buffer = sqddpg.ReplayBuffer(env, 20, 1, 0.9, CPU)
    rng = np.random.default_rng(0)
    obs, state = env.reset(0)
    for _ in range(10):
        actions = [rng.uniform(-1, 1, (3, dim)).astype(np.float32) for dim in env.action_dims]
        step = env.step(actions)
        ends = (step.terminated, step.truncated)
        buffer.add(obs, state, actions, step.reward, step.final_obs, step.final_state, *ends)
        obs, state = step.obs, step.state

    def weights(*modules: Any) -> list[np.ndarray]:
        return [p.detach().numpy().copy() for module in modules for p in module.parameters()]

    start = weights(*learner.actors, *learner.critics)
    assert differences(start, weights(*learner.target_actors, *learner.target_critics)) == []
    learner.update(buffer)
    assert differences(start, weights(*learner.target_actors, *learner.target_critics)) == []
    assert differences(weights(*learner.actors), start[: len(weights(*learner.actors))]) == []
    learner.update(buffer)
    online, target = (
        weights(*learner.actors, *learner.critics),
        weights(*learner.target_actors, *learner.target_critics),
    )
    for s, o, t in zip(start, online, target, strict=True):
        assert not np.array_equal(s, o)
        np.testing.assert_allclose(t, 0.75 * s + 0.25 * o, atol=1e-6)


def test_actions_are_noisy_within_bounds_and_deterministic_when_evaluated() -> None:
    learner = learner_of(toy(), exploration_noise=0.3)
    obs = [torch.zeros(4000, dim) for dim in (2, 3, 4)]
    greedy, noisy = learner.act(obs, deterministic=True), learner.act(obs)
    for mean, action in zip(greedy, noisy):
        assert np.ptp(mean, axis=0).max() == 0 and np.abs(mean).max() < 0.6
        assert (action - mean).std(0) == pytest.approx(0.3, abs=0.02) and np.abs(action).max() <= 1
    wild = learner_of(toy(), exploration_noise=5.0).act(obs)
    assert all(np.abs(a).max() == 1 and np.abs(a).min() < 1 for a in wild)


# ---- a game


def trained(target: float, seed: int, updates: int, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, float]:
    """Three agents, r = -(sum of the actions - target)^2, one-step episodes: what they do at last, and its reward."""

    def make_env(args: Any, num_envs: int) -> ToyEnv:
        return ToyEnv(num_envs, [1, 1, 1], lambda joint: -((joint.sum(1) - target) ** 2), constant_obs=True)

    monkeypatch.setattr(sqddpg, "make_env", make_env)
    values: dict[str, Any] = dict(num_envs=10, warmup_steps=1000, buffer_size=20_000, batch_size=64, train_interval=10)
    values |= dict(hidden_sizes=(32, 32), actor_lr=1e-3, critic_lr=2e-3, exploration_noise=0.3, device="cpu", seed=seed)
    run = sqddpg.Run(sqddpg.Args(**values), CPU)
    while run.learner.update_step < updates:
        sqddpg.act_and_store(run)
        while run.progress.pending_updates:
            run.learner.update(run.buffer)
            run.progress.pending_updates -= 1
    obs, _ = run.env.reset(0)
    actions = run.learner.act(sqddpg.to_tensors(obs, CPU), deterministic=True)
    return np.array([a[0, 0] for a in actions]), float(run.env.step(actions).reward.mean())


def test_a_team_finds_an_optimum_where_credit_points(monkeypatch: pytest.MonkeyPatch) -> None:
    actions, reward = trained(3.0, 1, 200, monkeypatch)
    assert reward > -0.2 and (actions > 0.8).all()  # doing nothing gets -9


def test_a_team_finds_an_interior_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    # not as near as it might be: were the credits exact, each agent's own best answer would lead to a sum of 1.8, which
    # is worth -0.36; the free networks of SQDDPG need not be exact, only their sum is trained
    assert trained(1.2, 2, 400, monkeypatch)[1] > -0.2  # doing nothing gets -1.44, untrained policies -0.9 or less


def test_every_pass_of_an_update_has_permutations_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Tensor]] = []

    def spy(name: str, original: Any, *given: Any) -> Any:
        (orders,) = [x for x in given if isinstance(x, Tensor) and x.shape == (3, 16, 3)]
        seen.append((name, orders))
        return original(*given)

    for name in ("critic_target", "update_critics", "update_actors"):
        monkeypatch.setattr(sqddpg, name, functools.partial(spy, name, getattr(sqddpg, name)))
    env = toy()
    learner = learner_of(env)
    kind: Any = sqddpg.ReplayBuffer
    buffer: Any = filled_buffer(env, 40, cast(Any, learner.args), kind=kind)
    for _ in range(2):
        learner.update(buffer)
    passes = ["critic_target", "update_critics"]
    assert [name for name, _ in seen] == [*passes, *passes, "update_actors"]
    assert not any(torch.equal(one, other) for (_, one), (_, other) in itertools.combinations(seen, 2))


# ---- as a user runs it


def test_the_values_are_those_of_the_docs() -> None:
    """docs/baselines.md; `test_every_benchmark_trains` has what differs between the benchmarks."""
    expected: dict[str, Any] = dict(
        num_coalitions=3,
        num_envs=20,
        hidden_sizes=(256, 256),
        gamma=0.99,
        actor_lr=5e-4,
        critic_lr=1e-3,
        batch_size=1000,
        buffer_size=1_000_000,
        warmup_steps=10_000,
        train_interval=50,
        update_per_train=1,
        policy_frequency=2,
        tau=0.005,
        grad_clip=0.0,
        n_step=1,
        exploration_noise=0.1,
    )
    assert {name: getattr(sqddpg.Args(), name) for name in expected} == expected
    assert {name for own in sqddpg.PRESETS.values() for name in own} & expected.keys() == {"num_coalitions", "gamma"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scenario", "simple_tag"], ["--scenario simple_tag", "simple_spread", "Ant-4x2"]),
        (["--benchmark", "mpe", "--scenario", "Ant-4x2"], ["--scenario Ant-4x2", "--benchmark mpe", "simple_spread"]),
        (["--obs-mode", "local"], ["--obs-mode local", "simple_spread", "--benchmark mamujoco"]),
        (["--num-coalitions", "0"], ["--num-coalitions 0", "at least 1"]),
        (["--exploration-noise", "-1"], ["--exploration-noise -1", "at least 0"]),
        (["--eval-episodes", "7", "--eval-envs", "2"], ["--eval-episodes 7", "--eval-envs 2"]),
        (["--buffer-size", "10"], ["--buffer-size 10", "--num-envs 20"]),
        (["--buffer-size", "1000000000000"], ["--buffer-size", "would fit"]),
        (["--credit", "his"], ["--credit", "no such flag"]),
    ],
)
def test_refused_in_one_line(
    argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = DRIVER.usage_error(capsys, argv)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scenario", ["simple_speaker_listener", "HalfCheetah-3x2", "ShadowHandOver"])
def test_every_benchmark_trains(scenario: str, tmp_path: Path) -> None:
    own = {key: sqddpg.PRESETS[scenario].get(key) for key in ("num_coalitions", "gamma")}
    expected = {"simple_speaker_listener": (None, None), "HalfCheetah-3x2": (1, None), "ShadowHandOver": (2, 0.95)}
    assert tuple(own.values()) == expected[scenario] and len(sqddpg.PRESETS) == 21
    steps = dict(total_timesteps=320, eval_every=320, save_every=320)
    folder = DRIVER.train(tmp_path, scenario=scenario, **steps)
    state = checkpoint.load(folder / "checkpoints/step_320.pt")
    assert state["learner"]["update_step"] == 30
    assert all(bool(torch.isfinite(x).all()) for part in ("actors", "critics") for x in state["learner"][part].values())
    config = json.loads((folder / "config.json").read_text())
    assert "baselines/sqddpg.py" in config["command"] and config["script"] == "sqddpg"
    with_gap = any("credit/efficiency_gap" in line for line in metrics(folder))
    assert with_gap == (scenario != "HalfCheetah-3x2")  # one permutation has nothing to differ from


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return DRIVER.train(tmp_path_factory.mktemp("undisturbed"))


def test_one_seed_gives_one_run_and_another_another(undisturbed: Path, tmp_path: Path) -> None:
    assert_same_run(DRIVER.train(tmp_path), undisturbed)
    other = training_state(step_files(DRIVER.train(tmp_path, seed=4))[-1])
    assert differences(other["learner"], training_state(step_files(undisturbed)[-1])["learner"]) != []


@pytest.mark.parametrize(
    ("moment", "at", "owed"),
    [("warm-up", 30, 0), ("training", 77, 0), ("update", 23, 2), ("evaluation", 7, 0)],
    ids=["warm-up", "training", "update", "evaluation"],
)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    moment: str, at: int, owed: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signum = signal.SIGINT if moment == "update" else signal.SIGTERM

    def stop(*_: object) -> None:
        signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        if moment == "update":
            DRIVER.on_update(patch, at, stop)
        else:
            DRIVER.on_env_step(patch, 2 if moment == "evaluation" else 4, at, stop)
        assert sqddpg.main(DRIVER.command(tmp_path)) == 128 + signum
    folder = DRIVER.folder_of(tmp_path)
    saved = checkpoint.load(step_files(folder)[-1])
    assert saved["progress"]["pending_updates"] == owed and not (folder / "finished.json").exists()
    assert sqddpg.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed)


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
            learner.target_critics[1].net[0].weight.data[0, 0] = np.nan
        else:
            learner.actors[1].net[0].weight.data[0, 0] = np.nan

    DRIVER.on_update(monkeypatch, 24, poison)  # an update of the actors, too
    assert sqddpg.main(DRIVER.command(tmp_path)) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"losses/{part}" in error and "is not finite" in error, error
    folder = DRIVER.folder_of(tmp_path)
    assert len(torch.load(folder / "nonfinite_batch.pt", weights_only=True)["reward"]) == 32
    assert step_files(folder) == []  # none was due yet, and none was made of spoilt networks


def test_folder_and_metrics_are_documented(undisturbed: Path) -> None:
    files = {path.name for path in undisturbed.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert files == {
        *("config.json", "metrics.jsonl", "eval.csv", "finished.json"),
        *("step_400.pt", "step_800.pt", "best.pt", "policy.safetensors"),
    }
    text = (ROOT / "docs/baselines.md").read_text()
    rows = re.findall(r"^\|\s*`(\w+/[^`]+)`\s*\|\s*([^|]+?)\s*\|", text, re.MULTILINE)
    documented = {key for key, scripts in rows if "sqddpg" in scripts.split(", ")}
    written = set().union(*metrics(undisturbed)) - {"global_step", "update_step", "wall_s"}
    assert {re.sub(r"_\d+$", "_<i>", key) for key in written} == documented


def test_the_best_policy_can_be_evaluated_again(undisturbed: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert sqddpg.main(["--evaluate", str(undisturbed)]) == 0
    found = re.findall(r"^episode \d+: return (-?[\d.]+), length 25$", capsys.readouterr().out, re.MULTILINE)
    rows = np.loadtxt(undisturbed / "eval.csv", delimiter=",", skiprows=1)  # global_step, episode, return, length
    best = max((rows[rows[:, 0] == step, 2] for step in np.unique(rows[:, 0])), key=np.mean)
    assert [float(x) for x in found] == pytest.approx(best.tolist(), abs=0.006)


def test_a_run_of_another_script_is_refused(undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = json.loads((undisturbed / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"script": "facmac"}))
    for flag in ("--resume", "--evaluate"):
        line = DRIVER.usage_error(capsys, [flag, str(tmp_path)])
        assert str(tmp_path) in line and "does not fit this script" in line and "facmac" in line


# ---- the house

# What sqddpg.py has in common with his_mpe.py by name but not by content: another algorithm, and all benchmarks.
UNLIKE_HIS = {
    *("SCRIPT", "Args", "LIMITS: dict[str, tuple[float | None, float | None]]", "RESUMABLE", "check_args"),
    *("common", "Actor.docstring", "Actor.__init__", "Actor.forward"),
    *("critic_target", "update_actors", "update_target"),
    *(f"Learner.{name}" for name in ("docstring", "__init__", "update", "act", "modules")),
    *("Learner.state_dict", "Learner.load_state_dict", "train", "main"),
}


def test_the_frame_is_that_of_the_his_scripts() -> None:
    his, script = his_parts(), parts("sqddpg")
    both = [key for key in his if key in script]
    unequal = {key for key in both if his[key][0] != script[key][0]}
    fields = {key for key in unequal if key.startswith("Args.")}
    assert unequal - fields == UNLIKE_HIS, (unequal - fields) ^ UNLIKE_HIS
    equal = set(both) - unequal
    assert {"evaluate", "evaluate_and_record", "evaluate_run", "rates", "restore", "act_and_store", "mlp"} <= equal
    assert {"Run.save", "Run.__init__", "Run.load_state_dict", "ReplayBuffer.sample", "ReplayBuffer.add"} <= equal
    assert both == [key for key in script if key in his], "not in the same order"


def test_the_blocks_stand_in_the_order_of_the_house() -> None:
    lines = (ROOT / "baselines/sqddpg.py").read_text().splitlines()
    blocks = [line.strip("# -") for line in lines if line.startswith("# ---- ")]
    assert blocks == [
        *("arguments", "environment", "networks", "replay buffer", "Shapley Q-values"),
        *("updates", "evaluation", "checkpoint", "main"),
    ]
