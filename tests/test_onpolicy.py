"""The algorithms of happo.py, hatrpo.py, mappo.py: advantages, factor, trust region, critic, HARL's numbers, a game."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU
from onpolicy_helpers import SCRIPTS, Errand, flat_parameters, random_batch, random_rollout, small_args
from scipy import stats
from torch import Tensor

from baselines import happo, hatrpo, mappo
from common.streams import Streams
from common.valuenorm import ValueNorm

HARL = np.load(Path(__file__).parent / "data/onpolicy_harl.npz")
NAMES = list(SCRIPTS)


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# ---- advantages


# gamma = lambda = 1/2. One environment a column: goes on; terminates at t = 1; times out at t = 1.
REWARD = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]
VALUE = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]]
NEXT = [[2.0, 2.0, 2.0], [4.0, 8.0, 8.0], [6.0, 6.0, 6.0]]  # 8 after an end: the value of the state that ended it
TERMINATED = [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
TRUNCATED = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
# delta of the first column: 1 + 1 - 1 = 1, 2 + 2 - 2 = 2, 3 + 3 - 4 = 2
GOES_ON, TERMINATES = [1 + 2.5 / 4, 2 + 2 / 4, 2], [1 + 0 / 4, 0, 2]
BY_HAND = {
    "mask": [GOES_ON, TERMINATES, [1, 0, 2]],
    "terminate": [GOES_ON, TERMINATES, TERMINATES],
    "bootstrap": [GOES_ON, TERMINATES, [1 + 4 / 4, 2 + 4 - 2, 2]],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("time_limits", BY_HAND)
def test_advantages_by_hand(name: str, time_limits: str) -> None:
    args = small_args(SCRIPTS[name], gamma=0.5, gae_lambda=0.5, time_limits=time_limits)
    found = SCRIPTS[name].advantages(*map(tensor, (REWARD, VALUE, NEXT, TERMINATED, TRUNCATED)), args)
    np.testing.assert_allclose(found.numpy(), np.array(BY_HAND[time_limits]).T, atol=1e-12)


def test_in_the_hand_computed_cases_only_the_third_environment_depends_on_the_treatment_of_time_limits() -> None:
    thirds = [tuple(rows[2]) for rows in BY_HAND.values()]
    assert thirds[0] != thirds[2] and thirds[1] != thirds[2]
    # masked and terminated differ where the value was wrong about the last step
    args = [small_args(happo, time_limits=how) for how in ("mask", "terminate")]
    one, zero = tensor([[1.0]]), tensor([[0.0]])
    masked, terminated = (float(happo.advantages(one, zero, zero, zero, one, a)) for a in args)
    assert (masked, terminated) == (0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("time_limits", BY_HAND)
def test_advantages_are_the_sum_of_later_errors_of_the_episode(name: str, time_limits: str) -> None:
    """The definition, summed forward from each step, on random episodes."""
    args = small_args(SCRIPTS[name], gamma=0.9, gae_lambda=0.8, time_limits=time_limits)
    rng, shape = np.random.default_rng(1), (40, 7)
    reward, value, next_value = rng.standard_normal((3, *shape))
    kind = rng.choice(3, shape, p=[0.8, 0.1, 0.1])
    assert (kind == 1).sum() > 10 and (kind == 2).sum() > 10
    expected = np.zeros(shape)
    for t, e in np.ndindex(shape):
        for k in range(t, shape[0]):
            final = kind[k, e] == 1 or (kind[k, e] == 2 and time_limits == "terminate")
            delta = reward[k, e] + (0.0 if final else 0.9 * next_value[k, e]) - value[k, e]
            if kind[k, e] == 2 and time_limits == "mask":
                delta = 0.0
            expected[t, e] += (0.9 * 0.8) ** (k - t) * delta
            if kind[k, e]:
                break
    ends = (tensor((kind == 1) * 1.0), tensor((kind == 2) * 1.0))
    found = SCRIPTS[name].advantages(*map(tensor, (reward, value, next_value)), *ends, args)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_keeps_rows_together_and_normalises_the_advantage(name: str) -> None:
    module, env = SCRIPTS[name], Errand(6)
    args = small_args(module)
    buffer = random_rollout(module, env, args)
    torch.manual_seed(0)
    critic, norm = module.Critic(env.state_dim, args), ValueNorm(CPU)
    norm.update(torch.randn(100) * 3 + 7)
    batch = module.make_batch(buffer, critic, norm, env, args)
    for t, e in ((0, 0), (3, 5), (11, 2)):
        row = t * 6 + e
        assert torch.equal(torch.cat([o[row] for o in batch.obs]), buffer.data["obs"][t, e])
        assert torch.equal(torch.cat([a[row] for a in batch.actions]), buffer.data["actions"][t, e])
        assert torch.equal(batch.state[row], buffer.data["state"][t, e])
        assert float(batch.value[row]) == pytest.approx(float(critic(buffer.data["state"][t, e]).detach()), abs=1e-6)
    mean, std = norm.mean_std()
    value = batch.value * std + mean
    raw = batch.returns - value
    np.testing.assert_allclose(batch.advantage, (raw - raw.mean()) / (raw.std(correction=0) + 1e-5), atol=1e-5)
    masked = buffer.data["truncated"].flatten() > 0
    assert masked.any() and torch.equal(batch.returns[masked], value[masked])


@pytest.mark.parametrize("name", NAMES)
def test_minibatches_are_a_random_partition(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parts: list[Any] = list(SCRIPTS[name].minibatches(11, 3, generator))
    rows = torch.cat(parts).tolist()
    assert [len(part) for part in parts] == [3, 3, 3] and len(set(rows)) == 9 and max(rows) <= 10
    assert rows != sorted(rows)
    again = torch.cat(list(SCRIPTS[name].minibatches(11, 3, generator))).tolist()
    assert again != rows
    before = generator.get_state()
    assert list(SCRIPTS[name].minibatches(11, 1, generator)) == [slice(None)]
    assert torch.equal(generator.get_state(), before)


# ---- networks


@pytest.mark.parametrize("name", NAMES)
def test_policy_is_the_gaussian_it_says(name: str) -> None:
    module = SCRIPTS[name]
    torch.manual_seed(0)
    actor = module.Actor(5, 3, small_args(module))
    obs, actions = torch.randn(50, 5), torch.randn(50, 3)
    policy = actor(obs)
    assert policy.std.tolist() == pytest.approx([0.5 / (1 + np.exp(-1))] * 3)
    mean, std = policy.mean.detach().numpy(), policy.std.detach().numpy()
    density = stats.norm.logpdf(actions.numpy(), mean, std)
    np.testing.assert_allclose(policy.log_prob(actions).detach(), density, rtol=1e-5, atol=1e-5)
    assert float(policy.entropy().detach()) == pytest.approx(float(stats.norm.entropy(0, std).sum()), rel=1e-6)
    other = torch.randn(50, 3) / 10 + policy.log_prob(actions).detach()
    product = np.exp(other.numpy() - density).prod(-1)
    np.testing.assert_allclose(module.ratio_of(other, policy.log_prob(actions).detach()), product, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_exploration_has_the_standard_deviation_of_the_policy(name: str) -> None:
    module, env = SCRIPTS[name], Errand(20_000)
    learner = module.Learner(env, Streams(0, CPU), small_args(module), CPU)
    obs = [torch.ones(env.num_envs, dim) for dim in env.obs_dims]
    for agent, (noisy, mean) in enumerate(zip(learner.act(obs), learner.act(obs, deterministic=True), strict=True)):
        policy = learner.actors[agent % len(learner.actors)](obs[agent])
        np.testing.assert_allclose(mean, policy.mean.detach(), atol=1e-6)
        assert stats.kstest((noisy - mean)[:, 0], stats.norm(0, float(policy.std.detach().max())).cdf).pvalue > 1e-3
        assert np.abs(noisy).max() > 1  # not clipped by the script


@pytest.mark.parametrize("name", NAMES)
def test_networks_start_orthogonal_and_normalise_their_input(name: str) -> None:
    module = SCRIPTS[name]
    torch.manual_seed(0)
    actor = module.Actor(5, 3, small_args(module))
    first, head = actor.body[1].weight.detach(), actor.mean.weight.detach()
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(5), atol=1e-5, rtol=0)  # gain sqrt(2)
    torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)  # gain 0.01
    obs = torch.randn(4, 5)
    torch.testing.assert_close(actor(obs).mean, actor(10 * obs + 3).mean, atol=1e-6, rtol=1e-3)
    critic = module.Critic(4, small_args(module))
    assert float(critic.net[1].weight.detach().norm()) == pytest.approx(1.0, rel=1e-5)


def test_one_actor_for_all_serves_every_agent_and_is_stepped_once() -> None:
    env, args = Errand(6), small_args(mappo, share_param=True, epochs=1)
    learner = mappo.Learner(env, Streams(0, CPU), args, CPU)
    assert len(learner.actors) == len(learner.actor_optimizers) == 1
    obs = [torch.randn(6, 4)] * 3
    same = learner.act(obs, deterministic=True)
    assert all(np.array_equal(a, same[0]) for a in same)
    batch = random_batch(mappo, env, args)
    expected = copy.deepcopy(learner.actors[0])
    # by hand: the rows of all agents below one another
    stacked = (torch.cat(batch.obs), torch.cat(batch.actions), batch.advantage.repeat(3))
    optimizer = mappo.adam(expected, args.actor_lr, args)
    mappo.update_actor(0, expected, optimizer, *stacked, torch.Generator(), args)
    metrics = mappo.update_actors(learner.actors, learner.actor_optimizers, batch, learner.streams, args)
    torch.testing.assert_close(flat_parameters(learner.actors[0]), flat_parameters(expected), atol=1e-6, rtol=0)
    assert [key for key in metrics if key.startswith("losses/actor")] == ["losses/actor_0"]


# ---- the factor of the sequential update


@pytest.mark.parametrize("name", ["happo", "hatrpo"])
def test_an_agents_advantage_is_weighted_by_all_that_earlier_agents_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brute force: densities by scipy, dimension by dimension, of every earlier agent, before and after its update."""
    module, env = SCRIPTS[name], Errand(6)
    args = small_args(module, **({} if name == "hatrpo" else {"actor_lr": 3e-3}))
    learner = module.Learner(env, Streams(0, CPU), args, CPU)
    batch = random_batch(module, env, args)
    before = copy.deepcopy(learner.actors)
    seen: list[tuple[int, np.ndarray]] = []
    original = module.update_actor

    def spy(agent: int, actor: Any, *rest: Any) -> Any:
        advantage = next(x for x in rest if isinstance(x, Tensor) and x.shape == batch.advantage.shape)
        seen.append((agent, advantage.numpy().copy()))
        return original(agent, actor, *rest)

    monkeypatch.setattr(module, "update_actor", spy)
    orders, streams = set(), Streams(0, CPU)
    expected_order = torch.randperm(3, generator=copy.deepcopy(streams).agent_order).tolist()
    module.update_actors(learner.actors, learner.actor_optimizers, batch, streams, args)
    assert [agent for agent, _ in seen] == expected_order

    def density(actor: Any, agent: int) -> np.ndarray:
        with torch.no_grad():
            mean, std = actor(batch.obs[agent])
        return stats.norm.pdf(batch.actions[agent].numpy(), mean.numpy(), std.numpy())

    factor, moved = np.ones(len(batch.advantage)), 0.0
    for agent, advantage in seen:
        np.testing.assert_allclose(advantage, factor * batch.advantage.numpy(), rtol=2e-4, atol=1e-6)
        for dimension in range(batch.actions[agent].shape[1]):
            ratio = density(learner.actors[agent], agent) / density(before[agent], agent)
            factor = factor * ratio[:, dimension]
        moved = max(moved, float(np.abs(factor - 1).max()))
    assert moved > 0.01  # otherwise nothing was tested
    for _ in range(12):
        seen.clear()
        module.update_actors(learner.actors, learner.actor_optimizers, batch, streams, args)
        orders.add(tuple(agent for agent, _ in seen))
    assert len(orders) > 2


