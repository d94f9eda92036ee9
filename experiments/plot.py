"""Plots and statistics of a suite: PNG, SVG and the CSV behind each.

    python -m experiments.plot fig5                                  reads runs/suites/fig5, writes runs/plots/fig5
    python -m experiments.plot fig5 --results results/mamujoco       and what is collected there
    python -m experiments.plot fig7 --runs-dir DIR --out DIR --base beta10

curves        IQM over seeds, 95 % bootstrap interval as a band, single runs thin; a last panel for all tasks together
scores        final return and mean return of the last 50 % of the steps: IQM and interval of each task and variant
efficiency    environment steps until a run's evaluation reaches the final level of HASAC (`--level-of`)
improvement   probability that a run of `--base` scores higher than one of another variant
profile       performance profile over tasks: share of runs above each normalised score

Only finished runs count, at the last step that all of a task have; unfinished ones are thin dotted lines. What a suite
lacks is printed and in missing.csv. Exit status: 0 written, 2 refused. See docs/experiments.md.
"""

import argparse
import csv
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.stats import bootstrap_interval, improvement_interval, iqm, performance_profile
from experiments import folders
from experiments.command_line import Parser
from experiments.scores import (
    SCORES,
    Cells,
    Curve,
    cells,
    changes,
    final,
    from_folder,
    from_results,
    horizon,
    incomparable,
    interval,
    label_of,
    matrix,
    on_one_grid,
    span_of,
    steps_interval,
    steps_to,
)
from experiments.suites import SMOKE, SMOKE_OFF_POLICY, SUITES, Settings, Suite, task_label

Rows = list[dict[str, Any]]
ALL = "all tasks"
# Variants whose returns mean something else than those of the others on the task: they get panels of their own.
APART = {"his-harl-rules": "HARL rules", "his-long": "long", "none-long": "long"}
DRAWS = 2000  # of the intervals that are drawn at many points
THRESHOLDS = np.linspace(0, 1, 101)


