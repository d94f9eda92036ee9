"""Maximum-likelihood fit of the Box-Cox parameter, all rows of a batch at once."""

import torch
from torch import Tensor
from torch.linalg import vecdot

HALVINGS = 26  # the bracket shrinks by 2**26: 3e-8 on [0, 2]
MIN_COUNT = 8  # fewer values than this say nothing about the shape of a distribution
MIN_SPREAD = 1e-6  # max - min below this is a constant sample: every lambda is as likely


@torch.no_grad()
def fit_lambda(y: Tensor, low: float, high: float, valid: Tensor | None = None) -> Tensor:
    """Maximum-likelihood Box-Cox lambda of every row, bounded to [low, high].

    The profile log-likelihood of Box and Cox (1964) has one maximum, so its derivative (the score) is bisected. With
    t = log y - max(log y), e = exp(lambda t) and w = e - mean(e), up to a positive factor

        score(lambda) = mean(t) - mean(w e t) / mean(w^2) + 1 / lambda.

    Subtracting max(log y) rescales y, which leaves the maximiser where it is and keeps e in (0, 1] for lambda > 0.
    The optimum equals `scipy.stats.boxcox_normmax(y, method="mle")` clipped to the bounds.

    Args:
        y: (R, B) positive values; one fit a row.
        low, high: bounds of lambda. A maximum outside lies at the nearer bound.
        valid: (R, B) bool, True where a value counts. Default: everywhere.

    Returns:
        (R,) lambda in the dtype of y. It is 1 (the identity up to a shift) for a row with fewer than 8 valid values
        or a spread below 1e-6, where the data do not determine it.
    """
    valid = torch.ones_like(y, dtype=torch.bool) if valid is None else valid
    count = valid.sum(1)
    weight = valid.double() / count.clamp(min=1)[:, None]
    log_y = torch.where(valid, y, torch.ones_like(y)).double().log()
    t = log_y - log_y.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    t = torch.where(valid, t, torch.zeros_like(t))
    mean_t = vecdot(weight, t)

    lower, upper = torch.full_like(mean_t, low), torch.full_like(mean_t, high)
    for _ in range(HALVINGS):
        lam = (lower + upper) / 2
        lam = torch.where(lam == 0, 1e-6, lam)  # the score has a removable 0/0 at lambda = 0
        e = torch.expm1(lam[:, None] * t)  # e - 1 in the formula: exact where lambda t is tiny, and w is the same
        w = e - vecdot(weight, e)[:, None]
        ww = w * weight
        score = mean_t - vecdot(ww, torch.addcmul(t, e, t)) / vecdot(ww, w) + 1 / lam
        rising = score > 0
        lower, upper = torch.where(rising, lam, lower), torch.where(rising, upper, lam)
    lam = ((lower + upper) / 2).clamp(low, high)

    spread = y.masked_fill(~valid, -torch.inf).amax(1) - y.masked_fill(~valid, torch.inf).amin(1)
    determined = (count >= MIN_COUNT) & (spread >= MIN_SPREAD) & torch.isfinite(lam)
    return torch.where(determined, lam, torch.ones_like(lam)).to(y.dtype)
