"""Hold the paper's claims (experiments/claims.py) against results/: write results/REPORT.md and what figures cost.

    python -m experiments.report

Reads what is committed: results/*/runs.json and the curves beside them, results/calibration.json,
results/variant_speed.json, results/untrained.json. The table of docs/reproduce.md is written too, between its two
marks. Run it after `experiments.curves` has added runs; a test compares both files with what it would write.
"""

import dataclasses
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.stats import (
    bootstrap_interval,
    difference_interval,
    improvement_interval,
    iqm,
    rank_p_value,
    t_interval,
    welch_interval,
)
from experiments import cost, studies
from experiments.claims import CLAIMS, Ahead, Alike, Claim, Dearer, Fails, Shown, Sooner
from experiments.command_line import Parser
from experiments.evidence import FIGURES, Evidence, ReportError, gather, kind_of, name_in_results
from experiments.processes import ROOT
from experiments.scores import Curve, final, last_half, on_one_grid, shown, steps_to, variant_of
from experiments.suites import SUITES, TASKS, Run, expand, task_label

MIN_RUNS = 5  # of each side of a comparison: the paper's number of seeds
AFFORDABLE_CORE_HOURS = 2 * 24 * 7  # two cores for a week
BEGIN, END = "<!-- written by experiments.report: -->", "<!-- end -->"
Side = Literal["for", "against", "open"]


# ---- one cell --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """One task and pair of variants: which side the numbers are on, and whether there are runs enough to count."""

    task: str
    pair: str
    runs: str
    steps: int
    outcome: str
    side: Side
    enough: bool

    @property
    def said(self) -> str:
        """For a reader."""
        if self.single:
            return "one run: says nothing"
        if not self.enough:
            so_far = {"open": "level so far", "for": "for the claim so far", "against": "against the claim so far"}
            return f"too few runs ({so_far[self.side]})"
        return "undecided" if self.side == "open" else f"{self.side} the claim"

    @property
    def single(self) -> bool:
        """Whether a side has one run only."""
        return "1" in self.runs.split()


def unsteadiness(curve: Curve, last: int) -> float:
    """Standard deviation of a run's evaluations in the second half of the steps, about the straight line through them.

    About the line, since a run that still learns is not unsteady.
    """
    half = (curve.steps <= last) & (2 * curve.steps > last)
    if half.sum() < 3:
        return 0.0
    line = np.polynomial.Polynomial.fit(curve.steps[half], curve.returns[half], 1)
    rest = curve.returns[half] - line(curve.steps[half])
    return float(np.sqrt(rest @ rest / (half.sum() - 2)))  # the line has taken two degrees of freedom


MEASURES = {"final": final, "last half": last_half, "unsteadiness": unsteadiness}


def side_of(low: float, high: float) -> Side:
    """Where the interval of a difference lies."""
    return "for" if low > 0 else "against" if high < 0 else "open"


def cell_of(claim: Claim, task: str, other: str, evidence: Evidence) -> Cell | None:
    """What the runs of one task say; None where one side has none."""
    if isinstance(claim.rule, Dearer):
        return dearer(task, claim.ours, other, evidence)
    sides = sides_of(claim, task, other, evidence)
    finished = [curve for runs, _ in sides for curve in runs]
    if not finished or not all(runs or lost for runs, lost in sides):
        return None
    last = int(min(curve.steps[-1] for curve in finished))
    mine, theirs = ([*runs, *(carried(run, finished[0].steps) for run in lost)] for runs, lost in sides)
    family = max(1, sum(enough_runs(evidence, claim, *each) for each in product(claim.tasks, claim.others)))
    rule = claim.rule
    if isinstance(rule, (Fails, Alike)):
        if task not in evidence.untrained:
            return None
        rule = Since(rule, evidence.untrained[task])
    outcome, side = RULES[type(claim.rule)](rule, mine, theirs, last, family)
    stopped = [len(lost) for _, lost in sides]
    if any(stopped):
        outcome += f"; {stopped[0]} and {stopped[1]} stopped, not finite: with their last evaluation"
    enough = enough_runs(evidence, claim, task, other)
    pair = f"{claim.ours} against {other}"
    return Cell(task, pair, f"{len(mine)} and {len(theirs)}", last, outcome, side, enough)


