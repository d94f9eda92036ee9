"""The Box-Cox transform, the maximum-likelihood fit of its parameter, and the soft floor that precedes it in HIS."""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

MIN_COUNT = 8  # fewer values than this say nothing about the shape of a distribution
MIN_SPREAD = 1e-6  # max - min below this is a constant sample: every lambda is as likely
NEAR_ZERO = 1e-6  # the score has a removable 0/0 at lambda = 0, and cancels near it
TOLERANCE = 1e-8


def fit_lambda(y: Tensor, low: float, high: float) -> Tensor:
    """Maximum-likelihood Box-Cox lambda of positive values y (B,), bounded to [low, high]; a scalar in the dtype of y.

    The profile log-likelihood of Box and Cox (1964) has one maximum: the root of its derivative, the score. With
    t = log y up to a constant, e = exp(lambda t) and w = e - mean(e) it is, up to a positive factor,

        score(lambda) = mean(t) - mean(w e t) / mean(w^2) + 1 / lambda.

    The optimum equals `scipy.stats.boxcox_normmax(y, method="mle")` clipped to the bounds (one outside: the nearer
    bound), at a fraction of its time. Fewer than 8 values, a spread below 1e-6 or a NaN do not determine it: then it is
    1, the identity up to a shift.
    """
    values = y.detach().double().cpu().numpy()
    if len(values) < MIN_COUNT or not np.ptp(values) >= MIN_SPREAD:  # a NaN is not >=
        return torch.ones((), dtype=y.dtype, device=y.device)
    log_y = np.log(values)
    logs = {True: log_y - log_y.max(), False: log_y - log_y.min()}  # lambda > 0 or not: keeps e in (0, 1]
    means = {positive: t.mean() for positive, t in logs.items()}

    def score(lam: float) -> float:
        lam = lam if abs(lam) > NEAR_ZERO else NEAR_ZERO
        t = logs[lam > 0]
        e = np.expm1(lam * t)  # e - 1 in the formula: exact where lambda t is tiny, and w is the same
        w = e - e.mean()
        return means[lam > 0] - w.dot(t + e * t) / w.dot(w) + 1 / lam

    lam = low if score(low) <= 0 else high if score(high) >= 0 else brentq(score, low, high, xtol=TOLERANCE)
    return torch.tensor(lam, dtype=y.dtype, device=y.device)


def box_cox(y: Tensor, lam: Tensor, scale: str = "none") -> Tensor:
    """Box-Cox transform of positive y (B,) with a scalar lambda, Eq. (4) of HIS.

    scale: "geometric" divides by the derivative at the geometric mean, a constant for the gradient (Box and Cox 1964).
    """
    log_y = y.log()
    nonzero = torch.where(lam == 0, torch.ones_like(lam), lam)
    z = torch.where(lam == 0, log_y, torch.expm1(nonzero * log_y) / nonzero)
    return z / torch.exp((lam - 1) * log_y.detach().mean()) if scale == "geometric" else z


def restrict(log_density: Tensor, floor: Tensor, below_floor: str) -> Tensor:
    """Eq. (31) of HIS: log densities (B,) below `floor` (a scalar without gradient) are held near it.

    below_floor: "elu" T + exp(f - T) - 1, "literal" T + exp(f) - exp(T) or "hard" T (READING 2).
    """
    low = torch.minimum(log_density, floor)
    if below_floor == "elu":
        below = floor + torch.expm1(low - floor)
    elif below_floor == "literal":  # exponents shifted by max(floor, 0): the printed form overflows where floor >> 0
        shift = floor.clamp(min=0)
        below = floor + torch.exp(low - shift) - torch.exp(floor - shift)
    else:
        below = floor.expand_as(log_density)
    return torch.where(log_density < floor, below, log_density)
