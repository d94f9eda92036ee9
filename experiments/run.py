"""Run a suite (experiments/suites.py): every figure and table of the paper with one command.

    python -m experiments.run fig5 --workers 2 --scale 0.03
    python -m experiments.run fig5 --workers 2 --scale 0.03 --dry-run     what it would cost
    python -m experiments.run mpe --variants his none --seeds 3 -- --device cpu          flags of the scripts come last

Runs are processes of one thread each, on this machine, with `--backend ray` on an existing Ray cluster, with `--backend
slurm` as an array job. Rerun the same command after whatever happened: finished runs are skipped, begun
ones continued from their last checkpoint. Ctrl-C lets the runs save and ends; a second one ends at once.
Exit status: 0 all finished, 1 some failed, 2 refused, 130 or 143 stopped by a signal. See docs/experiments.md.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from common.provenance import cpu_model, git_commit
from experiments import cost, folders, slurm
from experiments.command_line import Parser
from experiments.local import Job, LocalPool
from experiments.processes import ROOT
from experiments.ray_pool import RayPool, connect
from experiments.suites import SUITES, Run, Suite, expand, table_mismatches

POLL_S = 0.2
OWN_FLAGS = {"scenario", "seed", "runs_dir", "run_name", "resume", "evaluate"}


# ---- command line ----------------------------------------------------------------------------------------------------
def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The runner's arguments, and what stands behind `--`: flags for every script."""
    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    listing = "\n".join(f"  {name:22}{suite.title}" for name, suite in SUITES.items() if not suite.smoke)
    epilog = f"suites:\n{listing}\n  smoke-<suite>         the same as tiny runs; takes minutes"
    parser = Parser("experiments.run", __doc__, folders.SuiteError, epilog)
    parser.add_argument("suite", metavar="SUITE", help="one of the suites below")
    parser.add_argument(
        "--workers", type=int, help="runs at a time (default: all cores, of this machine or the cluster)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the suite's environment steps")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the suite's)")
    parser.add_argument("--tasks", nargs="+", help="only these scenarios")
    parser.add_argument("--variants", nargs="+", help="only these variants")
    parser.add_argument("--runs-dir", type=Path, help="parent of the run folders (default: runs/suites/SUITE)")
    parser.add_argument("--max-restarts", type=int, default=3, help="restarts of a run that crashes")
    parser.add_argument("--skip-missing", action="store_true", help="leave out runs whose script does not exist")
    parser.add_argument("--allow-mixed-commits", action="store_true", help="continue runs of other git commits")
    parser.add_argument("--prune", action="store_true", help="delete the replay checkpoints of finished runs")
    parser.add_argument("--dry-run", action="store_true", help="print runs, steps and cost, and stop")
    parser.add_argument("--calibration", type=Path, default=Path("runs/calibration.json"), help="measured costs")
    parser.add_argument("--backend", choices=["local", "ray", "slurm"], default="local", help="where the runs run")
    parser.add_argument("--ray-address", default="auto", help="of an existing Ray cluster (default: this machine's)")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="of the array job: time=1440 ...")
    parser.add_argument("--report-every", type=float, default=300, help="seconds between lines without a terminal")
    args = parser.parse_args(words[:split])
    check(args)
    return args, words[split + 1 :]


