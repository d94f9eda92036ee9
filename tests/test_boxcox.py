"""The Box-Cox transform and its fitted parameter against scipy, and the whole historical loss on hostile batches."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double_precision, log_density
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import his_mamujoco as hm
from common.boxcox import box_cox, fit_lambda

LAMBDAS = [-2.0, -0.5, -1e-4, -1e-8, 0.0, 1e-8, 1e-7, 2e-6, 1e-4, 0.3, 1.0, 1.7, 2.0]


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with double_precision():
        yield


def positive_sample(seed: int, size: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 3.0, size) + 1e-2


def sample_with_lambda(lam: float, seed: int, size: int = 300) -> np.ndarray:
    """Positive numbers whose transform with about this lambda is normal."""
    z = np.random.default_rng(seed).normal(size=size)
    return np.exp(0.5 * z) if lam == 0 else np.clip(3 + 0.6 * z, 0.1, None) ** (1 / lam)


def transform(y: np.ndarray, lam: float, scale: str = "none") -> np.ndarray:
    return box_cox(torch.tensor(y), torch.tensor(lam), scale).numpy()


def fit(y: np.ndarray, low: float = 0.0, high: float = 2.0) -> float:
    return float(fit_lambda(torch.tensor(y), low, high))


# ---- the transform ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lam", LAMBDAS)
def test_transform_equals_scipy(lam: float) -> None:
    y = positive_sample(0)
    np.testing.assert_allclose(transform(y, lam), stats.boxcox(y, lmbda=lam), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_transform_in_float32_is_as_good_as_float32_is(lam: float) -> None:
    y = positive_sample(1).astype(np.float32)
    got = box_cox(torch.tensor(y), torch.tensor(lam, dtype=torch.float32)).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, stats.boxcox(y.astype(float), lmbda=lam), rtol=2e-5, atol=2e-5)


def test_transform_is_continuous_at_lambda_zero() -> None:
    y = positive_sample(2)
    at_zero = transform(y, 0.0)
    np.testing.assert_allclose(at_zero, np.log(y), rtol=1e-12)
    for lam in (1e-3, 1e-5, 9.9e-7, 1.01e-6, 1e-9):
        for sign in (1, -1):  # the first-order difference is lambda log(y)^2 / 2
            bound = lam * np.log(y) ** 2 + 1e-12
            assert (np.abs(transform(y, sign * lam) - at_zero) <= bound).all()


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("scale", ["none", "geometric"])
def test_transform_keeps_the_order(lam: float, scale: str) -> None:
    y = np.sort(positive_sample(3))
    assert (np.diff(transform(y, lam, scale)) > 0).all()


@pytest.mark.parametrize("lam", LAMBDAS)
def test_transform_passes_gradcheck(lam: float) -> None:
    y = torch.tensor(positive_sample(4, 12), requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: box_cox(y, torch.tensor(lam)), y)
    (slope,) = torch.autograd.grad(box_cox(y, torch.tensor(lam)).sum(), y)
    torch.testing.assert_close(slope, y.detach() ** (lam - 1), rtol=2e-5, atol=0)


@pytest.mark.parametrize("lam", [-0.5, 0.0, 0.3, 2.0])
def test_geometric_scale_divides_by_the_slope_at_the_geometric_mean(lam: float) -> None:
    y = positive_sample(5, 50)
    slope = stats.gmean(y) ** (lam - 1)
    np.testing.assert_allclose(transform(y, lam, "geometric"), stats.boxcox(y, lmbda=lam) / slope, rtol=1e-9)
    leaf = torch.tensor(y, requires_grad=True)
    (gradient,) = torch.autograd.grad(box_cox(leaf, torch.tensor(lam), "geometric").sum(), leaf)
    np.testing.assert_allclose(gradient, y ** (lam - 1) / slope, rtol=1e-9)  # the scale itself is a constant


# ---- the fitted lambda -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("true_lambda", [0.0, 0.25, 0.6, 1.0, 1.4, 1.8])
@pytest.mark.parametrize("seed", range(3))
def test_fit_equals_scipy_inside_the_bounds(true_lambda: float, seed: int) -> None:
    y = sample_with_lambda(true_lambda, seed)
    expected = float(stats.boxcox_normmax(y, method="mle"))
    low, high = -1.0, 3.0
    assert low < expected < high
    assert fit(y, low, high) == pytest.approx(expected, abs=1e-4)
    assert fit(y) == pytest.approx(np.clip(expected, 0, 2), abs=1e-4)


@pytest.mark.parametrize("true_lambda, bound", [(6.0, 2.0), (-1.5, 0.0)])
def test_fit_outside_the_bounds_is_the_nearer_bound(true_lambda: float, bound: float) -> None:
    y = sample_with_lambda(true_lambda, 0)
    expected = float(stats.boxcox_normmax(y, method="mle"))
    assert expected > 2.2 or expected < -0.2
    assert fit(y) == pytest.approx(bound, abs=1e-6)
    assert 0 <= fit(y) <= 2


@pytest.mark.parametrize("seed", range(6))
def test_no_grid_point_is_likelier_than_the_fit(seed: int) -> None:
    y = sample_with_lambda([0.0, 0.5, 1.0, 1.5, 5.0, -1.0][seed], seed)
    best = stats.boxcox_llf(fit(y), y)
    assert all(stats.boxcox_llf(lam, y) <= best + 1e-4 for lam in np.linspace(0, 2, 200))


def test_fit_does_not_depend_on_the_unit_in_which_y_is_measured() -> None:
    # the likelihood's maximiser is the same for c y
    y = sample_with_lambda(0.7, 3)
    for factor in (1e-6, 1e6):
        assert fit(factor * y) == pytest.approx(fit(y), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_fewer_than_eight_values_give_lambda_one(count: int) -> None:
    y = sample_with_lambda(0.3, 0)
    assert fit(y[:count]) == 1
    assert fit(y[:8]) != 1


def test_constant_values_give_lambda_one() -> None:
    for value in (1e-2, 1.0, 1e6):
        assert fit(np.full(50, value)) == 1
    assert fit(1 + 9e-7 * np.linspace(0, 1, 50)) == 1
    assert fit(1 + 2e-3 * np.linspace(0, 1, 50) ** 3) != 1


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_extreme_values_give_a_lambda_inside_the_bounds(scale: float) -> None:
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float64):
        y = torch.tensor(scale * rng.lognormal(0, 3, 100), dtype=dtype)
        lam = fit_lambda(y, 0, 2)
        assert lam.dtype == dtype and lam.shape == () and 0 <= lam <= 2


def test_one_far_outlier_gives_a_lambda_inside_the_bounds() -> None:
    for outlier in (1e-20, 1e20):
        y = np.append(np.linspace(1, 2, 50), outlier)
        assert 0 <= fit(y) <= 2


# ---- the historical loss on hostile batches --------------------------------------------------------------------------
def run_loss(
    mean: Tensor, log_std: Tensor, u: Tensor, phi: Tensor | None = None, **values: Any
) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Loss, diagnostics and gradients (to mean and log_std) of one agent."""
    leaves = [mean.clone().requires_grad_(), log_std.clone().requires_grad_()]
    phi = torch.ones(len(u), dtype=mean.dtype) if phi is None else phi
    loss, info = hm.historical_loss(leaves[0], leaves[1], u, phi, hm.Args(**values))
    info = {key.partition("/")[2]: value for key, value in info.items()}
    return loss.detach(), info, list(torch.autograd.grad(loss, leaves))


