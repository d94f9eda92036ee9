"""`experiments.studies` on runs made by hand: who beats HASAC, and that chance seldom does."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from script_helpers import ROOT

from experiments import curves, report, studies
from experiments.evidence import Evidence, gather, name_in_results
from experiments.scores import Curve, shown
from experiments.suites import SUITES, expand

SECOND = SUITES["readings"]
TASKS = SECOND.groups[0].tasks
SCREENED = dict.fromkeys(
    name for screen in ("readings-screen", "ideas-screen") for name in SUITES[screen].groups[0].variants
)
# The second round as if everything had survived the first.
WIDE = dataclasses.replace(
    SECOND, groups=[dataclasses.replace(SECOND.groups[0], variants=list(SCREENED)), *SECOND.groups[1:]]
)
NAMES = {(run.scenario, run.variant): name_in_results(run) for run in expand(WIDE)}
STEPS = np.array([250_000, 400_000, 500_000])


@pytest.fixture(autouse=True)
def everything_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "readings", WIDE)


def evidence(ends: dict[tuple[str, str, int], float]) -> Evidence:
    """Runs by (task, variant, seed), straight from their final return; -inf: it stopped, not finite."""
    curves: dict[tuple[str, str], list[Curve]] = {}
    lost: dict[tuple[str, str], list[Curve]] = {}
    for (task, variant, seed), end in ends.items():
        name = NAMES[task, variant]
        curve = Curve(task, name, seed, STEPS, np.array([end - 2, end - 1, end]), 500_000, end > -np.inf)
        (curves if curve.finished else lost).setdefault((task, name), []).append(curve)
    return Evidence(curves, [], {}, "", {}, {}, lost)


def ends_of(shifts: dict[str, float], tasks: Sequence[str], seeds: tuple[int, ...] = (11, 12, 13)) -> dict:
    """Returns of `none` 0, 1, 2 by seed, of another variant as much higher as it is shifted; task i times 10**i."""
    return {
        (task, variant, seed): 10.0**i * (seed - 11 + shift)
        for i, task in enumerate(tasks)
        for variant, shift in ({"none": 0.0} | shifts).items()
        for seed in seeds
    }


def second_round(given: Evidence) -> str:
    """As if of everything the variants that have runs, and no others, had survived."""
    within = given.within("readings")
    names = {name for _, name in [*within.curves, *within.lost]}
    group = dataclasses.replace(WIDE.groups[0], variants=[name for name in SCREENED if name in names])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "readings", dataclasses.replace(WIDE, groups=[group, *WIDE.groups[1:]]))
        return studies.second_round(given)


def row(text: str, variant: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {variant} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_within_a_suite_runs_have_its_names_and_seeds() -> None:
    given = evidence(ends_of({"his": 1.0}, TASKS[:1]) | {(TASKS[0], "his", 1): 9.0})
    papers = {(TASKS[0], "none"): list(given.curves.values())[0][:1]}
    given = dataclasses.replace(given, curves={**given.curves, **papers})
    within = given.within("readings").curves
    assert set(within) == {(TASKS[0], "his"), (TASKS[0], "none")}
    assert [curve.seed for curve in within[TASKS[0], "his"]] == [11, 12, 13]
    assert len(within[TASKS[0], "none"]) == 3, "a run with the paper's networks is none of them"
    longer = dataclasses.replace(given.curves[TASKS[0], NAMES[TASKS[0], "his"]][0], total=2_000_000)
    other = dataclasses.replace(given, curves={(TASKS[0], longer.variant): [longer]})
    assert other.within("readings").curves == {}, "a longer run is none of the suite"
    assert [curve.seed for curve in given.within("readings-screen").curves[TASKS[0], "his"]] == [1]
    more = evidence({(TASKS[0], "his", seed): 0.0 for seed in (1, 4, 11, 14, 20, 21)})
    assert [curve.seed for curve in more.within("readings").curves[TASKS[0], "his"]] == [11, 14, 20], "--seeds 10"
    assert [curve.seed for curve in more.within("ablations").curves[TASKS[0], "his"]] == [11, 14, 20]
    assert [curve.seed for curve in more.within("readings-screen").curves[TASKS[0], "his"]] == [1]


def test_a_run_that_stopped_is_the_last_and_not_missing() -> None:
    """Nine of its fifteen runs end above HASAC, six stop: without these it would beat it."""
    ends = ends_of({"idea-half": 5.0}, list(TASKS))
    ends |= {(task, "idea-half", seed): -np.inf for task in TASKS[:3] for seed in (11, 12)}
    cells = row(second_round(evidence(ends)), "idea-half")
    assert cells[1] == "15, 6 stopped: not finite" and cells[2].startswith("0.60")
    assert cells[5:8] == ["stopped"] * 3 and cells[8] == shown(5000.0)
    assert cells[-1] == "no difference shown"
    without = {key: end for key, end in ends.items() if end > -np.inf}
    assert row(second_round(evidence(without)), "idea-half")[-1] == "6 pairs to come", "pairs only"


def test_a_run_folder_with_a_non_finite_batch_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder that a script leaves with status 3, through runs.json, to the evidence."""
    (run,) = expand(WIDE, tasks=["simple_spread"], variants=["floor-none"])[:1]
    args = {"scenario": "simple_spread", "seed": 11, "credit": "his", "run_name": "floor-none", "rules": "mpe2"}
    args |= {name: list(value) if isinstance(value, tuple) else value for name, value in run.settings.items()}
    for name in ("stopped", "running"):
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "args": args | {"seed": 11 + (name == "running")},
            "command": "python his_mpe.py",
            "script": "his_mpe",
        }
        config["args"]["total_timesteps"] = 500_000
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "eval.csv").write_text("global_step,episode,return,length\n10000,0,-90.0,25\n")
    (tmp_path / "stopped/nonfinite_batch.pt").touch()
    runs, _ = curves.collect([tmp_path / "stopped", tmp_path / "running"])
    assert [run.get("nonfinite", False) for run in runs] == [True, False]
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results, ignore=shutil.ignore_patterns("*.png", "*.gif"))
    argv = ["curves", str(tmp_path / "stopped"), str(tmp_path / "running"), "--out", str(results / "new")]
    monkeypatch.setattr("sys.argv", argv)
    assert curves.main() == 0
    found = gather(results).within("readings")
    assert [curve.seed for curve in found.lost["simple_spread", "floor-none"]] == [11]
    assert ("simple_spread", "floor-none") not in found.curves


