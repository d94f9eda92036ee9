"""`experiments.plot` and `experiments.scores` on runs written by hand, against scipy and sums done by hand."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from common import stats
from common.stats import probability_of_improvement
from experiments import curves as collector
from experiments import plot, suites
from experiments.scores import (
    Curve,
    final,
    from_folder,
    from_results,
    last_half,
    on_one_grid,
    steps_interval,
    steps_to,
    variant_of,
)

TASKS = ["HalfCheetah-6x1", "Ant-8x1"]
STEPS = (250, 500, 750, 1000)


@pytest.fixture(autouse=True)
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, three variants, three seeds; facmac on one of the tasks."""
    groups = [suites.Group(TASKS, ["his", "none"], (1, 2, 3)), suites.Group(TASKS[:1], ["facmac"], (1, 2, 3))]
    monkeypatch.setitem(suites.SUITES, "toy", suites.Suite("a toy", groups))


def write_run(
    root: Path, task: str, name: str, seed: int, returns: Any, finished: bool = True, steps: Any = STEPS, **args: Any
) -> Path:
    """A run folder with two episodes an evaluation, one above and one below the mean."""
    folder = root / "his_mamujoco" / task / f"seed{seed}-{name}"
    folder.mkdir(parents=True)
    settings = {"scenario": task, "run_name": name, "seed": seed, "total_timesteps": 1000}
    if name != "facmac":
        settings["credit"] = "none" if name == "none" else "his"
    else:
        settings["benchmark"] = "mamujoco"
    config = {"args": settings | args, "command": "python his_mamujoco.py", "git_commit": "c" * 40}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [f"{step},{i},{value + d},9" for step, value in zip(steps, returns) for i, d in enumerate((-1.0, 1.0))]
    (folder / "eval.csv").write_text("\n".join(["global_step,episode,return,length", *rows, ""]))
    if finished:
        (folder / "finished.json").write_text(json.dumps({"global_step": 1000}))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cell(rows: list[dict[str, str]], **keys: str) -> dict[str, str]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return row


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""

    def save(painter: plot.Painter, figure: Any, name: str) -> None:
        painter.pyplot.close(figure)
        (painter.out / f"{name}.png").touch()

    monkeypatch.setattr(plot.Painter, "save", save)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """HIS rises early and stays, HASAC comes close; on Ant HIS is far ahead. facmac: one run finished, one begun."""
    for seed, shift in ((1, 0.0), (2, 4.0), (3, -10.0)):
        write_run(tmp_path, TASKS[0], "his", seed, [50 + shift, 60 + shift, 60 + shift, 60 + shift])
        write_run(tmp_path, TASKS[0], "none", seed, [0, 20 + shift, 40 + shift, 58 + shift])
        write_run(tmp_path, TASKS[1], "his", seed, [1000 + shift, 2000, 3000, 4000 + shift])
        write_run(tmp_path, TASKS[1], "none", seed, [500, 600 + shift, 700, 800 + shift])
    write_run(tmp_path, TASKS[0], "facmac", 1, [1, 2, 3, 4])
    write_run(tmp_path, TASKS[0], "facmac", 2, [5], finished=False)
    return tmp_path


