"""Collect finished (or running) runs into `results/`: their raw evaluation curves, their commands, a plot, tables.

    python -m experiments.curves runs/his_mamujoco/HalfCheetah-6x1/* --out results/mamujoco
    python -m experiments.curves runs/his_mpe/*/* --out results/mpe --bounds results/mpe/bounds.json

Writes, below `--out`, `<scenario>.csv` (a row an evaluation of a run: the returns of its episodes and their lengths, a
blank between them; one length where all are equal), `<scenario>_success.csv` (the success rate of every evaluation,
where the task has one), `<scenario>_diagnostics.csv` (each number of metrics.jsonl, its median over the agents and over
the lines of each tenth of the run), `runs.json` (command, commit, host and packages of each) and `curves.png`, a panel
a scenario: single runs thin, their interquartile mean (IQM) thick, its 95 % bootstrap interval over seeds as a band;
success rates below. Prints Markdown tables: the IQM at a few steps, single runs in brackets, the comparison
of the algorithms, some of the diagnostics. Runs of a suite are told apart by their variant (experiments/suites.py); a
HIS run with other values than the paper's is named with them.

What `--out` already holds of other runs (another algorithm or seed) is kept, so that runs made in several places or on
several days come together; `--anew` drops it. A run that is there with more evaluations than the new one is replaced
only with `--replace`. `--bounds` names a JSON file {"tasks": {scenario: {policy: {"mean": ...}}}}; "random" and
"oracle" become lines of the plot.
"""

import contextlib
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.stats import bootstrap_interval, difference_interval, iqm, t_interval
from experiments.command_line import Parser
from experiments.scores import LABELS, changes, label_of, mean_of_cell, shown, variant_of, whole
from experiments.suites import TASKS, task_label