def sides_of(claim: Claim, task: str, other: str, evidence: Evidence) -> list[tuple[Sequence[Curve], Sequence[Curve]]]:
    """Of each side of a comparison the finished runs, and those that stopped and count."""
    unsteady = isinstance(claim.rule, Ahead) and claim.rule.measure == "unsteadiness"  # a run that stopped has none
    return [
        (evidence.of(task, variant), () if unsteady else evidence.stopped(task, variant))
        for variant in (claim.ours, other)
    ]


def carried(curve: Curve, grid: np.ndarray) -> Curve:
    """A run that stopped, as if each later evaluation on the grid, (T,) steps, had shown what its last one did."""
    later = grid[grid > curve.steps[-1]]
    steps, returns = np.append(curve.steps, later), np.append(curve.returns, np.full(len(later), curve.returns[-1]))
    return dataclasses.replace(curve, steps=steps, returns=returns)


Numbers = tuple[float, float, float]  # middle, low, high
Sure = Callable[[float], tuple[bool, str]]  # level -> whether a test rejects there, and its words


def decided(found: Numbers, sure: Sure, family: int, threshold: float = 0.0, more: bool = True) -> tuple[str, Side]:
    """Middle and 95 % interval as words, and the side: "for" where it is above (not `more`: below) the threshold.

    A test has to be `sure` of either side, since a bootstrap of few runs is not: once all of one side lie above all of
    the other, its interval leaves out 0 at every level. For "for" at 95 %; for "against" at the level 1 - 0.05 / family
    (Bonferroni), since one of the `family` comparisons of a claim refutes it, and by chance one in forty would at 95 %.
    Where the test is not sure the words have it, too. Of single runs no test is sure.
    """
    middle, low, high = found
    words = brackets(middle, low, high)
    above, below = low > threshold, high < threshold
    if not (above or below):
        return words, "open"
    side: Side = "for" if above == more else "against"
    rejects, how = sure(0.95 if side == "for" else 1 - 0.05 / family)
    return (words, side) if rejects else (", ".join(filter(None, [words, how])), "open")


def sure_of(interval: Callable[[float], Numbers], threshold: float = 0.0) -> Sure:
    """The test that an interval at a level is: sure where it leaves out the threshold."""

    def sure(level: float) -> tuple[bool, str]:
        _, low, high = interval(level)
        words = f"at {100 * level:.4g} % [{shown(low)}, {shown(high)}]" if np.isfinite([low, high]).all() else ""
        return low > threshold or high < threshold, words

    return sure


def enough_runs(evidence: Evidence, claim: Claim, task: str, other: str) -> bool:
    """Whether both sides of a comparison have MIN_RUNS runs to their end; for a paired rule, of the same seeds."""
    sides = [{run.seed for run in [*runs, *lost]} for runs, lost in sides_of(claim, task, other, evidence)]
    if isinstance(claim.rule, Ahead) and claim.rule.paired:
        sides = [sides[0] & sides[1]]
    return min(map(len, sides)) >= MIN_RUNS


def ahead(rule: Ahead, mine: Sequence[Curve], theirs: Sequence[Curve], last: int, family: int) -> tuple[str, Side]:
    measure = MEASURES[rule.measure]
    ones, others = ({curve.seed: measure(curve, last) for curve in side} for side in (mine, theirs))
    differences = np.array([ones[seed] - others[seed] for seed in ones if seed in others])
    more = rule.measure != "unsteadiness"
    if rule.paired and len(differences):
        alone = float(differences[0])
        found = t_interval(differences) if len(differences) > 1 else (alone, alone, alone)
        words, side = decided(found, sure_of(lambda level: t_interval(differences, level)), family, more=more)
        return f"paired difference {words}, above on {(differences > 0).sum()} of {len(differences)} seeds", side
    first, second = (np.array([*values.values()]) for values in (ones, others))
    sure = sure_of(lambda level: welch_interval(first, second, level))
    words, side = decided(difference_interval(first, second), sure, family, more=more)
    return f"difference {words}" + (", no seed in common" if rule.paired else ""), side