def test_some_are_held_against_hasac_with_the_same_change() -> None:
    ends = ends_of({"frequency-1": 5.0, "none-frequency-1": 5.0, "his": 5.0}, list(TASKS))
    text = second_round(evidence(ends))
    assert row(text, "frequency-1 (against none-frequency-1)")[-1] == "no difference shown"
    assert row(text, "his")[-1] == "**beats HASAC**" and "none-frequency-1 |" not in text.split("|---")[0]
    assert "0.05 / 2" in text, "a control is no variant"


def test_longer_runs_are_told_where_both_ran() -> None:
    ends = ends_of({"his": 1.0}, list(TASKS))
    given = evidence(ends)
    long = {}
    for name, end in (("his-long", 3000.0), ("none-long", 4000.0)):
        curve = Curve(
            "HalfCheetah-2x3", NAMES["HalfCheetah-2x3", name], 11, STEPS * 4, STEPS * 0 + end, 2_000_000, True
        )
        long["HalfCheetah-2x3", curve.variant] = [curve]
    text = second_round(dataclasses.replace(given, curves={**given.curves, **long}))
    assert "HalfCheetah-2x3, 2,000,000 steps: HIS ends at 3000, HASAC at 4000." in text
    assert "2,000,000" not in second_round(given)


def test_who_beats_hasac() -> None:
    shifts = {"idea-half": 5.0, "his": -5.0, "coef-half": 0.1}
    text = second_round(evidence(ends_of(shifts, list(TASKS))))
    assert row(text, "idea-half")[1:4] == ["15", "1.00 [1.00, 1.00]", "6.1e-05"]  # 2 / 2**15
    assert row(text, "idea-half")[-1] == "**beats HASAC**" and row(text, "his")[-1] == "**is beaten**"
    assert row(text, "coef-half")[-1] == "no difference shown"
    assert row(text, "idea-half")[5] == "5.00" and row(text, "idea-half")[6] == "50.0"
    order = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert order == ["idea-half", "coef-half", "his"]
    assert "**idea-half** clearly beats HASAC" in text and "0.05 / 3" in text and "runs are in" not in text
    some = ends_of({"idea-half": 5.0}, list(TASKS)) | ends_of({"his": -5.0}, TASKS[:1])
    text = second_round(evidence(some))
    assert "**idea-half** clearly beats HASAC" in text and text.endswith("33 of 45 runs are in.")
    assert row(text, "his")[-1] == "12 pairs to come" and "0.05 / 2" in text, "the one that has not run counts, too"


