"""Collect finished (or running) runs into `results/`: their raw evaluation curves, their commands, a plot, a table.

    python -m experiments.curves runs/his_mamujoco/HalfCheetah-6x1/* --out results/HalfCheetah-6x1

Writes `eval.csv` (every evaluation episode of every run), `runs.json` (command, commit, host and packages of each),
`curves.png`, and prints a Markdown table: the mean return over seeds at a few steps, one seed's values in brackets.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

LABELS = {"his": "HIS", "none": "HASAC (`--credit none`)", "share": "HIS-SHARE", "local": "HIS-LOCAL"}
COLUMNS = ("algorithm", "seed", "global_step", "episode", "return", "length")


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """config.json and the rows of eval.csv of one run folder; FileNotFoundError where one is missing."""
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "eval.csv", newline="") as file:
        return config, list(csv.DictReader(file))


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[int, float]]]:
    """algorithm -> seed -> global_step -> mean return over the episodes of that evaluation."""
    returns: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for row in rows:
        returns[row["algorithm"], int(row["seed"]), int(row["global_step"])].append(float(row["return"]))
    nested: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    order = list(LABELS.values())
    for (algorithm, seed, step), values in sorted(returns.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        nested[algorithm][seed][step] = float(np.mean(values))
    return nested


def table(nested: dict[str, dict[int, dict[int, float]]], steps: list[int]) -> str:
    """Markdown: one row an algorithm, one column a step; a seed that has not got there is left out and counted."""
    lines = ["| | " + " | ".join(f"{step:,} steps" for step in steps) + " |", "|---|" + "---|" * len(steps)]
    for algorithm, seeds in nested.items():
        cells = []
        for step in steps:
            values = [points[step] for points in seeds.values() if step in points]
            single = ", ".join(f"{value:.0f}" for value in values)
            cells.append(f"**{np.mean(values):.0f}** ({single})" if values else "not run")
        lines.append(f"| {algorithm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(nested: dict[str, dict[int, dict[int, float]]], title: str, path: Path) -> None:
    """Thin lines for single seeds; a thick one for their mean as far as all of them got."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for color, (algorithm, seeds) in zip(("tab:blue", "tab:orange", "tab:green", "tab:red"), nested.items()):
        for points in seeds.values():
            axes.plot(list(points), list(points.values()), color=color, linewidth=0.8, alpha=0.5)
        common = sorted(set.intersection(*(set(points) for points in seeds.values())))
        mean = [np.mean([points[step] for points in seeds.values()]) for step in common]
        label = f"{algorithm.replace('`', '')}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        axes.plot(common, mean, color=color, linewidth=2.2, label=label)
    axes.set(title=title, xlabel="environment steps", ylabel="return of deterministic evaluation episodes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[100_000, 200_000, 300_000], help="columns of the table"
    )
    args = parser.parse_args()

    rows, runs = [], []
    for folder in args.runs:
        try:
            config, evaluations = read_run(folder)
        except FileNotFoundError as error:
            print(
                f"curves: error: {folder} is not a run with evaluations: no {Path(error.filename).name}",
                file=sys.stderr,
            )
            return 2
        settings = config["args"]
        label = LABELS[settings["credit"]]
        rows += [{"algorithm": label, "seed": settings["seed"], **row} for row in evaluations]
        finished = folder / "finished.json"
        state = json.loads(finished.read_text()) if finished.exists() else None
        runs.append({"algorithm": label, "seed": settings["seed"], "finished": state, **config})
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "eval.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    nested = curves(rows)
    plot(nested, runs[0]["args"]["scenario"], args.out / "curves.png")
    print(table(nested, args.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