def test_mappo_gives_every_agent_the_same_advantage(monkeypatch: pytest.MonkeyPatch) -> None:
    env, args = Errand(6), small_args(mappo, share_param=False, actor_lr=3e-3)
    learner, batch = mappo.Learner(env, Streams(0, CPU), args, CPU), random_batch(mappo, env, args)
    seen = []
    original = mappo.update_actor

    def spy(agent: int, actor: Any, optimizer: Any, obs: Tensor, actions: Tensor, advantage: Tensor, *rest: Any) -> Any:
        seen.append(agent)
        assert advantage is batch.advantage and obs is batch.obs[agent] and actions is batch.actions[agent]
        return original(agent, actor, optimizer, obs, actions, advantage, *rest)

    monkeypatch.setattr(mappo, "update_actor", spy)
    mappo.update_actors(learner.actors, learner.actor_optimizers, batch, learner.streams, args)
    assert seen == [0, 1, 2]


# ---- PPO's update


@pytest.mark.parametrize("name", ["happo", "mappo"])
def test_beyond_the_clip_range_nothing_pushes_a_ratio_further(name: str) -> None:
    """One row: its ratio stops close behind the bound; without clipping it runs away."""
    module = SCRIPTS[name]
    for sign in (1.0, -1.0):
        moved = {}
        for clip in (0.1, 1e6):
            torch.manual_seed(0)
            args = small_args(module, clip=clip, epochs=60, actor_lr=3e-4, entropy_coef=0.0)
            actor = module.Actor(4, 2, args)
            rest = (torch.randn(1, 4), torch.full((1, 2), 0.3), torch.full((1,), sign), torch.Generator(), args)
            ratio, metrics = module.update_actor(0, actor, module.adam(actor, args.actor_lr, args), *rest)
            moved[clip] = sign * (float(ratio) - 1)
            assert float(metrics["diag/clip_fraction_0"]) == float(clip == 0.1)
        assert 0.1 < moved[0.1] < 0.3 and moved[1e6] > 1.5 * moved[0.1], (sign, moved)


