"""The command line: presets, errors of one line, resuming, limits, stop signals, memory size."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from common import cli

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Args:
    """A sample of what a script has."""

    scenario: str = "walker"
    """which task"""
    seed: int = 1
    gamma: float = 0.99
    """discount factor"""
    mode: Literal["full", "local"] = "full"
    hidden: tuple[int, int] = (256, 256)
    capture_video: bool = False
    anneal: bool = True
    total_timesteps: int = 1000
    resume: str = ""
    evaluate: str = ""
    eval_episodes: int = 10


PRESETS: dict[str, dict[str, Any]] = {"walker": {}, "ant": {"gamma": 0.95, "hidden": [64, 32]}}
LIMITS = {"gamma": (0, 1), "hidden": (1, None), "seed": (None, 1000)}


def parse(*argv: str) -> Args:
    """The sample script's parse."""
    return cli.parse(Args, PRESETS, LIMITS, argv, prog="sample.py", resumable=("total_timesteps", "capture_video"))


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that `argv` ends in, without its prefix."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("sample.py: error: ")
    return err.removeprefix("sample.py: error: ").rstrip("\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was started as `--scenario ant --seed 7`."""
    config = {"args": dataclasses.asdict(parse("--scenario", "ant", "--seed", "7"))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


# ---- presets


def test_scenario_picks_the_preset_and_flags_override_it() -> None:
    assert parse() == Args()
    assert parse("--scenario", "ant") == parse("--scenario=ant") == Args(scenario="ant", gamma=0.95, hidden=(64, 32))
    expected = Args(scenario="ant", gamma=0.5, hidden=(1, 2), mode="local", capture_video=True, anneal=False)
    flags = "--gamma .5 --scenario ant --hidden 1 2 --mode=local --capture_video --no-anneal"
    assert parse(*flags.split()) == expected
    assert parse("--scenario", "ant", "--scenario", "walker") == Args()


def test_help_shows_the_values_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--scenario", "ant", "--help")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "discount factor (default: 0.95)" in out and "(default: 64 32)" in out


# ---- mistakes

MISTAKES = {
    "--scenario bee": "--scenario bee: must be one of walker, ant",
    "--scenario=": "--scenario : must be one of walker, ant",
    "--scenario": "--scenario: must be given a value",
    "--gama 0.9": "--gama: no such flag, did you mean --gamma?",
    "--gamma 0.9 --zzz 1": "--zzz: no such flag, see --help",
    "-x": "-x: no such flag, see --help",
    "--gamma high": "--gamma high: must be a number",
    "--gamma": "--gamma: must be a number",
    "--seed 1e3": "--seed 1e3: must be a whole number; write 1000",
    "--seed 1.5": "--seed 1.5: must be a whole number",
    "--timesteps 5": "--timesteps: no such flag, did you mean --total-timesteps?",
    "--total_timesteps=many": "--total-timesteps many: must be a whole number",
    "--mode odd": "--mode odd: must be one of full, local",
    "--hidden 3": "--hidden 3: must be 2 values, each a whole number",
    "--hidden 3 x": "--hidden 3 x: must be 2 values, each a whole number",
    "--hidden 1 2 3": "unexpected argument '3' after --hidden 1 2",
    "--capture-video True": "unexpected argument 'True' after --capture-video",
    "--no-anneal=1": "--no-anneal 1: must be without a value",
    "walker": "unexpected argument 'walker'",
    "--gamma 1.5": "--gamma 1.5: must be between 0 and 1",
    "--gamma nan": "--gamma nan: must be a finite number",
    "--gamma -1e-9": "--gamma -1e-09: must be between 0 and 1",
    "--hidden 8 0": "--hidden 8 0: must be at least 1",
    "--seed 1001": "--seed 1001: must be at most 1000",
    "--resume=": "--resume: must be given a run folder",
    "--evaluate=": "--evaluate: must be given a run folder",
    "--resume a --evaluate b": "--resume and --evaluate: only one of them at a time",
    "--resume absent": "--resume absent: no run there: cannot read config.json: No such file or directory",
    "--evaluate absent": "--evaluate absent: no run there: cannot read config.json: No such file or directory",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_said_in_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *line.split()) == MISTAKES[line]


@pytest.mark.parametrize(
    ("prog", "end"),
    [
        ("his_mamujoco.py", "; it is a scenario of his_mpe.py\n"),
        ("hasac_bidexhands.py", "; it is a scenario of hasac_mpe.py\n"),
        ("facmac.py", "ant\n"),  # serves all benchmarks
    ],
)
def test_a_scenario_of_another_script(prog: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(Args, PRESETS, LIMITS, ["--scenario", "simple_spread"], prog=prog)
    assert capsys.readouterr().err.endswith(end)


def test_bounds_are_inclusive_and_infinity_is_refused_without_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--gamma", "0").gamma == 0 and parse("--gamma", "1").gamma == 1
    with pytest.raises(SystemExit):
        cli.parse(Args, PRESETS, {}, ["--gamma", "inf"], prog="sample.py")
    assert capsys.readouterr().err == "sample.py: error: --gamma inf: must be a finite number\n"


def test_mistake_that_only_tyro_sees_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass
    class Unusual(Args):
        depth: int | None = None

    with pytest.raises(SystemExit) as stop:
        cli.parse(Unusual, PRESETS, {}, ["--depth", "deep"], prog="sample.py")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "--depth" in err and "deep" in err and "│" not in err


SCRIPT = """
import sys
from tests.test_cli import parse
print(parse(*sys.argv[1:]))
"""


@pytest.mark.parametrize("line", ["--gama 0.9", "--seed 1e3", "--gamma 1.5", "--scenario bee", "--resume absent", ""])
def test_real_process(line: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *line.split()], cwd=ROOT, capture_output=True, text=True)
    if line:
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sample.py: error: {MISTAKES[line]}\n")
    else:
        assert done.returncode == 0 and done.stdout == f"{Args()}\n"


# ---- resume and evaluate


def test_resume_takes_the_arguments_of_the_run(run: Path) -> None:
    assert parse("--resume", str(run)) == Args("ant", 7, 0.95, hidden=(64, 32), resume=str(run))
    assert parse(f"--resume={run}", "--total-timesteps", "5000").total_timesteps == 5000
    assert parse("--resume", str(run), "--gamma", "0.95").gamma == 0.95  # said again, not changed


def test_resume_refuses_other_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"--gamma 0.5": "0.95", "--hidden 64 64": "64 32", "--scenario walker": "ant", "--eval-episodes 3": "10"}
    for change, old in kept.items():
        message = error_of(capsys, "--resume", str(run), *change.split())
        assert message == f"{change}: the run in {run} has {old} and keeps it"


def test_evaluate_may_change_how_to_evaluate_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse("--evaluate", str(run), "--eval-episodes", "40", "--seed", "3", "--capture-video")
    assert (args.scenario, args.eval_episodes, args.seed, args.evaluate) == ("ant", 40, 3, str(run))
    assert error_of(capsys, "--evaluate", str(run), "--gamma", "0.5").startswith("--gamma 0.5: the run in")


def test_resume_or_evaluate_of_the_saved_run_is_not_inherited(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["args"]["resume"] = config["args"]["evaluate"] = "elsewhere"
    (run / "config.json").write_text(json.dumps(config))
    assert parse("--resume", str(run)).evaluate == "" and parse("--evaluate", str(run)).resume == ""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"args": 3}', '{"args": {"gone": 1}}', '{"args": {"gamma": 0.5}'])
def test_config_that_does_not_fit(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text(content)
    assert error_of(capsys, "--resume", str(run)).startswith(f"--resume {run}: its config.json does not fit")


@pytest.mark.parametrize(
    "name, value",
    [
        ("scenario", "bee"),
        ("seed", "7"),
        ("seed", True),
        ("gamma", None),
        ("capture_video", 1),
        ("mode", "odd"),
        ("hidden", [64, "32"]),
        ("hidden", [64.5, 32]),
        ("hidden", "64"),
    ],
)
def test_config_with_a_value_that_does_not_fit(
    run: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"args": config["args"] | {name: value}}))
    error = error_of(capsys, "--evaluate", str(run))
    assert error.startswith(f"--evaluate {run}: its config.json does not fit this script: {name} ")


# ---- stop signals

WAITER = """
import sys, time
from common import cli
with cli.StopSignal() as stop:
    assert not stop.received and stop.exit_status == 0
    print("ready", flush=True)
    while not stop.received:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(float(sys.argv[1]))
raise SystemExit(stop.exit_status)
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_only_ctrl_c_after_it_ends(
    signum: signal.Signals, status: int, second: signal.Signals | None
) -> None:
    at_once = second == signal.SIGINT
    command = [sys.executable, "-c", WAITER, "60" if at_once else "0.5"]
    pipe = subprocess.PIPE
    hear = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.readline() == "noted\n"
        sent = time.monotonic()
        if second is not None:
            process.send_signal(second)
        assert process.wait(timeout=30) == (130 if at_once else status) and time.monotonic() - sent < 20
        assert process.stderr.read().split("\n") == [
            *("", f"{signum.name} received: saving a checkpoint; Ctrl-C (SIGINT) from now on stops at once", "")
        ]


def test_handlers_are_restored() -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    at_first = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        before = [*map(signal.getsignal, signals)]
        with cli.StopSignal():
            assert not any(signal.getsignal(signum) in before for signum in signals)
        assert [*map(signal.getsignal, signals)] == before
    finally:
        signal.signal(signal.SIGHUP, at_first)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.received
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- memory


def test_memory_is_capped_by_every_enclosing_control_group(tmp_path: Path) -> None:
    table = tmp_path / "cgroup"
    inner = tmp_path / "mount/job/step"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("4096\n")
    legacy = tmp_path / "mount/memory/job"
    legacy.mkdir(parents=True)
    (legacy / "memory.limit_in_bytes").write_text("8192\n")
    table.write_text("5:cpu,memory:/job\n3:cpuset:/other\n0::/job/step\n")
    assert sorted(cli._cgroup_limits(table, tmp_path / "mount")) == [4096, 8192]
    assert cli._cgroup_limits(tmp_path / "absent") == []


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**28 < cli.memory_bytes() <= physical
    monkeypatch.setattr(cli, "_cgroup_limits", lambda: [4096])
    assert cli.memory_bytes() == 4096