def sooner(rule: Sooner, mine: Sequence[Curve], theirs: Sequence[Curve], last: int, family: int) -> tuple[str, Side]:
    level = float(iqm(np.array([final(curve, last) for curve in theirs])))
    even = on_one_grid([*mine, *theirs], last)
    steps = np.array([-min(steps_to(curve, level, last), 2.0 * last) for curve in even])
    ones, others = steps[: len(mine)], steps[len(mine) :]

    def sure(wide: float) -> tuple[bool, str]:
        p = rank_p_value(ones, others)
        return p < 1 - wide, f"rank test p {p:.2g}, not below {1 - wide:.2g}" if p < 1 else ""

    words, side = decided(improvement_interval([ones], [others]), sure, family, 0.5)
    reached = f"{(ones >= -last).sum()} of {len(ones)} and {(others >= -last).sum()} of {len(others)} runs reach it"
    return f"P(sooner at {shown(level)}) {words}; {reached}", side


@dataclass(frozen=True)
class Since:
    """A rule that asks what has been learnt, and what untrained policies earn."""

    rule: Fails | Alike
    start: float


def fails(since: Since, mine: Sequence[Curve], theirs: Sequence[Curve], last: int, family: int) -> tuple[str, Side]:
    start = since.start
    ends, values = (np.array([final(curve, last) for curve in side]) for side in (mine, theirs))
    if float(bootstrap_interval([ends])[0]) <= start:
        return "what it is compared with does not end above untrained policies", "open"
    effective = start + since.rule.share * (float(iqm(ends)) - start)
    low, high = map(float, bootstrap_interval([values]))
    sure = sure_of(lambda level: t_interval(values, level), effective)
    words, side = decided((float(iqm(values)), low, high), sure, family, effective, more=False)
    return f"ends at {words}; effective from {shown(effective)}", side


def alike(since: Since, mine: Sequence[Curve], theirs: Sequence[Curve], last: int, family: int) -> tuple[str, Side]:
    ones, others = (np.array([last_half(curve, last) for curve in side]) for side in (mine, theirs))
    margin = since.rule.share * abs(float(iqm(ones)) - since.start)
    middle, low, high = difference_interval(others, ones)
    _, test_low, test_high = welch_interval(others, ones)
    _, wide_low, wide_high = welch_interval(others, ones, 1 - 0.05 / family)
    within = -margin < min(low, test_low) and max(high, test_high) < margin
    apart = min(low, wide_low) > margin or max(high, wide_high) < -margin
    side: Side = "for" if within else "against" if apart else "open"
    return f"difference {brackets(middle, low, high)}; alike within {shown(margin)}", side


def dearer(task: str, ours: str, other: str, evidence: Evidence) -> Cell | None:
    """The time of an update of `other` over that of `ours`; None where one was not measured."""
    measured = evidence.updates.get(task, {})
    if not {ours, other} <= measured.keys():
        return None
    base, more = (np.array(measured[variant]["samples_ms"]) for variant in (ours, other))
    middle, low, high = difference_interval(more, base)
    ratio = float(np.median(more / base))
    outcome = f"x {ratio:.2f}: {brackets(middle, low, high)} ms more than {shown(float(iqm(base)))} ms"
    return Cell(task, f"{other} against {ours}", f"{len(base)} rounds", 0, outcome, side_of(low, high), True)


RULES: Mapping[type, Any] = {Ahead: ahead, Sooner: sooner, Fails: fails, Alike: alike}


def brackets(middle: float, low: float, high: float) -> str:
    """Value and 95 % interval, where there is one."""
    return shown(middle) if low == high else f"{shown(middle)} [{shown(low)}, {shown(high)}]"


# ---- cost ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Price:
    """Core-hours of runs at full scale: of the measured kinds, and about that of all."""

    runs: int
    steps: int
    measured_runs: int
    measured: float
    about: float

    def __str__(self) -> str:
        if not self.measured_runs:
            return f"{self.runs} runs, {steps_words(self.steps)} steps; not measured"
        text = f"{self.runs} runs, {steps_words(self.steps)} steps; "
        if self.measured_runs == self.runs:
            return text + f"{two_digits(self.measured)} core-hours"
        text += f"{two_digits(self.measured)} core-hours for the {self.measured_runs} measured"
        return f"{text}, about {two_digits(self.about)} in all"


def price(runs: Sequence[Run], rates: Mapping[str, cost.Rate]) -> Price:
    """The sum; a run of a kind that is not measured counts as the mean core-seconds per step of the measured ones."""
    known = {run.name: (run, rates[kind_of(run)]) for run in runs if kind_of(run) in rates}
    hours = sum(cost.wall_seconds(rate, run) * rate.cpu_share for run, rate in known.values()) / 3600
    steps, measured_steps = sum(r.total_steps for r in runs), sum(r.total_steps for r, _ in known.values())
    return Price(len(runs), steps, len(known), hours, hours * steps / measured_steps if known else float("nan"))


