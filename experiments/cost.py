"""What a suite costs on this machine: measured, by a short calibration of each kind of run or by the runs that it has.

A calibration is the script itself with the paper's values, a short warm-up and 52 updates in rounds of 4; what a round
costs per environment step does not depend on its length. An untrained robot that falls makes its evaluation short, so
where episodes can end early a calibration understates; finished or running runs of the suite take its place.
"""

import dataclasses
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from common.provenance import cpu_model
from experiments import folders, processes
from experiments.suites import TASKS, VARIANTS, Run, flags

# Settings that change what is computed but not how much, or that `Run.settings` has only because of its length.
COST_FREE = frozenset(
    "marginal floor below_floor boxcox_low boxcox_high boxcox_scale credit_coef beta idea_strength "
    "total_timesteps eval_every log_every save_every warmup_steps".split()
)
RESCALED = "centred standardised alpha standardised-alpha positive annealed".split()  # ideas that cost alike
PAPER_NUM_ENVS = {"mpe": 20, "mamujoco": 10, "bidexhands": 20}
HANDS_ON_POLICY_ENVS = 256
MIN_SHARE = 0.05  # of its steps that a run must have trained before its rate replaces a calibration


@dataclass(frozen=True)
class Rate:
    """Wall seconds of the parts of a run, and CPU seconds in a wall second."""

    step_s: float
    eval_s: float
    start_s: float
    cpu_share: float
    source: str


def kind(run: Run, extra: Sequence[str] = ()) -> str:
    """What runs that cost the same a step have in common, as words."""
    return " ".join([run.script, run.scenario, *flags(_relevant(run)), *extra])


def _relevant(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.settings.items() if name not in COST_FREE}
    return settings | {"idea": RESCALED[0]} if settings.get("idea") in RESCALED else settings


def wall_seconds(rate: Rate, run: Run, done: int = 0) -> float:
    """What is left of a run that has done so many steps: start, steps, evaluations (one at the end in any case)."""
    total, every = run.total_steps, run.settings["eval_every"]
    if done >= total:
        return 0.0
    evaluations = total // every - done // every + (total % every > 0)
    return rate.start_s + (total - done) * rate.step_s + evaluations * rate.eval_s


def from_runs(progress: Iterable[folders.Progress]) -> Rate | None:
    """The rate of runs that are some way along; evaluations and checkpoints are in their time per step."""
    known = [p.step_s for p in progress if p.step_s is not None]
    return Rate(median(known), 0.0, 0.0, 1.0, f"{len(known)} of its runs") if known else None


# ---- calibration -----------------------------------------------------------------------------------------------------
def calibration_of(run: Run, extra: Sequence[str] = ()) -> Run:
    """A short run that costs per step what `run` does; `extra`: flags of the user for every script."""
    variant = VARIANTS[run.variant]
    words = dict(pairwise(" ".join(extra).replace("=", " ").split()))
    given = int(words["--num-envs"]) if words.get("--num-envs", "").isdigit() else 0
    envs = given or run.settings.get("num_envs") or variant.num_envs or PAPER_NUM_ENVS[TASKS[run.scenario].benchmark]
    length: dict[str, Any] = dict(total_timesteps=20_000, log_every=4_000)
    if TASKS[run.scenario].benchmark == "bidexhands":  # a rollout of their presets is as long as all of that
        length = dict(rollout_steps=20, total_timesteps=100 * HANDS_ON_POLICY_ENVS, log_every=4_000)
    if variant.off_policy:
        # Rounds end at 1000 + 4 E k; lines fall due at 1000 + 25 E and 1000 + 50 E, come with updates 28 and 52, and
        # only the last two updates before a line are slowed by its diagnostics.
        length = dict(warmup_steps=1000, train_interval=4, total_timesteps=1000 + 52 * envs, log_every=25 * envs)
    return dataclasses.replace(run, settings={**_relevant(run), **length, "eval_every": 10**9, "save_every": 10**9})


