"""The Box-Cox transform, the maximum-likelihood fit of its parameter, and the soft floor that precedes it in HIS."""

import torch
from torch import Tensor

HALVINGS = 26  # the bracket shrinks by 2**26: 3e-8 on [0, 2]
MIN_COUNT = 8  # fewer values than this say nothing about the shape of a distribution
MIN_SPREAD = 1e-6  # max - min below this is a constant sample: every lambda is as likely


@torch.no_grad()
def fit_lambda(y: Tensor, low: float, high: float) -> Tensor:
    """Maximum-likelihood Box-Cox lambda of positive values y (B,), bounded to [low, high]; a scalar in the dtype of y.

    The profile log-likelihood of Box and Cox (1964) has one maximum, so its derivative (the score) is bisected. With
    t = log y - max(log y), e = exp(lambda t) and w = e - mean(e), up to a positive factor

        score(lambda) = mean(t) - mean(w e t) / mean(w^2) + 1 / lambda.

    Subtracting max(log y) rescales y, which leaves the maximiser where it is and keeps e in (0, 1] for lambda > 0.
    The optimum equals `scipy.stats.boxcox_normmax(y, method="mle")` clipped to the bounds (a maximum outside lies at
    the nearer one). Fewer than 8 values or a spread below 1e-6 do not determine it: then it is 1, the identity up to a
    shift.
    """
    t = y.double().log()
    t -= t.max()
    mean_t = t.mean()
    lower, upper = torch.full_like(mean_t, low), torch.full_like(mean_t, high)
    for _ in range(HALVINGS):
        lam = (lower + upper) / 2
        lam = torch.where(lam == 0, 1e-6, lam)  # the score has a removable 0/0 at lambda = 0
        e = torch.expm1(lam * t)  # e - 1 in the formula: exact where lambda t is tiny, and w is the same
        w = e - e.mean()
        rising = mean_t - w.dot(torch.addcmul(t, e, t)) / w.dot(w) + 1 / lam > 0
        lower, upper = torch.where(rising, lam, lower), torch.where(rising, upper, lam)
    lam = ((lower + upper) / 2).clamp(low, high)
    determined = (y.max() - y.min() >= MIN_SPREAD) & torch.isfinite(lam) & (len(y) >= MIN_COUNT)
    return torch.where(determined, lam, 1.0).to(y.dtype)


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