# ---- command line ----------------------------------------------------------------------------------------------------
def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; SuiteError for a value that cannot be."""
    parser = Parser("experiments.plot", __doc__, folders.SuiteError)
    parser.add_argument("suite", metavar="SUITE", help="a suite of experiments.run")
    parser.add_argument("--runs-dir", type=Path, help="parent of the run folders (default: runs/suites/SUITE)")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="folders of experiments.curves to add")
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/plots/SUITE)")
    parser.add_argument("--tasks", nargs="+", help="only these scenarios")
    parser.add_argument("--variants", nargs="+", help="only these variants")
    parser.add_argument("--base", help="variant that others are compared with (default: his, beta10 or M1)")
    parser.add_argument("--level-of", help="variant whose final level is to be reached (default: hasac, else none)")
    args = parser.parse_args(argv)
    parser.needs("matplotlib")
    if args.suite not in SUITES:
        raise folders.SuiteError(f"{args.suite}: no such suite; there are {', '.join(SUITES)}")
    groups = SUITES[args.suite].groups
    tasks, variants = ({name for g in groups for name in getattr(g, kind)} for kind in ("tasks", "variants"))
    checks = [("--tasks", args.tasks, tasks), ("--variants", args.variants, variants)]
    checks += [
        ("--base", args.base and [args.base], variants),
        ("--level-of", args.level_of and [args.level_of], variants),
    ]
    for flag, given, known in checks:
        if unknown := sorted(set(given or ()) - known):
            raise folders.SuiteError(f"{flag} {unknown[0]}: {args.suite} has {', '.join(sorted(known))}")
    args.base, args.level_of = (name and shown_as(name) for name in (args.base, args.level_of))
    args.runs_dir = args.runs_dir or Path("runs/suites") / args.suite
    args.out = args.out or Path("runs/plots") / args.suite
    return args


# ---- what is there, what is missing ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wanted:
    """A cell of the suite: so many seeds of a variant on a task, and what its group sets for all its runs."""

    task: str
    variant: str
    seeds: Sequence[int]
    settings: Settings


def wanted(suite: Suite, tasks: Sequence[str] | None, variants: Sequence[str] | None) -> list[Wanted]:
    """Every task and variant of a suite."""
    smoke = {**SMOKE, **SMOKE_OFF_POLICY} if suite.smoke else {}  # only HIS and HASAC are held against the settings
    return [
        Wanted(task, variant, group.seeds, {**group.settings, **smoke})
        for group in suite.groups
        for task in group.tasks
        for variant in group.variants
        if (tasks is None or task in tasks) and (variants is None or variant in variants)
    ]


def panel_of(task: str, variant: str) -> str:
    """What stands above a panel: the task, or what is compared apart from it."""
    return f"{task_label(task)} ({APART[variant]})" if variant in APART else task_label(task)


def shown_as(variant: str) -> str:
    """The name of a variant in its panel: where that is of long runs, those of `his-long` are HIS."""
    return variant.removesuffix("-long")


def load(
    cases: Sequence[Wanted], runs_dir: Path, results: Iterable[Path], say: Callable[[str], None] = print
) -> list[Curve]:
    """The curves of these cells; where a run is both collected and a folder, the folder counts.

    Of what is collected, only the suite's seeds: other seeds may have served to choose what the suite compares. HIS
    runs with other values than the suite's are said, and refused beside runs of the task that have them not.
    """
    known = {(case.task, case.variant) for case in cases}
    seeds = {(case.task, case.variant, seed) for case in cases for seed in case.seeds}
    settings = {(case.task, case.variant): case.settings for case in cases}
    found: dict[tuple[str, str, int], Curve] = {}
    values: dict[str, dict[tuple[str, ...], str]] = {}  # task -> what runs have in place of the suite's values -> one
    for place in results:
        try:
            collected = from_results(place, settings)
        except FileNotFoundError as error:
            raise folders.SuiteError(f"--results {place}: no {Path(error.filename).name} there") from error
        except (ValueError, KeyError, TypeError) as error:
            raise folders.SuiteError(f"--results {place}: its files are damaged ({error})") from error
        keyed = {(curve.task, curve.variant, curve.seed): curve for curve in collected}
        found |= {key: curve for key, curve in keyed.items() if key in seeds}
        for task, name, seed in keyed.keys() & seeds:
            values.setdefault(task, {}).setdefault((), f"{place}, {name}, seed {seed}")
    for (task, seed, name), folder in (folders.find(runs_dir) if runs_dir.exists() else {}).items():
        if (task, name) in known and (curve := from_folder(folder.path, folder.config)):
            if curve.variant.endswith("-isaacgym"):
                raise folders.SuiteError(f"{folder.path}: a run in Isaac Gym; experiments.curves plots these")
            if curve.variant != name:
                raise folders.SuiteError(f"{folder.path}: its settings are not those of the variant {name}")
            found[task, name, seed] = curve
            if "credit" in folder.config["args"]:
                different = tuple(changes(folder.config, name, settings[task, name]))
                values.setdefault(task, {}).setdefault(different, str(folder.path))
    for task, kinds in values.items():
        if len(kinds) == 1 and (odd := next(iter(kinds))):
            say(f"{task}: the runs have {', '.join(odd)} in place of the suite's values")
        if len(kinds) > 1:
            odd, where = next((odd, where) for odd, where in kinds.items() if odd)
            other = next(where for odd_other, where in kinds.items() if odd_other != odd)
            raise folders.SuiteError(f"{where} has {', '.join(odd)}, {other} has not: no fair comparison on {task}")
    curves = [
        dataclasses.replace(curve, task=panel_of(curve.task, curve.variant), variant=shown_as(curve.variant))
        for key, curve in found.items()
        if key[:2] in known
    ]
    if not curves:
        raise folders.SuiteError(
            f"no run of this suite with evaluations in {', '.join(map(str, [runs_dir, *results]))}"
        )
    return curves


def missing(cases: Sequence[Wanted], curves: Sequence[Curve]) -> Rows:
    """One row a cell that lacks finished runs."""
    rows: Rows = []
    for case in cases:
        panel = panel_of(case.task, case.variant)
        mine = [c for c in curves if (c.task, c.variant) == (panel, shown_as(case.variant))]
        done = sum(c.finished for c in mine)
        begun = sorted(f"{c.seed} (step {c.steps[-1]:,} of {c.total:,})" for c in mine if not c.finished)
        absent = sorted(set(case.seeds) - {c.seed for c in mine})
        if absent or begun:
            rows.append(
                {"task": panel, "variant": shown_as(case.variant), "seeds": len(case.seeds), "finished": done}
                | {"unfinished": "; ".join(begun), "no_evaluation": " ".join(map(str, absent))}
            )
    return rows


def missing_lines(rows: Rows) -> list[str]:
    """What to say about them: tasks with the same gap in one line."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        text = f"{row['variant']}: {row['finished']} of {row['seeds']} runs finished"
        text += f"; unfinished: seed {row['unfinished']}" if row["unfinished"] else ""
        text += f"; nothing of seed {row['no_evaluation']}" if row["no_evaluation"] and row["finished"] else ""
        alike.setdefault(text, []).append(row["task"])
    return [f"missing: {text} ({', '.join(tasks)})" for text, tasks in alike.items()]


