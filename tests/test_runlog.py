"""The run folder and its records: refusal, exact continuation after a kill, a full disk, what the user sees."""

import contextlib
import csv
import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import provenance, runlog
from common.cli import UsageError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that has just been created."""
    path = runlog.run_folder(tmp_path, "his_mamujoco", "Ant-2x4", 3)
    runlog.create(path, {"args": {"hidden": (64, 32)}})
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, read by a parser that refuses NaN and Infinity as JSON does."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of eval.csv."""
    with open(folder / "eval.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- the folder


def test_run_folder_names(tmp_path: Path) -> None:
    assert runlog.run_folder("runs", "his_mpe", "simple_spread", 0) == Path("runs/his_mpe/simple_spread/seed0")
    assert runlog.run_folder("runs", "x", "y", 1, "local-k1") == Path("runs/x/y/seed1-local-k1")
    with pytest.raises(UsageError, match="--run-name ../../z"):
        runlog.run_folder("runs", "x", "y", 1, "../../z")


def test_create_makes_the_folder_once(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.json", "videos"]
    before = (folder / "config.json").read_bytes()
    assert json.loads(before) == {"args": {"hidden": [64, 32]}}
    for state in ("an unfinished", "a finished"):
        with pytest.raises(UsageError) as caught:
            runlog.create(folder, {"args": {}})
        message = str(caught.value)
        assert f"{folder} already holds {state} run" in message and "\n" not in message
        assert f"--resume {folder} " in message and "--run-name" in message
        assert (folder / "config.json").read_bytes() == before
        (folder / "finished.json").touch()


def test_create_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--runs-dir: cannot create the run folder .*: Not a directory"):
        runlog.create(tmp_path / "file" / "run", {})
    with pytest.raises(UsageError, match="--runs-dir: cannot create the run folder .*: File name too long"):
        runlog.create(tmp_path / ("long" * 100), {})


def test_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = runlog.describe({"seed": 3}, ["his_mamujoco.py", "--run-name", "two words"])
    assert json.loads(json.dumps(described)) == described
    assert described["args"] == {"seed": 3}
    assert described["command"] == "python his_mamujoco.py --run-name 'two words'"
    assert described["packages"]["torch"] == torch.__version__ and described["packages"]["numpy"] == np.__version__
    assert described["host"]["cores"] == os.cpu_count() and described["host"]["cpu"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", described["git_commit"])


def test_git_commit_of_a_clean_a_changed_and_a_foreign_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "common" / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "common").mkdir()
    assert provenance.git_commit() == "unknown"
    (tmp_path / "tracked").write_text("1")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for name in ("results", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "written").write_text("1")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = provenance.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    for name in ("results", "docs"):  # where tools write while suites run
        (tmp_path / name / "written").write_text("2")
    assert provenance.git_commit() == commit
    (tmp_path / "tracked").write_text("2")
    assert provenance.git_commit() == commit + "+dirty"
    # A copy installed somewhere inside that repository is not what the commit describes.
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "common" / "provenance.py"))
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_commit() == "unknown"


# ---- records


def test_records(folder: Path) -> None:
    log = runlog.RunLog(folder, 100)
    log.log(10, 5, {"losses/critic": np.float32(0.5), "losses/q_mean": float("nan"), "diag/x": float("-inf")})  # pyright: ignore[reportArgumentType]
    log.log_eval(10, np.array([1.5, 2.5]), [1000, 17])
    log.log_eval(20, [0.1 + 0.2], [3])
    log.finish()
    log.close()
    log.close()
    (record,) = records(folder)
    assert record.pop("wall_s") >= 0
    assert record == {"global_step": 10, "update_step": 5, "losses/critic": 0.5, "losses/q_mean": None, "diag/x": None}
    assert (folder / "eval.csv").read_text().splitlines() == [
        *("global_step,episode,return,length", "10,0,1.5,1000", "10,1,2.5,17", "20,0,0.30000000000000004,3")
    ]
    finished = json.loads((folder / "finished.json").read_text())
    assert finished["global_step"] == 20 and finished["wall_s"] >= 0
    board = EventAccumulator(str(folder)).Reload()
    assert sorted(board.Tags()["scalars"]) == ["diag/x", "losses/critic", "losses/q_mean"]
    assert [(event.step, event.value) for event in board.Scalars("losses/critic")] == [(10, 0.5)]


