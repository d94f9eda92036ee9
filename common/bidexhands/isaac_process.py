"""The process in which Isaac Gym runs: finds out about its interpreter, starts, watches and ends it."""

import contextlib
import glob
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from common.bidexhands import isaac_worker as protocol
from common.cli import UsageError

WORKER = Path(__file__).with_name("isaac_worker.py")
DEFAULT_SIM = "or use --sim mujoco, the default, which needs none of this"


class IsaacGymError(UsageError):
    """Isaac Gym cannot be used, or stopped working; one line. `output` has the last lines that the worker printed."""

    def __init__(self, message: str, output: Sequence[str] = ()):
        super().__init__(" ".join(message.split()))
        self.output = list(output)


class Interpreter:
    """The user's Python for Isaac Gym: `path`, `version` and the environment variables to run it with."""

    def __init__(self, path: str | Path):
        example = "the Python (3.6, 3.7 or 3.8) that Isaac Gym is installed in, such as .../envs/NAME/bin/python"
        if not str(path):
            raise IsaacGymError(f"--sim isaacgym needs --isaac-python PATH: {example}; {DEFAULT_SIM}")
        found = shutil.which(os.path.expanduser(path))
        if found is None:
            raise IsaacGymError(f"--isaac-python {path}: no program there; give {example}; {DEFAULT_SIM}")
        self.path = os.path.abspath(found)
        code = "import json, sys, sysconfig as s; print(json.dumps([sys.version_info[:3], s.get_config_var('LIBDIR')]))"
        try:
            shown = subprocess.run(
                [self.path, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
            ).stdout
            version, libdir = json.loads(shown.strip().rpartition("\n")[2])
            self.version: tuple[int, ...] = tuple(map(int, version))
        except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
            raise IsaacGymError(
                f"--isaac-python {path}: not a Python interpreter; give {example}; {DEFAULT_SIM}"
            ) from error
        if self.version < (3, 6):
            raise IsaacGymError(f"--isaac-python {path}: is Python {self.version_text}; give {example}; {DEFAULT_SIM}")
        # What activating a conda environment would do: PyTorch finds ninja, and Isaac Gym's library finds libpython.
        self.environ = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
        self._prepend("PATH", os.path.dirname(self.path))
        if libdir and glob.glob(os.path.join(libdir, "libpython{}.{}*.so*".format(*self.version))):
            self._prepend("LD_LIBRARY_PATH", libdir)

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    def __str__(self) -> str:
        return f"{self.path} (Python {self.version_text})"

    def _prepend(self, key: str, folder: str) -> None:
        self.environ[key] = os.pathsep.join(filter(None, [folder, self.environ.get(key)]))


class Worker:
    """A running `isaac_worker.py`: its process, the pipes to it, the shared `arrays` and what it printed last.

    Anything that goes wrong ends the process and raises `IsaacGymError`.
    """

    OUTPUT_LINES = 200

    def __init__(self, python: Interpreter, arrays: list[list[Any]], memory_bytes: int):
        self.python, self._layout, self._memory_bytes = python, arrays, memory_bytes
        self.stage = "starting Python"
        self._request_id = 0
        self._output: deque[str] = deque(maxlen=self.OUTPUT_LINES)
        # Without a name in the file system, so nothing is left behind however the processes end.
        with tempfile.TemporaryFile(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as file:
            file.truncate(memory_bytes)
            self.arrays = protocol.views(np, np.memmap(file, np.uint8, "r+"), arrays)
            (request_in, self._requests), (self._replies, reply_out) = os.pipe(), os.pipe()
            fds = (request_in, reply_out, file.fileno())
            try:
                self.process = subprocess.Popen(
                    [python.path, "-u", str(WORKER), "--fds", *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=fds,
                    env=python.environ,
                    start_new_session=True,  # Ctrl-C is for this process, which may still want to save
                )
            finally:
                os.close(request_in)
                os.close(reply_out)
        self._reader = threading.Thread(target=_keep_lines, args=(self.process.stdout, self._output), daemon=True)
        self._reader.start()
        self.close = weakref.finalize(self, _end, self.process, self._requests, self._replies)  # also at exit

    @property
    def alive(self) -> bool:
        """Whether requests can be made."""
        return self.close.alive

    def start(self, timeout_s: float, spec: dict[str, Any]) -> dict[str, Any]:
        """Have the task built; returns what it says of its sizes."""
        deadline = time.monotonic() + timeout_s
        with self._ending_on_error():
            self._send(dict(spec, op="start", arrays=self._layout, memory_bytes=self._memory_bytes))
            while True:
                reply = self._receive(deadline, timeout_s)
                if reply["event"] == "ready":
                    self.stage = "waiting"
                    return reply["sizes"]
                self.stage = reply.get("stage", self.stage)

    def request(self, timeout_s: float, **message: Any) -> None:
        """Send a request and wait until it is done."""
        self._request_id += 1
        self.stage = f"in a {message['op']}"
        with self._ending_on_error():
            self._send(dict(message, id=self._request_id))
            reply = self._receive(time.monotonic() + timeout_s, timeout_s)
            if reply.get("event") != "done" or reply.get("id") != self._request_id:
                self._fail(f"answered out of turn: {reply}")
        self.stage = "waiting"

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """End the worker when anything is raised, Ctrl-C included: it would answer the wrong request from then on."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _send(self, message: dict[str, Any]) -> None:
        try:
            os.write(self._requests, protocol.pack(message))  # short enough for the pipe to take it whole
        except BrokenPipeError:
            self._fail_dead()

    def _receive(self, deadline: float, timeout_s: float) -> dict[str, Any]:
        try:
            length = protocol.body_length(self._read(protocol.HEADER_BYTES, deadline, timeout_s))
            reply = json.loads(self._read(length, deadline, timeout_s))
        except (protocol.ProtocolError, ValueError) as error:
            self._fail(f"does not speak this version's protocol: {error}")
        if reply["event"] == "error":
            self._fail_reported(reply)
        return reply

    def _read(self, count: int, deadline: float, timeout_s: float) -> bytes:
        data = b""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while len(data) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._fail(f"did not answer within {timeout_s:g} s ({self.stage}), so it hangs and was ended")
            chunk = os.read(self._replies, count - len(data))
            if not chunk:
                self._fail_dead()
            data += chunk
        return data

    def _fail_reported(self, reply: dict[str, Any]) -> NoReturn:
        text, module = reply["text"], reply["module"]
        if module is None:
            self._fail(f"failed while {self.stage}: {text}")
        raise IsaacGymError(
            f'--sim isaacgym: "import {module}" failed in {self.python}: {text}; '
            f"{_remedy(module, text, self.python)}; {DEFAULT_SIM}",
            self._last_output(),
        )

    def _fail_dead(self) -> NoReturn:
        """The pipe is closed: say how the process ended."""
        try:
            status = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._fail(f"closed its pipe ({self.stage}) without ending")
        if status >= 0:
            self._fail(f"ended with status {status} ({self.stage})")
        hint, gpu = "", self.python.environ.get("CUDA_VISIBLE_DEVICES", "0")
        if status == -signal.SIGSEGV and gpu != "0":
            hint = f"; Isaac Gym is known to crash with CUDA_VISIBLE_DEVICES other than 0, here it is {gpu!r}"
        self._fail(f"was killed by {signal.Signals(-status).name} ({self.stage}){hint}")

    def _fail(self, what: str) -> NoReturn:
        self.close()
        output = self._last_output()
        shown = list(itertools.takewhile(lambda line: not line.startswith("Traceback"), output))
        last = " | ".join(line.strip() for line in (shown or output)[-5:])[-500:]
        after = "; --resume goes on from the run's last checkpoint" if self._request_id > 1 else ""
        raise IsaacGymError(
            f"--sim isaacgym: the worker under {self.python} {what}; it printed last: {last or 'nothing'}{after}",
            output,
        )

    def _last_output(self) -> list[str]:
        self._reader.join(timeout=2)  # to the end of the pipe, where the process has ended
        return [line for line in self._output if line.strip()]


def _remedy(module: str, text: str, python: Interpreter) -> str:
    """What to do about an import that failed."""
    if "module 'numpy' has no attribute" in text:
        return "install numpy<1.24 there, which still has the names that Isaac Gym and the tasks use"
    if "No module named 'numpy'" in text:
        module = "numpy"  # which Isaac Gym imports
    if module.partition(".")[0] == "isaacgym":
        remedy = (
            "install Isaac Gym Preview 4 there (https://developer.nvidia.com/isaac-gym; pip install -e its python/)"
        )
        if python.version >= (3, 9):
            remedy += f"; its bindings are for Python 3.6, 3.7 and 3.8, this is {python.version_text}"
        return remedy
    if module in ("torch", "numpy"):
        return f"install {module} there (for Python 3.8: torch 2.4.1 or older, numpy 1.23)"
    return "install there what HARL or DexterousHands asks for in its README"


def _keep_lines(stream: Any, lines: deque[str]) -> None:
    with stream:
        for line in iter(lambda: stream.readline(4096), b""):
            lines.append(line.decode("utf-8", "replace").rstrip())


def _end(process: subprocess.Popen[bytes], requests_fd: int, replies_fd: int) -> None:
    """Ask the worker to end by closing its pipe, insist if it does not, and take up its exit status."""
    os.close(requests_fd)
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    os.close(replies_fd)
