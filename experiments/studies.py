"""The readings study: does a reading of the paper, or a change of HIS, beat HASAC with HIS's values? For REPORT.md.

The first round screens with one seed and decides nothing. The second has fresh seeds and tasks that the screening has
not seen; a variant beats HASAC where both hold: the 95 % interval of the probability of improvement over tasks and
seeds lies above 1/2, and the exact test that swaps the two runs of each seed rejects at 0.05 / (number of variants
tried), so that the best of many does not win by chance. Nothing is said of a variant before all of its runs and its
control's are in: who looks after every task finds a winner by chance more often than that level says. A run that
stopped because something was not finite is the last of its task; it must not vanish, or its variant would be judged by
the runs that it did not ruin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.stats import improvement_interval, paired_p_value, probability_of_improvement
from experiments.evidence import Evidence
from experiments.scores import Curve, final, last_half, shown
from experiments.suites import CONTROLS, SUITES, VARIANTS, Group, task_label

CONTROL = "none"
LONG = ("his-long", "none-long")
ASIDE = (CONTROL, *CONTROLS.values(), *LONG)
SCREENS = ("readings-screen", "ideas-screen")


@dataclass(frozen=True)
class Outcome:
    """A variant against HASAC with HIS's values, over the tasks and seeds that both ran."""

    variant: str
    runs: Mapping[str, int]  # by task: seeds that both have
    missing: int  # tasks and seeds of the round that they do not both have
    lost: int  # of these runs of the variant: stopped, not finite
    probability: tuple[float, float, float]  # P(a run of the variant ends above one of HASAC), 95 % interval
    p_value: float  # of the exact paired test
    half: float  # the same probability for the mean of the second half
    differences: Mapping[str, float]  # by task: difference of the mean final returns

    def verdict(self, tried: int) -> str:
        """Whether it beats HASAC, with `tried` variants in the same round."""
        _, low, high = self.probability
        if self.missing:
            return f"{self.missing} pairs to come"
        if self.p_value < 0.05 / tried and (low > 0.5 or high < 0.5):
            return "**beats HASAC**" if low > 0.5 else "**is beaten**"
        return "no difference shown"


def second() -> Group:
    """The second round without its longer runs."""
    return SUITES["readings"].groups[0]


def outcome(variant: str, evidence: Evidence) -> Outcome | None:
    """Against its control; None where they have no task and seed in common."""
    control = CONTROLS.get(variant, CONTROL)
    ones, others, halves, differences, runs, lost = [], [], [], {}, {}, 0
    wanted = {(task, seed) for task in second().tasks for seed in second().seeds}
    for task in dict.fromkeys(task for task, name in [*evidence.curves, *evidence.lost] if name == variant):
        sides = []
        for name in (variant, control):
            found = {curve.seed: None for curve in evidence.lost.get((task, name), ())}
            sides.append(found | {curve.seed: curve for curve in evidence.curves.get((task, name), ())})
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if not seeds:
            continue
        pairs = [[side[seed] for seed in seeds] for side in sides]
        last = int(min([curve.steps[-1] for side in pairs for curve in side if curve], default=0))
        end, half = (
            [np.array([score(curve, last) if curve else -np.inf for curve in side]) for side in pairs]
            for score in (final, last_half)
        )
        ones.append(end[0])
        others.append(end[1])
        halves.append(half)
        lost += sum(curve is None for curve in pairs[0])
        differences[task] = float(end[0].mean() - end[1].mean()) if np.isfinite(end).all() else float("nan")
        runs[task] = len(seeds)
        wanted -= {(task, seed) for seed in seeds}
    if not runs:
        return None
    half = float(np.mean([probability_of_improvement(mine, theirs) for mine, theirs in halves]))
    found = improvement_interval(ones, others)
    return Outcome(variant, runs, len(wanted), lost, found, paired_p_value(ones, others), half, differences)