@pytest.mark.parametrize("name", ["happo", "mappo"])
def test_entropy_bonus_widens_the_policy(name: str) -> None:
    module = SCRIPTS[name]
    std = {}
    for coef in (0.0, 1.0):
        torch.manual_seed(0)
        args = small_args(module, entropy_coef=coef, actor_lr=1e-2)
        actor = module.Actor(4, 2, args)
        rest = (torch.randn(8, 4), torch.randn(8, 2), torch.zeros(8), torch.Generator(), args)
        module.update_actor(0, actor, module.adam(actor, args.actor_lr, args), *rest)
        std[coef] = float(actor(torch.zeros(1, 4)).std.detach().mean())
    assert std[0.0] == pytest.approx(0.5 / (1 + np.exp(-1))) and std[1.0] > std[0.0] + 0.002


@pytest.mark.parametrize("name", NAMES)
def test_step_sizes_fall_linearly(name: str) -> None:
    module, env = SCRIPTS[name], Errand(6)
    args = small_args(module, lr_decay=True, total_timesteps=72 * 4 + 50, critic_lr=1e-3)
    learner = module.Learner(env, Streams(0, CPU), args, CPU)
    rates = []
    for seed in range(4):
        learner.update(random_rollout(module, env, args, seed))
        optimizers = [*learner.actor_optimizers, learner.critic_optimizer]
        rates.append([group["lr"] for optimizer in optimizers for group in optimizer.param_groups])
    assert [rate[-1] for rate in rates] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert name == "hatrpo" or [rate[0] for rate in rates] == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_below_one_rollout_has_the_full_step_size(name: str) -> None:
    module, env = SCRIPTS[name], Errand(6)
    args = small_args(module, lr_decay=True, total_timesteps=10, critic_lr=1e-3)
    learner = module.Learner(env, Streams(0, CPU), args, CPU)
    learner.update(random_rollout(module, env, args, 0))
    assert learner.critic_optimizer.param_groups[0]["lr"] == 1e-3


