"""What lies in results/: finished runs by task and variant, what kinds of run cost, what an update takes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cost
from experiments.scores import Curve, changes, from_results
from experiments.suites import SUITES, Run, Suite, expand, paper_values, settings_of

FIGURES = tuple(
    "fig2 fig3 fig4 fig5 fig6 fig7 fig8 mpe hands baselines ablations readings-screen ideas-screen readings ant".split()
)

MOST_SEEDS = 10  # of a suite, so that the seeds of two suites stay apart


@dataclass(frozen=True)
class Evidence:
    """Everything in results/ that decides."""

    curves: Mapping[tuple[str, str], Sequence[Curve]]
    runs: Sequence[dict[str, Any]]
    rates: Mapping[str, cost.Rate]
    calibrated: str
    updates: Mapping[str, Any]
    untrained: Mapping[str, float]
    lost: Mapping[tuple[str, str], Sequence[Curve]] = dataclasses.field(default_factory=dict)  # stopped, not finite

    def of(self, task: str, variant: str) -> Sequence[Curve]:
        """Finished runs of a variant; of HIS where the variant sets what the paper has for the task anyway."""
        return self.curves.get((task, self._name(task, variant)), ())

    def stopped(self, task: str, variant: str) -> Sequence[Curve]:
        """The same of runs that ended themselves because something was not finite."""
        return self.lost.get((task, self._name(task, variant)), ())

    def _name(self, task: str, variant: str) -> str:
        """Under which name the runs of a variant are: one for both kinds, or those of two variants would mix."""
        if self.curves.get((task, variant)) or self.lost.get((task, variant)):
            return variant
        own, paper = settings_of(variant, task), paper_values(task)
        same = bool(own) and all(paper.get(name) == value for name, value in own.items())
        return "his" if same else variant

    def within(self, suite: str) -> "Evidence":
        """The same with nothing but the runs of a suite, of its settings and length, filed under its names for them.

        A suite with several seeds may have been run with more of them, which count on from its last (`--seeds`).
        """
        names: dict[tuple[str, str, int, int], str] = {}
        for group in SUITES[suite].groups:
            last = group.seeds[0] + MOST_SEEDS - 1 if len(group.seeds) > 1 else group.seeds[-1]
            seeds = [*group.seeds, *range(group.seeds[-1] + 1, last + 1)]
            for run in expand(Suite("", [dataclasses.replace(group, seeds=seeds)])):
                names[run.scenario, name_in_results(run), run.seed, run.total_steps] = run.variant

        def filed(given: Mapping[tuple[str, str], Sequence[Curve]]) -> dict[tuple[str, str], list[Curve]]:
            curves: dict[tuple[str, str], list[Curve]] = {}
            for (task, variant), found in given.items():
                for curve in found:
                    if name := names.get((task, variant, curve.seed, curve.total)):
                        curves.setdefault((task, name), []).append(curve)
            return curves

        return dataclasses.replace(self, curves=filed(self.curves), lost=filed(self.lost))


class ReportError(Exception):
    """Results that no report can be made of: one line for the user."""


def gather(results: Path) -> Evidence:
    """Read results/; ReportError where two folders hold the same run."""
    curves: dict[tuple[str, str], list[Curve]] = {}
    lost: dict[tuple[str, str], list[Curve]] = {}
    runs: list[dict[str, Any]] = []
    places: dict[tuple[str, str, int], Path] = {}
    step_s: dict[tuple[str, str], list[float]] = {}
    for path in sorted(results.glob("*/runs.json")):
        try:
            collected, found = json.loads(path.read_text()), from_results(path.parent)
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{path} or a file beside it is damaged ({type(error).__name__}: {error})") from error
        if len(found) < len(collected):
            raise ReportError(f"{path} names runs without an evaluation: collect them anew")
        runs += collected
        for run, curve in zip(collected, found, strict=True):
            key = (curve.task, curve.variant, curve.seed)
            if key in places:
                raise ReportError(f"{places[key]} and {path} both hold {' '.join(map(str, key))}: it would count twice")
            places[key] = path
            if run.get("nonfinite"):
                lost.setdefault((curve.task, curve.variant), []).append(curve)
            if curve.finished:
                curves.setdefault((curve.task, curve.variant), []).append(curve)
                seconds = run["finished"]["wall_s"] / run["finished"]["global_step"]
                step_s.setdefault((curve.task, curve.variant), []).append(seconds)
    entries = json.loads((results / "calibration.json").read_text())
    rates = rates_of(step_s) | {name: cost.Rate(**entry["rate"]) for name, entry in entries.items()}
    cpus, commits = ({entry[key] for entry in entries.values()} for key in ("cpu", "commit"))
    where = f"{', '.join(sorted(cpus))}, commit {', '.join(sorted(c[:7] for c in commits))}"
    updates = json.loads((results / "variant_speed.json").read_text())["scenarios"]
    returns = json.loads((results / "untrained.json").read_text())["returns"]
    untrained = {task: float(np.mean(values)) for task, values in returns.items()}
    return Evidence(curves, runs, rates, where, updates, untrained, lost)


# ---- kinds of run ----------------------------------------------------------------------------------------------------
def name_in_results(run: Run) -> str:
    """The variant as `from_results` names it: with the values that its suite has in place of the paper's."""
    args = json.loads(json.dumps({"scenario": run.scenario, "credit": "his", **run.settings}))
    ours = run.script.startswith(("his_", "experiments/"))
    return " ".join([run.variant, *(changes({"args": args}, run.variant) if ours else [])])


def kind_of(run: Run) -> str:
    """The kind of a run for its cost, without what it sets to the paper's value anyway (M1 where the paper has 1)."""
    paper = paper_values(run.scenario)
    own = {name: value for name, value in run.settings.items() if name not in paper or paper[name] != value}
    return cost.kind(dataclasses.replace(run, settings=own))


def rates_of(step_s: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, cost.Rate]:
    """By kind, from the wall seconds per step, evaluations included, of finished runs of (task, variant)."""
    found: dict[str, set[tuple[str, str]]] = {}
    for run in (run for name in FIGURES for run in expand(SUITES[name])):
        if (cell := (run.scenario, name_in_results(run))) in step_s:
            found.setdefault(kind_of(run), set()).add(cell)
    medians = {name: np.median([s for cell in cells for s in step_s[cell]]) for name, cells in found.items()}
    return {name: cost.Rate(float(seconds), 0.0, 0.0, 1.0, "finished runs") for name, seconds in medians.items()}
