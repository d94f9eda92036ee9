"""The runner of suites with real processes: finished, crashed, killed, stopped, mixed runs; and the sum of the cost."""

import argparse
import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import cost, folders, local
from experiments import run as runner
from experiments.local import Job, LocalPool
from experiments.suites import SUITES, TASKS, Group, Run, Suite, schedule

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests/data/fake_script.py"
# A runner in a process of its own, with suites of the fake script: `fake-<variants>` is one task, two seeds.
PROGRAM = f"""
import sys
from experiments import suites
from experiments.run import main
for name in ("", "crash", "crash-once", "usage", "nonfinite", "stubborn"):
    settings = {{"behave": name}} if name else {{}}
    suites.VARIANTS[name or "ok"] = suites.Variant(settings, {str(FAKE)!r}, num_envs=4)
suites.VARIANTS["slow"] = suites.Variant({{"pace": "0.2"}}, {str(FAKE)!r}, num_envs=4)  # 2 seconds a run
suites.VARIANTS["absent"] = suites.Variant({{}}, "baselines/absent.py")
for name in ("toy", "toy2"):
    suites.TASKS[name] = suites.Task("toy", 2)
variants, steps, *argv = sys.argv[1:]
group = suites.Group(["toy", "toy2"], variants.split(","), (1, 2), int(steps))
suites.SUITES["fake"] = suites.Suite("a fake", [group])
sys.exit(main(["fake", *argv]))
"""
STEPS = 10_000  # a line of metrics and a checkpoint every 1000 steps, in 0.02 s
LONG = 800_000  # a line every 5000 steps, in 0.02 s; a checkpoint every 40,000


def command(variants: str, *argv: object, steps: int = STEPS) -> list[str]:
    return [sys.executable, "-c", PROGRAM, variants, str(steps), *map(str, argv)]


def flags(tmp_path: Path, workers: int = 2) -> list[str]:
    return ["--workers", str(workers), "--runs-dir", str(tmp_path / "suite"), "--calibration", str(tmp_path / "cal")]


def start(variants: str, tmp_path: Path, *argv: object, **options: Any) -> subprocess.Popen[str]:
    words = command(variants, *flags(tmp_path, options.pop("workers", 2)), *argv, **options)
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def run(variants: str, tmp_path: Path, *argv: object, **options: Any) -> tuple[int, str]:
    return finish(start(variants, tmp_path, *argv, **options))


def folder(tmp_path: Path, name: str = "ok", task: str = "toy", seed: int = 1) -> Path:
    return tmp_path / "suite/fake" / task / f"seed{seed}-{name}"


def history(path: Path) -> list[list[str]]:
    """What the fake script noted: [time, what, ...]."""
    return [line.split() for line in (path / "starts").read_text().splitlines()] if (path / "starts").exists() else []


def starts(path: Path) -> list[int]:
    """The step of each start."""
    return [int(words[3]) for words in history(path) if words[1] == "start"]