# ---- HATRPO's trust region


def independent_kl(old: Any, new: Any, obs: Tensor) -> float:
    """Mean KL(old || new) by torch.distributions, in float64."""
    with torch.no_grad():
        normals = [torch.distributions.Normal(*(x.double() for x in actor(obs))) for actor in (old, new)]
    return float(torch.distributions.kl_divergence(*normals).sum(-1).mean())


def surrogate(old: Any, new: Any, obs: Tensor, actions: Tensor, advantage: Tensor) -> float:
    """mean(pi_new / pi_old A), in float64."""
    with torch.no_grad():
        new_density, old_density = (
            torch.distributions.Normal(*(x.double() for x in actor(obs))).log_prob(actions.double()).sum(-1)
            for actor in (new, old)
        )
    return float((torch.exp(new_density - old_density) * advantage.double()).mean())


def trust_region_problem(seed: int, rows: int = 40, **values: Any) -> tuple[Any, Any, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(seed)
    args = small_args(hatrpo, **values)
    actor = hatrpo.Actor(4, 2, args)
    with torch.no_grad():
        actor.mean.weight.mul_(30)  # a policy that has learnt something
    return args, actor, (torch.randn(rows, 4), 0.5 * torch.randn(rows, 2), torch.randn(rows))


@pytest.mark.parametrize("kl_threshold", [1e-4, 0.01, 0.3])
def test_a_step_obeys_the_kl_bound_and_never_worsens_the_surrogate(kl_threshold: float) -> None:
    fractions = []
    for seed in range(25):
        args, actor, data = trust_region_problem(seed, kl_threshold=kl_threshold)
        before = copy.deepcopy(actor)
        ratio, metrics = hatrpo.update_actor(0, actor, *data, args)
        kl = independent_kl(before, actor, data[0])
        gain = surrogate(before, actor, *data) - surrogate(before, before, *data)
        assert kl < kl_threshold * (1 + 1e-6) and kl == pytest.approx(float(metrics["diag/kl_0"]), rel=1e-4, abs=1e-12)
        assert gain == pytest.approx(float(metrics["diag/improvement_0"]), rel=1e-2, abs=1e-6)
        fractions.append(float(metrics["diag/step_fraction_0"]))
        if fractions[-1] > 0:
            # it went close to where it may go, or as far as the surrogate let it
            assert gain > 0 and kl > 0.05 * fractions[-1] ** 2 * kl_threshold
        else:
            assert torch.equal(flat_parameters(actor), flat_parameters(before)) and bool((ratio == 1).all())
    assert np.mean(np.array(fractions) > 0) > 0.8  # some step is nearly always taken


def test_a_wide_trust_region_makes_the_line_search_shorten_the_step() -> None:
    """Where the quadratic model fails, steps are shortened: the loop above has met both kinds."""
    fractions = set()
    for seed in range(25):
        args, actor, data = trust_region_problem(seed, kl_threshold=0.3)
        fractions.add(round(float(hatrpo.update_actor(0, actor, *data, args)[1]["diag/step_fraction_0"]), 6))
    assert len(fractions) > 1
    assert fractions <= {0.0, *(round(0.8**i, 6) for i in range(10))}


@pytest.mark.parametrize(
    ("expected", "improvements", "fraction"),
    [
        (1.0, [0.51], 1.0),  # more than half of what was expected
        (1.0, [0.49, 0.41], 0.8),  # half of 0.8 is 0.4
        (1.0, [0.49, 0.39, 0.33], 0.64),
        (1.0, [0.2, 0.1, 0.1], 0.0),  # an improvement, but never enough of one
        (1.0, [-0.1, -0.1, 0.0], 0.0),
        (-1.0, [0.5], 0.0),  # where the gradient expects none, HARL's ratio of both is negative
    ],
)
def test_line_search_wants_half_of_the_improvement_expected(
    expected: float, improvements: list[float], fraction: float
) -> None:
    args, actor, _ = trust_region_problem(0, line_search_steps=len(improvements))
    before, tried = flat_parameters(actor), iter(improvements)
    step = torch.ones_like(before)
    assert hatrpo.line_search(actor, step, expected, lambda: (next(tried), 0.0), args) == pytest.approx(fraction)
    torch.testing.assert_close(flat_parameters(actor), before + fraction * step)


@pytest.mark.parametrize("bad", ["backwards", "not a number", "no curvature", "far too long"])
def test_a_useless_direction_leaves_the_actor_as_it_was(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hatrpo.conjugate_gradient
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "backwards": lambda x: -x,
        "not a number": lambda x: x * float("nan"),
        "no curvature": lambda x: x * 0,
        "far too long": lambda x: x,
    }
    monkeypatch.setattr(hatrpo, "conjugate_gradient", lambda *rest: change[bad](original(*rest)))
    args, actor, data = trust_region_problem(0)
    if bad == "far too long":
        monkeypatch.setattr(hatrpo.torch, "sqrt", lambda x: 1e6 * x**0.5)
    before = copy.deepcopy(actor)
    ratio, metrics = hatrpo.update_actor(0, actor, *data, args)
    assert torch.equal(flat_parameters(actor), flat_parameters(before)) and bool((ratio == 1).all())
    assert float(metrics["diag/step_fraction_0"]) == float(metrics["diag/kl_0"]) == 0.0


def test_without_an_advantage_there_is_no_step() -> None:
    args, actor, (obs, actions, advantage) = trust_region_problem(0)
    before = flat_parameters(actor)
    hatrpo.update_actor(0, actor, obs, actions, 0 * advantage, args)
    assert torch.equal(flat_parameters(actor), before)


def test_kl_divergence_is_that_of_torch() -> None:
    args, actor, (obs, *_) = trust_region_problem(0)
    other = hatrpo.Actor(4, 2, args)
    with torch.no_grad():
        other.log_std.add_(0.7)
        found = float(hatrpo.kl_divergence(actor(obs), other(obs)))
    assert found == pytest.approx(independent_kl(actor, other, obs), rel=1e-9)
    assert found != pytest.approx(independent_kl(other, actor, obs), rel=1e-2)


def test_fisher_vector_product_is_the_numerical_hessian_of_the_divergence() -> None:
    """Second differences of the divergence from the actor itself, in float64, for every pair of parameters."""
    torch.manual_seed(0)
    args = small_args(hatrpo, hidden_sizes=(3,))
    actor = hatrpo.Actor(3, 2, args).double()
    with torch.no_grad():
        actor.mean.weight.mul_(30)
    obs = torch.randn(6, 3, dtype=torch.float64)
    start, h = flat_parameters(actor), 1e-3
    with torch.no_grad():
        old = actor(obs)

        def divergence(shift: Tensor) -> float:
            hatrpo.assign(actor, start + shift)
            return float(hatrpo.kl_divergence(old, actor(obs)))

        size = len(start)
        unit = h * torch.eye(size, dtype=torch.float64)
        hessian = np.zeros((size, size))
        for i in range(size):
            for j in range(i + 1):
                corners = [a * b * divergence(a * unit[i] + b * unit[j]) for a in (1, -1) for b in (1, -1)]
                hessian[i, j] = hessian[j, i] = sum(corners) / (4 * h * h)
        hatrpo.assign(actor, start)
    product = hatrpo.fisher_product(actor, actor(obs), 0.0)
    damped = hatrpo.fisher_product(actor, actor(obs), 0.1)
    columns = np.stack([product(e).numpy() for e in torch.eye(size, dtype=torch.float64)], 1)
    assert np.abs(hessian).max() > 0.1
    np.testing.assert_allclose(columns, hessian, atol=2e-5 * np.abs(hessian).max())
    assert np.linalg.eigvalsh(columns).min() > -1e-10
    v = torch.randn(size, dtype=torch.float64)
    torch.testing.assert_close(damped(v), product(v) + 0.1 * v)


def test_conjugate_gradient_solves_the_system() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((8, 8))
    matrix, b = root @ root.T + 0.5 * np.eye(8), rng.standard_normal(8)
    exact = np.linalg.solve(matrix, b)
    products = []

    def product(v: Tensor) -> Tensor:
        products.append(1)
        return tensor(matrix) @ v

    found = hatrpo.conjugate_gradient(product, tensor(b), 30, 1e-20)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-6)
    assert len(products) < 20  # it stopped at the tolerance
    errors = []
    for iterations in range(9):
        x = hatrpo.conjugate_gradient(product, tensor(b), iterations, 0.0).numpy() - exact
        errors.append(x @ matrix @ x)
    assert all(later < earlier for earlier, later in zip(errors, errors[1:])) and errors[8] < 1e-10 * errors[0]
    assert torch.equal(hatrpo.conjugate_gradient(product, torch.zeros(8).double(), 10, 1e-10), torch.zeros(8).double())