def second_round(evidence: Evidence) -> str:
    """A table of what ran of the suite `readings`, and what it says."""
    evidence = evidence.within("readings")
    found = [each for name in VARIANTS if name not in ASIDE and (each := outcome(name, evidence))]
    if not found:
        return "Round 2 has not run: `python -m experiments.run readings`."
    tried = sum(name not in ASIDE for name in second().variants)
    tasks = [task for task in second().tasks if any(task in each.runs for each in found)]
    head = ["variant", "pairs of runs", "P(ends above HASAC)", "p", "P, second half", *map(task_label, tasks), ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in sorted(found, key=lambda each: -each.probability[0]):
        middle, low, high = each.probability
        cells = ["" if task not in each.runs else shown_difference(each.differences[task]) for task in tasks]
        name = each.variant + (f" (against {CONTROLS[each.variant]})" if each.variant in CONTROLS else "")
        number = f"{sum(each.runs.values())}" + (f", {each.lost} stopped: not finite" if each.lost else "")
        words = [name, number, f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
        words += [f"{each.p_value:.2g}", f"{each.half:.2f}", *cells, each.verdict(tried)]
        lines.append(f"| {' | '.join(words)} |")
    beating = [each.variant for each in found if "beats" in each.verdict(tried)]
    wanted = {(t, v, seed) for t in second().tasks for v in second().variants for seed in second().seeds}
    there = {(*cell, run.seed) for runs in (evidence.curves, evidence.lost) for cell in runs for run in runs[cell]}
    ran = f" {len(wanted & there)} of {len(wanted)} runs are in." if wanted - there else ""
    verb = "beat" if len(beating) > 1 else "beats"
    said = f"**{' and '.join(beating)}** clearly {verb} HASAC" if beating else "**None of them** clearly beats HASAC"
    if ran and not beating:
        said = "**No verdict yet** on which of them beats HASAC"
    return "\n".join(
        [
            "Round 2, fresh seeds (`python -m experiments.run readings`), sorted by the probability that a run ends"
            " above one of HASAC with HIS's values (`--credit none`); by task the difference of the mean final"
            " returns:",
            "",
            *lines,
            "",
            f"{said} (the interval above 1/2, and the exact test that swaps the two runs of a seed below 0.05 /"
            f" {tried}, the number of variants; of a variant when all its runs and HASAC's are in).{ran}",
            *longer(evidence),
        ]
    )


def shown_difference(value: float) -> str:
    """A difference of returns, or that a run has none."""
    return shown(value) if np.isfinite(value) else "stopped"


def longer(evidence: Evidence) -> list[str]:
    """What the longer runs of the suite say, where both have run: lines to append."""
    said = []
    for task in SUITES["readings"].groups[1].tasks:
        ends = []
        for name in LONG:
            curves = evidence.curves.get((task, name), ())
            ends += [", ".join(shown(final(curve, int(curve.steps[-1]))) for curve in curves)] if curves else []
        if len(ends) == len(LONG):
            total = SUITES["readings"].groups[1].steps
            said.append(f"{task_label(task)}, {total:,} steps: HIS ends at {ends[0]}, HASAC at {ends[1]}.")
    return ["", *said] if said else []


def first_round(evidence: Evidence) -> str:
    """The final returns of the screens, the best on the first task above."""
    curves: dict[tuple[str, str], Sequence[Curve]] = {}
    lost: dict[tuple[str, str], Sequence[Curve]] = {}
    for suite in SCREENS:
        curves |= evidence.within(suite).curves
        lost |= evidence.within(suite).lost
    tasks = [task for task in SUITES[SCREENS[0]].groups[0].tasks if any(key[0] == task for key in curves)]
    if not tasks:
        return "Round 1 has not run."
    ends = {key: final(runs[0], int(runs[0].steps[-1])) for key, runs in curves.items()}
    words = {key: f"stopped at {int(runs[0].steps[-1]):,}, not finite" for key, runs in lost.items()}
    words |= {key: shown(end) for key, end in ends.items()}
    names = sorted({name for _, name in words}, key=lambda name: [-ends.get((task, name), -np.inf) for task in tasks])
    lines = [f"| variant | {' | '.join(map(task_label, tasks))} |", "|---" * (len(tasks) + 1) + "|"]
    for name in names:
        cells = [words.get((task, name), "") for task in tasks]
        label = {"his": "**HIS**", CONTROL: "**HASAC (`--credit none`)**", "local": "HIS-LOCAL (`--credit local`)"}.get(
            name, name
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "Round 1, the screens: final return, one seed (`python -m experiments.run"
            " readings-screen` and `ideas-screen`; what each is: [docs](../docs/experiments.md#variants)). One run"
            " each: small differences mean nothing, and the best of many is too good.",
            "",
            *lines,
        ]
    )


def text(evidence: Evidence) -> str:
    """Both rounds."""
    small = (
        "Which reading of the paper, or which change of HIS, beats HASAC with HIS's values? Two hidden layers of 128,"
        " batches of 256, 500,000 steps; that they show what the paper's networks show was checked on simple_spread"
        " with seed 1 only. What the first round showed and why: [README](README.md#readings-study-first-runs)."
    )
    return "\n\n".join([small, second_round(evidence), first_round(evidence)])
