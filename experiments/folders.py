"""What the run folders of a suite say: which run lies where, how far it is, at which commit, and who works on it."""

import fcntl
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.suites import Run

END_BYTES = 1 << 16  # of metrics.jsonl: a line has one to three kilobytes


class SuiteError(Exception):
    """Something that cannot be done; the message is one line."""


# ---- run folders -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Folder:
    """A run folder and its config.json."""

    path: Path
    config: dict[str, Any]

    @property
    def commits(self) -> set[str]:
        """Every commit that had a part in this run."""
        return {self.config["git_commit"], *(session["git_commit"] for session in self.config.get("resumed", []))}

    def finished(self, steps: int) -> bool:
        """Whether finished.json is there and says so many steps."""
        try:
            return json.loads((self.path / "finished.json").read_text())["global_step"] >= steps
        except (OSError, ValueError, KeyError):
            return False


def find(runs_dir: Path) -> dict[tuple[str, int, str], Folder]:
    """All run folders below `runs_dir`, by scenario, seed and run name."""
    found: dict[tuple[str, int, str], Folder] = {}
    for path in sorted(runs_dir.rglob("config.json")):
        try:
            config = json.loads(path.read_text())
            args = config["args"]
            key = args["scenario"], args["seed"], args["run_name"]
            folder = Folder(path.parent, config)
            if not isinstance(config["command"], str) or not folder.commits:
                raise ValueError("no command or commit")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SuiteError(f"{path}: no config.json of a run ({type(error).__name__}: {error})") from error
        if key in found:
            raise SuiteError(f"{found[key].path} and {path.parent} are the same run (scenario, seed, name): remove one")
        found[key] = folder
    return found


def key_of(run: Run) -> tuple[str, int, str]:
    """What `find` files a run under."""
    return run.scenario, run.seed, run.variant


def mismatch(run: Run, folder: Folder, extra: Sequence[str]) -> str | None:
    """What keeps the run in `folder` from being `run`, or None."""
    args = folder.config["args"]
    for name, value in run.settings.items():
        actual = args.get(name)
        if actual != (list(value) if isinstance(value, tuple) else value):
            return f"{name} is {actual} there and {value} here"
    words = shlex.split(folder.config["command"])
    if "--run-name" in words:  # the runner's own words end with the run's name
        given = words[words.index("--run-name") + 2 :]
        if given != list(extra):
            return f"its extra flags are {shlex.join(given) or 'none'} there and {shlex.join(extra) or 'none'} here"
    return None


def prune(folder: Path) -> None:
    """Delete the checkpoints with replay buffers, by which a run goes on; the best policy stays."""
    for path in (folder / "checkpoints").glob("step_*.pt"):
        path.unlink(missing_ok=True)


# ---- progress --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Progress:
    """How far a run is, from metrics.jsonl."""

    step: int = 0
    step_s: float | None = None
    """wall seconds an environment step since the first update, evaluations included; None before there is a rate"""
    last_return: float | None = None
    sps: float | None = None
    """environment steps a second in the last logged interval"""


def read_lines(path: Path, last: bool) -> list[dict[str, Any]]:
    """The whole lines among the first or last END_BYTES of a metrics.jsonl; none where there is no file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - END_BYTES, 0) if last else 0)
            pieces = file.read(END_BYTES).split(b"\n")
    except OSError:
        return []
    lines = []
    for piece in pieces:
        try:
            lines.append(json.loads(piece))
        except ValueError:  # cut off at either end, or torn by a kill
            continue
    return [line for line in lines if isinstance(line, dict) and "global_step" in line]


def progress(folder: Path) -> Progress:
    """How far the run in `folder` is."""
    head, tail = (read_lines(folder / "metrics.jsonl", last) for last in (False, True))
    if not tail:
        return Progress()
    newest = tail[-1]
    step_s = None
    # From the first line after a round of updates to the last: between lies the work of whole rounds.
    lines = head + [line for line in tail if not head or line["global_step"] > head[-1]["global_step"]]
    before = [0, *(line["update_step"] for line in lines)]
    rounds = [line for updates, line in zip(before, lines) if line["update_step"] > updates]
    if rounds and rounds[-1]["global_step"] > rounds[0]["global_step"]:
        started, ended = rounds[0], rounds[-1]
        step_s = (ended["wall_s"] - started["wall_s"]) / (ended["global_step"] - started["global_step"])
    return Progress(newest["global_step"], step_s, _newest(tail, "eval/return_mean"), _newest(tail, "charts/SPS"))


def _newest(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)


# ---- commits ---------------------------------------------------------------------------------------------------------
def check_commits(folders: Iterable[Folder], commit: str) -> None:
    """SuiteError unless all runs were made at `commit` alone."""
    for folder in folders:
        others = folder.commits - {commit}
        if others:
            other = min(others)
            uncommitted = commit == other + "+dirty"
            way = "commit or stash your changes to tracked files" if uncommitted else "check that out"
            raise SuiteError(
                f"{folder.path} was run at commit {short(other)}, this is {short(commit)}: {way},"
                " choose another --runs-dir, or mix them with --allow-mixed-commits"
            )


def short(commit: str) -> str:
    """Ten digits and "+dirty"."""
    digits, dirty, _ = commit.partition("+dirty")
    return digits[:10] + dirty


# ---- locks -----------------------------------------------------------------------------------------------------------
def take_lock(path: Path) -> int | None:
    """An open, locked file descriptor, or None when another process holds the lock.

    The lock belongs to the open file: a process that inherits the descriptor keeps it until it ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise SuiteError(
            f"{path}: this file system has no locks ({error.strerror}): choose another --runs-dir"
        ) from error
    return descriptor


def note_holder(descriptor: int, pid: int) -> None:
    """Write into a lock file who holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def holder(path: Path) -> int | None:
    """Who holds the lock, as far as the file says."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