# ---- critic and value statistics


def test_value_norm_is_a_debiased_moving_average() -> None:
    rng, norm, beta = np.random.default_rng(0), ValueNorm(CPU), 0.99999
    batches = [rng.normal(k, 1 + k, (5, 4)) for k in range(6)]
    for count, batch in enumerate(batches, 1):
        norm.update(torch.tensor(batch))
        weights = np.array([beta ** (count - 1 - k) for k in range(count)])
        weights /= weights.sum()
        mean = sum(w * b.mean() for w, b in zip(weights, batches))
        square = sum(w * (b**2).mean() for w, b in zip(weights, batches))
        found_mean, found_std = map(float, norm.mean_std())
        assert found_mean == pytest.approx(mean, rel=1e-6, abs=1e-6)
        assert found_std == pytest.approx(np.sqrt(square - mean**2), rel=1e-6)
    x = torch.randn(7)
    torch.testing.assert_close(norm.denormalize(norm.normalize(x)), x)
    torch.testing.assert_close(norm.normalize(x), (x - found_mean) / found_std)
    copied = ValueNorm(CPU)
    copied.load_state_dict(norm.state_dict())
    assert copied.mean_std() == norm.mean_std()


def test_value_norm_at_its_limits() -> None:
    fresh, constant, large = ValueNorm(CPU), ValueNorm(CPU), ValueNorm(CPU)
    assert [float(x) for x in fresh.mean_std()] == pytest.approx([0.0, 0.1])
    constant.update(torch.full((10,), 5.0))
    assert [float(x) for x in constant.mean_std()] == pytest.approx([5.0, 0.1])
    for _ in range(3):
        large.update(1e5 + torch.tensor([-1.0, 1.0]))
    assert [float(x) for x in large.mean_std()] == pytest.approx([1e5, 1.0], rel=1e-4)
    off = ValueNorm(CPU, enabled=False)
    off.update(torch.full((10,), 5.0))
    assert [float(x) for x in off.mean_std()] == [0.0, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_the_critic_learns_the_returns_at_any_scale(name: str) -> None:
    module, env = SCRIPTS[name], Errand(6)
    args = small_args(module, critic_epochs=10, critic_lr=1e-2, max_grad_norm=1e6)
    torch.manual_seed(0)
    critic, norm = module.Critic(env.state_dim, args), ValueNorm(CPU)
    optimizer = module.adam(critic, args.critic_lr, args)
    batch = random_batch(module, env, args)
    returns = 1000 + 200 * torch.tanh(batch.state[:, 0])
    for _ in range(30):
        with torch.no_grad():
            batch = batch._replace(value=critic(batch.state), returns=returns)
        module.update_critic(critic, optimizer, norm, batch, torch.Generator(), args)
    with torch.no_grad():
        error = norm.denormalize(critic(batch.state)) - returns
    assert float(error.abs().mean()) < 30  # of a spread of 200 about 1000


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_held_near_what_it_was(name: str) -> None:
    """One row whose return is far away: the output stops close behind the bound."""
    module, env = SCRIPTS[name], Errand(6)
    moved = {}
    for clip in (0.05, 1e6):
        args = small_args(module, critic_epochs=100, critic_lr=1e-3, clip=clip, value_norm=False)
        torch.manual_seed(0)
        critic = module.Critic(env.state_dim, args)
        batch = random_batch(module, env, args)
        batch = batch._replace(state=batch.state[:1], value=critic(batch.state[:1]).detach())
        batch = batch._replace(returns=batch.value + 5)
        optimizer = module.adam(critic, args.critic_lr, args)
        module.update_critic(critic, optimizer, ValueNorm(CPU, False), batch, torch.Generator(), args)
        moved[clip] = float((critic(batch.state) - batch.value).detach())
    # the larger of both errors counts, and the clipped one has no gradient beyond the bound: only momentum goes on
    assert 0.05 < moved[0.05] < 0.3 * moved[1e6], moved


# ---- HARL's numbers


@pytest.mark.parametrize("case", [*NAMES, "mappo_shared", *(f"{name}_minibatches" for name in NAMES)])
def test_a_round_of_updates_gives_what_harl_gives(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same rollout and weights as in `data/make_onpolicy_harl.py`: same returns, same weights afterwards."""
    name, _, variant = case.partition("_")
    module = SCRIPTS[name]
    values: dict[str, Any] = dict(hidden_sizes=(16, 16), clip=0.05, huber_delta=1.0, max_grad_norm=1.0)
    values |= dict(kl_threshold=0.01) if name == "hatrpo" else {}
    values |= dict(share_param=variant == "shared") if name == "mappo" else {}
    if variant == "minibatches":
        values |= dict(critic_minibatches=2) | ({} if name == "hatrpo" else dict(minibatches=2))
    args, env = small_args(module, **values), Errand(6)
    env.obs_dims, env.action_dims, env.state_dim = [4] * 3, [2] * 3, 5
    learner = module.Learner(env, Streams(0, CPU), args, CPU)

    def weights(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}/"): torch.tensor(HARL[k]) for k in HARL.files if k.startswith(f"{prefix}/")}

    for i, actor in enumerate(learner.actors):
        actor.load_state_dict(weights(f"before/actor_{i}"))
    learner.critic.load_state_dict(weights("before/critic"))
    for targets in HARL["warm_up"]:
        learner.value_norm.update(torch.tensor(targets))
    buffer = module.RolloutBuffer(env, 12, CPU)
    for t in range(12):
        ends = (HARL["terminated"][t], HARL["truncated"][t])
        step = (HARL["state"][t], list(HARL["actions"][:, t]), HARL["reward"][t], HARL["state"][t + 1], *ends)
        buffer.add(list(HARL["obs"][:, t]), *step)
    shuffles = {3: torch.tensor(HARL["order"]), 72: torch.tensor(HARL["permutation"])}
    monkeypatch.setattr(torch, "randperm", lambda n, **_: shuffles[n])
    learner.update(buffer)
    batch = learner.batch
    assert batch is not None
    np.testing.assert_allclose(batch.returns.reshape(12, 6), HARL[f"{case}/returns"], atol=2e-5)
    modules = {f"actor_{i}": actor for i, actor in enumerate(learner.actors)} | {"critic": learner.critic}
    for part, network in modules.items():
        expected, start = weights(f"{case}/{part}"), weights(f"before/{part}")
        assert max(float((expected[k] - start[k]).abs().max()) for k in start) > 2e-3  # it has moved
        for key, value in network.state_dict().items():
            np.testing.assert_allclose(value, expected[key], atol=1e-6, rtol=0, err_msg=f"{part} {key}")


# ---- a game


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_team_finds_the_best_policy(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SCRIPTS[name]
    monkeypatch.setattr(module, "make_env", lambda args, num_envs: Errand(num_envs))
    values = dict(kl_threshold=0.02) if name == "hatrpo" else dict(actor_lr=5e-3, entropy_coef=0.0)
    rest = dict(num_envs=16, rollout_steps=16, hidden_sizes=(32, 32), gamma=0.9, critic_lr=3e-3)
    run = module.Run(small_args(module, seed=seed, **rest, **values), CPU)

    def reward_a_step() -> float:
        result = module.evaluate(run.learner, Errand(100), 7, 100, CPU)
        return float(result.returns.mean()) / 2

    assert reward_a_step() < -0.7  # about -1, what doing nothing gets
    while run.learner.iteration < 40:
        module.act_and_store(run)
        if run.buffer.full:
            run.learner.update(run.buffer)
    assert reward_a_step() > -0.1  # the optimum is 0
