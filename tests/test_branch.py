"""experiments/branch.py: a branch shares a run's past, and only the change tells them apart afterwards."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from script_helpers import RATES, flags, metrics, step_files
from test_hasac import equal
from test_ideas import TINY, run

import his_mpe
from common import checkpoint
from experiments import branch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run of 600 steps with checkpoints of steps 300 and 600."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert his_mpe.main(flags(TINY | {"runs_dir": runs_dir, "rules": "harl"})) == 0
    return runs_dir / "his_mpe/simple_reference/seed3-harl"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own: `--idea` changes a script's module in place."""
    return run([sys.executable, "-m", "experiments.branch", *map(str, words)])


def go_on(*words: object) -> Path:
    """Branch, train the branch with the command that was printed; returns its folder."""
    made = call(*words)
    assert made.returncode == 0, made.stderr
    command = shlex.split(made.stdout)
    assert command[0] == "python"
    done = run([sys.executable, *command[1:]])
    assert done.returncode == 0, done.stderr
    return Path(command[-1])


def steady(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in RATES} for line in metrics(folder)]


def test_without_a_change_it_is_the_same_run(whole: Path) -> None:
    folder = go_on(whole, "again", "--step", 300)
    assert folder == whole.parent / "seed3-harl-again"
    assert (folder / "eval.csv").read_text() == (whole / "eval.csv").read_text()
    assert steady(folder) == steady(whole)
    ends = [torch.load(step_files(path)[-1], weights_only=True)["learner"] for path in (folder, whole)]
    assert equal(*ends) and ends[0]["update_step"] > 20
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["run_name"] == "again" and config["branched"]["checkpoint"].endswith("step_300.pt")
    assert config["command"] == json.loads((whole / "config.json").read_text())["command"]


@pytest.mark.parametrize(
    "changes", [["--credit", "none"], ["--idea", "positive"], ["--beta", "2"], ["--idea", "annealed", "--tau", "0.1"]]
)
def test_a_change_counts_from_the_checkpoint_on(whole: Path, changes: list[str]) -> None:
    name = "-".join(changes).replace("-", "")
    folder = go_on(whole, name, "--step=300", "--", *changes, "--total-timesteps", "500")
    theirs, ours = steady(whole), steady(folder)
    assert ours[-1]["global_step"] == 500
    assert [line for line in ours if line["global_step"] <= 300] == [
        line for line in theirs if line["global_step"] <= 300
    ]
    later = {line["global_step"]: line for line in theirs if line["global_step"] > 300}
    assert all(line != later[line["global_step"]] for line in ours if line["global_step"] in later)
    if changes == ["--credit", "none"]:
        credited = {line["global_step"]: "credit/shapley_0" in line for line in ours if "losses/critic" in line}
        assert credited[300] and not credited[400] and not credited[500]


def test_the_policy_of_a_later_step_stays_behind(whole: Path) -> None:
    best = int(checkpoint.load_policy(whole / "checkpoints/policy.safetensors")[1]["global_step"])
    for step, name in ((300, "early"), (600, "late")):
        assert call(whole, name, "--step", step, "--", "--total-timesteps", 700).returncode == 0
        folder = whole.parent / f"seed3-harl-{name}"
        assert (folder / "checkpoints/policy.safetensors").exists() == (best <= step)


@pytest.mark.parametrize(
    "words, message",
    [
        (["x", "--step", "200"], "--step 200: {run} has checkpoints of steps 300, 600"),
        (["x"], "--total-timesteps 600: {run}/checkpoints/step_600.pt is there already"),
        (["x", "--step", "300", "--", "--hidden-sizes", "8", "8"], "--hidden-sizes 8 8: the run in {run} has 16 16"),
        (["x", "--step", "300", "--", "--seed", "4"], "--seed 4: the run in {run} has 3"),
        (["x", "--step", "300", "--", "--beta", "-1"], "--beta -1.0: must be at least"),
        (
            ["x", "--step", "300", "--", "--idea", "recent", "--credit", "none"],
            "--credit none: --idea recent needs his",
        ),
        (["x/y", "--step", "300"], "x/y: must not contain a path separator"),
        (["x", "--step", "many"], "argument --step: invalid int value: 'many'"),
    ],
)
def test_mistakes_are_one_line_and_make_nothing(whole: Path, words: list[str], message: str) -> None:
    before = sorted(whole.parent.iterdir())
    done = call(whole, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message.format(run=whole) in done.stderr
    assert sorted(whole.parent.iterdir()) == before


def test_from_inside_the_run_it_lies_beside_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    _, folder = branch.branch(Path("."), "inside", 300, [])
    assert folder == whole.parent / "seed3-harl-inside" and (folder / "config.json").exists()


def test_a_name_that_is_taken_or_a_folder_without_a_run_is_refused(whole: Path, tmp_path: Path) -> None:
    words = whole, "twice", "--step", 300
    assert call(*words).returncode == 0
    (tmp_path / "config.json").write_text("{}")
    for argv, message in (
        (words, "already holds an unfinished run"),
        ((tmp_path / "none", "x"), "no run there: cannot read config.json"),
        ((tmp_path, "x"), "its config.json is none of a script of ours"),
    ):
        done = call(*argv)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr


@pytest.mark.parametrize(
    "file, message",
    [
        ("eval.csv", "eval.csv: No such file"),
        ("checkpoints/policy.safetensors", "policy.safetensors: unreadable policy"),
    ],
)
def test_a_copy_that_fails_leaves_nothing(whole: Path, tmp_path: Path, file: str, message: str) -> None:
    damaged = tmp_path / "seed3-harl"
    shutil.copytree(whole, damaged)
    if file == "eval.csv":
        (damaged / file).unlink()
    else:
        (damaged / file).write_bytes(b"torn")
    done = call(damaged, "x", "--step", 300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["seed3-harl"]
