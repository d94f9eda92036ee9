"""`common.stats` against scipy, by enumeration and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from common.stats import (
    bootstrap_interval,
    difference_interval,
    improvement_interval,
    iqm,
    paired_p_value,
    performance_profile,
    probability_of_improvement,
    rank_p_value,
    t_interval,
    welch_interval,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1, 2, 3, 100], 2.5), ([7, 1, 2, 3, -50], 2.0), ([3, 6, 90], 33.0), ([0, 0, 1, 2, 3, 4, 9, 9], 2.5)],
)
def test_iqm_by_hand(scores: list[float], expected: float) -> None:
    assert iqm(np.array(scores)) == pytest.approx(expected)


def test_iqm_keeps_the_other_axes() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 3, 2))
    expected = [[np.sort(scores[:, i, j])[2:6].mean() for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(iqm(scores), expected)


def test_interval_of_the_mean_equals_scipys() -> None:
    scores = np.random.default_rng(1).exponential(size=12)
    low, high = bootstrap_interval([scores], lambda x: x.mean(0), draws=20_000)
    theirs = scipy_stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="percentile", rng=3)
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert abs(low - interval.low) < 0.03 * width and abs(high - interval.high) < 0.03 * width


def test_interval_equals_the_enumeration_of_all_resamples() -> None:
    """Three runs have 27 resamples; the quantiles at 10 and 90 % fall on values with probability to spare."""
    scores = np.array([0.0, 1.0, 10.0])
    values = np.sort([np.mean(r) for r in itertools.product(scores, repeat=3)])
    low, high = bootstrap_interval([scores], level=0.8, draws=20_000)
    assert low == pytest.approx(np.quantile(values, 0.1)) and high == pytest.approx(np.quantile(values, 0.9))


def test_runs_are_resampled_within_their_task() -> None:
    """Two tasks of very different level: resampling over both would make the interval a hundred times wider."""
    rng = np.random.default_rng(2)
    low, high = bootstrap_interval([rng.normal(0, 1, 10), rng.normal(1000, 1, 10)], lambda x: x.mean(0))
    assert 0.3 < high - low < 2


def test_a_curve_gets_an_interval_at_each_point() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(6, 4)) * np.array([0.0, 1.0, 10.0, 100.0])
    low, high = bootstrap_interval([scores], draws=2000)
    assert low.shape == high.shape == (4,)
    assert low[0] == high[0] == 0 and np.all(np.diff(high - low) > 0)
    assert np.all((low <= iqm(scores)) & (iqm(scores) <= high))


def test_coverage_by_simulation() -> None:
    """20 runs: near 95 %. 5 runs: clearly less, as the documentation says."""
    rng, hits = np.random.default_rng(4), {5: 0, 20: 0}
    trials = 300
    for runs in hits:
        for trial in range(trials):
            low, high = bootstrap_interval([rng.normal(size=runs)], draws=400, seed=trial)
            hits[runs] += bool(low <= 0 <= high)
    assert 0.88 < hits[20] / trials < 0.99
    assert 0.70 < hits[5] / trials < 0.93


def test_coverage_of_comparisons_by_simulation() -> None:
    """Two equal sides: with five runs each the difference is near 95 %, with three clearly less, with two far off."""
    rng, trials, hits = np.random.default_rng(3), 300, {(n, kind): 0 for n in (2, 3, 5) for kind in ("difference", "P")}
    for runs in (3, 5, 2):
        for _ in range(trials):
            one, other = rng.normal(size=(2, runs))
            _, low, high = difference_interval(one, other, draws=400)
            hits[runs, "difference"] += low <= 0 <= high
            _, low, high = improvement_interval([one], [other], draws=400)
            hits[runs, "P"] += low <= 0.5 <= high
    assert 0.89 < hits[5, "difference"] / trials < 0.98 and 0.84 < hits[5, "P"] / trials < 0.95
    assert all(0.72 < hits[3, kind] / trials < 0.88 for kind in ("difference", "P"))
    assert 0.58 < hits[2, "difference"] / trials < 0.78 and 0.55 < hits[2, "P"] / trials < 0.80


def test_t_interval_is_scipys_paired_test() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 6))
    found = t_interval(one - other)
    expected = scipy_stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found == pytest.approx((float((one - other).mean()), expected.low, expected.high))
    assert t_interval(np.array([3.0])) == (3.0, -np.inf, np.inf)


def test_welch_interval_by_hand() -> None:
    """Welch 1947: standard errors add, degrees of freedom by Satterthwaite."""
    one, other = np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.5, 9.0, 11.0])
    a, b = one.var(ddof=1) / 3, other.var(ddof=1) / 4
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    half = scipy_stats.t.ppf(0.995, freedom) * np.sqrt(a + b)
    middle = 7 / 3 - 26.5 / 4
    assert welch_interval(one, other, 0.99) == pytest.approx((middle, middle - half, middle + half))
    assert welch_interval(one[:1], other) == (1 - 26.5 / 4, -np.inf, np.inf)
    assert welch_interval(np.ones(3), np.zeros(2)) == (1, 1, 1)


def test_the_rank_p_value_counts_all_divisions() -> None:
    """... of the runs into two sides that are as far apart in the same direction, twice; ties have their mean rank."""
    one, other = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 6.0, 7.0, 8.0, 9.0])
    ranks = scipy_stats.rankdata(np.concatenate([one, other]))
    sums = np.array([ranks[list(part)].sum() for part in itertools.combinations(range(9), 4)])
    assert len(sums) == 126 and ranks[:4].sum() < sums.mean()
    assert rank_p_value(one, other) == pytest.approx(2 * np.mean(sums <= ranks[:4].sum() + 1e-9))
    assert rank_p_value(one[:1], other) == 1


def test_the_paired_p_value_is_scipys_on_one_task() -> None:
    one, other = np.array([1.0, 4.0, 6.0, 9.0, -np.inf]), np.array([2.0, 7.0, 8.0, 10.0, 6.0])
    ranks = scipy_stats.rankdata(np.concatenate([one, other]))
    pair = (ranks[:5], ranks[5:])
    for a, b, (x, y) in ((one, other, pair), (other, one, pair[::-1])):
        theirs = scipy_stats.permutation_test(
            (x, y), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=100
        )
        assert paired_p_value([a], [b]) == pytest.approx(theirs.pvalue)


def test_the_paired_p_value_swaps_within_pairs_of_all_tasks() -> None:
    """All 2**5 swaps of two tasks with ties, of different scales."""
    ones, others = (
        [np.array([3.0, 5.0, 4.0]), np.array([100.0, 400.0])],
        [np.array([1.0, 3.0, 4.5]), np.array([0.0, 100.0])],
    )
    values = []
    for swaps in itertools.product((False, True), repeat=5):
        total = 0.0
        for a, b, swap in zip(ones, others, (swaps[:3], swaps[3:])):
            mine, theirs = np.where(swap, b, a), np.where(swap, a, b)
            total += len(a) ** 2 * probability_of_improvement(
                mine, theirs
            )  # Mann and Whitney's U, as good as the ranks
        values.append(total)
    assert values[0] > np.mean(values)
    expected = 2 * np.mean(np.array(values) >= values[0] - 1e-9)
    assert paired_p_value(ones, others) == pytest.approx(expected) == paired_p_value(others, ones)
    assert paired_p_value([np.zeros(3)], [np.zeros(3)]) == 1


def test_the_paired_p_value_keeps_its_level_and_uses_the_pairs() -> None:
    """400 studies of four tasks with three seeds, half of a run's variance its seed's: 5 % false alarms at most."""
    rng = np.random.default_rng(8)
    alarms = dict.fromkeys(("no difference", "paired", "shuffled"), 0)
    for _ in range(400):
        scale = rng.uniform(1, 100, size=(4, 1))
        seeds, mine, theirs = rng.normal(size=(3, 4, 3))
        ones, others = (scale * (2 * seeds + each) for each in (mine, theirs))
        alarms["no difference"] += paired_p_value(list(ones), list(others)) < 0.05
        alarms["paired"] += paired_p_value(list(ones + 1.5 * scale), list(others)) < 0.05
        alarms["shuffled"] += paired_p_value(list(ones + 1.5 * scale), list(np.roll(others, 1, axis=1))) < 0.05
    assert 0.015 < alarms["no difference"] / 400 < 0.075
    assert alarms["paired"] > 1.5 * alarms["shuffled"] > 0.1 * 400


def test_difference_interval() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.normal(10, 1, 8), rng.normal(5, 1, 8)
    middle, low, high = difference_interval(one, other)
    assert middle == pytest.approx(float(iqm(one) - iqm(other))) and 2 < low < middle < high < 8
    assert difference_interval(other, one) == pytest.approx((-middle, -high, -low), abs=0.15)


def test_probability_of_improvement_is_mann_whitneys() -> None:
    rng = np.random.default_rng(6)
    one, other = rng.integers(0, 10, 9).astype(float), rng.integers(2, 10, 7).astype(float)
    u = scipy_stats.mannwhitneyu(one, other).statistic
    assert probability_of_improvement(one, other) == pytest.approx(u / (9 * 7))
    assert probability_of_improvement(np.array([2.0]), np.array([1.0, 3.0, 2.0, 0.0])) == 0.625
    lost = np.array([-np.inf, 1.0])
    assert probability_of_improvement(lost, lost) == 0.5 and improvement_interval([lost], [lost])[0] == 0.5


def test_improvement_interval_by_hand_and_against_scipy() -> None:
    rng = np.random.default_rng(7)
    ones, others = [rng.normal(size=6), rng.normal(size=5)], [rng.normal(size=4), rng.normal(-1, size=7)]
    middle, low, high = improvement_interval(ones, others)
    us = [scipy_stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(ones, others)]
    assert middle == pytest.approx(np.mean(us)) and low < middle < high
    draws = scipy_stats.bootstrap(
        (ones[0], others[0]),
        lambda a, b: probability_of_improvement(a, b),
        n_resamples=4000,
        method="percentile",
        vectorized=False,
        rng=1,
    ).confidence_interval
    assert improvement_interval(ones[:1], others[:1], draws=4000)[1:] == pytest.approx(
        (draws.low, draws.high), abs=0.05
    )
    assert improvement_interval([np.array([2.0])], [np.array([1.0])]) == (1, 1, 1)


def test_performance_profile_is_the_mean_of_survival_functions() -> None:
    rng = np.random.default_rng(8)
    strata, thresholds = [rng.normal(size=5), rng.normal(1, size=9)], np.linspace(-2, 3, 11)
    profile, low, high = performance_profile(strata, thresholds)
    np.testing.assert_allclose(profile, np.mean([scipy_stats.ecdf(s).sf.evaluate(thresholds) for s in strata], axis=0))
    assert np.all(low <= profile) and np.all(profile <= high) and np.any(high - low > 0.2)


def test_coverage_over_tasks_by_simulation() -> None:
    """Five tasks of five runs on very different levels: the interval covers about as often as it says."""
    rng, means, hits, trials = np.random.default_rng(9), np.arange(5.0), {"iqm": 0, "improvement": 0}, 200
    truth = iqm(np.concatenate([m + scipy_stats.norm.ppf((np.arange(4000) + 0.5) / 4000) for m in means]))
    for trial in range(trials):
        runs, others = ([rng.normal(m, 1, 5) for m in means] for _ in range(2))
        low, high = bootstrap_interval(runs, draws=400, seed=trial)
        hits["iqm"] += bool(low <= truth <= high)
        _, low, high = improvement_interval(runs, others, draws=400, seed=trial)
        hits["improvement"] += low <= 0.5 <= high
    assert all(0.85 < count / trials < 0.99 for count in hits.values()), hits
