"""Run a suite on an existing Ray cluster: the same pool as on one machine, its processes on other nodes.

Every node must see this checkout and the run folders at the same paths (a shared file system with locks) and have the
same Python environment. Each run is an actor with one CPU that starts the script on its node, holds the run's lock
there and hands back its exit status. An actor that is lost, with its node or alone, counts as a crash: the run is
restarted from its last checkpoint wherever a CPU is free, and never before the old process has let go of the lock.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import folders, processes
from experiments.local import Job, LocalPool
from experiments.suites import Run

LOCKED = 1000  # an exit status that no process has: the lock is in other hands
LOCK_WAIT_S = 15.0  # the runner itself holds it for a moment, and what it was held by may be saving


def connect(address: str) -> int:
    """Join the cluster; returns its number of CPUs. SuiteError where there is none."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise folders.SuiteError("--backend ray: pip install -e '.[ray]' (no package ray)") from error
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # where nobody listens Ray would wait for a minute and end this process
            socket.create_connection((host, int(port)), timeout=10).close()
        environment = {"env_vars": {"PYTHONPATH": processes.environment(os.environ)["PYTHONPATH"]}}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        cpus = int(ray.cluster_resources().get("CPU", 0))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise folders.SuiteError(f"--ray-address {address}: {first}") from error
    finally:
        for signum, handler in handlers.items():  # Ray puts in its own, which ends this process at once
            signal.signal(signum, handler)
    if not cpus:
        raise folders.SuiteError(f"--ray-address {address}: the cluster has no CPUs")
    return cpus


class Worker:
    """On a node: starts one script and waits for it. Its methods are called in two threads."""

    def __init__(self) -> None:
        self.guard, self.stopped = threading.Lock(), False
        self.process: subprocess.Popen[bytes] | None = None

    def ready(self) -> bool:
        return True

    def run(self, command: Sequence[str], log: str, lock_path: str) -> int:
        """The exit status of the script (negative: a signal), or LOCKED."""
        deadline = time.monotonic() + LOCK_WAIT_S
        while (lock := folders.take_lock(Path(lock_path))) is None:
            if time.monotonic() > deadline or self.stopped:
                return LOCKED
            time.sleep(0.1)
        try:
            with self.guard:
                if self.stopped:
                    return 128 + signal.SIGTERM
                self.process = processes.start(command, Path(log), lock)
                folders.note_holder(lock, self.process.pid)
        finally:
            os.close(lock)
        return self.process.wait()

    def end(self, kill: bool) -> None:
        """SIGTERM, or the end at once."""
        with self.guard:
            self.stopped = True
        if self.process is not None and self.process.poll() is None:
            processes.kill(self.process) if kill else self.process.terminate()


class RemoteProcess:
    """A Worker, seen from the runner as if it were a subprocess.Popen."""

    pid = None  # it has one, on its node
    note = ""

    def __init__(self, command: Sequence[str], log: Path, lock_path: Path) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self.ray: Any = ray
        self.returncode: int | None = None
        self.actor: Any = self.ray.remote(num_cpus=1, max_concurrency=2, max_restarts=0)(Worker).remote()
        self.up = self.actor.ready.remote()
        self.result = self.actor.run.remote(list(command), str(log), str(lock_path))

    def poll(self) -> int | None:
        """The exit status, None while it runs; -9 where the worker was lost."""
        if self.returncode is None and self.ray.wait([self.result], timeout=0)[0]:
            try:
                self.returncode = self.ray.get(self.result)
            except self.ray.exceptions.RayTaskError as error:  # no such folder there, no locks
                self.returncode = 2
                self.note = str(error).strip().splitlines()[-1]
            except self.ray.exceptions.RayError:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def terminate(self) -> None:
        self.end(kill=False)

    def end(self, kill: bool) -> None:
        """Pass it on; a worker that waits for a CPU is given up."""
        if self.returncode is None and self.ray.wait([self.up], timeout=0)[0]:
            self.actor.end.remote(kill)
        elif self.returncode is None:
            self.ray.kill(self.actor)


class RayPool(LocalPool):
    """LocalPool with its processes on a cluster."""

    def _launch(self, run: Run, command: Sequence[str], lock: int) -> RemoteProcess:
        return RemoteProcess(command, self.log_of(run), self.lock_of(run))

    def _kill(self, process: RemoteProcess) -> None:
        process.end(kill=True)

    def _ended(self, job: Job, status: int) -> None:
        if status == LOCKED:
            job.process, job.state = None, "elsewhere"
            return
        note = job.process.note if job.process else ""
        super()._ended(job, status)
        if note:
            self.say(f"{job.run.name}: on its node: {note}")