def gaussian_batch(size: int, dims: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(size, dims)), rng.uniform(-2, 1, (size, dims)), rng.normal(size=(size, dims))
    return [torch.tensor(part, dtype=dtype) for part in parts]


HOSTILE = {
    "one row": gaussian_batch(1),
    "seven rows": gaussian_batch(7),
    "constant": [torch.zeros(64, 2), torch.zeros(64, 2), torch.full((64, 2), 0.3)],
    "tiny sigma": [torch.zeros(64, 2), torch.full((64, 2), -20.0), 1e-9 * gaussian_batch(64)[2]],
    "far actions": [torch.zeros(64, 2), torch.full((64, 2), -20.0), gaussian_batch(64)[2]],
    "one row far above": [torch.zeros(64, 2), torch.tensor([[-20.0, -20]] + [[2.0, 2]] * 63), torch.zeros(64, 2)],
    "saturated": [*gaussian_batch(64)[:2], torch.full((64, 2), 7.25) * torch.sign(gaussian_batch(64)[2])],
    "huge means": [1e6 * gaussian_batch(64)[0], *gaussian_batch(64)[1:]],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"floor": "minus_beta_times_max"},
        {"below_floor": "literal"},
        {"below_floor": "hard"},
        {"box_cox": False},
        {"boxcox_scale": "geometric"},
    ],
    ids=str,
)
def test_hostile_batch_gives_finite_loss_and_gradients(name: str, dtype: torch.dtype, values: dict) -> None:
    loss, info, gradients = run_loss(*(part.to(dtype) for part in HOSTILE[name]), **values)
    assert all(torch.isfinite(x).all() for x in (loss, *gradients, *info.values()))
    assert info["dropped_rows"] == 0


