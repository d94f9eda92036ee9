"""`experiments.report`: the committed report is up to date; its rules on curves made by hand; its data."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import stats
from experiments import claims, cost, curves, report
from experiments.claims import CLAIMS, Ahead, Alike, Claim, Dearer, Fails, Shown, Sooner
from experiments.evidence import rates_of
from experiments.report import Cell, Evidence, Price, cell_of, judge, price, runs_for
from experiments.scores import Curve, variant_of
from experiments.suites import SUITES, TASKS, expand

ROOT = Path(__file__).resolve().parent.parent
STEPS = np.arange(1, 11) * 1_000_000
TASK = "HalfCheetah-6x1"
NOISE = (-2.0, -1.0, 0.0, 1.0, 2.0)


def evidence(**variants: Any) -> Evidence:
    """Runs on TASK of full length, by variant ("_" is "-"); a list of curves, one a run."""
    curves = {
        (TASK, name.replace("_", "-")): [
            Curve(TASK, name, seed, STEPS[: len(returns)], np.array(returns, float), int(STEPS[len(returns) - 1]), True)
            for seed, returns in enumerate(runs, 1)
        ]
        for name, runs in variants.items()
    }
    return Evidence(curves, [], {}, "", {}, {TASK: 0.0})


def ramp(end: float, noise: tuple[float, ...] = NOISE, length: int = 10, start: float = 0.0) -> list[list[float]]:
    """Straight lines from `start` to about `end`."""
    return [list(np.linspace(start, end + shift, length)) for shift in noise]


def claim(rule: Any, ours: str = "his", other: str = "none", tasks: int = 1) -> Claim:
    return Claim("", "", rule, (TASK,) * tasks, (other,), ours, ("fig5",))


def verdict(rule: Any, given: Evidence, ours: str = "his", other: str = "none") -> tuple[str, str]:
    one = claim(rule, ours, other)
    cell = cell_of(one, TASK, other, given)
    assert cell is not None
    return judge(one, [cell], 1, Price(1, 1, 1, 1.0, 1.0)), cell.outcome


# ---- the committed files


def test_the_report_is_up_to_date() -> None:
    for path, text in report.written(ROOT).items():
        assert path.read_text() == text, f"{path.name} is not up to date: python -m experiments.report"


def test_a_new_run_changes_the_report(tmp_path: Path) -> None:
    """What the test above compares with depends on what lies in results/."""
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".json", ".csv"):
            target = tmp_path / path.relative_to(ROOT / "results")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = report.report(report.gather(tmp_path))
    assert before == (ROOT / "results/REPORT.md").read_text()
    path = tmp_path / "mamujoco/runs.json"
    runs = json.loads(path.read_text())
    gone = runs.pop()
    path.write_text(json.dumps(runs))
    given = report.gather(tmp_path)
    assert report.report(given) != before
    key = gone["args"]["scenario"], variant_of(gone)
    assert gone["seed"] not in [curve.seed for curve in given.curves.get(key, ())]


def test_the_report_and_the_collected_tables_agree() -> None:
    """`experiments.curves` comes to the same difference by another way."""
    with open(ROOT / f"results/mamujoco/{TASK}.csv", newline="") as file:
        table = curves.comparison(curves.curves(list(csv.DictReader(file))), {})
    (line,) = [line for line in table.splitlines() if line.startswith("| HIS - HASAC")]
    cell = cell_of(claim(Ahead()), TASK, "none", report.gather(ROOT / "results"))
    assert cell is not None and cell.outcome.removeprefix("difference ") in line
    (line,) = [line for line in table.splitlines() if line.startswith("| the same, seed by seed")]
    cell = cell_of(claim(Ahead(paired=True)), TASK, "none", report.gather(ROOT / "results"))
    assert cell is not None and cell.outcome.removeprefix("paired difference ").partition(",")[0] in line


# ---- rules


def test_ahead() -> None:
    said, outcome = verdict(Ahead(), evidence(his=ramp(20), none=ramp(10)))
    assert said == "confirmed" and outcome.startswith("difference 10.0 [7.")
    assert verdict(Ahead(), evidence(his=ramp(10), none=ramp(20)))[0] == "refuted"
    assert verdict(Ahead(), evidence(his=ramp(10.5), none=ramp(10)))[0] == "undecided"
    level, late = ramp(10, start=10), [[*run[:5], *np.array(run[5:]) + 9] for run in ramp(10, start=10)]
    assert verdict(Ahead("last half"), evidence(his=late, none=level))[0] == "confirmed"


def test_ahead_seed_by_seed() -> None:
    """Runs that differ much between seeds, and by 1 to 2 within each: only the paired rule sees it."""
    wide = (-20.0, -10.0, 0.0, 10.0, 20.0)
    mine, theirs = ramp(12, tuple(np.add(wide, (0.0, 0.5, 1.0, 0.5, 0.0)))), ramp(11, wide)
    assert verdict(Ahead(), evidence(his=mine, none=theirs))[0] == "undecided"
    said, outcome = verdict(Ahead(paired=True), evidence(his=mine, none=theirs))
    assert said == "confirmed" and outcome.startswith("paired difference 1.40 [") and "above on 5 of 5 seeds" in outcome
    assert verdict(Ahead(paired=True), evidence(his=theirs, none=mine))[0] == "refuted"


def test_steadier() -> None:
    calm = [[5.0] * 5 + [10, 10 + s, 10, 10 - s, 10] for s in (0.1, 0.2, 0.3, 0.2, 0.1)]
    wild = [[5.0] * 5 + [10, 10 + s, 10, 10 - s, 10] for s in (5.0, 4, 6, 5, 5)]
    assert verdict(Ahead("unsteadiness"), evidence(his=calm, none=wild))[0] == "confirmed"
    assert verdict(Ahead("unsteadiness"), evidence(his=wild, none=calm))[0] == "refuted"
    learning = [[5.0] * 5 + [step + 10 * i for i, step in enumerate(run[5:])] for run in calm]
    assert (
        verdict(Ahead("unsteadiness"), evidence(his=learning, none=wild))[0] == "confirmed"
    )  # a slope is not unsteady


def test_sooner() -> None:
    """Level 10 (the IQM of the other's ends): at 4 to 5 million steps against 10 million or never."""
    said, outcome = verdict(Sooner(), evidence(his=ramp(25), none=ramp(10)))
    assert said == "confirmed" and outcome == "P(sooner at 10.0) 1.00; 5 of 5 and 3 of 5 runs reach it"
    assert verdict(Sooner(), evidence(his=ramp(8), none=ramp(10, noise=(0.0,) * 5)))[0] == "refuted"
    assert verdict(Sooner(), evidence(his=ramp(10), none=ramp(10)))[0] == "undecided"


def test_few_runs_are_not_for_a_claim_because_a_bootstrap_is_too_sure() -> None:
    """Two runs well above two: no resampling mixes them, yet Welch's interval holds 0, and so it is open."""
    given = evidence(his=ramp(12, (0.0, 1.0)), none=ramp(10, (0.0, 1.0)))
    cell = cell_of(claim(Ahead()), TASK, "none", given)
    assert cell is not None and cell.side == "open"
    assert cell.outcome.startswith("difference 2.00 [1.00, 3.00], at 95 % [-1.04, 5.04]")
    far = cell_of(claim(Ahead()), TASK, "none", evidence(his=ramp(30, (0.0, 1.0)), none=ramp(10, (0.0, 1.0))))
    assert far is not None and far.side == "for"
    cell = cell_of(claim(Sooner()), TASK, "none", evidence(his=ramp(25, (0.0,) * 3), none=ramp(10, (0.0,) * 3)))
    assert cell is not None and cell.side == "open" and "rank test p 0.1" in cell.outcome
    near = evidence(his=ramp(100, (0.0, 1.0)), none=ramp(92, (0.0, 3.0)))
    cell = cell_of(claim(Alike(share=0.15)), TASK, "none", near)
    assert cell is not None and cell.side == "open", "within 15 % by the bootstrap, not by Welch's interval"


def stopped(given: Evidence, variant: str, *runs: list[float]) -> Evidence:
    """With runs of a variant that ended themselves."""
    lost = [
        Curve(TASK, variant, seed, STEPS[: len(run)], np.array(run, float), int(STEPS[-1]), False)
        for seed, run in enumerate(runs, 6)
    ]
    return dataclasses.replace(given, lost={(TASK, variant): lost})


def test_a_run_that_stopped_counts_with_its_last_evaluation() -> None:
    """Three of eight runs of the variant are ruined: against the other five alone HIS would be behind."""
    given = evidence(his=ramp(10), none=ramp(14))
    assert verdict(Ahead(), given)[0] == "refuted"
    ruined = stopped(given, "none", [0, -50], [0, -60], [-70])
    said, outcome = verdict(Ahead(), ruined)
    assert said == "undecided" and outcome.endswith("; 0 and 3 stopped, not finite: with their last evaluation")
    cell = cell_of(claim(Ahead()), TASK, "none", ruined)
    assert cell is not None and cell.runs == "5 and 8" and cell.steps == STEPS[-1], "the others' steps"
    assert verdict(Ahead("last half"), ruined)[0] == "undecided"
    assert verdict(Ahead("unsteadiness"), ruined) == verdict(Ahead("unsteadiness"), given)
    one = stopped(evidence(his=ramp(20), none=ramp(10, (0.0,) * 5)), "none", [0, -50])
    assert "5 of 5 and 5 of 6 runs reach it" in verdict(Sooner(), one)[1]
    # Nothing of a variant survives: it has failed, and is not missing.
    none_left = stopped(evidence(his=ramp(100)), "none", *[[0.0, -50 - seed] for seed in range(5)])
    assert verdict(Fails(), none_left)[0] == "confirmed"
    assert cell_of(claim(Fails()), TASK, "none", stopped(evidence(), "none", [0.0])) is None


def test_fails() -> None:
    """HIS goes from 0 to 100: effective is above 20."""
    assert verdict(Fails(), evidence(his=ramp(100), none=ramp(10)))[0] == "confirmed"
    assert verdict(Fails(), evidence(his=ramp(100), none=ramp(60)))[0] == "refuted"
    assert verdict(Fails(), evidence(his=ramp(100), none=ramp(20)))[0] == "undecided"
    said, outcome = verdict(Fails(), evidence(his=ramp(0), none=ramp(-50)))
    assert said == "undecided" and "does not end above untrained policies" in outcome
    late = {name: [run[5:] for run in ramp(end, length=15)] for name, end in (("his", 100), ("none", 10))}
    assert verdict(Fails(), evidence(**late))[0] == "confirmed", "when the first evaluation was does not matter"
    unknown = dataclasses.replace(evidence(**late), untrained={})
    assert cell_of(claim(Fails()), TASK, "none", unknown) is None


def test_alike() -> None:
    """The first is about 78 above untrained policies (mean of the last half): alike within 7.8."""
    assert verdict(Alike(), evidence(his=ramp(100), none=ramp(102)))[0] == "confirmed"
    assert verdict(Alike(), evidence(his=ramp(100), none=ramp(130)))[0] == "refuted"
    assert verdict(Alike(), evidence(his=ramp(100), none=ramp(70)))[0] == "refuted"
    assert verdict(Alike(), evidence(his=ramp(100), none=ramp(110)))[0] == "undecided"


def test_dearer() -> None:
    def times(**milliseconds: float) -> dict[str, Any]:
        return {TASK: {name: {"samples_ms": list(np.array(NOISE) + ms)} for name, ms in milliseconds.items()}}

    for local, expected, ratio in ((60, "confirmed", 1.2), (50.1, "undecided", 1.0), (40, "refuted", 0.8)):
        given = dataclasses.replace(evidence(), updates=times(his=50, local=local))
        said, outcome = verdict(Dearer(), given, other="local")
        assert said == expected and outcome.startswith(f"x {ratio:.2f}: ") and "more than 50.0 ms" in outcome
    given = dataclasses.replace(evidence(), updates=times(his=50, M5=70))
    assert cell_of(claim(Dearer(), other="M5"), TASK, "M5", given) is not None
    assert cell_of(claim(Dearer(), other="local"), TASK, "local", given) is None, "not measured"


def test_a_variant_that_sets_the_papers_value_is_his() -> None:
    given = evidence(his=ramp(20), M5=ramp(10))
    assert given.of(TASK, "M1") == given.of(TASK, "his") == given.of(TASK, "beta10")
    assert given.of(TASK, "M3") == () and given.of(TASK, "none") == () and given.of("Ant-8x1", "M1") == ()
    assert verdict(Ahead(), given, ours="M5", other="M1")[0] == "refuted"
    ruined = stopped(given, "his", [1, 2])
    assert ruined.stopped(TASK, "M1") == ruined.stopped(TASK, "his") != ()
    own = dataclasses.replace(ruined, curves={**given.curves, (TASK, "M1"): given.curves[TASK, "M5"]})
    assert own.of(TASK, "M1") == given.of(TASK, "M5") and own.stopped(TASK, "M1") == (), "not HIS's beside its own"
    own = stopped(given, "M1", [1, 2])
    assert own.of(TASK, "M1") == () and len(own.stopped(TASK, "M1")) == 1


def test_one_of_many_comparisons_needs_a_wider_interval_to_refute() -> None:
    """Alone it refutes; as one of sixty the same five runs do not. What speaks for a claim needs no correction."""
    given = evidence(his=ramp(10), none=ramp(12.7))
    alone, one_of_sixty = (cell_of(claim(Ahead(), tasks=n), TASK, "none", given) for n in (1, 60))
    assert alone is not None and one_of_sixty is not None
    said, _, wider = one_of_sixty.outcome.partition(", at 99.92 % ")
    assert said == alone.outcome and float(wider.strip("[]").split(", ")[1]) > 0
    assert (alone.side, one_of_sixty.side) == ("against", "open")
    given = evidence(his=ramp(12.7), none=ramp(10))
    cells = [cell_of(claim(Ahead(), tasks=n), TASK, "none", given) for n in (1, 60)]
    assert [cell.side for cell in cells if cell] == ["for", "for"]


def test_runs_that_do_not_overlap_are_not_sure_at_every_level() -> None:
    """By chance five runs lie below five others once in 252; a bootstrap would take that for certain."""
    higher, sooner = ramp(14.1), ramp(10, noise=(0.0,) * 5)
    for rule, mine, theirs in ((Ahead(), ramp(10), higher), (Sooner(), ramp(8), sooner)):
        for tasks, side in ((1, "against"), (36, "open")):
            cell = cell_of(claim(rule, tasks=tasks), TASK, "none", evidence(his=mine, none=theirs))
            assert cell is not None and cell.side == side, (rule, tasks, cell)
    assert stats.rank_p_value(np.arange(5.0), np.arange(5.0, 10.0)) == pytest.approx(2 / 252)


def test_a_paired_rule_counts_seeds_that_both_have() -> None:
    given = evidence(his=ramp(20), none=ramp(10))
    moved = [dataclasses.replace(curve, seed=curve.seed + 3) for curve in given.curves[TASK, "none"]]
    for shift, seeds in ((moved, 2), ([dataclasses.replace(c, seed=c.seed + 9) for c in moved], 0)):
        other = dataclasses.replace(given, curves={**given.curves, (TASK, "none"): shift})
        cell = cell_of(claim(Ahead(paired=True)), TASK, "none", other)
        assert cell is not None and not cell.enough
        assert ("of 2 seeds" if seeds else "no seed in common") in cell.outcome


# ---- verdicts


def test_few_runs_decide_nothing_and_the_cost_says_why() -> None:
    given = evidence(his=ramp(20, NOISE[:4]), none=ramp(10))
    one = claim(Ahead())
    cell = cell_of(one, TASK, "none", given)
    assert cell is not None and not cell.enough and cell.said == "too few runs (for the claim so far)"
    cheap, dear = (Price(10, 1, 10, hours, hours) for hours in (300.0, 400.0))
    assert judge(one, [cell], 1, cheap) == "not enough runs" and judge(one, [cell], 1, dear) == "not affordable here"
    assert judge(one, [], 1, Price(10, 1, 0, 0.0, float("nan"))) == "not enough runs"
    single = cell_of(one, TASK, "none", evidence(his=ramp(20, (0.0,)), none=ramp(10)))
    assert single is not None and single.said == "one run: says nothing"


def test_one_task_refutes_and_only_all_confirm() -> None:
    good = Cell(TASK, "", "5 and 5", 10_000_000, "", "for", True)
    bad, even, few = (
        dataclasses.replace(good, **changes) for changes in ({"side": "against"}, {"side": "open"}, {"enough": False})
    )
    dear = Price(10, 1, 10, 1e4, 1e4)
    one = claim(Ahead())
    assert judge(one, [good, good], 2, dear) == "confirmed"
    assert judge(one, [good, even], 2, dear) == "undecided"
    assert judge(one, [good, bad], 9, dear) == "refuted"
    assert judge(one, [good, few], 2, dear) == judge(one, [good], 2, dear) == "not affordable here"
    short = dataclasses.replace(bad, steps=300_000)
    assert judge(one, [good, short], 2, dear) == "refuted at 300,000 steps"
    assert judge(one, [dataclasses.replace(good, steps=500_000), good], 2, dear) == "confirmed at 500,000 steps"


def test_unfinished_runs_do_not_count(tmp_path: Path) -> None:
    results = tmp_path / "mamujoco"
    results.mkdir()
    run = {"algorithm": "HIS", "rules": "", "seed": 1, "finished": None, "git_commit": "a" * 40}
    run |= {"args": {"scenario": TASK, "credit": "his", "seed": 1, "total_timesteps": 1000, "run_name": ""}}
    (results / "runs.json").write_text(json.dumps([run | {"command": "python his_mamujoco.py --seed 1"}]))
    (results / f"{TASK}.csv").write_text("algorithm,rules,seed,global_step,returns,lengths\nHIS,,1,500,1.0,9\n")
    for name in ("calibration.json", "variant_speed.json", "untrained.json"):
        (tmp_path / name).write_bytes((ROOT / "results" / name).read_bytes())
    given = report.gather(tmp_path)
    assert given.curves == {} and "unfinished, of 1,000" in report.runs_table(given)


# ---- cost


def test_the_price_by_hand() -> None:
    """Ten runs of 10 M steps: five measured at 3.6 ms and 50 % of a core, 100 evaluations of 36 s, 0 s to start."""
    runs = expand(SUITES["fig5"], tasks=[TASK], variants=["his", "none"])
    (kind,) = {report.kind_of(run) for run in runs if run.variant == "his"}
    total = price(runs, {kind: cost.Rate(0.0036, 36.0, 0.0, 0.5, "")})
    assert (total.runs, total.steps, total.measured_runs) == (10, 100_000_000, 5)
    assert total.measured == pytest.approx(5 * (10 + 1) * 0.5) and total.about == pytest.approx(2 * total.measured)
    assert str(total) == "10 runs, 0.1 G steps; 28 core-hours for the 5 measured, about 55 in all"
    assert str(price(runs, {})) == "10 runs, 0.1 G steps; not measured"
    sweep = {report.kind_of(run) for run in expand(SUITES["fig6"], 1, tasks=[TASK]) if run.variant == "M1"}
    assert sweep == {kind}


# ---- the data


@pytest.mark.parametrize("number", range(len(CLAIMS)))
def test_the_suites_of_a_claim_have_its_runs(number: int) -> None:
    one = CLAIMS[number]
    if isinstance(one.rule, (Shown, Dearer)):
        assert not one.suites
        return
    there = {(run.scenario, run.variant) for run in runs_for(one)}
    wanted = {(task, variant) for task in one.tasks for variant in (one.ours, *one.others)}
    assert wanted and wanted <= there and there <= wanted
    full = {run.total_steps for run in runs_for(one)} <= {TASKS[task].steps for task in one.tasks}
    assert full == (one.suites != ("baselines",))
    assert all(len({run.seed for run in runs_for(one) if run.scenario == task}) == 5 for task in one.tasks)
    assert ("--seeds 5" in report.command(one.suites[0], one)) == (one.suites == ("baselines",))


def test_the_tests_that_decide_exist() -> None:
    shown = [each.rule for each in CLAIMS if isinstance(each.rule, Shown)]
    assert len(shown) == 3 and {rule.outcome for rule in shown} == {"for", "against"}
    for rule in shown:
        name, _, function = rule.test.partition("::")
        assert f"\ndef {function}(" in (ROOT / name).read_text(), rule.test


def test_every_figure_with_runs_has_a_claim_and_a_row() -> None:
    figures = {f"fig{n}" for n in range(2, 9)}
    assert {suite for each in CLAIMS for suite in each.suites} == figures | {"baselines"}
    page = (ROOT / "docs/reproduce.md").read_text()
    assert all(f"| `{name}` |" in page for name in figures)
    assert set(claims.MPE) == set(CLAIMS[0].tasks)


def test_what_we_ran_counts_the_seeds_of_the_suite_only() -> None:
    """The second round of the readings study wants fresh seeds: 11 to 13; what the first round ran is none of it."""
    small = "his hidden_sizes=[128, 128] batch_size=256"
    steps, returns = np.array([500_000]), np.array([-40.0])
    found = [Curve("simple_spread", small, seed, steps, returns, 500_000, True) for seed in (1, 11, 12)]
    given = dataclasses.replace(evidence(), curves={("simple_spread", small): found})
    rows = {line.split("`")[1]: line.split(" | ")[-1] for line in report.figures_table(given).splitlines()[2:]}
    said = "simple_spread to step 500,000 with hidden_sizes=[128, 128] batch_size=256: his"
    assert rows["readings"] == f"{said} (2) |" and rows["readings-screen"] == f"{said} (1) |"
    assert rows["fig2"] == "nothing |"


def test_finished_runs_price_the_kinds_that_no_calibration_has() -> None:
    """HIS and its sweep of beta cost alike; where there is a calibration, it counts."""
    small = " hidden_sizes=[128, 128] batch_size=256"
    given = rates_of({("simple_spread", "his" + small): [0.001, 0.004, 0.002]})
    runs = {run.variant: run for run in expand(SUITES["ablations"], tasks=["simple_spread"])}
    assert given[report.kind_of(runs["his"])] == cost.Rate(0.002, 0.0, 0.0, 1.0, "finished runs")
    assert report.kind_of(runs["beta50"]) in given and report.kind_of(runs["local"]) not in given
    assert price([runs["beta50"]], given).measured == pytest.approx(500_000 * 0.002 / 3600)
    kept = report.gather(ROOT / "results").rates
    entries = json.loads((ROOT / "results/calibration.json").read_text())
    assert {kept[name].source for name in entries} == {"calibration"} and len(kept) > len(entries)
