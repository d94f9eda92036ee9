"""Statistics of runs: interquartile mean, stratified bootstrap intervals, probability of improvement.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021). A *stratum*
is a task; what is resampled are its runs (seeds), never the episodes or evaluations within a run. Shape letters: R runs
of one task, T points of a curve.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis, (R, ...) -> (...): the mean without the lowest and highest quarter.

    With R < 4 there is no whole run to leave out on either side and it is the mean.
    """
    return np.asarray(stats.trim_mean(scores, 0.25, axis=0))


def resample(scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """`draws` samples of R runs with replacement, (R, ...) -> (R, draws, ...)."""
    return scores[rng.integers(len(scores), size=(len(scores), draws))]


def bootstrap_interval(
    strata: Sequence[np.ndarray], statistic: Statistic = iqm, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic of all runs, resampled within each task.

    Args:
        strata: over tasks arrays (R, ...) with the same trailing shape. One task: an ordinary bootstrap over its runs.
        statistic: of the first axis, (runs of all tasks, ...) -> (...).

    Returns:
        Lower and upper end, each (...). With few runs such an interval is too short: five runs of a normal variable
        are covered less often than `level` says, and one run gives an interval of no width.
    """
    rng = np.random.default_rng(seed)
    samples = np.concatenate([resample(np.asarray(s, dtype=float), draws, rng) for s in strata], axis=0)
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(samples), [tail, 1 - tail], axis=0)
    return low, high


def difference_interval(
    one: np.ndarray, other: np.ndarray, statistic: Statistic = iqm, level: float = 0.95, draws: int = 10_000
) -> tuple[float, float, float]:
    """statistic(one) - statistic(other) of two independent sets of runs, (R,) and (R',), and its bootstrap interval."""
    rng = np.random.default_rng(0)
    values = statistic(resample(np.asarray(one), draws, rng)) - statistic(resample(np.asarray(other), draws, rng))
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(statistic(np.asarray(one)) - statistic(np.asarray(other))), float(low), float(high)


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> float:
    """P(a run of `one` scores higher than one of `other`), ties counted half; (R,), (R',): Mann-Whitney's U / RR'."""
    difference = np.asarray(one)[:, None] - np.asarray(other)[None, :]
    return float((np.sign(difference) / 2 + 0.5).mean())