def steps(path: Path) -> list[int]:
    return [json.loads(line)["global_step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def all_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "suite/fake").glob("*/*"))


def assert_complete(tmp_path: Path, total: int = STEPS, count: int = 4) -> None:
    """Every run is finished, was never in two processes at once and recorded each step once."""
    found = all_folders(tmp_path)
    assert len(found) == count
    for path in found:
        assert json.loads((path / "finished.json").read_text())["global_step"] == total
        assert not (path / "double").exists()
        every = schedule(total)["log_every"]
        assert steps(path) == [*range(every, total + 1, every), total]  # the last line is the evaluation


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 30) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} after {timeout} s"
        time.sleep(0.01)
    return value


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and waits for init does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(tmp_path: Path) -> list[int]:
    return [int(words[2]) for path in all_folders(tmp_path) for words in history(path) if words[1] == "start"]


def under_way(tmp_path: Path, count: int) -> Callable[[], bool]:
    """Whether `count` runs have a checkpoint."""
    return lambda: len(list((tmp_path / "suite").rglob("state.json"))) >= count


# ---- a suite from beginning to end


def test_a_suite_runs_with_so_many_processes_and_a_second_time_nothing_is_left(tmp_path: Path) -> None:
    status, output = run("slow", tmp_path, "--report-every", 0.2)
    assert status == 0, output
    assert_complete(tmp_path)
    assert "runs: 4; 0 finished, 0 begun, 4 not begun" in output and "4 finished" in output
    assert "environment steps: 40,000; 40,000 to go" in output
    assert re.search(r"toy_slow_seed1 +\d+,000 +\d+\.\d .* 1000 ", output) and "ETA" in output
    changes = sorted((float(w[0]), 1 if w[1] == "start" else -1) for p in all_folders(tmp_path) for w in history(p))
    running = [sum(change for _, change in changes[: i + 1]) for i in range(len(changes))]
    assert max(running) == 2
    first = {p.name: float(history(p)[0][0]) for p in all_folders(tmp_path) if p.parent.name == "toy2"}
    assert first["seed1-slow"] < float(history(folder(tmp_path, "slow", seed=2))[0][0]), (
        "seed 2 began before seed 1 was through"
    )

    status, output = run("slow", tmp_path)
    assert status == 0 and "runs: 4; 4 finished, 0 begun, 0 not begun" in output
    assert [starts(path) for path in all_folders(tmp_path)] == [[0]] * 4


def test_the_command_of_a_run_names_nothing_of_this_machine_inside_the_project(tmp_path: Path) -> None:
    assert local.shown(ROOT / "runs/suites/mpe") == "runs/suites/mpe"
    assert local.shown(tmp_path) == str(tmp_path)


def test_finished_runs_lose_their_replay_checkpoints_with_prune_only(tmp_path: Path) -> None:
    assert run("ok", tmp_path, "--tasks", "toy", "--seeds", 1)[0] == 0
    assert list(folder(tmp_path).glob("checkpoints/step_*.pt"))
    assert run("ok", tmp_path, "--tasks", "toy2", "--seeds", 1, "--prune")[0] == 0
    pruned = folder(tmp_path, task="toy2")
    assert (pruned / "finished.json").exists() and not list(pruned.glob("checkpoints/*"))
    assert list(folder(tmp_path).glob("checkpoints/step_*.pt"))
    assert run("ok", tmp_path, "--tasks", "toy", "--seeds", 1, "--prune")[0] == 0  # finished before
    assert not list(folder(tmp_path).glob("checkpoints/step_*.pt"))


# ---- crashes


def test_a_crashed_run_continues_from_its_checkpoint(tmp_path: Path) -> None:
    status, output = run("crash-once", tmp_path)
    assert status == 0, output
    assert_complete(tmp_path)
    assert [starts(path) for path in all_folders(tmp_path)] == [[0, 4000]] * 4  # saved at 1000 .. 4000, crashed at 5000
    assert output.count("RuntimeError: out of luck; restart 1 of 3") == 4


def test_a_run_that_always_crashes_is_given_up_and_the_others_finish(tmp_path: Path) -> None:
    status, output = run("crash,ok", tmp_path, "--seeds", 1, "--tasks", "toy", "--max-restarts", 2)
    assert status == 1, output
    assert starts(folder(tmp_path, "crash")) == [0, 4000, 4000]
    assert (folder(tmp_path) / "finished.json").exists()
    assert "failed: toy_crash_seed1: status 1 after 2 restarts: RuntimeError: out of luck" in output
    log = (tmp_path / "suite/logs/toy_crash_seed1.log").read_text()
    assert log.count("RuntimeError") == 3


@pytest.mark.parametrize(("name", "status", "line"), [("usage", 2, "no such thing"), ("nonfinite", 3, "NaN in")])
def test_wrong_usage_and_a_nonfinite_number_are_reported_and_not_restarted(
    name: str, status: int, line: str, tmp_path: Path
) -> None:
    code, output = run(f"{name},ok", tmp_path, "--seeds", 1, "--tasks", "toy")
    assert code == 1, output
    assert re.search(rf"failed: toy_{name}_seed1: .*\(status {status}\): fake.py: .*{line}", output), output
    assert output.count("(process ") == 2 and "restart" not in output.replace("not restarted", "")
    assert (folder(tmp_path) / "finished.json").exists()


def test_a_child_killed_by_sigkill_is_restarted(tmp_path: Path) -> None:
    process = start("ok", tmp_path, "--tasks", "toy", "--seeds", 1, steps=LONG)
    wait_for(under_way(tmp_path, 1), "checkpoint")
    (pid,) = pids(tmp_path)
    os.kill(pid, signal.SIGKILL)
    status, output = finish(process)
    assert status == 0 and "signal SIGKILL" in output and "restart 1 of 3" in output, output
    assert_complete(tmp_path, LONG, 1)
    first, second = starts(folder(tmp_path))
    assert first == 0 and second >= 40_000


# ---- the runner itself dies


def test_a_killed_runner_takes_its_runs_along_and_a_rerun_goes_on(tmp_path: Path) -> None:
    process = start("ok", tmp_path, steps=LONG)
    wait_for(under_way(tmp_path, 2), "two checkpoints")
    process.kill()
    process.communicate()
    before = pids(tmp_path)
    wait_for(lambda: not any(map(is_alive, before)), "end of the runs")
    ends = [words[2] for path in all_folders(tmp_path) for words in history(path) if words[1] == "end"]
    assert ends == ["143", "143"], "they should have saved on SIGTERM"
    status, output = run("ok", tmp_path, steps=LONG)
    assert status == 0 and "0 finished, 2 begun, 2 not begun" in output, output
    assert_complete(tmp_path, LONG)
    counts = sorted(starts(path) for path in all_folders(tmp_path))
    assert [len(each) for each in counts] == [1, 1, 2, 2] and all(each[1] > 0 for each in counts[2:])


def test_a_run_that_outlives_its_runner_is_waited_for_not_doubled(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(steps=2_000_000)  # it would take eight seconds, and heeds SIGTERM after four
    process = start("stubborn", tmp_path, "--tasks", "toy", "--seeds", 1, **options)
    wait_for(under_way(tmp_path, 1), "a checkpoint")
    process.kill()
    process.communicate()
    (pid,) = pids(tmp_path)
    assert is_alive(pid)
    status, output = run("stubborn", tmp_path, "--tasks", "toy", "--seeds", 1, **options)
    assert status == 0, output
    assert f"toy_stubborn_seed1: process {pid} still works on it: waiting" in output
    (path,) = all_folders(tmp_path)
    assert len(starts(path)) == 2 and (path / "finished.json").exists() and not (path / "double").exists()
    end, second = (
        next(float(w[0]) for w in history(path)[i:] if w[1] == what) for i, what in ((1, "end"), (1, "start"))
    )
    assert end < second


def test_two_runners_do_not_work_in_one_folder(tmp_path: Path) -> None:
    process = start("ok", tmp_path, steps=LONG)
    wait_for(under_way(tmp_path, 1), "checkpoint")
    status, output = run("ok", tmp_path, steps=LONG)
    assert status == 2 and f"another runner (process {process.pid}) works there" in output
    process.terminate()
    assert finish(process)[0] == 143


# ---- signals


def test_ctrl_c_in_a_terminal_lets_the_runs_save_and_a_rerun_finishes(tmp_path: Path) -> None:
    words = command("ok", *flags(tmp_path), steps=LONG)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(words[0], words)
    shown = b""

    def read() -> bool:
        nonlocal shown
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            return True
        return False

    while b"\x1b[J" not in shown or not under_way(tmp_path, 2)():  # the table has been redrawn
        assert not read(), shown.decode()
    os.write(terminal, b"\x03")
    while not read():
        pass
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown.decode()
    assert b"stopping: the runs save a checkpoint" in shown and b"2 stopped" in shown and b"toy_ok_seed1" in shown
    for path in all_folders(tmp_path):
        assert [words[1] for words in history(path)] == ["start", "end"], "no SIGINT may reach a run"
        assert history(path)[-1][2] == "143" and not (path / "finished.json").exists()
    assert len(all_folders(tmp_path)) == 2
    status, output = run("ok", tmp_path, steps=LONG)
    assert status == 0, output
    assert_complete(tmp_path, LONG)


def test_a_second_signal_kills(tmp_path: Path) -> None:
    process = start("stubborn", tmp_path, "--tasks", "toy", "--seeds", 1, steps=40_000_000)
    wait_for(under_way(tmp_path, 1), "a checkpoint")
    (pid,) = pids(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "stopping" not in (line := process.stdout.readline()):
        assert line
    assert is_alive(pid)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert not is_alive(pid)
    assert [words[1] for words in history(folder(tmp_path, "stubborn"))] == ["start"]


def test_a_signal_while_measuring_starts_nothing_and_leaves_no_process(tmp_path: Path) -> None:
    process = start("ok", tmp_path, "--", "--pace", "30")
    assert process.stdout is not None
    while "measuring" not in (line := process.stdout.readline()):
        assert line
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = wait_for(lambda: pids if len(pids := listed.read_text().split()) == 2 else None, "two processes")
    process.terminate()
    assert finish(process)[0] == 143
    assert not any(is_alive(int(pid)) for pid in children)
    assert not (tmp_path / "suite/fake").exists()


def test_a_run_that_finished_in_other_hands_is_not_started(tmp_path: Path) -> None:
    path = make_finished(tmp_path)
    first = Run(str(FAKE), "toy", "ok", 1, schedule(STEPS))
    said: list[str] = []
    pool = LocalPool([Job(first)], tmp_path / "suite", 1, 0, (), lambda: None, said.append)
    assert not pool.poll() and pool.jobs[0].state == "finished" and said == ["toy_ok_seed1: finished"]
    assert starts(path) == [0]


# ---- the table


def test_the_table_counts_steps_and_shares_what_is_left_among_workers(tmp_path: Path) -> None:
    """Two runs to go: 1500 steps at the 1 s of its own metrics; 2000 at 0.002 s, 4 evaluations and a start by rate."""
    jobs = [Job(toy_run(seed)) for seed in (1, 2, 3, 4)]
    jobs[0].state, jobs[1].state, jobs[2].state = "finished", "running", "failed"
    jobs[1].folder, jobs[1].restarts = tmp_path, 2
    lines = [line(300, 10, 50.0), line(500, 20, 250.0, **{"eval/return_mean": -7.25, "charts/SPS": 1.4})]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    head, only, summary = runner.table(jobs, {cost.kind(jobs[0].run): RATE}, 1, (), 10)
    assert only.split() == ["toy_ok_seed2", "500", "25.0", "-7.2", "1", "25m", "00s", "2"]
    # (1500 + 4 + 4 + 12) s with one worker; with two, the longer of the two runs
    assert summary.split("; ") == [
        " 31.2 % of 8,000 steps",
        "1 finished, 1 running, 1 waiting, 1 failed",
        "ETA 25m 20s",
    ]
    assert runner.table(jobs, {cost.kind(jobs[0].run): RATE}, 2, (), 10)[-1].endswith("ETA 25m 00s")
    # Nothing is known of the run that waits: it counts as the other's 1500 s for 1500 steps do.
    assert runner.table(jobs, {}, 1, (), 10)[-1].endswith("ETA 58m 20s")
    # The run is at its last step and still evaluates: nothing is known of the one that waits.
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line(n, n, n)) + "\n" for n in (300, 500, 2000)))
    assert runner.table(jobs, {}, 1, (), 10)[-1].endswith("ETA ?")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    many = [dataclasses.replace(jobs[1]) for _ in range(5)]
    shown = runner.table(many, {}, 5, (), 3)
    assert len(shown) == 5 and shown[3] == "  ... and 3 more"
    assert [runner.clock(s) for s in (59.6, 3599, 3600, 90_000)] == ["1m 00s", "59m 59s", "1h 00m", "1d 01h"]


# ---- what is refused


def make_finished(tmp_path: Path, **changes: Any) -> Path:
    """The first run of the suite, finished, its config.json changed."""
    status, output = run("ok", tmp_path, "--tasks", "toy", "--seeds", 1)
    assert status == 0, output
    path = folder(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


@pytest.mark.parametrize(
    "changes",
    [{"git_commit": "a" * 40}, {"resumed": [{"git_commit": "b" * 40}]}],
    ids=["made elsewhere", "continued elsewhere"],
)
def test_runs_of_another_commit_are_not_mixed_in(changes: dict[str, Any], tmp_path: Path) -> None:
    path = make_finished(tmp_path, **changes)
    status, output = run("ok", tmp_path)
    assert status == 2 and output.count("\n") == 1, output
    assert output.startswith(f"experiments.run: error: {path} was run at commit ") and "--allow-mixed-commits" in output
    assert len(all_folders(tmp_path)) == 1
    status, output = run("ok", tmp_path, "--allow-mixed-commits")
    assert status == 0 and len(all_folders(tmp_path)) == 4, output


def test_uncommitted_changes_are_called_so() -> None:
    done = folders.Folder(Path("run"), {"git_commit": "a" * 40})
    with pytest.raises(folders.SuiteError, match="commit or stash your changes to tracked files"):
        folders.check_commits([done], "a" * 40 + "+dirty")
    with pytest.raises(folders.SuiteError, match="check that out"):
        folders.check_commits([done], "b" * 40 + "+dirty")


def test_a_commit_made_while_the_suite_runs_stops_it_from_starting_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commits = ["1" * 40]
    monkeypatch.setattr(runner, "git_commit", lambda: commits[-1])
    board = runner.Board(sys.stdout, 300)

    def say(line: str) -> None:
        board.say(line)
        commits.append("2" * 40 + "+dirty")

    jobs = [Job(toy_run(seed)) for seed in (1, 2)]
    pool = LocalPool(jobs, tmp_path / "suite", 1, 0, (), lambda: runner.check_unchanged(commits[0]), say)
    (tmp_path / "suite").mkdir()
    while pool.poll():
        time.sleep(0.02)
    assert [job.state for job in pool.jobs] == ["finished", "waiting"]
    assert pool.refusal == "the commit has changed from 1111111111 to 2222222222+dirty"
    assert runner.conclude(Suite("", []), pool, board) == 2
    assert f"nothing more is started: {pool.refusal}" in capsys.readouterr().out
    runner.check_unchanged(None)


def test_a_folder_with_other_settings_is_not_taken_for_finished(tmp_path: Path) -> None:
    make_finished(tmp_path)
    status, output = run("ok", tmp_path, "--scale", 2)
    assert status == 2 and "total_timesteps is 10000 there and 20000 here" in output
    status, output = run("ok", tmp_path, "--", "--pace", "0.01")
    assert status == 2 and "its extra flags are none there and --pace 0.01 here" in output
    assert len(all_folders(tmp_path)) == 1


def test_a_missing_script_is_named_and_left_out_only_when_told(tmp_path: Path) -> None:
    status, output = run("ok,absent", tmp_path)
    assert status == 2 and "no script baselines/absent.py: --skip-missing leaves its runs out" in output
    assert not (tmp_path / "suite").exists()
    status, output = run("ok,absent", tmp_path, "--skip-missing")
    assert status == 0 and "left out, no such script: baselines/absent.py (4 runs)" in output
    assert_complete(tmp_path)
    status, output = run("absent", tmp_path, "--skip-missing")
    assert status == 2 and "none of the scripts of fake exists" in output


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fig55"], "fig55: no such suite; there are fig2, "),
        (["mpe", "--workers", "0"], "--workers 0: must be at least 1"),
        (["mpe", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["mpe", "--scale", "nan"], "--scale nan: must be above 0"),
        (["mpe", "--report-every", "nan"], "--report-every nan: must be above 0"),
        (["mpe", "--report-every", "0"], "--report-every 0.0: must be above 0"),
        (["smoke-mpe", "--scale", "2"], "--scale 2.0: smoke-mpe has no steps to scale"),
        (["mpe", "--tasks", "Ant-2x4"], "--tasks Ant-2x4: mpe has simple_reference"),
        (["mpe", "--variants", "M1"], "--variants M1: mpe has his"),
        (["readings", "--tasks", "Ant-4x2", "--variants", "his-long"], "readings has no run of these"),
        (["mpe", "--", "--seed", "3"], "--seed: the suite sets it"),
        (["mpe", "--", "--eval-every=3"], "--eval-every=3: the suite sets it"),
        (["mpe", "--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["mpe", "--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert runner.main(argv) == 2
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    error = capsys.readouterr().err
    assert error.startswith(f"experiments.run: error: {words}") and error.count("\n") == 1


# ---- cost


def toy_run(seed: int = 1, **settings: Any) -> Run:
    values = {"total_timesteps": 2000, "eval_every": 500, "log_every": 1000, "save_every": 1000} | settings
    return Run(str(FAKE), "toy", "ok", seed, values)


RATE = cost.Rate(step_s=0.002, eval_s=3.0, start_s=4.0, cpu_share=0.5, source="calibration")


@pytest.mark.parametrize(
    ("total", "every", "done", "seconds"),
    [
        (10_000, 1000, 0, 4 + 20 + 30),
        (10_000, 1000, 2500, 4 + 15 + 24),  # evaluations at 3000 .. 10000
        (10_500, 1000, 0, 4 + 21 + 33),  # and one at the end
        (10_000, 1000, 10_000, 0),
        (1000, 5000, 0, 4 + 2 + 3),
    ],
)
def test_seconds_that_a_run_still_takes(total: int, every: int, done: int, seconds: float) -> None:
    run = toy_run(total_timesteps=total, eval_every=every)
    assert cost.wall_seconds(RATE, run, done) == pytest.approx(seconds)


def test_the_estimate_is_the_sum_over_runs_and_says_what_it_lacks() -> None:
    runs = [toy_run(1, total_timesteps=10_000, eval_every=1000), toy_run(2, total_timesteps=1000, eval_every=1000)]
    other = toy_run(1, credit="local")
    rates = {cost.kind(runs[0]): RATE}
    estimate = cost.estimate([(runs[0], 2500), (runs[1], 0), (other, 500)], rates, ())
    assert (estimate.runs, estimate.steps, estimate.unknown) == (3, 7500 + 1000 + 1500, 1)
    assert estimate.wall_s == pytest.approx(43 + 9) and estimate.core_s == pytest.approx(26)


@pytest.mark.parametrize(("backend", "words"), [("local", "none of the runs could be"), ("slurm", "nothing of it was")])
def test_what_nobody_measured_has_no_cost(backend: str, words: str) -> None:
    args = argparse.Namespace(suite="toy", workers=2, backend=backend, dry_run=False)
    lines = runner.announce(Suite("a toy", []), [Job(toy_run())], {}, args, ())
    assert lines[-1] == f"cost to go: unknown, {words} measured"
    lines = runner.announce(Suite("a toy", []), [Job(toy_run())], {cost.kind(toy_run()): RATE}, args, ())
    assert ("with 2 workers" in lines[-1]) == (backend == "local") and "measured: 0.00 core-hours" in lines[-1]


def test_a_calibration_has_the_environments_that_the_user_asks_for() -> None:
    """Its length is counted in vector steps: 52 updates, not 1040."""
    run = Run("his_mpe.py", "simple_spread", "his", 1, {"total_timesteps": 10**6})
    steps = {
        words: cost.calibration_of(run, words).settings["total_timesteps"]
        for words in ((), ("--num-envs", "1"), ("--device", "cpu", "--num-envs=200"))
    }
    assert [*steps.values()] == [1000 + 52 * 20, 1000 + 52, 1000 + 52 * 200]


def test_kinds_tell_apart_what_costs_differently_only() -> None:
    kind = cost.kind(toy_run())
    free: list[dict[str, Any]] = [{"beta": 2.0}, {"total_timesteps": 10**7}, {"floor": "none", "credit_coef": 0.5}]
    for same in free:
        assert cost.kind(toy_run(2, **same)) == kind
    others: list[dict[str, Any]] = [
        {"num_coalitions": 2},
        {"credit": "local"},
        {"policy_frequency": 1},
        {"rules": "harl"},
    ]
    for other in others:
        assert cost.kind(toy_run(**other)) != kind
    assert cost.kind(toy_run(), ["--matmul-precision", "medium"]) != kind


def line(step: int, updates: int, wall_s: float, **values: float) -> dict[str, Any]:
    return {"global_step": step, "update_step": updates, "wall_s": wall_s, **values}


def test_a_calibration_reads_steps_evaluations_and_start_apart() -> None:
    charts = {"charts/SPS": 1.0}
    lines = [line(1000, 0, 0.5, **charts), line(1560, 28, 3.0, **charts), line(2040, 52, 4.2, **charts)]
    lines.append(line(2040, 52, 6.7, **{"eval/return_mean": -3.0}))
    rate = cost.measured(lines, wall_s=10.0, cpu_s=8.0)
    assert rate.step_s == pytest.approx(1.2 / 480) and rate.eval_s == pytest.approx(2.5)
    assert rate.start_s == pytest.approx(3.3) and rate.cpu_share == pytest.approx(0.8)
    lines[-1]["global_step"] = 2140  # an evaluation 100 steps after the last line
    assert cost.measured(lines, 10.0, 8.0).eval_s == pytest.approx(2.5 - 0.25)
    for incomplete in (lines[:3], [lines[0], *lines[2:]], []):
        with pytest.raises(ValueError, match="no two lines"):
            cost.measured(incomplete, 10.0, 8.0)


def test_runs_give_the_median_of_their_rates() -> None:
    rates = [folders.Progress(10, step_s) for step_s in (0.5, 0.1, 0.2)]
    measured = cost.from_runs([*rates, folders.Progress(10, None)])
    assert measured is not None and measured.step_s == 0.2 and measured.source == "3 of its runs"
    assert cost.from_runs([folders.Progress(10, None)]) is None


def test_progress_counts_from_the_first_update_and_survives_torn_lines(tmp_path: Path) -> None:
    assert folders.progress(tmp_path) == folders.Progress()
    lines = [line(s, max(s - 1000, 0), s / 100 if s <= 1000 else 10 + (s - 1000) / 10) for s in range(500, 5001, 500)]
    lines[-2] |= {"charts/SPS": 7.0, "eval/return_mean": 3.0, "padding": "x" * folders.END_BYTES}
    text = "".join(json.dumps(each) + "\n" for each in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"global_step": 55')
    progress = folders.progress(tmp_path)
    assert progress.step == 5000 and progress.step_s == pytest.approx(0.1)
    assert progress.sps is None, "the line with the padding is cut off"
    lines[-2].pop("padding")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert (folders.progress(tmp_path).sps, folders.progress(tmp_path).last_return) == (7.0, 3.0)


def test_the_rate_of_a_run_is_that_of_whole_rounds(tmp_path: Path) -> None:
    """Rounds of 50 steps, a line each and an evaluation 40 steps into the last, before its updates: 1 s a step."""
    lines = [line(50, 0, 0.1), line(100, 50, 50.0), line(150, 100, 100.0), line(190, 100, 100.1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert folders.progress(tmp_path).step_s == pytest.approx(1.0)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines[:2]))
    assert folders.progress(tmp_path).step_s is None


def test_a_dry_run_measures_and_starts_nothing(tmp_path: Path) -> None:
    argv = ["--dry-run", "--", "--ms-per-step", "36", "--eval-ms", "9000"]
    status, output = run("ok", tmp_path, *argv, steps=1_000_000)
    assert status == 0 and not (tmp_path / "suite").exists(), output
    assert "measuring 2 kinds of run, 2 at a time" in output
    assert "environment steps: 4,000,000; 4,000,000 to go" in output
    # 2 runs of 10^6 steps of 36 ms and 100 evaluations of 9 s: 20.5 hours of wall time, little of it CPU time.
    rows = re.findall(
        r"^ +2 +2,000,000 +36\.000 +9\.00 +([\d.]+)  .*fake_script.py (toy2?) .*calibration", output, re.M
    )
    assert [task for _, task in rows] == ["toy", "toy2"]
    entries = json.loads((tmp_path / "cal").read_text())
    assert len(entries) == 2
    rates = [cost.Rate(**entry["rate"]) for entry in entries.values()]  # in the order in which they were measured
    expected = sorted(2 * (1e6 * 0.036 + 100 * 9 + rate.start_s) * rate.cpu_share / 3600 for rate in rates)
    assert sorted(float(hours) for hours, _ in rows) == pytest.approx(expected, abs=0.006)
    assert "about 20h 30m with 2 workers" in output
    status, output = run("ok", tmp_path, *argv, steps=1_000_000)
    assert status == 0 and "measuring" not in output


def test_finished_runs_replace_the_calibration(tmp_path: Path) -> None:
    slow = ["--", "--ms-per-step", "72"]
    assert run("ok", tmp_path, "--seeds", 1, "--tasks", "toy", *slow)[0] == 0
    (tmp_path / "cal").unlink()
    status, output = run("ok", tmp_path, "--tasks", "toy", "--dry-run", *slow)
    assert status == 0 and "measuring" not in output
    assert "runs: 2; 1 finished, 0 begun, 1 not begun" in output and "by 1 of its runs" in output
    assert re.search(r"^ +1 +10,000 +72\.\d{3} ", output, re.M)


# ---- with a script of the product


def cli(*argv: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "experiments.run", *map(str, argv)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_the_tables_are_checked_by_what_a_run_records(tmp_path: Path) -> None:
    argv = ("tables", "--tasks", "simple_spread", "--workers", 1, "--runs-dir", tmp_path)
    result = cli(*argv)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 scenarios: every value of Tables 1-6 is the paper's" in result.stdout
    (path,) = tmp_path.rglob("config.json")
    config = json.loads(path.read_text())
    assert config["command"].startswith("python his_mpe.py --scenario simple_spread --seed 1 ")
    config["args"]["tau"] = 0.01
    path.write_text(json.dumps(config))
    result = cli(*argv)
    assert result.returncode == 1 and "simple_spread: tau is 0.01, the paper has 0.005" in result.stdout


def test_a_real_run_is_stopped_continued_and_finished(tmp_path: Path) -> None:
    argv = ["smoke-mpe", "--tasks", "simple_reference", "--variants", "his-harl-rules", "--workers", "1"]
    argv += ["--runs-dir", str(tmp_path)]
    words = [sys.executable, "-m", "experiments.run", *argv]
    process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: list(tmp_path.rglob("metrics.jsonl")), "metrics", 60)
    process.terminate()
    status, output = finish(process)
    assert status in (143, 0), output  # 0: it was quicker
    result = cli(*argv)
    assert result.returncode == 0, result.stdout + result.stderr
    (finished,) = tmp_path.rglob("finished.json")
    assert json.loads(finished.read_text())["global_step"] == 400
    assert finished.parent.name == "seed1-harl-his-harl-rules"


@pytest.mark.parametrize("task", ["simple_spread", "HalfCheetah-2x3"])
def test_a_real_calibration_gives_a_rate(task: str, tmp_path: Path) -> None:
    settings = schedule(500_000) | dict(batch_size=32, hidden_sizes=(16, 16), eval_episodes=2, eval_envs=2)
    script = "his_mpe.py" if TASKS[task].benchmark == "mpe" else "his_mamujoco.py"
    run = Run(script, task, "his", 1, settings)
    said: list[str] = []
    rates = cost.calibrate({"it": run}, (), 1, said.append)
    assert said == []
    assert 1e-5 < rates["it"].step_s < 0.1 and 0 < rates["it"].eval_s < 60 and rates["it"].start_s > 0.3
    assert rates["it"].cpu_share > 0.01  # small where other work keeps the machine busy
    broken = dataclasses.replace(run, settings=settings | {"no_such": 1})
    assert cost.calibrate({"it": broken}, (), 1, said.append) == {}
    assert "cannot measure it: it ended with status 2: " in said[0] and "--no-such" in said[0]
    with pytest.raises(folders.SuiteError, match="-- --foo 3: it ended with status 2: .*--foo: no such flag"):
        cost.calibrate({"it": run}, ("--foo", "3"), 1, said.append)


def test_suites_of_the_tests_leave_the_real_ones_alone() -> None:
    assert "fake" not in SUITES and Group(["a"], ["b"]).seeds == (1, 2, 3, 4, 5)