def apart(panel: str) -> bool:
    """Whether a panel is of variants that are compared apart from the others on its task."""
    return panel.endswith(tuple(f"({words})" for words in APART.values()))


# ---- tables ----------------------------------------------------------------------------------------------------------
def scores_of(variants: Mapping[str, Sequence[Curve]], score: Callable[[Curve, int], float]) -> dict[str, np.ndarray]:
    """Variant -> score of its runs, (R,), all at the step that all runs have."""
    last = horizon(variants)
    return {name: np.array([score(curve, last) for curve in curves]) for name, curves in variants.items()}


def together(done: Cells, base: str) -> Cells:
    """The tasks that `base` has, with the variants that have all of them; without the panels of APART."""
    tasks = [task for task, variants in done.items() if base in variants and not apart(task)]
    names = [name for name in dict.fromkeys(v for t in tasks for v in done[t]) if all(name in done[t] for t in tasks)]
    return {task: {name: done[task][name] for name in names} for task in tasks}


def normalised(common: Cells, score: Callable[[Curve, int], float]) -> dict[str, list[np.ndarray]]:
    """Variant -> over tasks the normalised scores of its runs, (R,) each."""
    columns: dict[str, list[np.ndarray]] = {}
    for variants in common.values():
        scores = scores_of(variants, score)
        worst, way = span_of(np.concatenate(list(scores.values())))
        for name, values in scores.items():
            columns.setdefault(name, []).append((values - worst) / way)
    return columns


def curve_rows(done: Cells, common: Cells) -> Rows:
    """IQM and interval at each evaluation step; for all tasks together over the share of the steps."""
    rows: Rows = []
    for task, variants in done.items():
        for name, curves in variants.items():
            steps, returns = matrix(curves)
            rows += _band(task, name, [returns], steps)
    if len(common) < 2:
        return rows
    first = max(c.steps[0] / horizon(v) for v in common.values() for runs in v.values() for c in runs)
    share = np.linspace(first, 1, 100)
    for name in next(iter(common.values())):
        strata = []
        for variants in common.values():
            last = horizon(variants)
            worst, way = span_of(np.concatenate(list(scores_of(variants, final).values())))
            curves = [np.interp(share, c.steps / last, (c.returns - worst) / way) for c in variants[name]]
            strata.append(np.array(curves))
        rows += _band(ALL, name, strata, share)
    return rows


def _band(task: str, name: str, strata: Sequence[np.ndarray], x: np.ndarray) -> Rows:
    every = np.concatenate(strata)
    low, high = bootstrap_interval(strata, draws=DRAWS)
    return [
        {"task": task, "variant": name, "runs": len(every), "step": point, "iqm": middle} | ends(strata, a, b)
        for point, middle, a, b in zip(x.tolist(), iqm(every).tolist(), low.tolist(), high.tolist())
    ]


def ends(strata: Sequence[np.ndarray], low: float, high: float) -> dict[str, float | str]:
    """Both ends of an interval; empty where some task has a single run, which resampling cannot vary."""
    return {"low": low, "high": high} if min(map(len, strata)) > 1 else {"low": "", "high": ""}


def score_rows(done: Cells, common: Cells) -> Rows:
    """IQM and interval of both scores; for all tasks together of normalised scores, runs resampled within tasks."""
    rows: Rows = []
    for label, score in SCORES.items():
        for task, variants in done.items():
            last = horizon(variants)
            for name, values in scores_of(variants, score).items():
                row = {"task": task, "variant": name, "score": label, "step": last, "runs": len(values)}
                middle, low, high = interval(values)
                rows.append(row | {"iqm": middle} | ends([values], low, high))
        if len(common) > 1:
            for name, strata in normalised(common, score).items():
                every = np.concatenate(strata)
                low, high = map(float, bootstrap_interval(strata))
                row = {"task": ALL, "variant": name, "score": label, "step": "", "runs": len(every)}
                rows.append(row | {"iqm": float(iqm(every))} | ends(strata, low, high))
    return rows


