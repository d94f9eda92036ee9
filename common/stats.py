"""Statistics of runs: interquartile mean, stratified bootstrap intervals, probability of improvement.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021). A *stratum*
is a task; what is resampled are its runs (seeds), never the episodes or evaluations within a run. Shape letters: R runs
of one task, T points of a curve.
"""

import itertools
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


def t_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences, (R,), and Student's interval, exact where they are normal; infinite for one."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return float(values.mean()), -np.inf, np.inf
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def welch_interval(one: np.ndarray, other: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """mean(one) - mean(other) of two independent sets of runs, (R,) and (R',), and Welch's interval.

    Unlike a percentile bootstrap, which never leaves the sample, it grows without bound with the level. With a single
    run on a side it is infinite.
    """
    difference = float(np.mean(one) - np.mean(other))
    if min(len(one), len(other)) < 2:
        return difference, -np.inf, np.inf
    if not np.ptp(one) and not np.ptp(other):  # scipy has no interval where nothing varies
        return difference, difference, difference
    low, high = stats.ttest_ind(one, other, equal_var=False).confidence_interval(level)  # pyright: ignore[reportAttributeAccessIssue]
    return difference, float(low), float(high)


def rank_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value of the rank sum of two independent sets of runs, (R,) and (R',), by permutations.

    Twice the smaller tail; ties have their mean rank.

    All permutations where there are at most 10,000 (five and five runs: 252, so at least 2 / 252), else 10,000 drawn.
    1 with a single run on a side.
    """
    if min(len(one), len(other)) < 2:
        return 1.0
    ranks = stats.rankdata(np.concatenate([one, other]))
    parts = ranks[: len(one)], ranks[len(one) :]

    def shift(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    rng = np.random.default_rng(0)
    return float(stats.permutation_test(parts, shift, vectorized=True, n_resamples=10_000, rng=rng).pvalue)


def _wins(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where `one` is higher, 1/2 where they are equal, both at minus infinity included, else 0."""
    return (one > other) + 0.5 * (one == other)


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> float:
    """P(a run of `one` scores higher than one of `other`), ties counted half; (R,), (R',): Mann-Whitney's U / RR'."""
    return float(_wins(np.asarray(one)[:, None], np.asarray(other)[None, :]).mean())


def improvement_interval(
    ones: Sequence[np.ndarray], others: Sequence[np.ndarray], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The probability of improvement, mean over tasks, and its percentile bootstrap interval.

    `ones` and `others` hold one array of runs a task, (R,) and (R',); runs of each side are resampled within each task.
    With one run on each side of every task the interval has no width and says nothing.
    """
    rng = np.random.default_rng(seed)
    values = np.zeros(draws)
    for one, other in zip(ones, others, strict=True):
        mine, theirs = resample(np.asarray(one), draws, rng), resample(np.asarray(other), draws, rng)
        values += _wins(mine[:, None], theirs[None, :]).mean((0, 1))
    low, high = np.quantile(values / len(ones), [(1 - level) / 2, (1 + level) / 2])
    middle = np.mean([probability_of_improvement(one, other) for one, other in zip(ones, others, strict=True)])
    return float(middle), float(low), float(high)


def paired_p_value(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Two-sided p-value of runs in pairs, over tasks, by the exact test that swaps the two runs of each pair.

    `ones` and `others` hold one array a task, (R,), element s of both from the same seed. Compared is the sum of the
    ranks of `ones` among all runs of their task, ties at their mean, so that no task's scale counts and a run at minus
    infinity is the last one. If the two sides are alike, every swap leaves the law of the runs what it is, however much
    those of a pair have in common. Twice the smaller tail, at most 1.
    """
    sums = {0.0: 1.0}  # sum of the signed differences of the ranks of pairs -> probability
    found = 0.0
    for one, other in zip(ones, others, strict=True):
        ranks = stats.rankdata(np.concatenate([one, other]))
        for difference in ranks[: len(one)] - ranks[len(one) :]:
            found += difference
            longer: dict[float, float] = {}
            for (before, p), sign in itertools.product(sums.items(), (1, -1)):
                after = before + sign * difference
                longer[after] = longer.get(after, 0.0) + p / 2
            sums = longer
    above, below = (sum(p for v, p in sums.items() if sign * (v - found) >= 0) for sign in (1, -1))
    return min(1.0, 2 * min(above, below))


def performance_profile(
    strata: Sequence[np.ndarray], thresholds: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs whose score is above each threshold, mean over tasks, and its pointwise bootstrap interval.

    Args:
        strata: over tasks arrays (R,) of scores that are comparable over tasks.
        thresholds: (T,).

    Returns:
        The profile and the lower and upper end of its interval, each (T,). Agarwal et al., Eq. (2).
    """
    rng = np.random.default_rng(seed)
    above = [np.asarray(scores)[:, None] > thresholds for scores in strata]  # (R, T)
    values = np.mean([resample(each, draws, rng).mean(0) for each in above], axis=0)  # (draws, T)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.mean([each.mean(0) for each in above], axis=0), low, high