def check(args: argparse.Namespace) -> None:
    """SuiteError for a value that cannot be."""
    if args.suite not in SUITES:
        raise folders.SuiteError(f"{args.suite}: no such suite; there are {', '.join(SUITES)}")
    for name, low in (("workers", 1), ("seeds", 1), ("max_restarts", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise folders.SuiteError(f"--{name.replace('_', '-')} {value}: must be at least {low}")
    for name in ("scale", "report_every"):
        if not (math.isfinite(value := getattr(args, name)) and value > 0):
            raise folders.SuiteError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if args.scale != 1 and (SUITES[args.suite].smoke or SUITES[args.suite].check):
        raise folders.SuiteError(f"--scale {args.scale}: {args.suite} has no steps to scale")
    if args.backend != "slurm" and args.slurm:
        raise folders.SuiteError(f"--slurm {args.slurm[0]}: only with --backend slurm")
    if args.backend != "ray" and args.ray_address != "auto":
        raise folders.SuiteError(f"--ray-address {args.ray_address}: only with --backend ray")
    if args.backend == "slurm":
        slurm.parameters(args.slurm)
    groups = SUITES[args.suite].groups
    for flag, given, known in (
        ("--tasks", args.tasks, {task for group in groups for task in group.tasks}),
        ("--variants", args.variants, {variant for group in groups for variant in group.variants}),
    ):
        if unknown := sorted(set(given or ()) - known):
            raise folders.SuiteError(f"{flag} {unknown[0]}: {args.suite} has {', '.join(sorted(known))}")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def select(args: argparse.Namespace, extra: Sequence[str], say: Any) -> list[Run]:
    """The runs of the command line; SuiteError where they cannot be run."""
    runs = expand(SUITES[args.suite], args.seeds, args.scale, args.tasks, args.variants)
    if not runs:
        raise folders.SuiteError(f"{args.suite} has no run of these tasks with these variants")
    taken = OWN_FLAGS.union(*(run.settings for run in runs))
    for word in extra:
        name = word.partition("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        if word.startswith("--") and name in taken:
            raise folders.SuiteError(f"{word}: the suite sets it")
    missing = Counter(run.script for run in runs if not (ROOT / run.script).exists())
    if missing and not args.skip_missing:
        raise folders.SuiteError(f"no script {', '.join(sorted(missing))}: --skip-missing leaves its runs out")
    if missing:
        listed = ", ".join(f"{script} ({count} runs)" for script, count in sorted(missing.items()))
        say(f"left out, no such script: {listed}")
    runs = [run for run in runs if run.script not in missing]
    if not runs:
        raise folders.SuiteError(f"none of the scripts of {args.suite} exists")
    return runs


# ---- the state of a suite's folder -----------------------------------------------------------------------------------
def survey(
    runs: Sequence[Run], runs_dir: Path, extra: Sequence[str], commit: str | None, prune: bool = False
) -> list[Job]:
    """A job a run, with its folder; SuiteError where a folder holds something else (`commit` None: of any commit).

    `prune`: also delete the replay checkpoints of those that are finished already.
    """
    found = folders.find(runs_dir) if runs_dir.exists() else {}
    if commit is not None:
        folders.check_commits(found.values(), commit)
    jobs = []
    for run in runs:
        job, folder = Job(run), found.get(folders.key_of(run))
        if folder:
            if difference := folders.mismatch(run, folder, extra):
                raise folders.SuiteError(f"{folder.path}: {difference}; choose another --runs-dir")
            job.folder = folder.path
            job.state = "finished" if folder.finished(run.total_steps) else "waiting"
            if prune and job.state == "finished":
                folders.prune(folder.path)
        jobs.append(job)
    return jobs


def steps_done(job: Job) -> int:
    """Environment steps of a run so far."""
    if job.state == "finished":
        return job.run.total_steps
    return folders.progress(job.folder).step if job.folder else 0


def check_unchanged(commit: str | None) -> None:
    """SuiteError when the source tree has moved on since the suite started (`commit` None: that is allowed)."""
    if commit is not None and (now := git_commit()) != commit:
        raise folders.SuiteError(f"the commit has changed from {folders.short(commit)} to {folders.short(now)}")


# ---- cost ------------------------------------------------------------------------------------------------------------
def rates_of(
    jobs: Sequence[Job], extra: Sequence[str], args: argparse.Namespace, say: Any, signals: "Signals"
) -> dict[str, cost.Rate]:
    """The rate of each kind that has anything left to do: from runs of this suite, else measured before, else now.

    Where the runs are not to be on this machine nothing is measured, unless for a dry run.
    """
    commit = git_commit()
    kinds: dict[str, Run] = {}
    own: dict[str, list[folders.Progress]] = {}
    for job in jobs:
        name = cost.kind(job.run, extra)
        if job.state != "finished":
            kinds.setdefault(name, job.run)
        if job.folder and made_here(job.folder):
            progress = folders.progress(job.folder)
            if progress.step > cost.MIN_SHARE * job.run.total_steps:
                own.setdefault(name, []).append(progress)
    rates = {name: rate for name in kinds if (rate := cost.from_runs(own.get(name, ())))}
    kept = cost.load(args.calibration, commit)
    rates |= {name: kept[name] for name in kinds if name in kept and name not in rates}
    todo = {name: run for name, run in kinds.items() if name not in rates}
    if todo and (args.backend == "local" or args.dry_run):
        say(f"measuring {len(todo)} kinds of run, {args.workers} at a time (some seconds to a minute each)")
        new = cost.calibrate(todo, extra, args.workers, say, lambda: signals.count > 0)
        with contextlib.suppress(OSError):  # a read-only place costs a measurement next time, nothing else
            cost.save(args.calibration, commit, kept | new)
        rates |= new
    return rates


def made_here(folder: Path) -> bool:
    """Whether a run was made on this processor."""
    return json.loads((folder / "config.json").read_text()).get("host", {}).get("cpu") == cpu_model()


def announce(
    suite: Suite, jobs: Sequence[Job], rates: dict[str, cost.Rate], args: argparse.Namespace, extra: Sequence[str]
) -> list[str]:
    """What is to do and what it will cost."""
    todo = [(job.run, steps_done(job)) for job in jobs if job.state != "finished"]
    begun = sum(job.folder is not None for job in jobs if job.state != "finished")
    total = sum(job.run.total_steps for job in jobs)
    left = cost.estimate(todo, rates, extra)
    lines = [
        f"{args.suite}: {suite.title}",
        f"runs: {len(jobs)}; {len(jobs) - left.runs} finished, {begun} begun, {left.runs - begun} not begun",
        f"environment steps: {total:,}; {left.steps:,} to go",
    ]
    if suite.smoke or suite.check:
        return [*lines, "cost: some seconds a run, not measured"]
    longest = max(
        (cost.wall_seconds(r, run, n) for run, n in todo if (r := rates.get(cost.kind(run, extra)))), default=0
    )
    wall_s = max(left.wall_s / args.workers, longest)
    here = args.backend == "local" or args.dry_run  # where kinds of run are measured, see `rates_of`
    if left.unknown == left.runs > 0:
        text = f"cost to go: unknown, {'none of the runs could be' if here else 'nothing of it was'} measured"
    else:
        text = f"cost to go on this machine ({cpu_model()}), measured: {left.core_s / 3600:,.2f} core-hours"
        if args.backend != "slurm":
            text += f", about {clock(wall_s)} with {args.workers} worker{'s' if args.workers > 1 else ''}"
        if left.unknown:
            text += f"; without {left.unknown} runs that {'could not be' if here else 'were not'} measured"
    by_kind: dict[str, list[tuple[Run, int]]] = {}
    for run, done in todo:
        by_kind.setdefault(cost.kind(run, extra), []).append((run, done))
    if by_kind:
        lines.append(f"  {'runs':>4} {'steps to go':>13} {'ms/step':>8} {'s/evaluation':>12} {'core-hours':>10}  kind")
    for name, members in by_kind.items():
        part, rate = cost.estimate(members, rates, extra), rates.get(name)
        numbers = f"{1000 * rate.step_s:8.3f} {rate.eval_s:12.2f} {part.core_s / 3600:10.2f}" if rate else f"{'?':>32}"
        source = f" (by {rate.source})" if rate else ""
        lines.append(f"  {part.runs:4} {part.steps:13,} {numbers}  {name}{source}")
    return [*lines, text]


def clock(seconds: float) -> str:
    """3d 4h, 5h 06m, 7m 08s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h:02}h" if days else f"{hours}h {m:02}m" if hours else f"{m}m {s:02}s"


# ---- what the user sees ----------------------------------------------------------------------------------------------
class Board:
    """A table that redraws itself on a terminal, plain lines now and then elsewhere; failing output is not missed."""

    def __init__(self, out: TextIO, every: float) -> None:
        self.out, self.every, self.terminal = out, every, out.isatty()
        self.drawn, self.last = 0, time.monotonic()

    def say(self, line: str) -> None:
        """One line that stays."""
        with contextlib.suppress(OSError):
            self._erase()
            print(line, file=self.out, flush=True)
        if self.terminal:
            self.last = -math.inf  # the table is to come back below the line at once

    def due(self) -> bool:
        """Whether `show` should be called."""
        return time.monotonic() - self.last >= (1.0 if self.terminal else self.every)

    def show(self, lines: Sequence[str]) -> None:
        """Draw the table anew, or print it once more."""
        self.last = time.monotonic()
        size = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            self._erase()
            if self.terminal:
                lines = [line[: size.columns - 1] for line in lines]
                self.drawn = len(lines)
            print("\n".join(lines), file=self.out, flush=True)

    def _erase(self) -> None:
        if self.drawn:
            self.out.write(f"\x1b[{self.drawn}F\x1b[J")
            self.drawn = 0


def table(
    jobs: Sequence[Job], rates: dict[str, cost.Rate], workers: int, extra: Sequence[str], height: int
) -> list[str]:
    """The running runs, at most `height` lines, and a line for the whole."""
    count = Counter(job.state for job in jobs)
    rows, left, done = [], [], 0
    unknown: list[int] = []  # steps of runs that nothing is known of
    known = 0
    for job in jobs:
        if job.state == "finished":
            done += job.run.total_steps
            continue
        progress = folders.progress(job.folder) if job.folder else folders.Progress()
        done += min(progress.step, job.run.total_steps)
        rate = rates.get(cost.kind(job.run, extra))
        if progress.step_s is not None:  # the run's own speed says more than any other
            rate = cost.Rate(progress.step_s, 0.0, 0.0, 1.0, "itself")
        seconds = cost.wall_seconds(rate, job.run, progress.step) if rate else None
        if job.state in ("running", "waiting", "elsewhere"):
            steps = max(job.run.total_steps - progress.step, 0)
            if seconds is None:
                unknown.append(steps)
            else:
                left.append(seconds)
                known += steps
        if job.state in ("running", "elsewhere"):
            rows.append(row(job, progress, seconds))
    total = sum(job.run.total_steps for job in jobs)
    if known:  # the others as the mean of those
        mean = sum(left) / known
        left += [steps * mean for steps in unknown]
    eta = clock(max(sum(left) / workers, max(left))) if left and (known or not unknown) else "?"
    states = ", ".join(f"{count[state]} {state}" for state in ("finished", "running", "elsewhere", "waiting", "failed"))
    summary = f"{100 * done / total:5.1f} % of {total:,} steps; {states.replace(', 0 elsewhere', '')}; ETA {eta}"
    if len(rows) > height:
        rows = [*rows[: height - 1], f"  ... and {len(rows) - height + 1} more"]
    head = f"{'run':48} {'step':>12} {'%':>6} {'return':>10} {'steps/s':>8} {'ETA':>8} restarts"
    return [head, *rows, summary]


def row(job: Job, progress: folders.Progress, seconds: float | None) -> str:
    """One run of the table."""
    percent = 100 * progress.step / job.run.total_steps
    value = "" if progress.last_return is None else f"{progress.last_return:.1f}"
    rate = "" if progress.sps is None else f"{progress.sps:.0f}"
    eta = "?" if seconds is None else clock(seconds)
    return f"{job.run.name:48} {progress.step:12,} {percent:6.1f} {value:>10} {rate:>8} {eta:>8} {job.restarts:8}"


# ---- main ------------------------------------------------------------------------------------------------------------
class Signals:
    """Counts SIGINT, SIGTERM and SIGHUP."""

    def __init__(self) -> None:
        self.count, self.signum = 0, 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup stays in force
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.count, self.signum = self.count + 1, signum

    @property
    def exit_status(self) -> int:
        return 128 + self.signum


def work(pool: LocalPool, board: Board, signals: Signals, rates: dict[str, cost.Rate]) -> None:
    """Until all is done or stopped."""
    while True:
        if signals.count and not pool.stopping:
            board.say("stopping: the runs save a checkpoint; again to end them at once")
            pool.stop()
        if signals.count > 1:
            pool.kill()
        if not pool.poll():
            return
        if board.due():
            for job in pool.jobs:  # a run makes its folder some seconds after its start
                if job.state == "running" and job.folder is None:
                    pool.find(job)
            height = shutil.get_terminal_size().lines - 5 if board.terminal else len(pool.jobs)
            board.show(table(pool.jobs, rates, pool.workers, pool.extra, max(height, 2)))
        time.sleep(POLL_S)


def conclude(suite: Suite, pool: LocalPool, board: Board) -> int:
    """Say how it went; the exit status of a suite that no signal stopped."""
    count = Counter(job.state for job in pool.jobs)
    failed = [job for job in pool.jobs if job.state == "failed"]
    board.say(", ".join(f"{number} {state}" for state, number in count.items()))
    for job in failed:
        board.say(f"failed: {job.run.name}: {job.note} (log: {pool.log_of(job.run)})")
    if pool.refusal:
        return 2
    if suite.check and count.keys() == {"finished"}:
        lines = []
        for job in pool.jobs:
            assert job.folder is not None
            lines += table_mismatches(job.run.scenario, json.loads((job.folder / "config.json").read_text())["args"])
        for line in lines or [f"{len(pool.jobs)} scenarios: every value of Tables 1-6 is the paper's"]:
            board.say(line)
        return 1 if lines else 0
    return 1 if failed else 0


def run_suite(args: argparse.Namespace, extra: Sequence[str], board: Board, signals: Signals) -> int:
    """Everything after the command line; the exit status."""
    suite = SUITES[args.suite]
    parallel = args.workers
    if args.workers is None:
        args.workers = connect(args.ray_address) if args.backend == "ray" and not args.dry_run else cores()
    elif args.backend == "ray" and not args.dry_run:
        connect(args.ray_address)
    runs_dir = (args.runs_dir or Path("runs/suites") / args.suite).resolve()
    runs = select(args, extra, board.say)
    commit = None if args.allow_mixed_commits else git_commit()
    lock = None
    if not args.dry_run:
        try:
            lock = folders.take_lock(runs_dir / "locks" / "runner.lock")
        except OSError as error:
            raise folders.SuiteError(f"--runs-dir {runs_dir}: {error.strerror}") from error
        if lock is None:
            pid = folders.holder(runs_dir / "locks" / "runner.lock")
            raise folders.SuiteError(f"{runs_dir}: another runner (process {pid}) works there")
        folders.note_holder(lock, os.getpid())
    jobs = survey(runs, runs_dir, extra, commit, args.prune and not args.dry_run)
    if commit is not None and commit.endswith("+dirty"):
        board.say("the source tree has uncommitted changes: the commit in config.json does not describe these runs")
    measure = not (suite.smoke or suite.check)
    rates = rates_of(jobs, extra, args, board.say, signals) if measure else {}
    if signals.count:
        return signals.exit_status
    for line in announce(suite, jobs, rates, args, extra):
        board.say(line)
    if args.dry_run:
        return 0
    if args.backend == "slurm":
        options = slurm.parameters(args.slurm)
        slurm.submit(jobs, runs_dir, options, parallel, args.max_restarts, extra, commit, args.prune, board.say)
        return 0
    kind = RayPool if args.backend == "ray" else LocalPool
    pool = kind(
        jobs, runs_dir, args.workers, args.max_restarts, extra, lambda: check_unchanged(commit), board.say, args.prune
    )
    try:
        work(pool, board, signals, rates)
    finally:
        pool.stop()  # nothing is left to stop unless `work` itself failed
    status = conclude(suite, pool, board)
    if lock is not None:
        os.close(lock)
    unfinished = any(job.state != "finished" for job in jobs)
    return signals.exit_status if signals.count and unfinished else status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite; returns the exit status."""
    signals = Signals()
    try:
        args, extra = parse(sys.argv[1:] if argv is None else argv)
        return run_suite(args, extra, Board(sys.stdout, args.report_every), signals)
    except folders.SuiteError as error:
        print(f"experiments.run: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
