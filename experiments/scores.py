"""From the evaluations of runs to numbers that can be compared: curves, end, second half, steps to a level.

`experiments.curves` collects runs, `experiments.plot` and `experiments.report` show what this file computes. A curve is
the mean return of the deterministic episodes of each evaluation. Shape letters: R runs of one task and variant, T
evaluation steps.
"""

import csv
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.readings import Readings
from common.stats import bootstrap_interval, iqm
from experiments.suites import TASKS, VARIANTS, Settings, paper_values, schedule, script_of, settings_of

LABELS = {"his": "HIS", "none": "HASAC (`--credit none`)", "share": "HIS-SHARE", "local": "HIS-LOCAL"}
LABELS |= {"hasac": "HASAC (HARL's values)"}
LABELS |= {name: name.upper() for name in ("happo", "hatrpo", "mappo", "facmac", "sqddpg", "ppo")}
# Defaults of what the paper has not: see `changes`.
OURS = {"obs_mode": "full", "base_force_scale": 0.25, "isaac_done_semantics": False, "idea_strength": 1.0}
_BY_FLAGS = ("none", "share", "local", "no-bc", "action")  # variants that a run without a name is known by


@dataclass(frozen=True)
class Curve:
    """One run: `returns` at `steps`, both (T,); `total` steps that it was to make; `finished`: that it made them."""

    task: str
    variant: str
    seed: int
    steps: np.ndarray
    returns: np.ndarray
    total: int
    finished: bool


# ---- which variant a run is ------------------------------------------------------------------------------------------
def variant_of(config: Mapping[str, Any]) -> str:
    """The suites' name for a run, from its config.json; with -isaacgym, which no suite has, for one of that back end.

    The run's name, where that is a variant whose settings the run has (the runner of suites names runs so); otherwise
    what its script and flags say; "" where they say nothing.
    """
    variant = _port_variant(config)
    return f"{variant}-isaacgym" if variant and config["args"].get("sim") == "isaacgym" else variant


def _port_variant(config: Mapping[str, Any]) -> str:
    args = config["args"]
    name, task = args.get("run_name", ""), args["scenario"]
    if name in VARIANTS and _has(args, name, task):
        return name
    if "idea" in args:
        return f"idea-{args['idea']}"
    if args.get("preset") == "his":  # a HASAC script with the values of HIS is the control, bit for bit
        return "none"
    for candidate in _BY_FLAGS:
        if "credit" in args and _has(args, candidate, task):
            return candidate
    if "credit" in args:
        return args["credit"]
    script = (shlex.split(config.get("command", "")) + ["", ""])[1]
    known = (each for each in VARIANTS if task in TASKS and script.endswith(script_of(each, task)))
    return next(known, "")


def _has(args: Mapping[str, Any], variant: str, task: str) -> bool:
    """Whether these arguments of a script hold what a variant sets."""
    return task in TASKS and all(args.get(name) == value for name, value in settings_of(variant, task).items())


def changes(config: Mapping[str, Any], variant: str, settings: Settings | None = None) -> list[str]:
    """Where a run of a HIS script, or of its HASAC twin with HIS's values, has other values than the paper's.

    As `name=value`, without what its variant sets. Fields that the paper leaves open are held against our defaults.
    `settings`: what a suite gives to all its runs of this kind, in place of the paper's values. The values of a
    baseline are its script's own; of a run that was given a name of its own, the name has to say what is different.
    """
    args, task = config["args"], config["args"]["scenario"]
    if task not in TASKS:
        return []
    if "credit" not in args and args.get("preset") != "his":
        name = args.get("run_name", "")
        return [f"run_name={name}"] if name and name not in VARIANTS else []
    expected = {**asdict(Readings()), **OURS, **paper_values(task)}
    if settings is not None:  # of a suite, which shortens the warm-up of short runs
        fitted = schedule(args.get("total_timesteps", 10**7))
        expected |= {name: value for name, value in fitted.items() if name in expected} | dict(settings)
    variant = variant.removesuffix("-isaacgym")
    expected |= settings_of(variant, task) if variant in VARIANTS else {}
    different = {name: args[name] for name, value in expected.items() if name in args and _plain(args[name]) != value}
    return [f"{name}={value}" for name, value in different.items()]


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def label_of(variant: str) -> str:
    """What a variant is called in tables and legends."""
    return LABELS.get(variant, variant)


# ---- reading ---------------------------------------------------------------------------------------------------------
def from_folder(folder: Path, config: Mapping[str, Any]) -> Curve | None:
    """The curve of a run folder; None where there is no evaluation yet."""
    try:
        with open(folder / "eval.csv", newline="") as file:
            steps, returns = _means(csv.DictReader(file))
    except FileNotFoundError:
        return None
    if not len(steps):
        return None
    args, total = config["args"], config["args"]["total_timesteps"]
    try:
        finished = json.loads((folder / "finished.json").read_text())["global_step"] >= total
    except (OSError, ValueError, KeyError):
        finished = False
    return Curve(args["scenario"], variant_of(config), args["seed"], steps, returns, total, finished)


