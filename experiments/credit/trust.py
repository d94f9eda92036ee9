"""Can the credit be trusted as a Shapley value, and what kind of game is it? trust.png."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.credit import game
from experiments.credit.episode import CREDIT_SEED, Recording, value_of
from experiments.credit.load import Trained

MAX_STATES = 200  # evenly spaced over the recording: each costs 2^N critic calls
MAX_DRAWS = 2048


@dataclass
class Trust:
    """What trust.png shows, at T states of the recording."""

    index: np.ndarray  # int (T,), into the recording
    exact: np.ndarray  # (N, T)
    sampled: np.ndarray  # (N, T)
    draws: int  # of `sampled`
    numbers: list[int]  # of draws, on the axis
    error: dict[str, list[float]]  # "permutation", "antithetic" -> root mean squared error at each number, NaN: none
    convex: np.ndarray  # share of supermodularity inequalities that hold, (T,)
    slack: dict[str, np.ndarray]  # "hybrid", "Shapley" -> core slack over |v(N) - v(nobody)|, (T,)
    in_core: dict[str, float]  # the share of states in which the payoff is in the core

    def lines(self) -> list[str]:
        """The findings in words."""
        size, worst = np.abs(self.exact).mean(), np.abs(self.sampled - self.exact).max()
        error = float(np.sqrt(np.mean((self.sampled - self.exact) ** 2)))
        return [
            f"{len(self.index)} states; mean |exact credit| {size:.4g}; with {self.draws} draws the root mean squared"
            f" error is {error:.3g}, the largest {worst:.3g}",
            f"supermodularity: {100 * self.convex.mean():.1f} % of the inequalities hold; the game is convex in"
            f" {100 * (self.convex == 1).mean():.1f} % of the states",
            f"core: the hybrid split is in it in {100 * self.in_core['hybrid']:.1f} % of the states, the Shapley value"
            f" in {100 * self.in_core['Shapley']:.1f} %",
        ]


def measure(run: Trained, recording: Recording, draws: int) -> Trust:
    """Exact values by 2^N enumeration, sampled ones with `draws`, and the game's properties."""
    total = len(recording.step)
    index = np.unique(np.linspace(0, total - 1, min(total, MAX_STATES)).round().astype(int))
    value = value_of(run, recording.state[index], recording.actions[index])
    table = game.all_values(value, run.num_agents)
    return study(table, index, draws)


def study(table: np.ndarray, index: np.ndarray, draws: int) -> Trust:
    """The same from a table of values (2^N, T)."""
    num_agents, num_states = int(np.log2(len(table))), table.shape[1]
    value, exact = game.lookup(table), game.exact(table)
    sampled = game.draw(value, num_agents, num_states, draws, "permutation", CREDIT_SEED).mean(0)
    numbers, error = [2**k for k in range(9)], {}
    for how in ("permutation", "antithetic"):
        contributions = game.draw(value, num_agents, num_states, MAX_DRAWS, how, CREDIT_SEED + 1)
        error[how] = [error_of(contributions, exact, number, how) for number in numbers]
    slack, in_core, unit = {}, {}, np.maximum(np.abs(table[-1] - table[0]), 1e-12)
    for name, payoff in (("hybrid", game.hybrid(table)), ("Shapley", exact)):
        raw = game.core_slack(table, payoff)
        slack[name], in_core[name] = raw / unit, float((raw >= -game.rounding(table)).mean())
    return Trust(index, exact, sampled, draws, numbers, error, game.convexity(table), slack, in_core)


def error_of(contributions: np.ndarray, exact: np.ndarray, number: int, how: str) -> float:
    """Root mean squared error of the mean of `number` draws, over agents, states and disjoint groups of draws."""
    if how == "antithetic" and number < 2:
        return float("nan")
    groups = contributions[: len(contributions) // number * number].reshape(-1, number, *exact.shape).mean(1)
    return float(np.sqrt(np.mean((groups - exact) ** 2)))


def plot(trust: Trust, path: Path) -> None:
    """Write trust.png: four panels."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    (scatter, error), (convex, core) = figure.subplots(2, 2)
    for i, (exact, sampled) in enumerate(zip(trust.exact, trust.sampled)):
        scatter.scatter(exact, sampled, s=8, label=f"agent {i}")
    ends = [trust.exact.min(), trust.exact.max()]
    scatter.plot(ends, ends, color="black", linewidth=0.8)
    scatter.set(title=f"{trust.draws} draws against all coalitions", xlabel="exact credit", ylabel="sampled credit")
    scatter.legend(fontsize=8)

    numbers = np.array(trust.numbers)
    for (how, values), marker in zip(trust.error.items(), "os"):
        rms = np.array(values)
        # An error of rounding alone has no place on a logarithmic axis.
        real = rms > 1e-6 * max(np.abs(trust.exact).max(), 1e-12)
        label = how if real.any() else f"{how}: exact with {2 if how == 'antithetic' else 1} draws"
        error.plot(numbers[real], rms[real], marker=marker, label=label)
    first = trust.error["permutation"][0]
    if first > 0:
        error.plot(numbers, first / np.sqrt(numbers), color="black", linewidth=0.8, linestyle="--", label="1/sqrt(M)")
        error.set(xscale="log", yscale="log")
    error.set(title="error against number of draws", xlabel="draws M", ylabel="root mean squared error")
    error.legend(fontsize=8)

    convex.hist(100 * trust.convex, bins=np.linspace(0, 100, 21), color="tab:green")
    convex.set(
        title=f"Is the game convex? {100 * trust.convex.mean():.1f} % of all inequalities hold",
        xlabel="supermodularity inequalities that hold, % of a state's",
        ylabel="states",
    )
    low = min(float(np.quantile(values, 0.01)) for values in trust.slack.values())
    edges = np.linspace(min(low, -0.1), max(0.1, max(float(v.max()) for v in trust.slack.values())), 41)
    for name, values in trust.slack.items():
        label = f"{name}: in the core in {100 * trust.in_core[name]:.1f} % of the states"
        core.hist(values.clip(edges[0], edges[-1]), bins=edges.tolist(), histtype="step", linewidth=1.6, label=label)
    core.axvline(0, color="black", linewidth=0.8)
    core.set(
        title="Is the split in the core?",
        xlabel="smallest surplus of a coalition, / |v(N) - v(empty)|\n(below 0: not in the core)",
        ylabel="states",
    )
    core.legend(fontsize=8)
    figure.savefig(path, dpi=100)
