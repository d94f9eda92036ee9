"""Run a suite on a Slurm cluster: write and submit an array job through submitit, one task a run.

Compute nodes must see this checkout and the run folders at the same paths. A task is the pool of `experiments.local`
with one run, so crashes, locks and finished runs are treated as on one machine. Before its time is over (and when it is
preempted) Slurm sends SIGUSR2: the run saves, and the task is queued again and continues.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.provenance import git_commit
from experiments import folders, processes
from experiments.local import Job, LocalPool
from experiments.suites import Run

MAX_REQUEUES = 100
SIGNAL_DELAY_S = 300  # between SIGUSR2 and the end: time to save
PREEMPTION_S = 120.0  # on preemption SIGTERM comes first, SIGUSR2 after it


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words of --slurm as parameters of submitit's SlurmExecutor; SuiteError for a wrong one."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise folders.SuiteError(f"--slurm {word}: must be KEY=VALUE, such as time=1440")
        found[name] = int(value) if value.isdigit() else value
    if not isinstance(found.get("time"), int) or not found["time"]:
        raise folders.SuiteError(f"--slurm time={found.get('time', '')}: minutes that a task may run are needed")
    return found


class _Pool(LocalPool):
    """A run that Slurm itself ended (scancel, preemption) is not restarted here."""

    def _ended(self, job: Job, status: int) -> None:
        self.stopping = self.stopping or status == 143
        super()._ended(job, status)


class Task:
    """What one array task does; pickled."""

    def __init__(
        self, run: Run, runs_dir: Path, max_restarts: int, extra: Sequence[str], commit: str | None, prune: bool
    ) -> None:
        self.arguments = run, runs_dir, max_restarts, tuple(extra), commit, prune
        self.pool: LocalPool | None = None

    def __call__(self) -> str:
        """Work off the run; RuntimeError where it does not finish, so that Slurm says so."""
        run, runs_dir, max_restarts, extra, commit, prune = self.arguments

        def may_start() -> None:
            if commit is not None and git_commit() != commit:
                raise folders.SuiteError(f"the commit is no longer {folders.short(commit)}")

        self.pool = _Pool([Job(run)], runs_dir, 1, max_restarts, extra, may_start, _say, prune)
        while self.pool.poll():
            time.sleep(0.2)
        (job,) = self.pool.jobs
        if job.state == "stopped":
            time.sleep(PREEMPTION_S)
        if job.state != "finished":
            raise RuntimeError(f"{run.name}: {job.state}: {self.pool.refusal or job.note or 'submit it again'}")
        return job.state

    def checkpoint(self) -> Any:
        """Called by submitit on SIGUSR2: let the run save and end, then be queued again."""
        import submitit  # pyright: ignore[reportMissingImports]

        if self.pool is not None:
            self.pool.stop()
            while self.pool.poll():
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(Task(*self.arguments))


def _say(line: str) -> None:
    print(line, flush=True)


# ---- submitting ------------------------------------------------------------------------------------------------------
def queued(record: Path) -> dict[str, str]:
    """Run name -> Slurm's id, of runs submitted earlier whose task is still in the queue."""
    try:
        known: Mapping[str, str] = json.loads(record.read_text())
    except FileNotFoundError:
        return {}
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise folders.SuiteError(f"cannot see what is queued already: {shlex.join(command)}: {error}") from error
    return {name: number for name, number in known.items() if number in listed}


def submit(
    jobs: Sequence[Job],
    runs_dir: Path,
    options: Mapping[str, Any],
    parallel: int | None,
    max_restarts: int,
    extra: Sequence[str],
    commit: str | None,
    prune: bool,
    say: Callable[[str], None],
) -> None:
    """Submit what is neither finished nor queued, at most `parallel` tasks at a time, and say under which ids."""
    try:
        import submitit  # pyright: ignore[reportMissingImports]
        import submitit.core.utils  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise folders.SuiteError("--backend slurm: pip install -e '.[slurm]' (no package submitit)") from error
    place = runs_dir / "slurm"
    record = place / "submitted.json"
    waiting = queued(record)
    todo = [job.run for job in jobs if job.state != "finished" and job.run.name not in waiting]
    if waiting:
        say(f"{len(waiting)} runs are in the queue already and are left there")
    if not todo:
        say("nothing to submit")
        return
    setup = [f"cd {shlex.quote(str(processes.ROOT))}"]
    setup.append(f"export PYTHONPATH={shlex.quote(processes.environment(os.environ)['PYTHONPATH'])}")
    own: dict[str, Any] = {"job_name": runs_dir.name, "cpus_per_task": 1, "signal_delay_s": SIGNAL_DELAY_S}
    own |= {"setup": setup, "array_parallelism": parallel or len(todo)}
    try:
        executor = submitit.SlurmExecutor(place, max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**own | dict(options))
        with executor.batch():
            tasks = [executor.submit(Task(run, runs_dir, max_restarts, extra, commit, prune)) for run in todo]
    except ValueError as error:
        raise folders.SuiteError(f"--slurm: {str(error).splitlines()[0]}") from error
    except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise folders.SuiteError(f"--backend slurm: {error}") from error
    numbers = waiting | {run.name: str(task.job_id) for run, task in zip(todo, tasks)}
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    os.replace(temporary, record)
    ids = str(tasks[0].job_id).partition("_")[0]
    say(f"submitted: {len(todo)} runs as Slurm job {ids}; the same command again submits what has not finished by then")