def from_results(folder: Path, settings: Mapping[tuple[str, str], Settings] | None = None) -> list[Curve]:
    """The curves that `experiments.curves` has collected in a folder of results/; FileNotFoundError without runs.json.

    Runs of the particle environments under HARL's rules get the variant `<variant>-harl-rules`, runs with other values
    than the paper's have them in the variant's name. `settings`: of (task, variant), see `changes`.
    """
    found, rows = [], {}
    for run in json.loads((folder / "runs.json").read_text()):
        task = run["args"]["scenario"]
        if task not in rows:
            rows[task] = defaultdict(list)
            with open(folder / f"{task}.csv", newline="") as file:
                for row in csv.DictReader(file):
                    point = int(row["global_step"]), mean_of_cell(row["returns"])
                    rows[task][row["algorithm"], row["rules"], int(row["seed"])].append(point)
        if not (points := sorted(rows[task][run["algorithm"], run["rules"], run["seed"]])):
            continue  # collected before its first evaluation
        steps, returns = np.array([step for step, _ in points], dtype=int), np.array([value for _, value in points])
        variant, total = variant_of(run), run["args"]["total_timesteps"]
        different = changes(run, variant, (settings or {}).get((task, variant)))
        if run["rules"] == "harl" and not variant.endswith("-harl-rules"):
            variant += "-harl-rules"
        variant = " ".join([variant, *different])
        finished = run.get("finished") is not None and run["finished"]["global_step"] >= total
        found.append(Curve(task, variant, run["seed"], steps, returns, total, finished))
    return found


def mean_of_cell(cell: str) -> float:
    """The mean of numbers with blanks between them: the returns of an evaluation in a file of results/."""
    return float(np.mean([float(value) for value in cell.split()]))


def whole(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows of an eval.csv, without one that a kill has torn: its last column is missing."""
    return [row for row in rows if row["length"]]


def _means(rows: Iterable[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and mean returns of the evaluations of one run, both (T,), by step."""
    returns: dict[int, list[float]] = defaultdict(list)
    for row in whole(rows):
        returns[int(row["global_step"])].append(float(row["return"]))
    steps = sorted(returns)
    return np.array(steps, dtype=int), np.array([np.mean(returns[step]) for step in steps])


# ---- runs of one task and variant ------------------------------------------------------------------------------------
Cells = dict[str, dict[str, list[Curve]]]  # task -> variant -> runs


def cells(curves: Sequence[Curve], order: Sequence[str] = ()) -> Cells:
    """Curves by task and variant, variants in the given order, then as they come."""
    nested: Cells = {}
    for task in dict.fromkeys(curve.task for curve in curves):
        mine = [curve for curve in curves if curve.task == task]
        names = [*(name for name in order if any(c.variant == name for c in mine)), *(c.variant for c in mine)]
        nested[task] = {name: [c for c in mine if c.variant == name] for name in dict.fromkeys(names)}
    return nested


def matrix(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation steps that all these runs have, (T,), and their returns, (R, T)."""
    steps = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    return np.array(steps, dtype=int), np.array([c.returns[np.isin(c.steps, steps)] for c in curves])


def horizon(variants: Mapping[str, Sequence[Curve]]) -> int:
    """The last step at which all runs of a task can be compared: the shortest run's last evaluation."""
    return min(int(curve.steps[-1]) for curves in variants.values() for curve in curves)


def incomparable(variants: Mapping[str, Sequence[Curve]]) -> str | None:
    """Why runs of a task cannot be compared where the shortest of them ends, or None: in words, of one run."""
    last = horizon(variants)
    for name, curves in variants.items():
        for curve in curves:
            if not ((curve.steps <= last) & (2 * curve.steps > last)).any():
                return (
                    f"{name}, seed {curve.seed}: no evaluation from {last // 2:,} to {last:,}, where another run ends"
                )
        if not len(matrix(curves)[0]):
            return f"{name}: its runs have no evaluation step in common"
    return None


def final(curve: Curve, last: int) -> float:
    """Return of the newest evaluation up to step `last`."""
    return float(curve.returns[curve.steps <= last][-1])


def last_half(curve: Curve, last: int) -> float:
    """Mean return over the evaluations in the second half of `last` steps (Appendix E: the last 50 % of training)."""
    return float(curve.returns[(curve.steps <= last) & (2 * curve.steps > last)].mean())


def steps_to(curve: Curve, level: float, last: int) -> float:
    """The first evaluation step up to `last` with a mean return of at least `level`; inf where there is none."""
    reached = curve.steps[(curve.returns >= level) & (curve.steps <= last)]
    return float(reached[0]) if len(reached) else np.inf


def on_one_grid(curves: Sequence[Curve], last: int) -> list[Curve]:
    """The same runs at the steps of the one with the fewest evaluations up to `last`, there with their newest one.

    For `steps_to`: of two runs that learn alike the one that is evaluated more often would cross a level earlier.
    """
    grid = min((curve.steps[curve.steps <= last] for curve in curves), key=len)
    thinned = []
    for curve in curves:
        there = grid[grid >= curve.steps[0]]
        returns = curve.returns[np.searchsorted(curve.steps, there, side="right") - 1]
        thinned.append(replace(curve, steps=there, returns=returns))
    return thinned


SCORES = {"final": final, "last half": last_half}


def median_steps(values: np.ndarray) -> np.ndarray:
    """Lower median over the first axis, (R, ...) -> (...): an element of the sample, since inf takes no mean."""
    return np.sort(values, axis=0)[(len(values) - 1) // 2]


def steps_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median of steps to a level, (R,), inf where it was not reached, and its 95 % percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = median_steps(values[rng.integers(len(values), size=(len(values), 4000))])
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    return float(median_steps(values)), float(low), float(high)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """IQM over runs, (R,), and its 95 % bootstrap interval."""
    low, high = bootstrap_interval([values])
    return float(iqm(values)), float(low), float(high)


def span_of(values: np.ndarray) -> tuple[float, float]:
    """The worst of the scores of all runs of one task and the way from there to the best; 1 where they are equal.

    (score - worst) / way makes tasks comparable, 0 the worst run and 1 the best; it depends on which runs are there.
    """
    return float(values.min()), float(np.ptp(values)) or 1.0


def shown(value: float) -> str:
    """Three significant digits, four for thousands."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