def runs_for(claim: Claim) -> list[Run]:
    """What a claim needs at full scale: its tasks and variants in its suites, each run once."""
    found: dict[str, Run] = {}
    for suite in claim.suites:
        variants = [v for g in SUITES[suite].groups for v in g.variants if v in (claim.ours, *claim.others)]
        runs = expand(SUITES[suite], MIN_RUNS, tasks=claim.tasks, variants=variants)
        found |= {run.name: run for run in runs}
    return list(found.values())


def two_digits(hours: float) -> str:
    """Rounded to two significant digits: single measurements support no more."""
    return f"{float(f'{hours:.2g}'):,.0f}" if hours >= 10 else f"{hours:.2g}"


def short(commit: str) -> str:
    """Seven digits, and whether the source tree had changes."""
    digits, dirty, _ = commit.partition("+dirty")
    return digits[:7] + dirty


def steps_words(steps: int) -> str:
    """3.0 G, 16.5 M."""
    return f"{steps / 1e9:.3g} G" if steps >= 1e8 else f"{steps / 1e6:.3g} M"


# ---- verdicts --------------------------------------------------------------------------------------------------------
def judge(claim: Claim, cells: Sequence[Cell], wanted: int, total: Price) -> str:
    """The verdict on a claim from its cells, of which there should be `wanted`.

    One task against it refutes a claim about all tasks; all for it confirm it. A verdict from runs that are shorter
    than the full budget says so.
    """
    if isinstance(claim.rule, Shown):
        return "confirmed" if claim.rule.outcome == "for" else "refuted"
    counted = [cell for cell in cells if cell.enough]
    against = [cell for cell in counted if cell.side == "against"]
    if against:
        return "refuted" + at(against)
    if len(counted) == wanted:
        return "confirmed" + at(counted) if all(cell.side == "for" for cell in counted) else "undecided" + at(counted)
    if total.runs and total.about > AFFORDABLE_CORE_HOURS:
        return "not affordable here"
    return "not enough runs"


def at(cells: Sequence[Cell]) -> str:
    """ " at N steps" where some cell has less than its full budget."""
    short = [cell.steps for cell in cells if 0 < cell.steps < TASKS[cell.task].steps]
    return f" at {min(short):,} steps" if short else ""


# ---- text ------------------------------------------------------------------------------------------------------------
HEAD = f"""# Report: the paper's claims and what our runs say

`python -m experiments.report` writes this file from what lies in this folder; a test fails when it is not up to date.
Figures are interquartile means over runs (the mean with fewer than four) with a 95 % bootstrap interval over seeds. With
few runs such an interval holds the true value less often than it says: for normal returns that of a difference in 93 %
of simulations with five runs a side, in 80 % with three and in 67 % with two, that of P(sooner) in 90, 81 and 67 %
(`tests/test_stats.py`). So no such interval decides without a test beside it.

| verdict | |
|---|---|
| confirmed, refuted | at least {MIN_RUNS} runs (the paper's number) on each side, and the interval decides, and with it a test: Student's or Welch's interval leaves out 0, for P(sooner) a permutation test of the ranks rejects. One comparison against it refutes a claim about several, so that the test must then be sure at the level 1 - 0.05 / (number of comparisons of the claim that have runs enough), or chance would refute (of the ranks five runs a side can be that sure for at most six comparisons). "at N steps": shorter runs than the full budget |
| undecided | runs enough, but the intervals do not decide |
| not enough runs | possible with two cores in a week ({AFFORDABLE_CORE_HOURS} core-hours) or of unknown cost, and not done |
| not affordable here | would take longer |
| comparisons so far | pairs of variants on a task by what the claim's rule says of them: for, against, or open (the interval holds 0, or the test is not sure); *: fewer than {MIN_RUNS} runs a side, which decides nothing; "small networks": at the scale of the suite `ablations`, which decides nothing either; pairs with a single run on a side are left out |
| stopped, not finite | a run that ended itself so (status 3) counts with its last evaluation; for unsteadiness not at all |

The paper names no step counts; the full budget of a task is that of HARL's HASAC (docs/experiments.md). Costs at full
scale are from [calibration.json](calibration.json) ({{calibrated}}) and, of kinds that are not in it, from the wall time of
finished runs here (on several machines, some with `--matmul-precision medium`, up to 1.7 times as fast); "about": runs of kinds that were not measured count like the mean of the measured ones beside them.
[docs/reproduce.md](../docs/reproduce.md) has the commands.
"""  # noqa: E501