KILLED_RUN = """
import json, os, signal, sys
from pathlib import Path
from common import provenance, runlog
folder = Path(sys.argv[1])
log = runlog.RunLog(folder, 100)
for step in (10, 20):
    log.log(step, step, {"losses/critic": step})
    log.log_eval(step, [step], [1])
(folder / "offsets.json").write_text(json.dumps(log.offsets()))
for step in (30, 40):
    log.log(step, step, {"losses/critic": -step})
    log.log_eval(step, [-step], [1])
log._tensorboard.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_resume_cuts_off_what_came_after_the_checkpoint(folder: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert [record["global_step"] for record in records(folder)] == [10, 20, 30, 40] and len(evaluations(folder)) == 4
    offsets = json.loads((folder / "offsets.json").read_text())
    assert offsets["global_step"] == 20
    offsets["wall_s"] += 1000
    time.sleep(1.1)  # TensorBoard orders its files by the second in their names

    log = runlog.RunLog(folder, 100, offsets=offsets)
    log.log(30, 30, {"losses/critic": 30})
    log.log_eval(30, [30.0], [1])
    log.close()
    assert [record["losses/critic"] for record in records(folder)] == [10, 20, 30]
    assert records(folder)[1]["wall_s"] < 1000 < records(folder)[2]["wall_s"] < 1100
    assert [row["return"] for row in evaluations(folder)] == ["10.0", "20.0", "30.0"]
    board = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("losses/critic")] == [(10, 10), (20, 20), (30, 30)]


def test_resume_of_a_finished_run_takes_the_mark_away(folder: Path) -> None:
    log = runlog.RunLog(folder, 100)
    offsets = log.offsets()
    log.finish()
    log.close()
    runlog.RunLog(folder, 200, offsets=offsets).close()
    assert not (folder / "finished.json").exists()


def test_an_end_that_says_little_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for updates, said in ((0, True), (1, False)):
        log = runlog.RunLog(folder, 100)
        log.log(100, updates, {"eval/return_mean": 1.0})
        offsets = log.offsets()
        log.finish()
        log.close()
        assert ("no update was made" in capsys.readouterr().out) == said
    for total, said in ((100, True), (200, False)):
        runlog.record_resumption(folder, {"args": {"total_timesteps": total}}, offsets)
        assert ("finished at step 100; a larger --total-timesteps would go on" in capsys.readouterr().out) == said
    runlog.RunLog(folder, 100, offsets=offsets).finish()
    assert "no update" not in capsys.readouterr().out, "nobody knows what happened before"


def started(folder: Path, step: int = 0) -> dict[str, Any]:
    """Offsets of a run that continues at `step`."""
    return {"global_step": step, "wall_s": 0.0, "metrics.jsonl": 0, "eval.csv": 0}


def test_only_one_process_trains_in_a_folder(folder: Path) -> None:
    """The lock ends with its process: a killed run can be continued at once."""
    code = "import sys, time; from pathlib import Path; from common import provenance, runlog\n"
    code += "log = runlog.RunLog(Path(sys.argv[1]), 9); log.log(1, 1, {}); print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        before = (folder / "config.json").read_bytes(), records(folder)
        config = {"args": {"total_timesteps": 9}}
        for write in (
            lambda: runlog.record_resumption(folder, config, started(folder)),
            lambda: runlog.RunLog(folder, 9),
        ):
            with pytest.raises(UsageError, match="another process is training this run"):
                write()
        assert ((folder / "config.json").read_bytes(), records(folder)) == before
        process.kill()
        process.wait()
    runlog.record_resumption(folder, config, started(folder))
    for _ in range(2):
        runlog.RunLog(folder, 9, offsets=started(folder)).close()


@pytest.mark.parametrize(
    ("step", "total", "words"),
    [(0, 900, "the run is finished and its checkpoints were removed"), (500, 499, "is already at step 500")],
)
def test_a_run_that_cannot_be_continued_so_is_left_as_it_is(folder: Path, step: int, total: int, words: str) -> None:
    log = runlog.RunLog(folder, 500)
    log.log(500, 1, {"losses/critic": 1.0})
    log.finish()
    log.close()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=words):
        runlog.record_resumption(folder, {"args": {"total_timesteps": total}}, started(folder, step))
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_run_that_overshot_its_budget_may_be_continued_with_it(folder: Path) -> None:
    """As after a crash between the last checkpoint and the end: 60 environments pass 500 steps at 540."""
    (folder / "config.json").write_text(json.dumps({"args": {"total_timesteps": 500}}))
    runlog.record_resumption(folder, {"args": {"total_timesteps": 500}}, started(folder, 540))
    with pytest.raises(UsageError, match="is already at step 540"):
        runlog.record_resumption(folder, {"args": {"total_timesteps": 501}}, started(folder, 540))


def test_a_folder_that_cannot_be_written_is_said_in_one_line(folder: Path) -> None:
    (folder / "eval.csv").mkdir()
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"cannot write eval.csv: Is a directory"):
        runlog.record_resumption(folder, {"args": {"total_timesteps": 900}}, started(folder, 5))
    assert (folder / "config.json").read_bytes() == before, "a continuation that cannot be leaves no trace"
    with pytest.raises(UsageError, match=r"cannot write .*eval.csv: Is a directory"):
        runlog.RunLog(folder, 9)


def test_a_stopped_run_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = runlog.RunLog(folder, 9)
    log.log(3, 1, {})
    log.stopped()
    log.close()
    assert capsys.readouterr().out == f"stopped at step 3; --resume {folder} goes on\n"


def test_resume_never_pads_a_file_that_got_shorter(folder: Path) -> None:
    offsets = {"global_step": 5, "wall_s": 1.0, "metrics.jsonl": 1000, "eval.csv": 1000}
    log = runlog.RunLog(folder, 100, offsets=offsets)
    log.log(6, 6, {"losses/critic": 1.0})
    log.log_eval(6, [1.0], [2])
    log.close()
    assert len(records(folder)) == 1 and evaluations(folder)[0]["length"] == "2"


FULL_DISK_RUN = """
import contextlib, resource, signal, sys
from pathlib import Path
from common import provenance, runlog
folder = Path(sys.argv[1])
log = runlog.RunLog(folder, 100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for step in range(1, 101):
    if step == 11:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    if step == 91:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.log(step, step, {"losses/critic": step})
    if step == 50:
        with contextlib.suppress(OSError):
            log._tensorboard.flush()  # or its thread would meet the full disk only at the end
log.offsets()
log.finish()
log.close()
print("the run ended well")
"""


def test_full_disk_costs_records_not_the_run(folder: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK_RUN, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("the run ended well\n"), done.stderr
    for name in ("metrics.jsonl", "TensorBoard events"):
        assert done.stdout.count(f"warning: cannot write {name}: File too large; the run goes on") == 1
    steps = [record["global_step"] for record in records(folder)]  # no torn line: each one parses
    assert steps[:11] == list(range(1, 12)) and steps[-10:] == list(range(91, 101)) and len(steps) < 60


# ---- what the user sees

SHOWN_RUN = """
import sys, time
from pathlib import Path
from common import provenance, runlog
start = 400
offsets = {"global_step": start, "wall_s": 1e6, "metrics.jsonl": 0, "eval.csv": 0}
log = runlog.RunLog(Path(sys.argv[1]), 1000, offsets=offsets)
log.progress(start, "warm-up")
log.progress(start + 100, "training")
time.sleep(1)
log.progress(start + 200, "training")
assert log._bar.disable or log._bar.n - log._bar.initial == 100, "the rate counts the warm-up"
log.message("a message")
log.progress(start + 200, "evaluating")
log.log_eval(start + 200, [10.0, 20.0], [5, 5])
log.progress(start + 200, "saving")
log.close()
"""


def test_without_terminal_one_line_per_evaluation(folder: Path) -> None:
    command = [sys.executable, "-c", SHOWN_RUN, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    message, evaluation = done.stdout.splitlines()
    assert message == "a message"
    match = re.fullmatch(r"step 600/1000 \(60.0 %\)  return 15.0 \+- 5.0  (\d+) steps/s  ETA 00:(\d\d)", evaluation)
    # 100 training steps in one second (or a few, on a busy machine), 400 to go; with the warm-up it would be 200 in
    # the same time, with the sessions before almost nothing.
    assert match and 10 <= int(match[1]) <= 100 and abs(int(match[2]) - 400 / int(match[1])) < 2


def test_terminal_shows_a_bar(folder: Path) -> None:
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 120))
    command = [sys.executable, "-c", SHOWN_RUN, str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    os.close(stderr)
    shown = ""
    with contextlib.suppress(OSError):  # how a pseudo-terminal says that it is at its end
        while piece := os.read(terminal, 1 << 16).decode():
            shown += piece
    os.close(terminal)
    assert done.returncode == 0 and done.stdout == "a message\n"
    for part in ("warm-up", "training", "evaluating", "saving", "600/1000", "step/s", "eval 15.0 +- 5.0", "<00:"):
        assert part in shown, part


def test_tracking_without_wandb_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` fail
    log = runlog.RunLog(folder, 100, track=True)
    log.log(1, 1, {"losses/critic": 1.0})
    log.close()
    assert capsys.readouterr().out == "--track needs wandb: pip install wandb\n" and len(records(folder)) == 1


def test_tracking_mirrors_the_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wandb:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def init(self, **settings: Any) -> "Wandb":
            self.calls.append(settings["config"])
            return self

        def log(self, values: dict[str, float], step: int) -> None:
            self.calls.append((values, step))

        def finish(self) -> None:
            self.calls.append("finish")

    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # pyright: ignore[reportArgumentType]
    log = runlog.RunLog(folder, 100, track=True, config={"args": {"seed": 3}})
    log.log(7, 1, {"losses/critic": 1.0})
    log.close()
    assert wandb.calls == [{"args": {"seed": 3}}, ({"losses/critic": 1.0}, 7), "finish"]
