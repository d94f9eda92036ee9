"""Log-probabilities of the squashed Gaussian, the floor below them, and the historical loss written out naively."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double_precision, log_density, noisy_env, random_batch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, stats
from torch import Tensor

import his_mamujoco as hm
from common.boxcox import restrict

FLOORS = ["max_minus_beta", "minus_beta_times_max", "none"]
BELOW = ["elu", "literal", "hard"]


# ---- log-probability -------------------------------------------------------------------------------------------------
def log_det_tanh(u: np.ndarray) -> np.ndarray:
    """log(1 - tanh(u)^2) = -2 log cosh(u) in float64, without cancellation."""
    u = np.abs(np.asarray(u, dtype=np.float64))
    return 2 * (math.log(2) - u - np.log1p(np.exp(-2 * u)))


def test_reference_is_the_derivative_of_tanh() -> None:
    u = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(log_det_tanh(u), np.log(1 - np.tanh(u) ** 2), rtol=1e-9, atol=1e-9)


@given(hnp.arrays(np.float32, (7, 3), elements=st.floats(-20, 20, width=32)))
def test_squash_correction_is_exact_up_to_20(u: np.ndarray) -> None:
    got = hm.squash_correction(torch.tensor(u))
    assert got.shape == (7,)
    np.testing.assert_allclose(got, log_det_tanh(u).sum(1), rtol=0, atol=1e-4)


@given(
    hnp.arrays(np.float32, (5, 2), elements=st.floats(-20, 20, width=32)),
    hnp.arrays(np.float32, (5, 2), elements=st.floats(-3, 3, width=32)),
    hnp.arrays(np.float32, (5, 2), elements=st.floats(-1, 2, width=32)),
)
def test_gaussian_log_density_equals_scipy(u: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> None:
    got = log_density(*(torch.tensor(x) for x in (u, mean, log_std)))
    scale = np.exp(log_std.astype(float))
    expected = stats.norm.logpdf(u.astype(float), mean.astype(float), scale).sum(1)
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1e-4)


@pytest.mark.parametrize("mean", [-20.0, -3.0, 0.0, 0.5, 8.0, 20.0])
@pytest.mark.parametrize("log_std", [-20.0, -5.0, -1.0, 0.0])
def test_sampled_log_prob_equals_the_float64_reference(mean: float, log_std: float) -> None:
    shape = (500, 2)
    means, log_stds = torch.full(shape, mean), torch.full(shape, log_std)
    sample = hm.sample_action(means, log_stds, torch.Generator().manual_seed(1))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double().numpy()
    u = mean + math.exp(log_std) * noise
    inside = (np.abs(u) <= 20).all(1)
    expected = (stats.norm.logpdf(noise) - log_std).sum(1) - log_det_tanh(u).sum(1)
    np.testing.assert_allclose(sample.log_prob.numpy()[inside], expected[inside], rtol=0, atol=1e-4)
    np.testing.assert_allclose(sample.action, np.tanh(u), rtol=0, atol=2e-6)
    np.testing.assert_allclose(sample.pre_tanh, u, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7, 4.0])
@pytest.mark.parametrize("log_std", [-3.0, -1.0, 0.0, 1.0])
def test_density_of_the_action_integrates_to_one(mean: float, log_std: float) -> None:
    u = torch.linspace(-18, 18, 40_001, dtype=torch.float64)[:, None]
    logs = log_density(u, torch.full_like(u, mean), torch.full_like(u, log_std))
    density, nodes = torch.exp(logs - hm.squash_correction(u)).numpy(), u[:, 0].numpy()
    inner = np.abs(nodes) < 9  # where tanh still resolves neighbouring nodes; the rest of the mass is the tails'
    mass = np.trapezoid(density[inner], np.tanh(nodes[inner]))
    tails = stats.norm.cdf(-9, mean, math.exp(log_std)) + stats.norm.sf(9, mean, math.exp(log_std))
    assert mass + tails == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("mean", [-1e4, -20.0, 0.0, 20.0, 1e4])
@pytest.mark.parametrize("log_std", [-20.0, 0.0, 2.0])
def test_gradients_are_finite_at_saturation(mean: float, log_std: float) -> None:
    means = torch.full((64, 2), mean, requires_grad=True)
    log_stds = torch.full((64, 2), log_std, requires_grad=True)
    sample = hm.sample_action(means, log_stds, torch.Generator().manual_seed(0))
    assert torch.isfinite(sample.log_prob).all() and (sample.action.abs() <= 1).all()
    for gradient in torch.autograd.grad((sample.log_prob + sample.action.sum(1)).sum(), (means, log_stds)):
        assert torch.isfinite(gradient).all()


def test_entropy_gradient_survives_where_tanh_saturates() -> None:
    # d log pi / d mean = 2 tanh(u): the form log(1 - tanh^2 + 1e-6) gives 0 there
    mean = torch.full((1, 1), 15.0, requires_grad=True)
    sample = hm.sample_action(mean, torch.full((1, 1), -20.0), torch.Generator())
    (gradient,) = torch.autograd.grad(sample.log_prob.sum(), mean)
    assert float(gradient) == pytest.approx(2, abs=1e-5)


def test_sampling_is_reparametrised() -> None:
    with double_precision():
        mean, log_std = torch.randn(6, 2, requires_grad=True), torch.randn(6, 2, requires_grad=True)

        def outcome(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
            sample = hm.sample_action(mean, log_std, torch.Generator().manual_seed(3))
            return sample.action, sample.log_prob

        assert torch.autograd.gradcheck(outcome, (mean, log_std))


def test_actor_clamps_log_std_and_splits_its_head() -> None:
    actor = hm.Actor(4, 3, (8, 8))
    with torch.no_grad():
        actor.head.weight.zero_()
        actor.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0, -50.0, 0.5, 50.0]))
    mean, log_std = actor(torch.randn(5, 4))
    assert mean.tolist() == [[1, 2, 3]] * 5 and log_std.tolist() == [[-20, 0.5, 2]] * 5
    hidden = actor.body(1e6 * torch.randn(5, 4))
    assert (hidden.abs() <= 1).all() and (hidden < 0).any()  # HARL's last activation is tanh


# ---- historical log-probability --------------------------------------------------------------------------------------
def credit_of(batch: hm.Batch, dims: list[int], **values: Any) -> Any:
    critic = hm.TwinCritic(batch.state.shape[1], sum(dims), (8, 8))
    return hm.HistoricalCredit(critic, batch, dims, torch.Generator().manual_seed(0), hm.Args(**values))


def test_historical_log_prob_of_a_sampled_action_is_its_log_prob() -> None:
    env, generator = noisy_env(), torch.Generator().manual_seed(0)
    batch = random_batch(env, 200)
    policies = [(0.5 * torch.randn(200, dim), torch.full((200, dim), -1.0)) for dim in env.action_dims]
    samples = [hm.sample_action(*policy, generator) for policy in policies]
    assert all((sample.action.abs() < 0.999).all() for sample in samples)
    batch = batch._replace(actions=torch.cat([sample.action for sample in samples], dim=1))
    credit = credit_of(batch, env.action_dims, floor="none", box_cox=False)
    for i, (policy, sample, u) in enumerate(zip(policies, samples, credit.pre_tanh)):
        torch.testing.assert_close(u, sample.pre_tanh, rtol=0, atol=2e-4)
        log_prob = log_density(u, *policy) - hm.squash_correction(u)
        torch.testing.assert_close(log_prob, sample.log_prob, rtol=0, atol=2e-3)
        loss, info = credit.loss(i, policy, sample, batch.actions)
        torch.testing.assert_close(info["credit/log_prob_hist"], sample.log_prob.mean(), rtol=0, atol=2e-4)
        torch.testing.assert_close(info["credit/shapley"], credit.phi[i].mean())
        torch.testing.assert_close(-loss, (log_prob * credit.phi[i]).mean())


def test_saturated_historical_actions_are_held_inside_the_open_interval() -> None:
    env = noisy_env()
    batch = random_batch(env, 16)
    batch = batch._replace(actions=torch.sign(batch.actions))
    credit = credit_of(batch, env.action_dims)
    for i, (dim, u) in enumerate(zip(env.action_dims, credit.pre_tanh)):
        np.testing.assert_allclose(u.abs(), np.arctanh(1 - 1e-6), rtol=2e-3)
        zeros: Any = torch.zeros(16, dim)
        assert torch.isfinite(credit.loss(i, (zeros, zeros), None, batch.actions)[0])


# ---- the floor -------------------------------------------------------------------------------------------------------
def restricted(f: np.ndarray, floor: float, how: str) -> np.ndarray:
    return restrict(torch.tensor(f, dtype=torch.float64), torch.tensor(floor, dtype=torch.float64), how).numpy()


@pytest.mark.parametrize("how", BELOW)
@pytest.mark.parametrize("floor", [-40.0, -3.0, 0.0, 0.5, 60.0])
def test_floor_is_continuous_and_leaves_values_above_alone(floor: float, how: str) -> None:
    f = floor + np.array([0.0, 1e-12, 1e-3, 1.0, 50.0])
    np.testing.assert_array_equal(restricted(f, floor, how), f)
    just_below = floor - np.array([1e-9, 1e-6])
    np.testing.assert_allclose(restricted(just_below, floor, how), floor, rtol=0, atol=1.1e-6)


@pytest.mark.parametrize("how", BELOW)
@pytest.mark.parametrize("floor", [-8.0, -1.0, 0.0, 2.0, 30.0])
def test_floor_keeps_the_order(floor: float, how: str) -> None:
    f = floor + np.linspace(-12, 12, 241)
    steps = np.diff(restricted(f, floor, how))
    assert (steps >= 0).all()
    assert (steps[120:] > 0).all()
    if how != "hard":
        assert (steps > 0).all()


def test_hard_floor_is_a_maximum() -> None:
    f = np.linspace(-30, 10, 81)
    np.testing.assert_array_equal(restricted(f, -5.0, "hard"), np.maximum(f, -5.0))


@pytest.mark.parametrize("floor", [-6.0, -2.0, -0.3, 0.0])
def test_literal_floor_is_the_printed_formula(floor: float) -> None:
    f = floor - np.linspace(0.01, 20, 50)
    expected = floor + np.exp(f) - np.exp(floor)
    np.testing.assert_allclose(restricted(f, floor, "literal"), expected, rtol=0, atol=1e-12)


def test_elu_floor_is_the_stated_formula_with_slope_one_at_the_floor() -> None:
    f = torch.tensor([-1e4, -9.0, -5.5, -5 - 1e-9, -5.0, -5 + 1e-9, 0.0], dtype=torch.float64, requires_grad=True)
    out = restrict(f, torch.tensor(-5.0, dtype=torch.float64), "elu")
    below = (f < -5).detach()
    torch.testing.assert_close(out[below], -5 + torch.expm1(f[below] + 5))
    (slope,) = torch.autograd.grad(out.sum(), f)
    torch.testing.assert_close(slope, torch.where(below, torch.exp(f.detach() + 5), 1.0))
    assert slope[0] == 0 and slope[3] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("how", BELOW)
@pytest.mark.parametrize("floor", [-1e30, -1e4, 0.0, 500.0, 1e30])
def test_floor_is_finite_in_value_and_gradient_however_far(how: str, floor: float) -> None:
    f = torch.tensor([-1e35, -1e5, -10.0, 0.0, 10.0, 1e5, 1e35], requires_grad=True)
    out = restrict(f, torch.tensor(floor), how)
    (slope,) = torch.autograd.grad(out.sum(), f)
    assert torch.isfinite(out).all() and ((slope >= 0) & (slope <= 1)).all()


@pytest.mark.parametrize("how", BELOW)
@pytest.mark.parametrize("floor", [-4.0, 3.0])
def test_floor_passes_gradcheck(how: str, floor: float) -> None:
    f = torch.tensor([floor - 3, floor - 0.7, floor + 0.4, floor + 5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: restrict(f, torch.tensor(floor, dtype=torch.float64), how), f)


@pytest.mark.parametrize("floor, beta, share", [("max_minus_beta", 3.0, 0.4), ("minus_beta_times_max", 2.0, 0.2)])
def test_floor_lies_where_its_reading_says(floor: Any, beta: float, share: float) -> None:
    # log densities 2, 1, 0, -2, -5: below max - 3 = -1 are two of five, below -2 max = -4 is one
    f = torch.tensor([2.0, 1.0, 0.0, -2.0, -5.0])
    # at the mean log f = -log_std - log(2 pi) / 2
    log_std = (-f - 0.5 * math.log(2 * math.pi))[:, None]
    zeros = torch.zeros(5, 1)
    args = hm.Args(floor=floor, beta=beta)
    _, info = hm.historical_loss(zeros, log_std, zeros, torch.ones(5), args)
    assert float(info["credit/floor_hits"]) == pytest.approx(share)


# ---- the loss, transcribed -------------------------------------------------------------------------------------------
def naive_constants(mean: np.ndarray, log_std: np.ndarray, u: np.ndarray, args: hm.Args) -> dict[str, Any]:
    """Everything in the loss that carries no gradient: floor, minimum, lambda and scale."""
    f = [sum(stats.norm.logpdf(u[b], mean[b], np.exp(log_std[b]))) for b in range(len(u))]
    floor = {"max_minus_beta": max(f) - args.beta, "minus_beta_times_max": -args.beta * max(f), "none": -np.inf}
    constants: dict[str, Any] = dict(floor=floor[args.floor], x_min=0.0, lam=1.0, scale=1.0)
    x = np.array([naive_x(mean[b], log_std[b], u[b], constants, args) for b in range(len(u))])
    constants["x_min"] = x.min()
    y = x - x.min() + args.xi
    bounds = (args.boxcox_low, args.boxcox_high)
    found: Any = optimize.minimize_scalar(
        lambda lam: -stats.boxcox_llf(lam, y), bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    constants["lam"] = min([*bounds, float(found.x)], key=lambda lam: -stats.boxcox_llf(lam, y))
    if args.boxcox_scale == "geometric":
        constants["scale"] = stats.gmean(y) ** (constants["lam"] - 1)
    return constants


def naive_x(mean: np.ndarray, log_std: np.ndarray, u: np.ndarray, constants: dict[str, Any], args: hm.Args) -> float:
    """The floored log-probability of one row, algorithm.md section 3, steps 1 to 4."""
    f, correction, floor = 0.0, 0.0, constants["floor"]
    for j in range(len(u)):
        f += stats.norm.logpdf(u[j], mean[j], math.exp(log_std[j]))
        correction += 2 * (math.log(2) - u[j] - np.logaddexp(0, -2 * u[j]))
    if f < floor:
        if args.below_floor == "elu":
            f = floor + math.expm1(f - floor)
        elif args.below_floor == "hard":
            f = floor
        elif floor <= 0:
            f = floor + math.exp(f) - math.exp(floor)
        else:  # READING 2: the exponents are capped
            f = floor + math.exp(f - floor) - 1
    return float(f - correction)


def naive_loss(
    mean: np.ndarray, log_std: np.ndarray, u: np.ndarray, phi: np.ndarray, constants: dict[str, Any], args: hm.Args
) -> float:
    total = 0.0
    for b in range(len(u)):
        z = naive_x(mean[b], log_std[b], u[b], constants, args)
        if args.box_cox:
            y, lam = z - constants["x_min"] + args.xi, constants["lam"]
            z = (math.log(y) if lam == 0 else (y**lam - 1) / lam) / constants["scale"] + constants["x_min"]
        total += z * phi[b]
    return -args.credit_coef * total / len(u)


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("below_floor", BELOW)
@pytest.mark.parametrize("rest", [{}, {"boxcox_scale": "geometric"}, {"box_cox": False}, {"boxcox_high": 0.4}], ids=str)
def test_historical_loss_equals_its_transcription(floor: Any, below_floor: Any, rest: dict[str, Any]) -> None:
    args = hm.Args(floor=floor, below_floor=below_floor, beta=4.0, credit_coef=0.7, xi=0.05, **rest)
    rng = np.random.default_rng(0)
    agents = []
    for dims in (1, 3):
        u = np.arctanh(rng.uniform(-0.95, 0.95, (24, dims)))
        agents.append((u + 0.9 * rng.normal(size=(24, dims)), rng.uniform(-1, 0.5, (24, dims)), u))
    phi = rng.normal(size=(2, 24))
    leaves = [[torch.tensor(part, requires_grad=True) for part in agent[:2]] for agent in agents]
    for i, (mean, log_std, u) in enumerate(agents):
        loss, info = hm.historical_loss(leaves[i][0], leaves[i][1], torch.tensor(u), torch.tensor(phi[i]), args)
        constants = naive_constants(mean, log_std, u, args)
        if args.box_cox:
            assert float(info["credit/boxcox_lambda"]) == pytest.approx(constants["lam"], abs=1e-5)
        assert float(loss.detach()) == pytest.approx(naive_loss(mean, log_std, u, phi[i], constants, args), abs=1e-6)
        gradients = torch.autograd.grad(loss, leaves[i])
        for which, gradient in enumerate(gradients):
            for b, j in [(0, 0), (5, dims_of(u) - 1), (11, 0), (23, dims_of(u) - 1), extreme_row(mean, log_std, u)]:
                shifted = []
                for step in (1e-6, -1e-6):
                    parts = [mean.copy(), log_std.copy()]
                    parts[which][b, j] += step
                    shifted.append(naive_loss(parts[0], parts[1], u, phi[i], constants, args))
                slope = (shifted[0] - shifted[1]) / 2e-6
                assert float(gradient[b, j]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def dims_of(u: np.ndarray) -> int:
    return u.shape[1]


def extreme_row(mean: np.ndarray, log_std: np.ndarray, u: np.ndarray) -> tuple[int, int]:
    """The row deepest below the floor."""
    return int(stats.norm.logpdf(u, mean, np.exp(log_std)).sum(1).argmin()), 0


def test_shapley_values_weigh_their_own_rows() -> None:
    zeros, u = torch.zeros(10, 2), torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    phi = torch.zeros(10)
    phi[4] = 3.0
    loss, _ = hm.historical_loss(zeros, zeros, u, phi, hm.Args(box_cox=False, floor="none"))
    log_prob = log_density(u, zeros, zeros) - hm.squash_correction(u)
    torch.testing.assert_close(loss, -3 * log_prob[4] / 10)