def report(evidence: Evidence) -> str:
    """The text of REPORT.md."""
    verdicts, sections, far = [], [], []
    for number, claim in enumerate(CLAIMS, 1):
        pairs = [(t, o) for t in claim.tasks for o in claim.others]
        cells = [cell for task, other in pairs if (cell := cell_of(claim, task, other, evidence))]
        small = small_cells(claim, evidence)
        total = price(runs_for(claim), evidence.rates)
        verdict = judge(claim, cells, len(pairs), total)
        verdicts.append(verdict)
        far.append("; ".join(filter(None, [so_far(cells), so_far(small) and f"small networks: {so_far(small)}"])))
        sections.append(section(number, claim, cells, small, len(pairs), total, verdict))
    count = Counter(re.split(" at ", verdict)[0] for verdict in verdicts)
    summary = ", ".join(f"{count[name]} {name}" for name in sorted(count))
    rows = [
        f"| [{n}](#claim-{n}) | {c.text} | {c.where} | **{v}** | {f} |"
        for n, (c, v, f) in enumerate(zip(CLAIMS, verdicts, far), 1)
    ]
    table = "\n".join(["| | claim | where | verdict | comparisons so far |", "|---|---|---|---|---|", *rows])
    body = [HEAD.format(calibrated=evidence.calibrated), f"**{len(CLAIMS)} claims: {summary}.**", table, *sections]
    study = ["## Readings study", studies.text(evidence)]
    return "\n\n".join([*(part.strip() for part in body), *study, "## Runs", runs_table(evidence)]) + "\n"


def small_cells(claim: Claim, evidence: Evidence) -> list[Cell]:
    """A claim on the tasks of its affordable suite, with the networks of that."""
    if not claim.small:
        return []
    within, tasks = evidence.within(claim.small), [t for group in SUITES[claim.small].groups for t in group.tasks]
    there = dataclasses.replace(claim, tasks=tuple(dict.fromkeys(tasks)))
    return [cell for each in product(there.tasks, there.others) if (cell := cell_of(there, *each, within))]


def so_far(cells: Sequence[Cell]) -> str:
    """How many comparisons are on which side; those of single runs do not count."""
    words: Counter[str] = Counter()
    for cell in cells:
        if not cell.single:
            words[cell.side if cell.enough else cell.side + "*"] += 1
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def cells_table(cells: Sequence[Cell]) -> list[str]:
    lines = ["| task | pair | runs | at step | outcome | |", "|---|---|---|---|---|---|"]
    for cell in cells:
        budget = f"{cell.steps:,} of {TASKS[cell.task].steps:,}" if cell.steps else ""
        lines.append(
            f"| {task_label(cell.task)} | {cell.pair} | {cell.runs} | {budget} | {cell.outcome} | {cell.said} |"
        )
    return [*lines, ""]


def section(
    number: int,
    claim: Claim,
    cells: Sequence[Cell],
    small: Sequence[Cell],
    wanted: int,
    total: Price,
    verdict: str,
) -> str:
    """One claim."""
    lines = [f"## Claim {number}", "", f"{claim.text} ({claim.where})", ""]
    if isinstance(claim.rule, Shown):
        return "\n".join([*lines, f"**{verdict}**: {claim.rule.text}; `{claim.rule.test}`."])
    lines += [f"Rule: {' '.join((type(claim.rule).__doc__ or '').split())}", ""]
    lines += cells_table(cells) if cells else []
    if len(cells) < wanted:
        where = ", ".join(map(task_label, claim.tasks)) if len(claim.tasks) < 5 else f"the {len(claim.tasks)} tasks"
        pairs = f"of {claim.ours} against {', '.join(claim.others)} on {where}"
        lines += [f"{wanted - len(cells)} of {wanted} comparisons {pairs} have no runs yet.", ""]
    if claim.small:
        variants = dict.fromkeys(("his", claim.ours, *claim.others))
        wording = f"`python -m experiments.run {claim.small} --variants {' '.join(variants)}`"
        nothing = "" if small else " nothing ran yet."
        lines += [f"With small networks ({wording}; it counts for no verdict):{nothing}", ""]
        lines += cells_table(small) if small else []
        if small and isinstance(claim.rule, (Fails, Alike)):
            lines += ["What untrained policies earn is that of the paper's networks, here too.", ""]
    lines.append(f"**{verdict}**")
    if total.runs:
        commands = [command(suite, claim) for suite in claim.suites]
        scale = "Full scale" if claim.suites[0].startswith("fig") else "Not at full scale"
        lines[-1] += f". {scale}: {total}: " + "; ".join(f"`{each}`" for each in commands)
    return "\n".join(lines)


