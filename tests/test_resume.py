"""Exact continuation: kill, signals, damaged checkpoints; and that looking at a run does not change it."""

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from script_helpers import (
    ROOT,
    assert_same_run,
    command,
    differences,
    folder_of,
    metrics,
    on_env_step,
    on_update,
    script,
    steady_metrics,
    step_files,
    train,
    training_state,
    tree_bytes,
    usage_error,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import his_mamujoco as H
from common import checkpoint


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that nothing interrupted."""
    return train(tmp_path_factory.mktemp("undisturbed"))


def wait_for(condition: Any, process: subprocess.Popen[str], what: str) -> None:
    """Poll until `condition()` holds; the process must be alive all the while."""
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before {what}: {process.communicate()}")
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {what} after 200 s")
        time.sleep(0.005)


def signal_self(signum: int) -> None:
    """Send this process a signal, which Python handles before the next line."""
    assert threading.current_thread() is threading.main_thread(), "only the main thread hears signals"
    os.kill(os.getpid(), signum)


# ---- kill -9


def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path: Path) -> None:
    steps = dict(total_timesteps=1600, log_every=100, save_every=400)
    reference = train(tmp_path / "reference", **steps)
    folder = folder_of(tmp_path / "killed")
    killed = subprocess.Popen(
        script(*command(tmp_path / "killed", **steps)),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def is_past_a_checkpoint() -> bool:
        if not (checkpoints := step_files(folder)):
            return False
        return metrics(folder)[-1]["global_step"] > int(checkpoints[-1].stem.split("_")[1])

    wait_for(is_past_a_checkpoint, killed, "a line of metrics after a checkpoint")
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    at_kill = metrics(folder)
    newest = checkpoint.load(step_files(folder)[-1])
    assert at_kill[-1]["global_step"] > newest["progress"]["global_step"] > 0
    assert newest["learner"]["update_step"] > 0 and not (folder / "finished.json").exists()

    continued = subprocess.run(script("--resume", folder), cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert continued.returncode == 0, continued.stderr
    assert str(step_files(folder)[0].parent / f"step_{newest['progress']['global_step']}.pt") in continued.stdout
    assert_same_run(folder, reference)
    assert (folder / "finished.json").exists()

    shown = EventAccumulator(str(folder)).Reload()
    scalars = {key: [event.step for event in shown.Scalars(key)] for key in shown.Tags()["scalars"]}
    logged = metrics(folder)
    keys = set().union(*logged) - {"global_step", "update_step", "wall_s"}
    assert scalars == {key: [line["global_step"] for line in logged if key in line] for key in keys}


# ---- signals


def undergo(signum: int, moment: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a tiny run by a signal; returns its folder with the checkpoint made then."""
    with monkeypatch.context() as patch:
        if moment == "update":
            on_update(patch, at, lambda learner, buffer: signal_self(signum))
        else:
            num_envs, reset = {"rollout": (4, 1), "first evaluation": (2, 1), "last evaluation": (2, 4)}[moment]
            on_env_step(patch, num_envs, at, lambda: signal_self(signum), reset)
        assert H.main(command(tmp_path)) == 128 + signum
    return folder_of(tmp_path)


@pytest.mark.parametrize(
    ("signum", "moment", "at", "global_step", "update_step"),
    [
        pytest.param(signal.SIGTERM, "rollout", 20, 80, 0, id="warm-up"),
        pytest.param(signal.SIGTERM, "rollout", 119, 476, 65, id="rollout"),
        pytest.param(signal.SIGTERM, "update", 22, 300, 22, id="update-22"),
        # Update 25 alone is left of the round: it changes no actor, whose metrics the line at step 300 holds.
        pytest.param(signal.SIGINT, "update", 24, 300, 24, id="update-24"),
        pytest.param(signal.SIGINT, "first evaluation", 3, 200, 0, id="first-evaluation"),
        pytest.param(signal.SIGTERM, "last evaluation", 5, 800, 150, id="last-evaluation"),
    ],
)
def test_a_signal_saves_and_the_continued_run_is_the_undisturbed_one(
    signum: int,
    moment: str,
    at: int,
    global_step: int,
    update_step: int,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = undergo(signum, moment, at, tmp_path, monkeypatch)
    saved = checkpoint.load(step_files(folder)[-1])
    assert (saved["progress"]["global_step"], saved["learner"]["update_step"]) == (global_step, update_step)
    if global_step == 476:
        assert saved["finished"], "no episode ended since the last log line: nothing tests that they are kept"
    assert not (folder / "finished.json").exists()
    assert H.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, undisturbed)


def test_metrics_survive_where_a_round_is_shorter_than_the_actors_period(tmp_path: Path) -> None:
    """With one update a round, every second log line shows actor metrics of the round before."""
    short = dict(train_interval=1, policy_frequency=3, warmup_steps=100, eval_every=1000, log_every=20, save_every=20)
    reference = train(tmp_path / "reference", **short, total_timesteps=200)
    folder = train(tmp_path / "continued", **short, total_timesteps=160)
    H.main(["--resume", str(folder), "--total-timesteps", "200"])
    ours, theirs = ([line for line in steady_metrics(f) if "losses/critic" in line] for f in (folder, reference))
    assert ours == theirs
    assert [line["global_step"] for line in ours[-2:]] == [180, 200] and "losses/actor_0" in ours[-1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_shell_sees_the_signal_as_exit_status(signum: int, tmp_path: Path) -> None:
    """In a process of its own, in a warm-up that would not end for a long time."""
    long = dict(total_timesteps=10**8, warmup_steps=10**7, save_every=10**7, eval_every=10**7, log_every=20)
    folder = folder_of(tmp_path / "stopped")
    process = subprocess.Popen(
        script(*command(tmp_path / "stopped", **long)),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: (folder / "metrics.jsonl").exists() and metrics(folder), process, "metrics")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert f"{signal.Signals(signum).name} received" in err and "Traceback" not in err
    step = checkpoint.load(step_files(folder)[-1])["progress"]["global_step"]
    if signum == signal.SIGTERM:
        return
    more = step + 400
    assert H.main(["--resume", str(folder), "--total-timesteps", str(more)]) == 0
    reference = train(tmp_path / "reference", **(long | dict(total_timesteps=more)))
    ours, theirs = (training_state(step_files(f)[-1]) for f in (folder, reference))
    assert differences(ours, theirs) == []


def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    """As when an ssh connection breaks: SIGHUP, and from then on every write to the terminal fails."""
    long = dict(total_timesteps=10**8, warmup_steps=10**7, save_every=10**7, eval_every=10**7, log_every=20)
    folder = folder_of(tmp_path)
    words = script(*command(tmp_path, **long))
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
        os.chdir(ROOT)
        os.execv(words[0], words)
    give_up = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and metrics(folder)):
        assert time.monotonic() < give_up, "no metrics"
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert checkpoint.load(step_files(folder)[-1])["progress"]["global_step"] > 0


def test_ctrl_c_after_a_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    hang = "import time\nH.Learner.update = lambda *_: (print('in the update', flush=True), time.sleep(600))"
    process = subprocess.Popen(
        script(*command(tmp_path), code=hang), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    while "in the update" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    while "SIGTERM received" not in (line := process.stderr.readline()):
        assert line, "the first signal ended it"
    process.send_signal(signal.SIGTERM)  # from a program that does not know of the first
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert step_files(folder_of(tmp_path)) == []  # it did not get to a checkpoint


# ---- what --resume starts from


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path)
    newest = step_files(folder)[-1]
    with open(newest, "rb+") as file:
        file.truncate(newest.stat().st_size // 2)
    capsys.readouterr()
    assert H.main(["--resume", str(folder)]) == 0
    out = capsys.readouterr().out
    assert any(newest.name in line and "skipped" in line and "truncated" in line for line in out.splitlines())
    assert "step_400.pt" in out
    assert_same_run(folder, undisturbed)


def test_a_run_with_damaged_checkpoints_only_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, total_timesteps=240)
    for path in step_files(folder):
        path.write_bytes(path.read_bytes()[:-1000])
    before = tree_bytes(folder)
    line = usage_error(capsys, ["--resume", str(folder)])
    assert str(folder / "checkpoints") in line
    assert tree_bytes(folder) == before


def test_a_run_without_checkpoint_starts_over(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        """Stands for kill -9: nothing of the script handles it."""

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        on_env_step(patch, 4, 95, kill)
        H.main(command(tmp_path))
    folder = folder_of(tmp_path)
    assert step_files(folder) == [] and len(metrics(folder)) > 2
    capsys.readouterr()
    assert H.main(["--resume", str(folder)]) == 0
    assert "no checkpoint" in capsys.readouterr().out
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize(
    "change",
    [["--gamma", "0.9"], ["--hidden-sizes", "16", "16"], ["--seed", "4"], ["--num-envs", "2"], ["--no-box-cox"]],
)
def test_resume_refuses_another_hyperparameter(
    change: list[str], undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_bytes(undisturbed)
    line = usage_error(capsys, ["--resume", str(undisturbed), *change])
    assert change[0].replace("--no-", "--") in line
    assert tree_bytes(undisturbed) == before


def test_more_steps_for_a_finished_run_equal_the_longer_run(undisturbed: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, total_timesteps=400)
    assert H.main(["--resume", str(folder), "--total-timesteps", "800"]) == 0
    assert_same_run(folder, undisturbed)
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["total_timesteps"] == 800 and len(config["resumed"]) == 1


def test_more_steps_work_wherever_the_finished_run_ended(tmp_path: Path) -> None:
    folder = train(tmp_path, total_timesteps=252)  # no round, log line or evaluation falls due here
    assert H.main(["--resume", str(folder), "--total-timesteps", "412"]) == 0
    assert checkpoint.load(step_files(folder)[-1])["progress"]["global_step"] == 412
    steps = [line["global_step"] for line in metrics(folder)]
    assert steps == sorted(steps) and 252 in steps and 412 in steps


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    folder = train(tmp_path, total_timesteps=240)
    before = [(folder / name).read_bytes() for name in ("metrics.jsonl", "eval.csv")]
    state = training_state(step_files(folder)[-1])
    assert H.main(["--resume", str(folder)]) == 0
    assert [(folder / name).read_bytes() for name in ("metrics.jsonl", "eval.csv")] == before
    assert differences(training_state(step_files(folder)[-1]), state) == []


# ---- looking does not touch


@pytest.mark.parametrize(
    "looking",
    [
        pytest.param(dict(eval_every=120, eval_episodes=4, eval_envs=1), id="evaluation"),
        pytest.param(dict(log_every=20), id="logging"),
        pytest.param(dict(save_every=60), id="checkpoints"),
        pytest.param(dict(capture_video=True, eval_every=400), id="video"),
    ],
)
def test_evaluation_logging_video_and_checkpoints_leave_training_bit_equal(
    looking: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    folder = train(tmp_path, **looking)
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, undisturbed))
    assert differences(state, expected) == []
    assert state["learner"]["update_step"] == 150


def test_resuming_with_another_way_of_looking_leaves_training_bit_equal(undisturbed: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, total_timesteps=400)
    looking = ["--eval-every", "300", "--log-every", "40", "--save-every", "100"]
    assert H.main(["--resume", str(folder), "--total-timesteps", "800", *looking]) == 0
    state, expected = (training_state(step_files(f)[-1]) for f in (folder, undisturbed))
    assert differences(state, expected) == []