def efficiency_rows(done: Cells, level_of: str | None) -> Rows:
    """Median steps to the final level of the reference; empty numbers where more than half of the runs never reach it.

    The level is taken as given: its own uncertainty is not in the interval. One lucky evaluation counts.
    """
    rows: Rows = []
    for task, variants in done.items():
        reference = next((name for name in ([level_of] if level_of else ["hasac", "none"]) if name in variants), None)
        if reference is None:
            continue
        last = horizon(variants)
        level = float(iqm(scores_of(variants, final)[reference]))
        even = iter(on_one_grid([curve for curves in variants.values() for curve in curves], last))
        for name, curves in variants.items():
            steps = np.array([steps_to(next(even), level, last) for _ in curves])
            numbers = ["" if math.isinf(value) else int(value) for value in steps_interval(steps)]
            numbers[1:] = numbers[1:] if len(steps) > 1 else ["", ""]
            rows.append(
                {"task": task, "reference": reference, "level": level, "variant": name, "runs": len(steps)}
                | {"reached": int(np.isfinite(steps).sum()), "within": last}
                | dict(zip(("median_steps", "low", "high"), numbers))
            )
    return rows


def improvement_rows(done: Cells, base: str) -> Rows:
    """P(a run of base scores higher), per task and as the mean over the tasks that both have."""
    rows: Rows = []
    others = dict.fromkeys(name for variants in done.values() for name in variants if name != base)
    for label, score in SCORES.items():
        scores = {task: scores_of(variants, score) for task, variants in done.items()}
        for other in others:
            tasks = [task for task, variants in done.items() if base in variants and other in variants]
            whole = [task for task in tasks if not apart(task)]
            for name, members in [*((task, [task]) for task in tasks), *([(ALL, whole)] if len(whole) > 1 else [])]:
                ones, theirs = ([scores[task][side] for task in members] for side in (base, other))
                row = {"base": base, "other": other, "score": label, "task": name, "tasks": len(members)}
                row |= {"runs": sum(map(len, ones)), "other_runs": sum(map(len, theirs))}
                probability, low, high = improvement_interval(ones, theirs)
                rows.append(row | {"probability": probability} | ends([*ones, *theirs], low, high))
    return rows


def profile_rows(common: Cells) -> Rows:
    """The performance profile of each variant that has all tasks."""
    rows: Rows = []
    for label, score in SCORES.items():
        for name, strata in normalised(common, score).items() if common else ():
            for values in zip(
                THRESHOLDS.tolist(), *(each.tolist() for each in performance_profile(strata, THRESHOLDS))
            ):
                threshold, share, low, high = values
                row = {"score": label, "variant": name, "tasks": len(strata), "runs": sum(map(len, strata))}
                rows.append(row | {"threshold": threshold, "share": share} | ends(strata, low, high))
    return rows