def test_all_is_written_and_the_numbers_are_those_done_by_hand(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert plot.main(["toy", "--runs-dir", str(suite), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "missing: facmac: 1 of 3 runs finished; unfinished: seed 2 (step 250 of 1,000); nothing of seed 3" in printed
    assert "not in what is over all tasks, since not on each task that his has: facmac" in printed
    assert "13 finished runs; written" in printed
    names = {path.name for path in out.iterdir()}
    plots = "curves scores efficiency improvement profile".split()
    assert names == {f"{n}.{e}" for n in plots for e in ("png", "svg", "csv")} | {"runs.csv", "missing.csv"}
    assert all((out / f"{n}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for n in ("curves", "profile"))

    rows = table(out / "curves.csv")
    row = cell(rows, task=TASKS[0], variant="his", step="250")
    assert (
        float(row["iqm"]) == pytest.approx(48) and row["runs"] == "3"
    )  # (50 + 54 + 40) / 3: nobody is left out of three
    assert (float(row["low"]), float(row["high"])) == (40, 54)  # the extreme resamples have probability 1 / 27 each
    assert len([r for r in rows if r["task"] == "all tasks"]) == 200

    rows = table(out / "scores.csv")
    assert float(cell(rows, task=TASKS[0], variant="none", score="final")["iqm"]) == pytest.approx(56)
    assert float(cell(rows, task=TASKS[0], variant="none", score="last half")["iqm"]) == pytest.approx(47)
    # Normalised finals: task 0 has its worst run at 4 (facmac, but it is left out: 48) and its best at 64.
    finals = {"his": [(60 - 48) / 16, 1, 2 / 16], "none": [10 / 16, 14 / 16, 0]}
    ant = {"his": [3210 / 3214, 1, 3200 / 3214], "none": [10 / 3214, 14 / 3214, 0]}
    for name in finals:
        expected = scipy_stats.trim_mean([*finals[name], *ant[name]], 0.25)
        assert float(cell(rows, task="all tasks", variant=name, score="final")["iqm"]) == pytest.approx(
            expected, rel=1e-5
        )

    rows = table(out / "efficiency.csv")
    row = cell(rows, task=TASKS[0], variant="his")  # level 56: seeds 1 and 2 at 500, seed 3 stays at 50
    assert (row["reference"], float(row["level"]), row["reached"], row["median_steps"]) == ("none", 56, "2", "500")
    assert row["low"] == "500" and row["high"] == ""  # in 7 of 27 resamples seed 3 has the median
    row = cell(rows, task=TASKS[0], variant="facmac")
    assert row["reached"] == "0" and row["median_steps"] == ""
    assert cell(rows, task=TASKS[1], variant="his")["median_steps"] == "250"

    rows = table(out / "improvement.csv")
    row = cell(rows, base="his", other="none", score="final", task=TASKS[0])
    u = scipy_stats.mannwhitneyu([60, 64, 50], [58, 62, 48]).statistic
    assert float(row["probability"]) == pytest.approx(u / 9, abs=1e-6)
    row = cell(rows, other="none", score="final", task="all tasks")
    assert float(row["probability"]) == pytest.approx((u / 9 + 1) / 2, abs=1e-6)
    assert 0 <= float(row["low"]) < float(row["probability"]) < float(row["high"]) <= 1
    assert float(cell(rows, other="facmac", score="final", task=TASKS[0])["probability"]) == 1
    assert not [row for row in rows if row["other"] == "facmac" and row["task"] == "all tasks"]

    rows = [row for row in table(out / "profile.csv") if (row["variant"], row["score"]) == ("his", "final")]
    for row in rows[::10]:
        t = float(row["threshold"])
        expected = np.mean([scipy_stats.ecdf(s).sf.evaluate(t) for s in (finals["his"], ant["his"])])
        assert float(row["share"]) == pytest.approx(float(expected), abs=1e-6), t


def test_the_same_data_give_the_same_files(suite: Path, tmp_path: Path) -> None:
    contents = []
    argv = ["toy", "--runs-dir", str(suite), "--tasks", TASKS[1], "--variants", "his"]
    for name in ("a", "b"):
        assert plot.main([*argv, "--out", str(tmp_path / name)]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".png"})
    assert contents[0] == contents[1] and len(contents[0]) > 5


@pytest.mark.usefixtures("no_pictures")
def test_a_part_of_a_suite_is_plotted_and_what_an_earlier_call_left_goes(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert plot.main(["toy", "--runs-dir", str(suite), "--out", str(out)]) == 0
    lonely = tmp_path / "lonely"
    write_run(lonely, TASKS[0], "facmac", 1, [1, 2, 3, 4])
    (out / "mine.txt").touch()
    assert plot.main(["toy", "--runs-dir", str(lonely), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "no finished run of his: no comparison" in printed and "no efficiency: " in printed
    assert f"missing: his: 0 of 3 runs finished ({TASKS[0]}, {TASKS[1]})" in printed
    names = {path.name for path in out.iterdir()}
    assert "mine.txt" in names and "scores.png" in names and not {"efficiency.csv", "improvement.png"} & names


@pytest.mark.usefixtures("no_pictures")
def test_runs_of_different_length_are_compared_at_the_shortest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, TASKS[0], "his", 1, [1, 2, 3, 4])
    write_run(tmp_path, TASKS[0], "none", 1, [5, 6], steps=(250, 500), total_timesteps=500)
    out = tmp_path / "out"
    assert plot.main(["toy", "--runs-dir", str(tmp_path), "--out", str(out)]) == 0
    assert f"{TASKS[0]}: runs end at 500, 1,000; all are compared at 500" in capsys.readouterr().out
    row = cell(table(out / "scores.csv"), task=TASKS[0], variant="his", score="final")
    assert (row["iqm"], row["step"]) == ("2.0", "500")
    for name in ("curves", "scores", "efficiency", "improvement", "profile"):  # single runs have no intervals
        assert {(row["low"], row["high"]) for row in table(out / f"{name}.csv")} == {("", "")}, name


@pytest.mark.usefixtures("no_pictures")
def test_collected_runs_come_in_and_a_run_folder_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of two variants with the same --credit are told apart, by experiments.curves too."""
    old = [
        write_run(tmp_path / "old", TASKS[0], "his", 1, [1, 1, 1, 1]),
        write_run(tmp_path / "old", TASKS[0], "none", 1, [2, 2, 2, 2]),
        write_run(tmp_path / "old", TASKS[0], "no-bc", 1, [3, 3, 3, 3], box_cox=False),
        write_run(tmp_path / "old", TASKS[0], "facmac", 1, [4, 4, 4, 4]),
    ]
    results = tmp_path / "results"
    monkeypatch.setattr("sys.argv", ["curves", *map(str, old), "--out", str(results)])
    assert collector.main() == 0
    found = {curve.variant: curve for curve in from_results(results)}
    assert {name: curve.returns.tolist() for name, curve in found.items()} == {
        name: [value] * 4 for value, name in enumerate(["his", "none", "no-bc", "facmac"], 1)
    }
    assert all(curve.finished and curve.steps.tolist() == list(STEPS) for curve in found.values())
    write_run(tmp_path / "new", TASKS[0], "his", 1, [9, 9, 9, 9])
    argv = ["toy", "--runs-dir", str(tmp_path / "new"), "--results", str(results), "--out", str(tmp_path / "out")]
    assert plot.main(argv) == 0
    finals = {row["variant"]: row["iqm"] for row in table(tmp_path / "out/scores.csv") if row["score"] == "final"}
    assert finals == {"his": "9.0", "none": "2.0", "facmac": "4.0"}  # no-bc is not in this suite


def test_only_the_seeds_and_settings_of_a_suite_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    """Seed 7 served to choose, seed 2 has other values than the suite: neither is its run."""
    small = {"batch_size": 256}
    group = suites.Group(TASKS[:1], ["his"], (1, 2, 3), settings=small)
    monkeypatch.setitem(suites.SUITES, "toy", suites.Suite("a toy", [group]))
    runs = [write_run(tmp_path / "runs", TASKS[0], "his", s, [1, 2, 3, s], batch_size=256) for s in (1, 3, 7)]
    runs.append(write_run(tmp_path / "runs", TASKS[0], "his", 2, [1, 2, 3, 2], batch_size=1000))
    words = ["curves", *map(str, runs), "--out", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", words)
    assert collector.main() == 0
    where = ["--results", str(tmp_path / "results"), "--runs-dir", str(tmp_path / "none")]
    assert plot.main(["toy", *where, "--out", str(tmp_path / "out")]) == 0
    assert "missing: his: 2 of 3 runs finished; nothing of seed 2 (" in capsys.readouterr().out
    assert {row["seed"] for row in table(tmp_path / "out/runs.csv")} == {"1", "3"}


def test_long_runs_are_compared_among_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    """... and stay out of what is over all tasks. A single run has no interval."""
    groups = [suites.Group(TASKS, ["his", "none"], (1,)), suites.Group(TASKS[:1], ["his-long", "none-long"], (1,))]
    monkeypatch.setitem(suites.SUITES, "toy", suites.Suite("a toy", groups))
    for task in TASKS:
        for name, end in (("his", 5), ("none", 4)):
            write_run(tmp_path, task, name, 1, [1, 2, 3, end])
    for name, end in (("his-long", 7), ("none-long", 9)):
        write_run(tmp_path, TASKS[0], name, 1, [1, 2, 3, end], credit=name.removesuffix("-long"))
    assert plot.main(["toy", "--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "6 of the means are of one run: no interval there" in capsys.readouterr().out
    rows = [row for row in table(tmp_path / "out/improvement.csv") if row["score"] == "final"]
    found = {row["task"]: (float(row["probability"]), row["low"], row["high"]) for row in rows}
    long = f"{TASKS[0]} (long)"
    assert found == {TASKS[0]: (1, "", ""), TASKS[1]: (1, "", ""), long: (0, "", ""), "all tasks": (1, "", "")}
    assert cell(table(tmp_path / "out/efficiency.csv"), task=long, variant="his")["reference"] == "none"
    row = cell(table(tmp_path / "out/scores.csv"), task="all tasks", variant="his", score="final")
    assert (row["runs"], row["low"], row["high"]) == ("2", "", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fig55"], "fig55: no such suite; there are fig2, "),
        (["mpe", "--tasks", "Ant-2x4"], "--tasks Ant-2x4: mpe has simple_reference"),
        (["mpe", "--base", "M1"], "--base M1: mpe has his"),
        (["mpe", "--level-of", "hasac"], "--level-of hasac: mpe has his"),
        (["toy", "--results", "nowhere"], "--results nowhere: no runs.json there"),
        (["mpe", "--base", "none-long"], "--base none-long: mpe has his"),
        (["toy"], "no run of this suite with evaluations in "),
        (["toy", "--tasks", TASKS[1], "--variants", "facmac"], "toy has no run of these"),
        (["toy", "--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot.main([*argv, "--runs-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("experiments.plot: error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_settings_are_not_its_variants_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, TASKS[0], "none", 1, [1, 2], credit="share")
    assert plot.main(["toy", "--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "its settings are not those of the variant none" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line of an error."""
    assert plot.main([*map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("experiments.plot: error: ") and error.count("\n") == 1
    return error


def test_runs_with_other_values_are_said_and_not_compared_with_those_that_have_the_suites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    for seed in (1, 2):
        for name in ("his", "none"):
            write_run(tmp_path / "runs", TASKS[0], name, seed, [1, 2, 3, 4], batch_size=256)
    argv = ["toy", "--runs-dir", tmp_path / "runs", "--out", tmp_path / "out"]
    assert plot.main([*map(str, argv)]) == 0
    assert f"{TASKS[0]}: the runs have batch_size=256 in place of the suite's values" in capsys.readouterr().out
    other = write_run(tmp_path / "runs", TASKS[0], "none", 3, [1, 2, 3, 4])
    line = refused(capsys, *argv)
    assert "has batch_size=256, " in line and f"{other} has not: no fair comparison" in line


def test_of_smoke_runs_only_what_is_not_the_smoke_suites_is_said(
    tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke: dict[str, Any] = {**suites.SMOKE, **suites.SMOKE_OFF_POLICY}
    for variant in ("his", "none"):
        write_run(tmp_path, TASKS[0], variant, 1, [1, 2, 3, 4], **smoke)
    argv = ["smoke-ablations", "--tasks", TASKS[0], "--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert plot.main(argv) == 0
    assert "in place of" not in capsys.readouterr().out
    for variant in ("his", "none"):
        write_run(tmp_path / "other", TASKS[0], variant, 1, [1, 2, 3, 4], **{**smoke, "gamma": 0.5})
    argv[4] = str(tmp_path / "other")
    assert plot.main(argv) == 0
    assert f"{TASKS[0]}: the runs have gamma=0.5 in place of the suite's values" in capsys.readouterr().out


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, TASKS[0], "his", 1, [1, 2, 3, 4])
    short = write_run(tmp_path, TASKS[0], "none", 1, [5], steps=(100,), total_timesteps=100)
    argv = ["toy", "--runs-dir", tmp_path, "--out", tmp_path / "out"]
    assert f"{TASKS[0]}, his, seed 1: no evaluation from 50 to 100, where another run ends" in refused(capsys, *argv)
    shutil.rmtree(short)
    write_run(tmp_path, TASKS[0], "his", 2, [1, 2, 3, 4], steps=[step - 1 for step in STEPS])
    assert f"{TASKS[0]}, his: its runs have no evaluation step in common" in refused(capsys, *argv)


def test_a_run_of_isaac_gym_and_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "runs", TASKS[0], "his", 1, [1, 2, 3, 4], sim="isaacgym")
    argv = ["toy", "--runs-dir", tmp_path / "runs", "--out", tmp_path / "out"]
    assert f"{folder}: a run in Isaac Gym" in refused(capsys, *argv)
    (tmp_path / "runs.json").write_text("[{")
    assert f"--results {tmp_path}: its files are damaged" in refused(capsys, *argv, "--results", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["command"]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"{folder / 'config.json'}: no config.json of a run" in refused(capsys, *argv)


def test_plots_go_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], suite: Path) -> None:
    """Not into a folder of sources or collected runs, not into a file."""
    out = tmp_path / "out"
    for name in ("curves.py", "runs.json"):
        out.mkdir()
        (out / name).write_text("precious")
        assert f"--out {out}: holds other things" in refused(capsys, "toy", "--runs-dir", suite, "--out", out)
        assert [path.name for path in out.iterdir()] == [name]
        shutil.rmtree(out)
    out.touch()
    assert str(out) in refused(capsys, "toy", "--runs-dir", suite, "--out", out)


def test_a_torn_row_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, TASKS[0], "his", 1, [1, 2, 3, 4])
    with open(folder / "eval.csv", "a") as file:
        file.write("1250,0,-9")
    curve = from_folder(folder, json.loads((folder / "config.json").read_text()))
    assert curve is not None and curve.steps.tolist() == list(STEPS)


def test_the_base_may_be_named_as_the_suite_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    group = suites.Group(TASKS[:1], ["his-long", "none-long"], (1, 2))
    monkeypatch.setitem(suites.SUITES, "toy", suites.Suite("a toy", [group]))
    for seed in (1, 2):
        for name in ("his", "none"):
            write_run(tmp_path, TASKS[0], f"{name}-long", seed, [1, 2, 3, 4], credit=name)
    out = tmp_path / "out"
    argv = ["toy", "--runs-dir", str(tmp_path), "--out", str(out), "--base", "none-long", "--level-of", "his-long"]
    assert plot.main(argv) == 0
    assert {row["base"] for row in table(out / "improvement.csv")} == {"none"}
    assert {row["reference"] for row in table(out / "efficiency.csv")} == {"his"}


def test_lines_of_more_variants_than_colours_differ(tmp_path: Path) -> None:
    names = [f"v{i}" for i in range(40)]
    painter = plot.Painter(tmp_path, names)
    assert len({(painter.colors[name], painter.styles[name]) for name in names}) == 40


@pytest.mark.parametrize(
    ("args", "script", "variant"),
    [
        ({"run_name": "M1", "credit": "his", "num_coalitions": 1}, "his_mpe.py", "M1"),
        ({"run_name": "", "credit": "his", "num_coalitions": 1}, "his_mpe.py", "his"),
        ({"run_name": "", "credit": "none"}, "his_mpe.py", "none"),
        ({"run_name": "night", "credit": "his", "box_cox": False}, "his_mpe.py", "no-bc"),
        ({"run_name": "none", "credit": "share"}, "his_mpe.py", "share"),  # a name that lies
        ({"run_name": "", "benchmark": "mpe"}, "baselines/happo.py", "happo"),
        ({"run_name": "", "benchmark": "mpe"}, "baselines/mappo.py", "mappo"),
        ({"run_name": ""}, "baselines/hasac_mpe.py", "hasac"),
        ({"run_name": "", "preset": "hasac"}, "baselines/hasac_mpe.py", "hasac"),
        ({"run_name": "", "preset": "his"}, "baselines/hasac_mpe.py", "none"),
        ({"run_name": "capped", "credit": "his", "idea": "capped"}, "experiments/ideas.py", "idea-capped"),
        ({"run_name": ""}, "baselines/other.py", ""),
    ],
)
def test_the_variant_of_a_run(args: dict[str, Any], script: str, variant: str) -> None:
    config = {"args": {"scenario": "simple_spread"} | args, "command": f"python {script} --seed 1"}
    assert variant_of(config) == variant


def test_who_is_evaluated_more_often_is_not_sooner() -> None:
    """Curves of one process, evaluated every 10 and every 20 steps: on their own steps the finer ones cross first."""
    rng, p_raw, p_even = np.random.default_rng(0), [], []
    fine, coarse = np.arange(10, 510, 10), np.arange(20, 510, 20)
    for _ in range(300):
        runs = [
            Curve("t", "his", 1, steps, steps / 100 + rng.normal(size=len(steps)), 500, True)
            for steps in [fine] * 3 + [coarse] * 3
        ]
        for found, curves in ((p_raw, runs), (p_even, on_one_grid(runs, 500))):
            first = np.array([-steps_to(curve, 4.0, 500) for curve in curves])
            found.append(probability_of_improvement(first[:3], first[3:]))
    assert np.mean(p_raw) > 0.6 and abs(np.mean(p_even) - 0.5) < 0.05

    a = Curve("t", "his", 1, np.array([10, 20, 30, 40, 60]), np.array([1.0, 2.0, 3.0, 4.0, 6.0]), 60, True)
    b = Curve("t", "ppo", 1, np.array([5, 21, 42]), np.array([0.0, 2.0, 4.0]), 60, True)
    (one, other) = on_one_grid([a, b], 50)
    assert one.steps.tolist() == [21, 42] and one.returns.tolist() == [2.0, 4.0], "no evaluation of a up to step 5"
    assert other.steps.tolist() == [5, 21, 42] and other.returns.tolist() == [0.0, 2.0, 4.0]
    assert [curve.returns.tolist() for curve in on_one_grid([a, a], 30)] == [[1.0, 2.0, 3.0]] * 2


def test_scores_of_a_curve() -> None:
    curve = Curve("t", "his", 1, np.array([100, 200, 300, 400]), np.array([1.0, 5.0, 3.0, 7.0]), 400, True)
    assert (final(curve, 400), final(curve, 350)) == (7, 3)
    assert (last_half(curve, 400), last_half(curve, 300)) == (5, 4)
    assert [steps_to(curve, level, 400) for level in (0, 5, 6, 8)] == [100, 200, 400, np.inf]
    assert steps_to(curve, 6, 300) == np.inf
    assert steps_interval(np.array([100.0, np.inf, np.inf]))[0] == np.inf
    assert steps_interval(np.array([300.0, 100.0, 200.0, np.inf]))[0] == 200
    assert steps_interval(np.array([5.0, 5.0, 5.0])) == (5, 5, 5)


def test_coverage_of_steps_and_profile_by_simulation() -> None:
    """Median steps to a level (exponential), and a point of the profile over three tasks (normal scores)."""
    rng, trials = np.random.default_rng(0), 300
    hits = {(runs, kind): 0 for runs in (3, 5, 20) for kind in ("steps", "profile")}
    for runs in (3, 5, 20):
        for trial in range(trials):
            _, low, high = steps_interval(rng.exponential(size=runs))
            hits[runs, "steps"] += bool(low <= np.log(2) <= high)
            scores = [rng.normal(size=runs) for _ in range(3)]
            _, lower, upper = stats.performance_profile(scores, np.array([0.5]), draws=400, seed=trial)
            hits[runs, "profile"] += bool(lower[0] <= scipy_stats.norm.sf(0.5) <= upper[0])
    assert 0.90 < hits[20, "steps"] / trials < 0.99 and 0.90 < hits[5, "steps"] / trials < 0.99
    assert 0.70 < hits[3, "steps"] / trials < 0.86
    assert 0.90 < hits[20, "profile"] / trials < 0.98
    assert all(0.80 < hits[runs, "profile"] / trials < 0.94 for runs in (3, 5))


def made(task: str, variant: str, ends: list[float], start: float = 0.0) -> list[Curve]:
    """Straight lines from `start` at step 250 to `ends` at step 1000, one a seed."""
    steps = np.array(STEPS)
    lines = [start + (end - start) * (steps - 250) / 750 for end in ends]
    return [Curve(task, variant, seed, steps, line, 1000, True) for seed, line in enumerate(lines, 1)]


def test_the_level_is_that_of_hasac_where_it_ran() -> None:
    done = {"toy": {"none": made("toy", "none", [10.0]), "hasac": made("toy", "hasac", [20.0]), "his": []}}
    done["toy"]["his"] = made("toy", "his", [40.0])
    rows = plot.efficiency_rows(done, None)
    assert {row["reference"] for row in rows} == {"hasac"} and {row["level"] for row in rows} == {20}
    assert {row["reference"] for row in plot.efficiency_rows(done, "none")} == {"none"}
    del done["toy"]["hasac"]
    assert {row["reference"] for row in plot.efficiency_rows(done, None)} == {"none"}


def test_the_curve_of_all_tasks_by_hand() -> None:
    """Scores from 0, the worst final of a task, to 1, the best; the IQM of eight runs leaves out two at each end."""
    ends = {"a": ([0.0, 10, 20, 100], [5.0, 5, 5, 5]), "b": ([-50.0, -30, -20, -10], [-50.0, -50, -50, -50])}
    done = {
        task: {"his": made(task, "his", his), "none": made(task, "none", none)} for task, (his, none) in ends.items()
    }
    rows = [row for row in plot.curve_rows(done, done) if row["task"] == plot.ALL]
    assert len(rows) == 200 and rows[0]["step"] == 0.25 and rows[99]["step"] == 1
    finals = [0.0, 0.1, 0.2, 1.0, 0.0, 0.5, 0.75, 1.0]  # of his on both
    assert rows[99]["iqm"] == pytest.approx(np.mean(sorted(finals)[2:6]))
    first = [0.0] * 4 + [50 / 40] * 4  # all begin at return 0
    assert rows[0]["iqm"] == pytest.approx(np.mean(sorted(first)[2:6]))
    assert rows[199]["variant"] == "none" and rows[199]["iqm"] == pytest.approx(np.mean([0.0, 0.0, 0.05, 0.05]))