def test_by_hand_on_one_task() -> None:
    """Seeds 11 to 13 end at 0, 1, 2, the variant's at 0.5, 1.5, 2.5: 6 of 9 pairs are above."""
    found = studies.outcome("his", evidence(ends_of({"his": 0.5}, TASKS[:1])).within("readings"))
    assert found is not None
    assert found.probability[0] == pytest.approx(6 / 9) and found.half == pytest.approx(6 / 9)
    assert found.differences == {TASKS[0]: pytest.approx(0.5)} and found.runs == {TASKS[0]: 3}
    assert found.p_value == pytest.approx(0.25)  # above with each of three seeds: 2 / 2**3


@pytest.mark.parametrize("tasks, seeds, left", [(3, (11, 12, 13), 6), (5, (11, 12), 5), (5, (11, 12, 14), 5)])
def test_nobody_beats_hasac_before_all_runs_are_in(tasks: int, seeds: tuple[int, ...], left: int) -> None:
    text = second_round(evidence(ends_of({"his": 50.0}, list(TASKS[:tasks]), seeds)))
    assert row(text, "his")[-1] == f"{left} pairs to come" and "**No verdict yet**" in text
    assert text.endswith(f"{30 - 2 * left} of 30 runs are in.")


def test_nobody_beats_hasac_when_none_does() -> None:
    text = second_round(evidence(ends_of({"his": 0.0}, list(TASKS))))
    assert "**None of them** clearly beats HASAC" in text and "runs are in" not in text


def test_the_best_of_many_does_not_win_by_chance() -> None:
    """30 studies of ten variants that are HASAC in disguise: at most two may find a winner."""
    rng, winners = np.random.default_rng(1), 0
    variants = [name for name in SCREENED if name.startswith("idea-")][:10]
    for _ in range(30):
        ends = {key: float(rng.normal()) for key in ends_of(dict.fromkeys(variants, 0.0), list(TASKS))}
        winners += "**beats HASAC**" in second_round(evidence(ends))
    assert len(variants) == 10 and winners <= 2


def test_without_runs_it_says_how_to_make_them() -> None:
    assert "has not run: `python -m experiments.run readings" in second_round(evidence({}))
    assert studies.first_round(evidence({})) == "Round 1 has not run."


def test_the_screen_is_sorted_and_has_finished_runs_only() -> None:
    ends = {"his": -47.0, "none": -38.0, "idea-half": -37.0}
    given = evidence({(TASKS[0], name, 1): end for name, end in ends.items()})
    lines = [line for line in studies.first_round(given).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].strip("| *") for line in lines[1:]] == ["idea-half", "HASAC (`--credit none`)", "HIS"]
    assert lines[1] == "| idea-half | -37.0 |"
    stopped = Curve(TASKS[0], NAMES[TASKS[0], "floor-none"], 1, np.array([50_000]), np.array([-90.0]), 500_000, False)
    text = studies.first_round(dataclasses.replace(given, lost={(TASKS[0], stopped.variant): [stopped]}))
    assert text.splitlines()[-1] == "| floor-none | stopped at 50,000, not finite |"


def test_a_claim_is_tried_with_small_networks_too() -> None:
    small = {run.variant: name_in_results(run) for run in expand(SUITES["ablations"], tasks=["HalfCheetah-6x1"])}
    curves = {}
    for variant, end in (("his", 10.0), ("no-bc", 4.0), ("M5", 15.0)):
        steps, total = (STEPS, 500_000) if variant == "his" else (STEPS[:1], 250_000)
        lines = [
            Curve(
                "HalfCheetah-6x1", small[variant], seed, steps, np.array([end, 0, 0])[: len(steps)] + seed, total, True
            )
            for seed in (11, 12, 13)
        ]
        curves["HalfCheetah-6x1", small[variant]] = lines
    given = Evidence(curves, [], {}, "", {}, {"HalfCheetah-6x1": 0.0})
    found = {}
    for one in report.CLAIMS:
        for cell in report.small_cells(one, given):
            found.setdefault((cell.pair, type(one.rule).__name__), []).append((cell.task, cell.side, cell.said))
    few = "too few runs ({})".format
    # HIS at step 250,000, where the others end.
    assert found["his against no-bc", "Ahead"] == [("HalfCheetah-6x1", "for", few("for the claim so far"))]
    # The paper has M = 1 on this task: HIS is what M = 5 is held against.
    assert found["M5 against M1", "Ahead"] == [("HalfCheetah-6x1", "for", few("for the claim so far"))]
    assert {pair for pair, _ in found} == {"his against no-bc", "M5 against M1", "M1 against M5"}
    assert report.so_far([cell for one in report.CLAIMS for cell in report.small_cells(one, given)]).count("*") == 2