def measured(lines: Sequence[Mapping[str, Any]], wall_s: float, cpu_s: float) -> Rate:
    """The rate that the metrics of a calibration show; ValueError where they do not."""
    training = [line for line in lines if line["update_step"] > 0 and "charts/SPS" in line]
    evaluations = [line for line in lines if "eval/return_mean" in line]
    if len(training) < 2 or not evaluations or training[-1]["global_step"] <= training[0]["global_step"]:
        raise ValueError("its metrics have no two lines of training and an evaluation")
    first, last, evaluation = training[0], training[-1], evaluations[-1]
    step_s = (last["wall_s"] - first["wall_s"]) / (last["global_step"] - first["global_step"])
    between = evaluation["global_step"] - last["global_step"]
    eval_s = max(evaluation["wall_s"] - last["wall_s"] - between * step_s, 0.0)
    return Rate(step_s, eval_s, max(wall_s - evaluation["wall_s"], 0.0), cpu_s / wall_s, "calibration")


def calibrate(
    kinds: Mapping[str, Run],
    extra: Sequence[str],
    workers: int,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Rate]:
    """Measure these kinds, `workers` at a time, until `stopped()`; one that cannot be measured is said and left out.

    SuiteError where the user's own flags, `extra`, are wrong.
    """
    waiting, running, rates = list(kinds.items()), {}, {}
    with tempfile.TemporaryDirectory(prefix="calibration-") as temporary:
        try:
            while (waiting or running) and not stopped():
                while waiting and len(running) < workers:
                    name, run = waiting.pop(0)
                    place = Path(temporary) / str(len(kinds) - len(waiting))
                    place.mkdir()
                    command = calibration_of(run, extra).command(str(place), extra)
                    running[name] = place, time.monotonic(), processes.start(command, place / "log", on_death=9)
                for name, (place, started, process) in list(running.items()):
                    ended, cpu_s = _ended(process)
                    if not ended:
                        continue
                    del running[name]
                    try:
                        rates[name] = _read(place, process.returncode, time.monotonic() - started, cpu_s)
                    except ValueError as error:
                        if extra and process.returncode == 2:  # wrong usage: every run would end so
                            raise folders.SuiteError(f"-- {' '.join(extra)}: {error}") from error
                        say(f"cannot measure {name}: {error}")
                time.sleep(0.05)
        finally:
            for _, _, process in running.values():
                processes.kill(process)
                process.wait()
    return rates


def _ended(process: subprocess.Popen[bytes]) -> tuple[bool, float]:
    """Whether it has ended, and its CPU seconds."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return False, 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return True, usage.ru_utime + usage.ru_stime


def _read(place: Path, status: int, wall_s: float, cpu_s: float) -> Rate:
    if status:
        raise ValueError(f"it ended with status {status}: {processes.last_line(place / 'log')}")
    files = list(place.rglob("metrics.jsonl"))
    return measured(folders.read_lines(files[0], last=True) if files else [], wall_s, cpu_s)


# ---- what has been measured before -----------------------------------------------------------------------------------
def load(path: Path, commit: str) -> dict[str, Rate]:
    """The calibrations of this processor and commit that a file holds."""
    try:
        entries = json.loads(path.read_text())
        return {
            name: Rate(**entry["rate"])
            for name, entry in entries.items()
            if (entry["cpu"], entry["commit"]) == (cpu_model(), commit)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save(path: Path, commit: str, rates: Mapping[str, Rate]) -> None:
    """Write calibrations, in place of all that the file held of another processor or commit."""
    about = {"cpu": cpu_model(), "commit": commit}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    content = {name: {"rate": dataclasses.asdict(rate), **about} for name, rate in rates.items()}
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


# ---- the sum ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Estimate:
    """What is still to do; `unknown` kinds are in `runs` and `steps` alone."""

    runs: int
    steps: int
    wall_s: float
    core_s: float
    unknown: int


def estimate(todo: Iterable[tuple[Run, int]], rates: Mapping[str, Rate], extra: Sequence[str]) -> Estimate:
    """The sum over runs, each with the steps that it has done."""
    runs = steps = unknown = 0
    wall: list[float] = []
    core: list[float] = []
    for run, done in todo:
        runs, steps = runs + 1, steps + max(run.total_steps - done, 0)
        rate = rates.get(kind(run, extra))
        if rate is None:
            unknown += 1
            continue
        wall.append(wall_seconds(rate, run, done))
        core.append(wall[-1] * rate.cpu_share)
    return Estimate(runs, steps, math.fsum(wall), math.fsum(core), unknown)
