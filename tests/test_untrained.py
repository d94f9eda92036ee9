"""What untrained policies earn is what a run would have measured before its first update."""

import json
from pathlib import Path

import pytest

from experiments import untrained


def test_it_is_what_a_run_measures_while_it_only_warms_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import his_mpe

    place = tmp_path / "new" / "untrained.json"
    assert untrained.main(f"--tasks simple_spread --seeds 2 --json {place}".split()) == 0
    written = json.loads(place.read_text())
    assert written["git_commit"] and written["command"].startswith("python -m experiments.untrained --tasks")
    (returns,) = written["returns"].values()
    assert len(returns) == 2 and f"{returns[1]:.2f}" in capsys.readouterr().out
    words = f"--scenario simple_spread --seed 2 --total-timesteps 100 --eval-every 100 --runs-dir {tmp_path}".split()
    assert his_mpe.main(words) == 0  # all of it random actions: nothing is learnt before the evaluation
    rows = (tmp_path / "his_mpe/simple_spread/seed2/eval.csv").read_text().splitlines()[1:]
    mean = sum(float(row.split(",")[2]) for row in rows) / len(rows)
    assert len(rows) == 40 and returns[1] == pytest.approx(mean)


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the project keeps one of its own in results/
    assert untrained.main("--tasks simple_spread --seeds 1 --episodes 1".split()) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["--json .", "--tasks Over", "--seeds 0", "--episodes 30"])
def test_mistakes_are_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        untrained.main(words.split())
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
