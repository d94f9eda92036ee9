"""Start a script as a process that does not outlive its runner unnoticed."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str], log: Path, lock: int | None = None, on_death: int = signal.SIGTERM
) -> subprocess.Popen[bytes]:
    """Start `python *command` in the root of the project, with one thread, its output appended to `log`.

    It is in a session of its own, so that Ctrl-C in the terminal reaches the runner alone. On Linux it gets the signal
    `on_death` when the runner dies, even by SIGKILL. `lock` is a descriptor that it inherits: held until it ends.
    """
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
            preexec_fn=_die_with_parent(on_death),
        )


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: one thread, the project importable (scripts in folders below it need that)."""
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": os.pathsep.join(paths)}


def _die_with_parent(signum: int) -> Callable[[], None] | None:
    """What the child does before it becomes the script: ask Linux for a signal at the parent's death."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signum)

    return ask


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def last_line(log: Path) -> str:
    """The last line with text in a log, for a message."""
    try:
        with open(log, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no output"
    return lines[-1].strip() if lines else "no output"