def command(suite: str, claim: Claim) -> str:
    """How the runs of a claim in a suite are started."""
    groups = SUITES[suite].groups
    tasks = [task for task in claim.tasks if any(task in group.tasks for group in groups)]
    variants = [v for v in (claim.ours, *claim.others) if any(v in group.variants for group in groups)]
    chosen = ["--tasks", *tasks] if set(tasks) != {task for group in groups for task in group.tasks} else []
    seeds = [] if min(len(group.seeds) for group in groups) >= MIN_RUNS else ["--seeds", str(MIN_RUNS)]
    return " ".join(["python -m experiments.run", suite, *chosen, "--variants", *variants, *seeds])


def runs_table(evidence: Evidence) -> str:
    """The runs that results/ holds."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for run in evidence.runs:
        state = run["finished"]["global_step"] if run.get("finished") else None
        word = "stopped, not finite" if run.get("nonfinite") else "unfinished"
        steps = f"{state:,}" if state else f"{word}, of {run['args']['total_timesteps']:,}"
        words = shlex.split(run["command"])
        if "--seed" in words:
            words[words.index("--seed") + 1] = "S"
        args, resumed = run["args"], [session["git_commit"] for session in run.get("resumed", [])]
        key = (
            task_label(args["scenario"], args.get("sim", "mujoco")),
            variant_of(run),
            steps,
            ", ".join(dict.fromkeys(short(commit) for commit in [run["git_commit"], *resumed])),
            shlex.join(words),
        )
        groups.setdefault(key, []).append(str(run["seed"]))
    lines = ["| task | variant | seeds S | steps | commit | command |", "|---|---|---|---|---|---|"]
    for (task, variant, steps, commit, words), seeds in groups.items():
        lines.append(f"| {task} | {variant} | {', '.join(seeds)} | {steps} | {commit} | `{words}` |")
    return "\n".join(lines)


def figures_table(evidence: Evidence) -> str:
    """The table of docs/reproduce.md: what a figure takes, what we ran of it."""
    lines = ["| suite | shows | run it | full scale | what we ran |", "|---|---|---|---|---|"]
    for name in FIGURES:
        suite = SUITES[name]
        runs = expand(suite)
        cells = {(run.scenario, name_in_results(run), run.seed) for run in runs}
        done: dict[str, list[str]] = {}
        for (task, variant), found in evidence.curves.items():
            if curves := [curve for curve in found if (task, variant, curve.seed) in cells]:
                short = f"{task_label(task)} to step {min(int(curve.steps[-1]) for curve in curves):,}"
                variant, _, values = variant.partition(" ")
                done.setdefault(f"{short} with {values}" if values else short, []).append(f"{variant} ({len(curves)})")
        ours = "; ".join(f"{task}: {', '.join(variants)}" for task, variants in done.items()) or "nothing"
        full = price(runs, evidence.rates)
        start = f"`python -m experiments.run {name}`"
        lines.append(f"| `{name}` | {suite.title} | {start} | {full} | {ours} |")
    return "\n".join(lines)


def between_marks(text: str, table: str) -> str:
    """docs/reproduce.md with a new table."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ReportError(f"docs/reproduce.md has no table between {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def written(root: Path) -> dict[Path, str]:
    """The files that this module keeps, and what should stand in them."""
    evidence, page = gather(root / "results"), root / "docs/reproduce.md"
    return {
        root / "results/REPORT.md": report(evidence),
        page: between_marks(page.read_text(), figures_table(evidence)),
    }


def main() -> int:
    parser = Parser("experiments.report", __doc__)
    parser.parse_args()
    try:
        texts = written(ROOT)
    except FileNotFoundError as error:
        parser.error(f"no {Path(error.filename).relative_to(ROOT)}")
    except ReportError as error:
        parser.error(str(error))
    for path, text in texts.items():
        path.write_text(text)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