# ---- drawing ---------------------------------------------------------------------------------------------------------
class Painter:
    """Panels in a grid, one colour and style of line a variant, and files of both kinds."""

    def __init__(self, out: Path, variants: Sequence[str]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "his"  # the same data give the same file
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator

        self.out, self.pyplot, self.locator = out, pyplot, MaxNLocator
        palette = pyplot.get_cmap("tab10" if len(variants) <= 10 else "tab20").colors  # type: ignore[attr-defined]
        self.colors = {name: palette[i % len(palette)] for i, name in enumerate(variants)}
        self.styles: dict[str, Any] = {
            name: ("-", "--", "-.", ":")[i // len(palette) % 4] for i, name in enumerate(variants)
        }

    def panels(self, titles: Sequence[str], width: float = 4.4, height: float = 3.4) -> tuple[Any, dict[str, Any]]:
        """A figure and its axes by title."""
        columns = min(len(titles), 3)
        lines = -(-len(titles) // columns)
        size = (max(width * columns, 5.5), height * lines + 0.7)
        figure, grid = self.pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
        for axes in grid.flat[len(titles) :]:
            axes.axis("off")
        for axes, title in zip(grid.flat, titles):
            axes.set_title(title, fontsize=10)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_locator(self.locator(5))
        return figure, dict(zip(titles, grid.flat))

    def legend(self, figure: Any, names: Iterable[str]) -> None:
        """One legend below all panels."""
        from matplotlib.lines import Line2D

        names = list(names)
        handles = [Line2D([], [], color=self.colors[n], linestyle=self.styles[n], linewidth=2) for n in names]
        labels = [label_of(name).replace("`", "") for name in names]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False)

    def save(self, figure: Any, name: str) -> None:
        """NAME.png and NAME.svg."""
        figure.savefig(self.out / f"{name}.png", dpi=130)
        figure.savefig(self.out / f"{name}.svg", metadata={"Date": None})
        self.pyplot.close(figure)


def draw_curves(painter: Painter, rows: Rows, curves: Sequence[Curve]) -> None:
    """Learning curves."""
    tasks = list(dict.fromkeys([curve.task for curve in curves] + [row["task"] for row in rows]))
    figure, axes = painter.panels(tasks)
    for curve in curves:
        style: Any = {"linestyle": "-" if curve.finished else ":", "linewidth": 0.6, "alpha": 0.45}
        axes[curve.task].plot(curve.steps, curve.returns, color=painter.colors[curve.variant], **style)
    for task, name in dict.fromkeys((row["task"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["variant"]) == (task, name)]
        steps, middle, low, high = ([row[key] for row in mine] for key in ("step", "iqm", "low", "high"))
        axes[task].plot(steps, middle, color=painter.colors[name], linestyle=painter.styles[name], linewidth=1.9)
        if low[0] != "":
            axes[task].fill_between(steps, low, high, color=painter.colors[name], alpha=0.16, linewidth=0)
    for task, each in axes.items():
        each.set_xlabel("share of the steps" if task == ALL else "environment steps", fontsize=8)
        each.set_ylabel("normalised return" if task == ALL else "return", fontsize=8)
    painter.legend(figure, [name for name in painter.colors if any(c.variant == name for c in curves)])
    painter.save(figure, "curves")


def draw_points(painter: Painter, rows: Rows, name: str, panel: str, value: str, label: Callable[[str], str]) -> None:
    """A dot with its interval for each variant (and how many runs it has); hollow dots are the last half."""
    key = "other" if "other" in rows[0] else "variant"
    crowd = max(Counter((row[panel], row.get("score")) for row in rows).values())
    figure, axes = painter.panels(list(dict.fromkeys(row[panel] for row in rows)), height=1.0 + 0.36 * crowd)
    for title, each in axes.items():
        mine = [row for row in rows if row[panel] == title]
        names = list(dict.fromkeys(row[key] for row in mine))
        for row in mine:
            color, hollow = painter.colors[row[key]], row.get("score") == "last half"
            y = names.index(row[key]) + (0.16 if hollow else -0.16 if "score" in row else 0)
            if row[value] == "":
                each.text(
                    0.02,
                    y,
                    "not reached by half of the runs",
                    fontsize=7,
                    va="center",
                    transform=each.get_yaxis_transform(),
                )
                continue
            high = row["high"] if row["high"] != "" else row.get("within", row[value])
            if row["low"] != "":
                each.plot([row["low"], high], [y, y], color=color, linewidth=1.6)
            each.plot([row[value]], [y], "o", color=color, markersize=5, markerfacecolor="white" if hollow else color)
        runs = {row[key]: row.get("other_runs", row["runs"]) for row in mine}
        ticks = [f"{label_of(other).replace('`', '')} ({runs[other]})" for other in names]
        each.set_yticks(range(len(names)), ticks, fontsize=8)
        each.set_ylim(len(names) - 0.5, -0.5)
        each.set_xlabel(label(title), fontsize=8)
        if value == "probability":
            each.set_xlim(-0.03, 1.03)
            each.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
        elif value == "median_steps":
            each.set_xlim(left=0)
    painter.save(figure, name)


def draw_profile(painter: Painter, rows: Rows) -> None:
    """Performance profiles, one panel a score."""
    figure, axes = painter.panels(list(SCORES))
    for score, name in dict.fromkeys((row["score"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["score"], row["variant"]) == (score, name)]
        x, middle, low, high = ([row[key] for row in mine] for key in ("threshold", "share", "low", "high"))
        look: Any = {"color": painter.colors[name], "linestyle": painter.styles[name]}
        axes[score].step(x, middle, where="post", linewidth=1.9, **look)
        if low[0] != "":
            axes[score].fill_between(x, low, high, step="post", color=painter.colors[name], alpha=0.16, linewidth=0)
    for score, each in axes.items():
        each.set_title(f"{score}, {rows[0]['tasks']} task{'s' if rows[0]['tasks'] > 1 else ''}", fontsize=10)
        each.set(xlim=(0, 1), ylim=(0, 1.02))
        each.set_xlabel("normalised score t: 0 worst run of a task, 1 best", fontsize=8)
        each.set_ylabel("share of runs above t", fontsize=8)
    painter.legend(figure, dict.fromkeys(row["variant"] for row in rows))
    painter.save(figure, "profile")


def write(path: Path, rows: Rows) -> None:
    """A CSV file; numbers with seven significant digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()})


# ---- main ------------------------------------------------------------------------------------------------------------
def plot_suite(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Everything after the command line."""
    cases = wanted(SUITES[args.suite], args.tasks, args.variants)
    if not cases:
        raise folders.SuiteError(f"{args.suite} has no run of these tasks with these variants")
    curves = load(cases, args.runs_dir, args.results, say)
    order = list(dict.fromkeys(shown_as(case.variant) for case in cases))
    panels = list(dict.fromkeys(panel_of(case.task, case.variant) for case in cases))
    curves.sort(key=lambda c: (panels.index(c.task), order.index(c.variant), c.seed))
    done = cells([curve for curve in curves if curve.finished], order)
    for task, variants in done.items():
        if why := incomparable(variants):
            raise folders.SuiteError(f"{task}, {why}")
    base = args.base or next((name for name in ("his", "beta10", "M1") if name in order), order[0])
    common = together(done, base)
    tables: dict[str, Rows] = {
        "curves": curve_rows(done, common),
        "scores": score_rows(done, common),
        "efficiency": efficiency_rows(done, args.level_of),
        "improvement": improvement_rows(done, base),
        "profile": profile_rows(common),
        "missing": missing(cases, curves),
    }
    runs = [
        {"task": c.task, "variant": c.variant, "seed": c.seed, "finished": c.finished, "step": step, "return": value}
        for c in curves
        for step, value in zip(c.steps.tolist(), c.returns.tolist())
    ]
    if (args.out / "runs.json").exists() or any(args.out.glob("*.py")):
        raise folders.SuiteError(f"--out {args.out}: holds other things than plots; name another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    for old in (args.out / f"{name}.{kind}" for name in tables for kind in ("png", "svg", "csv")):
        old.unlink(missing_ok=True)  # of an earlier call that had more to show
    for name, rows in (tables | {"runs": runs}).items():
        if rows:
            write(args.out / f"{name}.csv", rows)
    painter = Painter(args.out, order)
    draw_curves(painter, tables["curves"], curves)
    if tables["scores"]:
        draw_points(
            painter, tables["scores"], "scores", "task", "iqm",
            lambda task: ("normalised " if task == ALL else "") + "return: final (filled), last 50 % (hollow)",
        )  # fmt: skip
    if rows := tables["efficiency"]:
        levels = {row["task"]: f"steps to {row['level']:.4g} ({label_of(row['reference'])})" for row in rows}
        draw_points(painter, rows, "efficiency", "task", "median_steps", lambda task: levels[task].replace("`", ""))
    if tables["improvement"]:
        text = f"P({label_of(base)} > other): final (filled), last 50 % (hollow)"
        draw_points(painter, tables["improvement"], "improvement", "task", "probability", lambda task: text)
    if tables["profile"]:
        draw_profile(painter, tables["profile"])
    for line in remarks(done, common, base, tables):
        say(line)
    say(f"{sum(c.finished for c in curves)} finished runs; written: {args.out}")


def remarks(done: Cells, common: Cells, base: str, tables: Mapping[str, Rows]) -> list[str]:
    """What a reader must know beside the plots."""
    lines = missing_lines(tables["missing"])
    for task, variants in done.items():
        ends = sorted({int(curve.steps[-1]) for curves in variants.values() for curve in curves})
        if len(ends) > 1:
            lines.append(
                f"{task}: runs end at {', '.join(f'{end:,}' for end in ends)}; all are compared at {ends[0]:,}"
            )
    if not common:
        lines.append(f"no finished run of {base}: no comparison with it, nothing over all tasks")
    names = next(iter(common.values()), {})
    if left := [name for name in dict.fromkeys(n for v in done.values() for n in v) if name not in names and common]:
        lines.append(f"not in what is over all tasks, since not on each task that {base} has: {', '.join(left)}")
    if alone := sum(row["runs"] == 1 and row["score"] == "final" and row["task"] != ALL for row in tables["scores"]):
        lines.append(f"{alone} of the means are of one run: no interval there, nor in what they enter over all tasks")
    if not tables["efficiency"]:
        lines.append("no efficiency: no finished run of the variant whose level is to be reached")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Plot a suite; returns the exit status."""
    try:
        plot_suite(parse(sys.argv[1:] if argv is None else argv), print)
    except (folders.SuiteError, ImportError, OSError) as error:
        hint = ": pip install matplotlib" if isinstance(error, ImportError) else ""
        print(f"experiments.plot: error: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