_TABLEAU = "tab:blue tab:orange tab:green tab:red tab:purple tab:brown tab:pink tab:gray tab:olive tab:cyan".split()
COLORS = dict(zip(LABELS.values(), [*_TABLEAU, "black"], strict=True))
MORE_COLORS = "gold navy darkgreen crimson indigo sienna teal magenta".split()
MORE_STYLES = ("-", "--", "-.", ":", (0, (7, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
IN_PANELS = 6  # legend entries that a panel has room for
IN_ROW = 4  # panels that a row has room for
IDENTITY = ("algorithm", "rules", "seed", "global_step")  # rules: of MPE; the back end of Bi-DexHands
COLUMNS = {
    "": (*IDENTITY, "returns", "lengths"),
    "_success": (*IDENTITY, "success_rate"),
    "_diagnostics": (*IDENTITY, "key", "median"),
}
NOT_DIAGNOSTIC = ("global_step", "update_step", "wall_s", "charts/SPS", "charts/updates_per_s")
SHOWN_DIAGNOSTICS = (
    "diag/grad_ratio diag/grad_cosine credit/shapley credit/spread credit/floor_hits credit/boxcox_lambda "
    "losses/entropy losses/alpha"
).split()
MIN_COMPARED = 3  # runs of each side
Curves = dict[str, dict[int, dict[int, float]]]  # algorithm -> seed -> global_step -> mean over that evaluation
Rows = dict[str, list[dict[Any, Any]]]  # scenario -> rows of a CSV file


def read_run(folder: Path) -> tuple[dict[str, Any], list[Mapping[str, str]], list[dict[str, Any]]]:
    """config.json, the rows of eval.csv and the lines of metrics.jsonl of a run folder; OSError where one is missing.

    A line that a kill has torn is left out.
    """
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "eval.csv", newline="") as file:
        evaluations = whole(csv.DictReader(file))
    lines = []
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return config, evaluations, lines


def by_evaluation(episodes: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """From the rows of eval.csv, one an episode, a row an evaluation: see the top of this file."""
    found: dict[int, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    for row in episodes:
        returns, lengths = found[int(row["global_step"])]
        returns.append(round(float(row["return"]), 4))
        lengths.append(row["length"])
    return [
        {"global_step": step, "returns": " ".join(map(str, returns))}
        | {"lengths": " ".join(lengths if len(set(lengths)) > 1 else lengths[:1])}
        for step, (returns, lengths) in sorted(found.items())
    ]


def success_rates(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The success rate of each evaluation; none where the task has no notion of success."""
    key = "eval/success_rate"
    return [{"global_step": line["global_step"], "success_rate": line[key]} for line in lines if key in line]


def diagnostics(lines: Sequence[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Medians of what training logged, over agents and the lines of each tenth of `total` steps.

    `diag/grad_ratio` is the norm of the historical term's gradient over that of the first term.
    """
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    for line in lines:
        tenth = -(-10 * line["global_step"] // total)
        for key, value in line.items():
            if key not in NOT_DIAGNOSTIC and not key.startswith("eval/") and isinstance(value, (int, float)):
                values[tenth, re.sub(r"_\d+$", "", key)].append(value)
        for key in [key for key in line if key.startswith("diag/grad_norm_history_")]:
            main = line[key.replace("history", "main")]
            if main and line[key] is not None:  # null: not finite
                values[tenth, "diag/grad_ratio"].append(line[key] / main)
    return [
        {"global_step": tenth * total // 10, "key": key, "median": f"{np.median(found):.5g}"}
        for (tenth, key), found in sorted(values.items())
    ]


def identity(run: dict[str, Any]) -> tuple[str, str, str, int]:
    """What tells one run in runs.json from another."""
    return run["args"]["scenario"], run["algorithm"], run["rules"], run["seed"]


def earlier(out: Path, new: set[tuple[str, str, str, int]]) -> tuple[list[dict[str, Any]], dict[str, Rows]]:
    """The runs that `out` holds beside those of `new`, and their rows in the files of each kind (see COLUMNS)."""
    path = out / "runs.json"
    try:
        runs = [run for run in json.loads(path.read_text()) if identity(run) not in new] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise CurvesError(f"{path} is damaged ({type(error).__name__}: {error}); --anew drops what it held") from error
    known = {identity(run) for run in runs}
    rows: dict[str, Rows] = {kind: defaultdict(list) for kind in COLUMNS}
    for scenario in sorted({run["args"]["scenario"] for run in runs}):
        for kind in COLUMNS:
            if kind and not (out / f"{scenario}{kind}.csv").exists():
                continue
            if not (out / f"{scenario}{kind}.csv").exists():
                raise CurvesError(f"{out} has no {scenario}.csv, which its runs.json names; --anew drops what it held")
            with open(out / f"{scenario}{kind}.csv", newline="") as file:
                for row in csv.DictReader(file):
                    if (scenario, row["algorithm"], row["rules"], int(row["seed"])) in known:
                        rows[kind][scenario].append(row)
    return runs, rows


def curves(rows: Sequence[dict[str, Any]], key: str = "returns") -> Curves:
    """Curves of one scenario, of the means of the column `key`."""
    returns = {
        (row["algorithm"], int(row["seed"]), int(row["global_step"])): mean_of_cell(str(row[key])) for row in rows
    }
    nested: Curves = defaultdict(lambda: defaultdict(dict))
    order = [*LABELS.values(), *sorted({key[0] for key in returns} - set(LABELS.values()))]
    for (algorithm, seed, step), value in sorted(returns.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        nested[algorithm][seed][step] = value
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


def diagnostics_table(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> str:
    """Markdown: one row an algorithm and number of SHOWN_DIAGNOSTICS, one column a step: median over the runs."""
    lines = [
        "| | median | " + " | ".join(f"{step:,} steps" for step in steps) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
        for key in SHOWN_DIAGNOSTICS:
            found = [row for row in rows if (row["algorithm"], row["key"]) == (algorithm, key)]
            values = [[float(row["median"]) for row in found if int(row["global_step"]) == step] for step in steps]
            if any(values) and any(map(any, values)):  # a gradient that is not there is logged as 0
                cells = (f"{np.median(each):.3g}" if each else "" for each in values)
                lines.append(f"| {algorithm} | `{key}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def complete(nested: Curves, algorithm: str) -> tuple[list[int], np.ndarray]:
    """Evaluation steps that all runs of an algorithm have, (T,), and their returns, (R, T)."""
    seeds = nested[algorithm]
    steps = sorted(set.intersection(*(set(points) for points in seeds.values())))
    return steps, np.array([[points[step] for step in steps] for points in seeds.values()])


def scores(nested: Curves, algorithm: str, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each run, (R,): return at the newest evaluation up to step `last`, mean over those in the second half."""
    steps, returns = complete(nested, algorithm)
    upto = [i for i, step in enumerate(steps) if step <= last]
    second = [i for i in upto if 2 * steps[i] > last]
    return returns[:, upto[-1]], returns[:, second].mean(1)


def seed_by_seed(nested: Curves, one: str, other: str, last: int) -> str:
    """Markdown row: mean difference of the runs that share a seed and its 95 % t interval; "" below three seeds."""
    seeds = [seed for seed in nested[one] if seed in nested[other]]
    if len(seeds) < MIN_COMPARED:
        return ""
    cells = []
    for ones, others in zip(scores(nested, one, last), scores(nested, other, last)):
        mine, theirs = dict(zip(nested[one], ones)), dict(zip(nested[other], others))
        differences = np.array([mine[seed] - theirs[seed] for seed in seeds])
        middle, low, high = t_interval(differences)
        verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
        more = f"higher on {(differences > 0).sum()} of {len(seeds)}"
        cells.append(f"**{verdict}**: {shown(middle)} [{shown(low)}, {shown(high)}], {more}")
    return f"| the same, seed by seed | {len(seeds)} | " + " | ".join(cells) + " |"


def opposed(nested: Curves) -> list[tuple[str, str]]:
    """HIS and HASAC with the same values, wherever there are both."""
    his, hasac = LABELS["his"], LABELS["none"]
    pairs = [(name, hasac + name.removeprefix(his)) for name in nested if re.match(rf"{his}(, |$)", name)]
    return [(one, other) for one, other in pairs if other in nested]


def without_shared(nested: Curves) -> tuple[Curves, list[str]]:
    """Algorithms without the values that all of them have in place of the paper's, and these values."""
    parts = {name: re.split(r", (?=\w+=)", name) for name in nested}
    shared = [part for part in [*parts.values()][0][1:] if all(part in each[1:] for each in parts.values())]
    names = {name: ", ".join(part for part in each if part not in shared) for name, each in parts.items()}
    return {names[name]: seeds for name, seeds in nested.items()}, shared


def comparison(nested: Curves, bounds: dict[str, float]) -> str:
    """Markdown: last evaluation and mean of the second half of the curve, and where HIS stands against HASAC.

    The two are compared at the last step that all runs of both have, from three runs of each on. "ahead" and "behind":
    the 95 % interval of the difference of the IQMs leaves out 0; otherwise "level". "Seed by seed" does the same with
    the differences of runs of one seed, which share initial networks and the initial states of environments and
    evaluations.
    """
    lines = ["| | runs | at the end | mean of the second half |", "|---|---|---|---|"]
    last: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for algorithm, seeds in nested.items():
        steps, _ = complete(nested, algorithm)
        if not steps:
            lines.append(f"| {algorithm} | {len(seeds)} | no evaluation step in common | |")
            continue
        last[algorithm] = scores(nested, algorithm, steps[-1])
        cells = []
        for values in last[algorithm]:
            low, high = bootstrap_interval([values])
            ends = f" [{shown(float(low))}, {shown(float(high))}]" if len(seeds) > 1 else ""
            cells.append(shown(float(iqm(values))) + ends)
        lines.append(f"| {algorithm}, to step {steps[-1]:,} | {len(seeds)} | " + " | ".join(cells) + " |")
    for his, hasac in opposed(nested):
        if min(len(nested[his]), len(nested[hasac])) < MIN_COMPARED or not {his, hasac} <= last.keys():
            continue
        steps = [complete(nested, algorithm)[0] for algorithm in (his, hasac)]
        cells, common = [], min(each[-1] for each in steps)
        if not all(any(common // 2 < step <= common for step in each) for each in steps):
            lines.append(f"| HIS - HASAC: one of them has no evaluation in the second half of {common:,} steps | | | |")
            continue
        for one, other in zip(scores(nested, his, common), scores(nested, hasac, common)):
            middle, low, high = difference_interval(one, other)
            verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
            cells.append(f"**{verdict}**: {shown(middle)} [{shown(low)}, {shown(high)}]")
        values = his.removeprefix(LABELS["his"])
        lines.append(f"| HIS - HASAC{values}, to step {common:,} | | " + " | ".join(cells) + " |")
        if row := seed_by_seed(nested, his, hasac, common):
            lines.append(row)
    if {"oracle", "random"} <= bounds.keys():
        span = bounds["oracle"] - bounds["random"]
        for algorithm, (end, half) in last.items():
            closed = [f"{100 * (float(iqm(v)) - bounds['random']) / span:.0f} %" for v in (end, half)]
            lines.append(f"| {algorithm}: share of random to oracle | | {closed[0]} | {closed[1]} |")
    return "\n".join(lines)


def plot(
    scenarios: dict[str, Curves], successes: dict[str, Curves], bounds: dict[str, dict[str, float]], path: Path
) -> None:
    """A panel a scenario: thin lines for single runs, IQM and its interval as far as all of them got, bounds dashed.

    Where there are success rates, as many panels below have them. Keys: what stands above the panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = -(-len(scenarios) // IN_ROW)
    columns = -(-len(scenarios) // lines)
    width, height = (7.0, 4.2) if columns == 1 else (4.6 * columns, 3.9)
    kinds = {"return of deterministic evaluation episodes": scenarios} | (
        {"success rate": successes} if successes else {}
    )
    crowd = max(len(nested) + len(bounds.get(scenario, {})) for scenario, nested in scenarios.items())
    size = (width, height * lines * len(kinds) + (0 if crowd <= IN_PANELS else 0.2 * crowd / 3))
    entries: dict[str, Any] = {}
    figure, grid = plt.subplots(lines * len(kinds), columns, figsize=size, layout="constrained", squeeze=False)
    cells = [(i, j, scenario) for i in range(len(kinds)) for j, scenario in enumerate(scenarios)]
    panels = grid.reshape(len(kinds), -1)
    for axes in panels[:, len(scenarios) :].flat:  # of an unfinished row
        axes.set_visible(False)
    # Over all panels: the legend is one for all, so an algorithm looks the same in each.
    others = [*dict.fromkeys(name for nested in scenarios.values() for name in nested if name not in COLORS)]
    for i, j, scenario in cells:
        axes, nested = panels[i, j], [*kinds.values()][i].get(scenario)
        if nested is None:
            axes.set_visible(False)
            continue
        for algorithm, seeds in nested.items():
            color, style = COLORS.get(algorithm), "-"
            if color is None:
                turn, index = divmod(others.index(algorithm), len(MORE_COLORS))
                color, style = MORE_COLORS[index], MORE_STYLES[turn % len(MORE_STYLES)]
            if len(seeds) > 1:
                for points in seeds.values():
                    axes.plot(list(points), list(points.values()), color=color, linewidth=0.7, alpha=0.45)
            steps, returns = complete(nested, algorithm)
            if not steps:
                continue
            label = f"{algorithm.replace('`', '')}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            (line,) = axes.plot(steps, iqm(returns), color=color, linestyle=style, linewidth=2.2, label=label)
            entries.setdefault(algorithm.replace("`", ""), line)
            if len(seeds) > 1:
                low, high = bootstrap_interval([returns], draws=2000)
                axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for policy, value in bounds.get(scenario, {}).items() if i == 0 else ():
            if policy not in ("random", "oracle"):
                continue
            style = "--" if policy == "oracle" else ":"
            entries[policy] = axes.axhline(value, color="black", linewidth=1, linestyle=style, label=policy)
        known = bounds.get(scenario, {})
        if i == 0 and {"random", "oracle"} <= known.keys():  # what is as far below random as oracle above may leave
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 2 * known["random"] - known["oracle"]))
        axes.set(title=scenario.replace(", ", "\n", 1), xlabel="environment steps")
        axes.grid(alpha=0.3)
        if crowd <= IN_PANELS and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        if i:
            axes.set_ylim(-0.03, 1.03)
    for axes, name in zip(grid[:, 0], (name for name in kinds for _ in range(lines)), strict=True):
        axes.set_ylabel(name)
    if crowd > IN_PANELS:  # one for all, below
        look: Any = dict(ncols=max(2, int(width) // 3), fontsize=8, frameon=False, handlelength=4)
        figure.legend(entries.values(), entries, loc="outside lower center", **look)
    figure.savefig(path, dpi=130)
    plt.close(figure)


class CurvesError(Exception):
    """Runs that cannot be collected: one line for the user."""


def runs_below(folders: Sequence[Path]) -> list[Path]:
    """Run folders as they are; of another folder, as that of a suite, all runs in it, however deep, but no branches."""
    found: list[Path] = []
    for folder in folders:
        below = [] if (folder / "config.json").exists() else sorted(folder.rglob("config.json"))
        for config in below:
            if '"branched"' in config.read_text():  # by experiments.branch, which puts it beside its run
                print(f"left out, a branch: {config.parent}", file=sys.stderr)
            else:
                found.append(config.parent)
        found += [] if below else [folder]
    return found


def collect(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, Rows]]:
    """What goes into runs.json, and the rows of the files of each kind (see COLUMNS), of these run folders."""
    rows: dict[str, Rows] = {kind: defaultdict(list) for kind in COLUMNS}
    runs, places = [], {}
    for folder in runs_below(folders):
        try:
            config, evaluations, lines = read_run(folder)
            settings, variant = config["args"], variant_of(config)
        except OSError as error:
            raise CurvesError(f"{folder} is not a run with evaluations: no {Path(error.filename).name}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CurvesError(f"{folder}: its files are damaged ({type(error).__name__}: {error})") from error
        if not evaluations:
            print(f"left out, no evaluation yet: {folder}", file=sys.stderr)
            continue
        if not variant:
            raise CurvesError(f"{folder}: neither its name nor its flags say which algorithm it is")
        about = {"algorithm": ", ".join([label_of(variant.removesuffix("-isaacgym")), *changes(config, variant)])}
        about |= {"rules": rules_of(settings), "seed": settings["seed"]}
        rows[""][settings["scenario"]] += [about | row for row in by_evaluation(evaluations)]
        rows["_success"][settings["scenario"]] += [about | row for row in success_rates(lines)]
        total = settings["total_timesteps"]
        rows["_diagnostics"][settings["scenario"]] += [about | row for row in diagnostics(lines, total)]
        finished = folder / "finished.json"
        state = json.loads(finished.read_text()) if finished.exists() else None
        nonfinite = state is None and (folder / "nonfinite_batch.pt").exists()  # it stopped by itself, with status 3
        runs.append({**about, "finished": state, **({"nonfinite": True} if nonfinite else {}), **config})
        if (key := identity(runs[-1])) in places:
            raise CurvesError(f"{places[key]} and {folder} are the same task, algorithm and seed: name one of them")
        places[key] = folder
    if not runs:
        raise CurvesError("none of these runs has an evaluation yet")
    return runs, rows


def rules_of(settings: dict[str, Any]) -> str:
    """The rules of a run on MPE, the back end of one on Bi-DexHands; baselines have the flags of every benchmark."""
    field = {"mpe": "rules", "bidexhands": "sim"}.get(TASKS[settings["scenario"]].benchmark, "")
    return settings.get(field, "")


def titles_of(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Scenario -> what it is called; CurvesError where runs of one scenario differ in the rules or the back end."""
    titles: dict[str, str] = {}
    for run in runs:
        scenario, rules = run["args"]["scenario"], run["rules"]
        title = f"{scenario} (HARL's rules)" if rules == "harl" else task_label(scenario, rules)
        if titles.setdefault(scenario, title) != title:
            raise CurvesError(f"{titles[scenario]} and {title} are not one task: give each its own --out")
    return titles


def read_bounds(path: Path) -> dict[str, dict[str, float]]:
    """Scenario -> hand-written policy -> mean return."""
    try:
        tasks = json.loads(path.read_text())["tasks"]
        return {task: {name: policy["mean"] for name, policy in policies.items()} for task, policies in tasks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurvesError(f"--bounds {path}: not a file of experiments.mpe_bounds ({error})") from error


def evaluations_of(rows: Sequence[dict[Any, Any]]) -> dict[tuple[str, str, int], int]:
    """Algorithm, rules, seed -> number of evaluations."""
    return Counter((row["algorithm"], row["rules"], int(row["seed"])) for row in rows)


def refuse_shorter(out: Path, new: Rows) -> None:
    """CurvesError where a new run would replace one of `out` with more evaluations."""
    for scenario, rows in new.items():
        if not (path := out / f"{scenario}.csv").exists():
            continue
        with open(path, newline="") as file:
            there = evaluations_of(list(csv.DictReader(file)))
        for key, count in evaluations_of(rows).items():
            if there.get(key, 0) > count:
                algorithm, _, seed = key
                raise CurvesError(
                    f"{path} has {there[key]} evaluations of {algorithm}, seed {seed}, the new run has {count}:"
                    " --replace puts it in the other's place"
                )


def write(out: Path, runs: Sequence[dict[str, Any]], rows: dict[str, Rows]) -> None:
    """The CSV files and runs.json."""
    out.mkdir(parents=True, exist_ok=True)
    for kind, columns in COLUMNS.items():
        for scenario, lines in rows[kind].items():
            if not lines:
                continue
            with open(out / f"{scenario}{kind}.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
    (out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")


def main() -> int:
    parser = Parser("experiments.curves", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", nargs="+", type=int, default=[100_000, 200_000, 300_000], help="columns of a table")
    parser.add_argument("--anew", action="store_true", help="drop the other runs that --out holds")
    parser.add_argument("--replace", action="store_true", help="replace longer runs, too")
    parser.add_argument("--bounds", type=Path, help="JSON file with the returns of hand-written policies")
    args = parser.parse_args()
    parser.needs("matplotlib")

    try:
        runs, rows = collect(args.runs)
        bounds_of = read_bounds(args.bounds) if args.bounds else {}
        if not args.replace:
            refuse_shorter(args.out, rows[""])
        if not args.anew:
            kept, kept_rows = earlier(args.out, {identity(run) for run in runs})
            runs = kept + runs
            for kind, scenarios in kept_rows.items():
                for scenario, lines in scenarios.items():
                    rows[kind][scenario] = lines + rows[kind][scenario]
        titles = titles_of(runs)
        write(args.out, runs, rows)
    except (CurvesError, OSError) as error:
        parser.error(str(error))
    returns, rates, bounds = {}, {}, {}
    for scenario, lines in sorted(rows[""].items()):
        nested, shared = without_shared(curves(lines))
        title = titles[scenario] = ", ".join([titles[scenario], *shared])
        returns[title], bounds[title] = nested, bounds_of.get(scenario, {})
        if rows["_success"][scenario]:
            rates[title], _ = without_shared(curves(rows["_success"][scenario], "success_rate"))
    plot(returns, rates, bounds, args.out / "curves.png")
    for title, nested in returns.items():
        print(f"\n{title}\n\n{table(nested, args.steps)}\n\n{comparison(nested, bounds.get(title, {}))}")
        if title in rates:
            print(f"\n{title}: success rate\n\n{table(rates[title], args.steps)}")
    for scenario, lines in sorted(rows["_diagnostics"].items()):
        if lines:
            print(f"\n{titles[scenario]}: diagnostics\n\n{diagnostics_table(lines, args.steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