@pytest.mark.parametrize("below_floor", ["elu", "literal", "hard"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["mean", "log_std", "action"])
def test_non_finite_rows_are_dropped_and_counted(where: int, bad: float, below_floor: str) -> None:
    parts: Any = gaussian_batch(40)
    phi = torch.tensor(np.random.default_rng(1).normal(size=40))
    rows = [3, 17, 31]
    kept = [i for i in range(40) if i not in rows]
    without = run_loss(*[part[kept] for part in parts], phi=phi[kept], below_floor=below_floor)
    parts[where][rows, 1] = bad
    loss, info, gradients = run_loss(*parts, phi=phi, below_floor=below_floor)
    assert info["dropped_rows"] == 3
    torch.testing.assert_close(loss, without[0])
    for key in ("boxcox_lambda", "log_prob_hist"):
        torch.testing.assert_close(info[key], without[1][key])
    for gradient, clean in zip(gradients, without[2]):
        torch.testing.assert_close(gradient[kept], clean)
        assert not gradient[rows].any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_loss_of_a_batch_without_a_finite_row_is_not_finite(wrong: float) -> None:
    """So that `Learner.update` stops with the name of the agent's loss, as for every other."""
    mean, log_std, u = gaussian_batch(20)
    loss, info, _ = run_loss(torch.full_like(mean, wrong), log_std, u)
    assert info["dropped_rows"] == 20
    assert not loss.isfinite()


def weights(mean: Tensor, log_std: Tensor, u: Tensor, **values: Any) -> Tensor:
    """|d z_b / d log f_b| of every row: the gradient to the mean over that of the Gaussian log density."""
    _, info, (gradient, _) = run_loss(mean, log_std, u, **values)
    assert info["dropped_rows"] == 0
    score = (u - mean) * torch.exp(-2 * log_std)
    largest = score.abs().argmax(1, keepdim=True)
    return (gradient * len(u)).gather(1, largest)[:, 0].abs() / score.gather(1, largest)[:, 0].abs()


def weight_bound(dims: int, beta: float, xi: float) -> float:
    """Actions are at most 1 - 1e-6 from 0, so that a dimension's squash correction is above log(2e-6) = -13.1224."""
    return max(1 / xi, beta + 1 + 13.123 * dims + xi)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    dims=st.integers(1, 4),
    size=st.integers(8, 40),
    sharp=st.floats(-20, 2),
    reach=st.sampled_from([0.1, 1.0, 7.0]),
    beta=st.sampled_from([1.0, 10.0, 40.0]),
    xi=st.sampled_from([1e-3, 1e-2, 1.0]),
)
def test_gradient_weight_is_bounded(
    seed: int, dims: int, size: int, sharp: float, reach: float, beta: float, xi: float
) -> None:
    rng = np.random.default_rng(seed)
    # every action dimension anywhere in its range, saturated ones included; policies anywhere between sharp and flat
    u = np.arctanh(np.clip(np.tanh(rng.normal(0, reach, (size, dims))), -hm.ACTION_BOUND, hm.ACTION_BOUND))
    log_std = rng.uniform(min(sharp, 1.9), 2, (size, dims))
    mean = u + np.exp(log_std) * rng.normal(size=(size, dims)) * 10 ** rng.uniform(-2, 1, (size, 1))
    weight = weights(*(torch.tensor(x) for x in (mean, log_std, u)), beta=beta, xi=xi)
    assert weight.max() <= weight_bound(dims, beta, xi) * (1 + 1e-4)


def test_gradient_weight_comes_near_its_bounds() -> None:
    # lambda 0: the lowest row weighs 1/xi. lambda 2: the highest weighs its distance from the lowest
    # the rows' log densities are set through the mean: log f = const - (u - mean)^2 / 2
    drop = torch.cat([torch.zeros(1), torch.tensor(np.random.default_rng(0).lognormal(-5, 2, 500))])
    mean = torch.sqrt(2 * (drop.max() - drop + 1e-4))[:, None]
    many_low = weights(mean, torch.zeros_like(mean), torch.zeros_like(mean))
    assert many_low.max() > 0.9 / 1e-2
    # left-skewed: most rows at the top, the worst saturated action and the floor far below
    u = torch.full((60, 4), float(np.arctanh(hm.ACTION_BOUND)))
    u[0] = 0
    mean, log_std = u + 1e-3, torch.zeros_like(u)
    mean[0] = 30
    heavy = weights(mean, log_std, u, xi=1.0)
    assert heavy.max() > 0.95 * weight_bound(4, 10.0, 1.0)


def test_lambda_one_is_a_shift() -> None:
    # z = x + xi - 1, with the minimum added back: the loss differs by a constant and the gradient not at all
    parts: Any = gaussian_batch(7)  # too few rows to fit: lambda is 1
    phi = torch.tensor(np.random.default_rng(1).normal(size=7))
    transformed, info, gradients = run_loss(*parts, phi=phi, xi=0.25)
    plain, _, plain_gradients = run_loss(*parts, phi=phi, box_cox=False)
    assert info["boxcox_lambda"] == 1
    torch.testing.assert_close(transformed, plain - (phi * (0.25 - 1)).mean())
    for a, b in zip(gradients, plain_gradients):
        torch.testing.assert_close(a, b)


def test_fitted_lambda_is_that_of_the_shifted_log_probabilities() -> None:
    mean, log_std, u = gaussian_batch(200, 3)
    x = (log_density(u, mean, log_std) - hm.squash_correction(u)).numpy()
    expected = stats.boxcox_normmax(x - x.min() + 1e-2, method="mle")
    _, info, _ = run_loss(mean, log_std, u, floor="none", boxcox_low=-50.0, boxcox_high=50.0)
    assert float(info["boxcox_lambda"]) == pytest.approx(float(expected), abs=1e-4)
    _, bounded, _ = run_loss(mean, log_std, u, floor="none", boxcox_high=0.5)
    assert float(bounded["boxcox_lambda"]) == pytest.approx(min(max(float(expected), 0), 0.5), abs=1e-4)
