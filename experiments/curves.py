"""Collect finished (or running) runs into `results/`: their raw evaluation curves, their commands, a plot, tables.

    python -m experiments.curves runs/his_mamujoco/HalfCheetah-6x1/* --out results/mamujoco
    python -m experiments.curves runs/his_mpe/*/* --out results/mpe --bounds results/mpe/bounds.json

Writes, below `--out`, `<scenario>.csv` (every evaluation episode of every run), `runs.json` (command, commit, host and
packages of each) and `curves.png`, a panel a scenario: single runs thin, their interquartile mean (IQM) thick, its 95 %
bootstrap interval over seeds as a band. Prints two Markdown tables a scenario: the IQM at a few steps, single runs in
brackets, and the comparison of the algorithms. Runs of a suite are told apart by their variant (experiments/suites.py).

`--add` keeps what `--out` already holds of other runs (another algorithm or seed), so that runs made in several places
or on several days come together. `--bounds` names a JSON file {"tasks": {scenario: {policy: {"mean": ...}}}}; "random"
and "oracle" become lines of the plot.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.stats import bootstrap_interval, difference_interval, iqm
from experiments.scores import LABELS, label_of, shown, variant_of

COLORS = dict(zip(LABELS.values(), ("tab:blue", "tab:orange", "tab:green", "tab:red")))
MORE_COLORS = "tab:purple tab:brown tab:pink tab:gray tab:olive tab:cyan".split()
COLUMNS = ("algorithm", "rules", "seed", "global_step", "episode", "return", "length")
Curves = dict[str, dict[int, dict[int, float]]]  # algorithm -> seed -> global_step -> mean return of that evaluation


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """config.json and the rows of eval.csv of one run folder; FileNotFoundError where one is missing."""
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "eval.csv", newline="") as file:
        return config, list(csv.DictReader(file))


def identity(run: dict[str, Any]) -> tuple[str, str, str, int]:
    """What tells one run in runs.json from another."""
    return run["args"]["scenario"], run["algorithm"], run["rules"], run["seed"]


def earlier(out: Path, new: set[tuple[str, str, str, int]]) -> tuple[list[dict[str, Any]], dict[str, list[dict]]]:
    """The runs and rows (by scenario) that `out` holds of runs that are not among `new`."""
    path = out / "runs.json"
    runs = [run for run in json.loads(path.read_text()) if identity(run) not in new] if path.exists() else []
    known, rows = {identity(run) for run in runs}, defaultdict(list)
    for scenario in sorted({run["args"]["scenario"] for run in runs}):
        with open(out / f"{scenario}.csv", newline="") as file:
            for row in csv.DictReader(file):
                if (scenario, row["algorithm"], row["rules"], int(row["seed"])) in known:
                    rows[scenario].append(row)
    return runs, rows


def curves(rows: Sequence[dict[str, Any]]) -> Curves:
    """Curves of one scenario."""
    returns: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for row in rows:
        returns[row["algorithm"], int(row["seed"]), int(row["global_step"])].append(float(row["return"]))
    nested: Curves = defaultdict(lambda: defaultdict(dict))
    order = [*LABELS.values(), *sorted({key[0] for key in returns} - set(LABELS.values()))]
    for (algorithm, seed, step), values in sorted(returns.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        nested[algorithm][seed][step] = float(np.mean(values))
    return nested


def table(nested: Curves, steps: Sequence[int]) -> str:
    """Markdown: one row an algorithm, one column a step: IQM over the runs that got there, and each of them."""
    lines = ["| | " + " | ".join(f"{step:,} steps" for step in steps) + " |", "|---|" + "---|" * len(steps)]
    for algorithm, seeds in nested.items():
        cells = []
        for step in steps:
            values = [points[step] for points in seeds.values() if step in points]
            single = ", ".join(shown(value) for value in values)
            cells.append(f"**{shown(float(iqm(np.array(values))))}** ({single})" if values else "not run")
        lines.append(f"| {algorithm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def complete(nested: Curves, algorithm: str) -> tuple[list[int], np.ndarray]:
    """Evaluation steps that all runs of an algorithm have, (T,), and their returns, (R, T)."""
    seeds = nested[algorithm]
    steps = sorted(set.intersection(*(set(points) for points in seeds.values())))
    return steps, np.array([[points[step] for step in steps] for points in seeds.values()])


def comparison(nested: Curves, bounds: dict[str, float]) -> str:
    """Markdown: last evaluation and mean of the second half of the curve, and where HIS stands against HASAC.

    "ahead" and "behind": the 95 % interval of the difference of the IQMs leaves out 0; otherwise "level".
    """
    lines = ["| | runs | at the end | mean of the second half |", "|---|---|---|---|"]
    last: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for algorithm, seeds in nested.items():
        steps, returns = complete(nested, algorithm)
        last[algorithm] = returns[:, -1], returns[:, len(steps) // 2 :].mean(1)
        cells = []
        for values in last[algorithm]:
            low, high = bootstrap_interval([values])
            cells.append(f"{shown(float(iqm(values)))} [{shown(float(low))}, {shown(float(high))}]")
        lines.append(f"| {algorithm}, to step {steps[-1]:,} | {len(seeds)} | " + " | ".join(cells) + " |")
    his, hasac = LABELS["his"], LABELS["none"]
    if his in last and hasac in last and min(len(nested[his]), len(nested[hasac])) > 1:
        cells = []
        for one, other in zip(last[his], last[hasac]):
            middle, low, high = difference_interval(one, other)
            verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
            cells.append(f"**{verdict}**: {shown(middle)} [{shown(low)}, {shown(high)}]")
        lines.append("| HIS - HASAC | | " + " | ".join(cells) + " |")
    if {"oracle", "random"} <= bounds.keys():
        span = bounds["oracle"] - bounds["random"]
        for algorithm, (end, half) in last.items():
            closed = [f"{100 * (float(iqm(v)) - bounds['random']) / span:.0f} %" for v in (end, half)]
            lines.append(f"| {algorithm}: share of random to oracle | | {closed[0]} | {closed[1]} |")
    return "\n".join(lines)


def plot(scenarios: dict[str, Curves], bounds: dict[str, dict[str, float]], path: Path) -> None:
    """A panel a scenario: thin lines for single runs, IQM and its interval as far as all of them got, bounds dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (7.0, 4.2) if len(scenarios) == 1 else (4.6 * len(scenarios), 3.9)
    figure, panels = plt.subplots(1, len(scenarios), figsize=size, layout="constrained", squeeze=False)
    for axes, (scenario, nested) in zip(panels[0], scenarios.items()):
        others = [algorithm for algorithm in nested if algorithm not in COLORS]
        for algorithm, seeds in nested.items():
            color = COLORS.get(algorithm) or MORE_COLORS[others.index(algorithm) % len(MORE_COLORS)]
            for points in seeds.values():
                axes.plot(list(points), list(points.values()), color=color, linewidth=0.7, alpha=0.45)
            steps, returns = complete(nested, algorithm)
            label = f"{algorithm.replace('`', '')}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            axes.plot(steps, iqm(returns), color=color, linewidth=2.2, label=label)
            if len(seeds) > 1:
                low, high = bootstrap_interval([returns], draws=2000)
                axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for policy, value in bounds.get(scenario, {}).items():
            if policy not in ("random", "oracle"):
                continue
            axes.axhline(value, color="black", linewidth=1, linestyle="--" if policy == "oracle" else ":", label=policy)
        axes.set(title=scenario, xlabel="environment steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0][0].set_ylabel("return of deterministic evaluation episodes")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", nargs="+", type=int, default=[100_000, 200_000, 300_000], help="columns of a table")
    parser.add_argument("--add", action="store_true", help="keep the other runs that --out holds")
    parser.add_argument("--bounds", type=Path, help="JSON file with the returns of hand-written policies")
    args = parser.parse_args()

    bounds: dict[str, dict[str, float]] = {}
    if args.bounds:
        tasks = json.loads(args.bounds.read_text())["tasks"]
        bounds = {task: {name: policy["mean"] for name, policy in each.items()} for task, each in tasks.items()}
    rows: dict[str, list[dict[Any, Any]]] = defaultdict(list)
    runs = []
    for folder in args.runs:
        try:
            config, evaluations = read_run(folder)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            print(f"curves: error: {folder} is not a run with evaluations: no {name}", file=sys.stderr)
            return 2
        settings = config["args"]
        if not (variant := variant_of(config)):
            print(f"curves: error: {folder}: neither its name nor its flags say which algorithm it is", file=sys.stderr)
            return 2
        about = {"algorithm": label_of(variant), "rules": settings.get("rules", ""), "seed": settings["seed"]}
        for row in evaluations:
            rows[settings["scenario"]].append(about | row | {"return": round(float(row["return"]), 4)})
        finished = folder / "finished.json"
        state = json.loads(finished.read_text()) if finished.exists() else None
        runs.append({**about, "finished": state, **config})
    if args.add:
        kept, kept_rows = earlier(args.out, {identity(run) for run in runs})
        runs = kept + runs
        for scenario, episodes in kept_rows.items():
            rows[scenario] = episodes + rows[scenario]
    args.out.mkdir(parents=True, exist_ok=True)
    for scenario, episodes in rows.items():
        with open(args.out / f"{scenario}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(episodes)
    (args.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    scenarios = {scenario: curves(rows[scenario]) for scenario in sorted(rows)}
    plot(scenarios, bounds, args.out / "curves.png")
    for scenario, nested in scenarios.items():
        print(f"\n{scenario}\n\n{table(nested, args.steps)}\n\n{comparison(nested, bounds.get(scenario, {}))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
