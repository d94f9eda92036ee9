"""`experiments.curves` on run folders written by hand."""

import csv
import json
from pathlib import Path

import pytest

from experiments import curves


def make_run(folder: Path, credit: str, seed: int, returns: dict[int, list[float]]) -> Path:
    folder.mkdir(parents=True)
    config = {"args": {"credit": credit, "seed": seed, "scenario": "HalfCheetah-6x1"}, "command": "python x"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [f"{step},{i},{value},1000" for step, values in returns.items() for i, value in enumerate(values)]
    (folder / "eval.csv").write_text("\n".join(["global_step,episode,return,length", *rows, ""]))
    return folder


def run_curves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *argv: object) -> str:
    monkeypatch.setattr("sys.argv", ["curves", *map(str, argv)])
    assert curves.main() == 0
    return capsys.readouterr().out


def test_table_csv_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folders = [
        make_run(tmp_path / "a", "his", 1, {100: [1.0, 3.0], 200: [10.0, 20.0]}),
        make_run(tmp_path / "b", "his", 2, {100: [4.0, 4.0]}),  # not yet at step 200
        make_run(tmp_path / "c", "none", 1, {100: [700.0, 900.0], 200: [3000.0, 5000.0]}),
    ]
    out = tmp_path / "out"
    printed = run_curves(monkeypatch, capsys, *folders, "--out", out, "--steps", 100, 200, 300)
    assert "| HIS | **3.00** (2.00, 4.00) | **15.0** (15.0) | not run |" in printed
    assert "| HASAC (`--credit none`) | **800** (800) | **4000** (4000) | not run |" in printed
    assert "HIS - HASAC" not in printed  # one run of HASAC: no interval
    with open(out / "HalfCheetah-6x1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and rows[0]["algorithm"] == "HIS" and float(rows[1]["return"]) == 3.0
    assert [run["seed"] for run in json.loads((out / "runs.json").read_text())] == [1, 2, 1]
    assert (out / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(("shift", "verdict"), [(20.0, "ahead"), (0.0, "level"), (-20.0, "behind")])
def test_comparison(
    shift: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Five runs each; the IQM leaves out the best and the worst; the bounds say how far from random to oracle."""
    noise = [-9.0, -1.0, 0.0, 1.0, 9.0]
    for seed, value in enumerate(noise):
        make_run(tmp_path / f"his{seed}", "his", seed, {100: [0.0], 200: [-50 + shift + value]})
        make_run(tmp_path / f"none{seed}", "none", seed, {100: [0.0], 200: [-50 + value]})
    bounds = tmp_path / "bounds.json"
    bounds.write_text(json.dumps({"tasks": {"HalfCheetah-6x1": {"random": {"mean": -90}, "oracle": {"mean": -10}}}}))
    folders = [path for path in sorted(tmp_path.iterdir()) if path.is_dir()]
    printed = run_curves(monkeypatch, capsys, *folders, "--out", tmp_path / "out", "--bounds", bounds)
    (line,) = [line for line in printed.splitlines() if line.startswith("| HIS - HASAC")]
    at_the_end, second_half = line.split("|")[3:5]
    assert f"**{verdict}**: {curves.shown(shift)} [" in at_the_end and f"**{verdict}**" in second_half
    share = f"{100 * (40 + shift) / 80:.0f} %"
    assert f"| HIS: share of random to oracle | | {share} | {share} |" in printed
    assert "| HIS, to step 200 | 5 | " + curves.shown(-50 + shift) in printed


def test_runs_of_several_days_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A second collection adds seed 2, replaces seed 1, and leaves the other algorithm alone."""
    first = [
        make_run(tmp_path / "a", "his", 1, {100: [1.0]}),
        make_run(tmp_path / "b", "none", 1, {100: [5.0]}),
    ]
    second = [
        make_run(tmp_path / "c", "his", 1, {100: [2.0]}),
        make_run(tmp_path / "d", "his", 2, {100: [4.0]}),
    ]
    out = tmp_path / "out"
    run_curves(monkeypatch, capsys, *first, "--out", out, "--steps", 100)
    printed = run_curves(monkeypatch, capsys, *second, "--out", out, "--add", "--steps", 100)
    assert "| HIS | **3.00** (2.00, 4.00) |" in printed and "| HASAC (`--credit none`) | **5.00** (5.00) |" in printed
    with open(out / "HalfCheetah-6x1.csv", newline="") as file:
        assert [(row["algorithm"][:5], row["seed"], row["return"]) for row in csv.DictReader(file)] == [
            ("HASAC", "1", "5.0"),
            ("HIS", "1", "2.0"),
            ("HIS", "2", "4.0"),
        ]
    assert len(json.loads((out / "runs.json").read_text())) == 3
    printed = run_curves(monkeypatch, capsys, *second, "--out", out, "--steps", 100)
    assert "HASAC" not in printed  # without --add the folder starts anew


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path), "--out", str(tmp_path / "out")])
    assert curves.main() == 2
    assert "no config.json" in capsys.readouterr().err and not (tmp_path / "out").exists()
