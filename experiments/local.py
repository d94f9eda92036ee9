"""Run a suite as processes on this machine: start, watch, restart, stop.

What must never happen is that two processes work in one run folder. So a run is started only with its lock in hand, and
the process inherits the lock: whatever becomes of the runner, the lock is free only when that process is gone.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments import folders, processes
from experiments.suites import Run

# Wrong usage and non-finite numbers: the same would happen again.
HOPELESS = {2: "wrong usage", 3: "a non-finite number"}

Process = Any
"""subprocess.Popen, or what has its pid, returncode, poll() and terminate()"""

State = Literal["waiting", "running", "elsewhere", "finished", "failed", "stopped"]


@dataclass
class Job:
    """A run and what has become of it; "elsewhere" is a process that an earlier runner left behind."""

    run: Run
    state: State = "waiting"
    folder: Path | None = None
    process: Process | None = None
    restarts: int = 0
    note: str = ""


class LocalPool:
    """Works off `jobs` with up to `workers` processes; call `poll` often until it returns False."""

    def __init__(
        self,
        jobs: Sequence[Job],
        runs_dir: Path,
        workers: int,
        max_restarts: int,
        extra: Sequence[str],
        may_start: Callable[[], None],
        say: Callable[[str], None],
        prune: bool = False,
    ) -> None:
        self.jobs, self.runs_dir, self.workers, self.max_restarts = jobs, runs_dir, workers, max_restarts
        self.extra, self.may_start, self.say, self.prune = extra, may_start, say, prune
        self.stopping = False
        self.refusal: str | None = None
        """why nothing more is started, where that is so"""

    def log_of(self, run: Run) -> Path:
        return self.runs_dir / "logs" / f"{run.name}.log"

    def lock_of(self, run: Run) -> Path:
        return self.runs_dir / "locks" / f"{run.name}.lock"

    def poll(self) -> bool:
        """Look after all processes once; returns whether there is anything left to wait for."""
        for job in self.jobs:
            if job.process is not None and job.process.poll() is not None:
                self._ended(job, job.process.returncode)
            elif job.state == "elsewhere" and not self.stopping:
                lock = folders.take_lock(self.lock_of(job.run))
                if lock is not None:
                    os.close(lock)
                    job.state = "waiting"
        busy = sum(job.state in ("running", "elsewhere") for job in self.jobs)
        for job in self.jobs:
            if busy >= self.workers or self.stopping or self.refusal:
                break
            if job.state == "waiting":
                self._start(job)
                busy += job.state in ("running", "elsewhere")
        states = {job.state for job in self.jobs}
        return (
            "running" in states
            or ("elsewhere" in states and not self.stopping)
            or ("waiting" in states and not self.stopping and not self.refusal)
        )

    def stop(self) -> None:
        """Ask all processes to save and end; nothing is started any more."""
        if self.stopping:
            return
        self.stopping = True
        for job in self.jobs:
            if job.process is not None:
                job.process.terminate()

    def kill(self) -> None:
        """End all processes at once."""
        self.stopping = True
        for job in self.jobs:
            if job.process is not None:
                self._kill(job.process)

    def _kill(self, process: Process) -> None:
        processes.kill(process)

    def find(self, job: Job) -> folders.Folder | None:
        """The run folder of a job, where there is one."""
        try:
            folder = folders.find(self.runs_dir).get(folders.key_of(job.run))
        except folders.SuiteError as error:  # somebody put something strange there
            self._refuse(error)
            return None
        job.folder = folder.path if folder else None
        return folder

    def _start(self, job: Job) -> None:
        """Start or continue a run, unless it turns out to be finished or in other hands."""
        try:
            self.may_start()
            lock = folders.take_lock(self.lock_of(job.run))
            if lock is None:
                job.state = "elsewhere"
                self.say(f"{job.run.name}: process {folders.holder(self.lock_of(job.run))} still works on it: waiting")
                return
            try:
                folder = self.find(job)
                if self.refusal:
                    return
                if folder and folder.finished(job.run.total_steps):
                    self._finished(job)
                    return
                if folder and (difference := folders.mismatch(job.run, folder, self.extra)):
                    raise folders.SuiteError(f"{folder.path}: {difference}")
                if folder:
                    command = [job.run.script, "--resume", shown(folder.path)]
                else:
                    command = job.run.command(shown(self.runs_dir), self.extra)
                self.log_of(job.run).parent.mkdir(parents=True, exist_ok=True)
                process = job.process = self._launch(job.run, command, lock)
            finally:
                os.close(lock)
        except (folders.SuiteError, OSError) as error:
            self._refuse(error)
            return
        job.state = "running"
        where = "" if process.pid is None else f" (process {process.pid})"
        self.say(f"{job.run.name}: {'continues' if folder else 'starts'}{where}")

    def _launch(self, run: Run, command: Sequence[str], lock: int) -> Process:
        """Start the process of a run; it inherits the lock, which the caller closes."""
        process = processes.start(command, self.log_of(run), lock)
        folders.note_holder(lock, process.pid)
        return process

    def _refuse(self, error: Exception) -> None:
        if self.refusal is None:
            self.say(f"nothing more is started: {error}")
        self.refusal = str(error)

    def _ended(self, job: Job, status: int) -> None:
        """Decide what the end of a process means."""
        job.process = None
        folder = self.find(job)
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        last = processes.last_line(self.log_of(job.run))
        if folder and folder.finished(job.run.total_steps):
            self._finished(job)
        elif self.stopping:
            job.state = "stopped"
        elif status in HOPELESS:
            job.state, job.note = "failed", f"{HOPELESS[status]} ({how}): {last}"
            self.say(f"{job.run.name}: {job.note}; not restarted")
        elif job.restarts < self.max_restarts:
            job.state, job.restarts = "waiting", job.restarts + 1
            self.say(f"{job.run.name}: {how}: {last}; restart {job.restarts} of {self.max_restarts}")
        else:
            job.state, job.note = "failed", f"{how} after {job.restarts} restarts: {last}"
            self.say(f"{job.run.name}: {job.note}; given up")

    def _finished(self, job: Job) -> None:
        job.state = "finished"
        if self.prune and job.folder:
            folders.prune(job.folder)
        self.say(f"{job.run.name}: finished")


def shown(path: Path) -> str:
    """A path as a script, started in the root of the project, takes it: without this machine's folders if possible."""
    return str(path.relative_to(processes.ROOT)) if path.is_relative_to(processes.ROOT) else str(path)
