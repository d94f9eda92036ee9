"""credit.png, the credit of an episode, and training.png, what training logged about credit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.credit.episode import Credit, Recording

AGENT_COLORS = [colormaps["tab10"](i) for i in range(10)]
PANELS = (
    ("credit/shapley_", "mean Shapley Q-value of the batch, return"),
    ("credit/boxcox_lambda_", "Box-Cox lambda"),
    ("credit/floor_hits_", "share of the batch below the floor"),
    ("credit/efficiency_gap", "efficiency gap, return"),
    ("diag/grad_norm_main_", "gradient norm, main term"),
    ("diag/grad_norm_history_", "gradient norm, historical term"),
)
LOGARITHMIC = ("credit/efficiency_gap", "diag/grad_norm_main_", "diag/grad_norm_history_")


def blocks(step: np.ndarray, most: int = 250) -> tuple[np.ndarray, np.ndarray, int]:
    """First index and size of blocks of equally many steps of one episode, at most about `most`, and that number.

    step (T,): counted from 0 in each episode. The last block of an episode may be smaller.
    """
    size = -(-len(step) // most)
    first = np.flatnonzero(step % size == 0)
    return first, np.diff(first, append=len(step)), size


def plot_credit(recording: Recording, credit: Credit, path: Path) -> None:
    """Write credit.png: credit stacked over time (negative below 0), its sum, the return so far, the gap."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes, gap = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = np.arange(credit.phi.shape[1])
    starts = np.flatnonzero(recording.step == 0)
    first_step, sizes, most = blocks(recording.step)
    time = first_step + (sizes - 1) / 2
    up, down = np.zeros(len(time)), np.zeros(len(time))
    for i, phi in enumerate(np.add.reduceat(credit.phi, first_step, axis=1) / sizes):
        color, label = AGENT_COLORS[i % len(AGENT_COLORS)], f"agent {i}"
        for part, base in ((phi.clip(min=0), up), (phi.clip(max=0), down)):
            axes.fill_between(time, base, base + part, step="mid", color=color, linewidth=0, label=label)
            base += part
            label = None
    total = np.add.reduceat(credit.everybody - credit.nobody, first_step) / sizes
    axes.step(time, total, where="mid", color="black", linewidth=1.1, label="v(N) - v(empty)")
    axes.axhline(0, color="black", linewidth=0.5)
    mean = f", means of {most} steps" if most > 1 else ""
    axes.set(ylabel="credit, return", title=f"credit ({credit.how}{mean}): stacked, it must sum to v(N) - v(empty)")
    earned = axes.twinx()
    line = recording.return_so_far
    for first, last in zip(starts, [*starts[1:], len(steps)]):
        earned.plot(steps[first:last], line[first:last], color="grey", linestyle="--", linewidth=1.2)
    earned.set_ylabel("return so far (dashed)")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=6)
    gap.step(steps, credit.gap, where="mid", color="tab:red", linewidth=0.8)
    gap.set(xlabel="step", ylabel="gap")
    gap.set_title(f"sum of credits - (v(N) - v(empty)); largest: {np.abs(credit.gap).max():.2g}", fontsize=9)
    for panel in (axes, gap):
        for first in starts[1:]:
            panel.axvline(first - 0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlim(-0.5, len(steps) - 0.5)
    figure.savefig(path, dpi=100)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; none where there is no such file."""
    path, lines = folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:  # torn by a kill
            continue
    return lines


def plot_training(metrics: list[dict[str, Any]], path: Path) -> list[str]:
    """Write training.png, a panel a quantity and a line an agent; returns the keys that the run did not log."""
    figure, absent = Figure(figsize=(12, 6.5), layout="constrained"), []
    for axes, (prefix, title) in zip(figure.subplots(2, 3).ravel(), PANELS):
        axes.set_title(title, fontsize=10)
        keys = sorted({key for line in metrics for key in line if key.startswith(prefix)}, key=natural)
        if not keys:
            absent.append(prefix.rstrip("_"))
            axes.text(0.5, 0.5, "not logged by this run", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
            continue
        for key in keys:
            points = [(line["global_step"], line[key]) for line in metrics if line.get(key) is not None]
            label = f"agent {key.removeprefix(prefix)}" if prefix.endswith("_") else None
            axes.plot(*zip(*points), linewidth=0.9, label=label) if points else None
        if prefix in LOGARITHMIC and any(line.get(key) for line in metrics for key in keys):
            axes.set_yscale("log", nonpositive="mask")  # a gap can be 0
        axes.set_xlabel("environment steps")
        axes.grid(alpha=0.3)
        if prefix.endswith("_"):
            axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=100)
    return absent


def natural(key: str) -> tuple[str, int]:
    """Sorts agent 10 behind agent 9."""
    name, _, number = key.rpartition("_")
    return (name, int(number)) if number.isdigit() else (key, 0)
