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


def test_table_csv_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folders = [
        make_run(tmp_path / "a", "his", 1, {100: [1.0, 3.0], 200: [10.0, 20.0]}),
        make_run(tmp_path / "b", "his", 2, {100: [4.0, 4.0]}),  # not yet at step 200
        make_run(tmp_path / "c", "none", 1, {100: [7.0, 9.0], 200: [30.0, 50.0]}),
    ]
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["curves", *map(str, folders), "--out", str(out), "--steps", "100", "200", "300"])
    assert curves.main() == 0
    printed = capsys.readouterr().out
    assert "| HIS | **3** (2, 4) | **15** (15) | not run |" in printed
    assert "| HASAC (`--credit none`) | **8** (8) | **40** (40) | not run |" in printed
    with open(out / "eval.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and rows[0]["algorithm"] == "HIS" and float(rows[1]["return"]) == 3.0
    assert [run["seed"] for run in json.loads((out / "runs.json").read_text())] == [1, 2, 1]
    assert (out / "curves.png").stat().st_size > 10_000


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path), "--out", str(tmp_path / "out")])
    assert curves.main() == 2
    assert "no config.json" in capsys.readouterr().err and not (tmp_path / "out").exists()
