"""A run's folder and what it records: config.json, metrics.jsonl, eval.csv, TensorBoard, the progress bar."""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.checkpoint import AppendFile, atomic_write
from common.cli import UsageError
from common.provenance import cpu_model, git_commit

_PACKAGES = (
    *("torch", "numpy", "scipy", "mujoco", "gymnasium", "mpe2", "isaacgym"),
    *("tyro", "tensorboard", "tqdm", "safetensors", "imageio", "imageio-ffmpeg", "wandb"),
)


def run_folder(runs_dir: str | Path, script: str, scenario: str, seed: int, run_name: str = "") -> Path:
    """The folder of a run: runs_dir/script/scenario/seed<seed>[-<run_name>]."""
    if "/" in run_name or os.sep in run_name:
        raise UsageError(f"--run-name {run_name}: must not contain a path separator")
    return Path(runs_dir) / script / scenario / (f"seed{seed}-{run_name}" if run_name else f"seed{seed}")


def create(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder of a new run with its config.json; UsageError when it holds a run or cannot be written."""
    try:
        taken = (folder / "config.json").exists()
        if not taken:
            for name in ("checkpoints", "videos"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            _write_json(folder / "config.json", config)
    except OSError as error:
        raise UsageError(f"--runs-dir: cannot create the run folder {folder}: {error.strerror}") from error
    if taken:
        state, more = "an unfinished", ""
        if (folder / "finished.json").exists():
            state, more = "a finished", " and a larger --total-timesteps"
        raise UsageError(
            f"{folder} already holds {state} run: continue it with --resume {shlex.quote(str(folder))}{more}"
            " or choose another name with --run-name NAME"
        )


def record_resumption(folder: Path, config: Mapping[str, Any], offsets: Mapping[str, Any]) -> None:
    """Give config.json the arguments a continued run now has, and add its command, commit and host to "resumed".

    UsageError, with nothing changed, where the run at `offsets` (from its checkpoint) cannot be continued so.
    """
    step, total = offsets["global_step"], config["args"]["total_timesteps"]
    if step == 0 and (folder / "finished.json").exists():
        raise UsageError(
            f"--resume {folder}: the run is finished and its checkpoints were removed: it cannot be continued"
        )
    os.close(_lock(folder))
    try:
        for path in filter(Path.exists, (folder / "metrics.jsonl", folder / "eval.csv")):
            open(path, "ab").close()  # that they can be written, before anything is changed
        saved = json.loads((folder / "config.json").read_text())
        if total < step and total != saved["args"].get("total_timesteps"):  # the last step may overshoot its own
            raise UsageError(f"--total-timesteps {total}: the run in {folder} is already at step {step}")
        session = {key: value for key, value in config.items() if key != "args"}
        resumed = [*saved.get("resumed", []), session]
        args = {**config["args"], "resume": ""}
        _write_json(folder / "config.json", {**saved, "args": args, "resumed": resumed})
        if total <= step and (folder / "finished.json").exists():
            print(f"the run is finished at step {step}; a larger --total-timesteps would go on")
    except OSError as error:
        name = Path(error.filename or "config.json").name
        raise UsageError(f"--resume {folder}: cannot write {name}: {error.strerror}") from error


def describe(args: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """The content of config.json: the arguments and everything needed to run them again in the same place."""
    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "args": dict(args),
        "command": shlex.join(["python", *argv]),
        "git_commit": git_commit(),
        "packages": packages,
        "host": {
            "platform": platform.platform(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch_threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


class RunLog:
    """Writes what a run measures into its folder and shows its progress. A full disk costs records, never the run.

    `offsets`, from a checkpoint, continues a run: records written after that checkpoint are cut off. `track` mirrors
    the metrics to wandb, with `config` as the run's configuration. UsageError where another process writes into the
    folder, or nobody may.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        offsets: Mapping[str, Any] | None = None,
        track: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        start = offsets or {"global_step": 0, "wall_s": 0.0, "metrics.jsonl": None, "eval.csv": None}
        self.folder, self.total_steps = folder, total_steps
        self.global_step: int = start["global_step"]
        self._started = time.monotonic() - start["wall_s"]
        self._rate_origin = (self.global_step, time.monotonic())
        self._phase, self._trained = "", False
        self._updates: int | None = None  # at the last record of this session
        self._last_evaluation = ""
        self._warned: set[str] = set()
        self._folder_lock: int | None = _lock(folder)
        try:
            self._metrics = AppendFile(folder / "metrics.jsonl", start["metrics.jsonl"])
            self._evaluations = AppendFile(folder / "eval.csv", start["eval.csv"])
            (folder / "finished.json").unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write {error.filename}: {error.strerror}") from error
        # Step global_step itself was logged before its checkpoint; TensorBoard hides from purge_step on.
        purge_step = self.global_step + 1 if offsets else None
        self._tensorboard = SummaryWriter(str(folder), purge_step=purge_step)
        self._wandb = _start_wandb(folder, dict(config or {}), self.message) if track else None
        bar = {"unit": "step", "smoothing": 0.05, "dynamic_ncols": True, "disable": None}  # None: off without terminal
        self._bar = tqdm(total=total_steps, initial=self.global_step, **bar)

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, earlier sessions included up to the checkpoint they ended with."""
        return time.monotonic() - self._started

    def log(self, global_step: int, update_step: int, values: Mapping[str, float]) -> None:
        """Record metrics; NaN and infinity become null in metrics.jsonl, which stays valid JSON."""
        self.global_step, self._updates = global_step, update_step
        numbers = {key: float(value) for key, value in values.items()}
        record = {"global_step": global_step, "update_step": update_step, "wall_s": round(self.wall_s, 3)}
        record |= {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._attempt("metrics.jsonl", lambda: self._metrics.write(json.dumps(record) + "\n"))
        add = self._tensorboard.add_scalar
        self._attempt("TensorBoard events", lambda: [add(key, number, global_step) for key, number in numbers.items()])
        if self._wandb is not None:
            self._wandb.log(numbers, step=global_step)

    def log_eval(self, global_step: int, returns: Iterable[float], lengths: Iterable[int]) -> None:
        """Append the episodes of one evaluation to eval.csv, and print one line where there is no bar."""
        self.global_step = global_step
        returns = [float(value) for value in returns]
        rows = [f"{global_step},{i},{r!r},{int(n)}\n" for i, (r, n) in enumerate(zip(returns, lengths, strict=True))]
        header = "" if self._evaluations.size else "global_step,episode,return,length\n"
        self._attempt("eval.csv", lambda: self._evaluations.write(header + "".join(rows)))
        self._last_evaluation = f"{np.mean(returns):.1f} +- {np.std(returns):.1f}"
        if self._bar.disable:
            rate, eta = self._rate()
            self.message(
                f"step {global_step}/{self.total_steps} ({100 * global_step / self.total_steps:.1f} %)"
                f"  return {self._last_evaluation}  {rate:.0f} steps/s  ETA {eta}"
            )

    def progress(self, global_step: int, phase: Literal["warm-up", "training", "evaluating", "saving"]) -> None:
        """Move the bar. Steps/s and ETA count this session's training steps, once the faster warm-up is over."""
        self.global_step = global_step
        warmed_up = phase == "training" and not self._trained
        if warmed_up:
            self._rate_origin, self._trained = (global_step, time.monotonic()), True
        changed, self._phase = phase != self._phase, phase
        if self._bar.disable:
            return
        with contextlib.suppress(OSError):  # the terminal may have been closed
            if warmed_up:  # the bar's rate, too, forgets the warm-up
                self._bar.reset()
                self._bar.initial = self._bar.n = self._bar.last_print_n = global_step
            self._bar.update(global_step - self._bar.n)
            if changed:
                self._bar.set_description(phase, refresh=False)
                self._bar.set_postfix_str(self._last_evaluation and f"eval {self._last_evaluation}")

    def message(self, line: str) -> None:
        """Print a line on stdout without breaking the bar."""
        with contextlib.suppress(OSError), tqdm.external_write_mode(file=sys.stdout):
            print(line, flush=True)

    def offsets(self) -> dict[str, Any]:
        """Where the records stand, for a checkpoint: bytes on disk of both files, global_step, wall_s."""
        self._attempt("metrics.jsonl", self._metrics.sync)
        self._attempt("eval.csv", self._evaluations.sync)
        sizes = {"metrics.jsonl": self._metrics.size, "eval.csv": self._evaluations.size}
        return {"global_step": self.global_step, "wall_s": self.wall_s, **sizes}

    def stopped(self) -> None:
        """Say how to go on after a signal."""
        self.message(f"stopped at step {self.global_step}; --resume {shlex.quote(str(self.folder))} goes on")

    def finish(self) -> None:
        """Mark the run as finished; say it where nothing was learnt in it."""
        if self._updates == 0:
            self.message("no update was made: the warm-up and the wait for the first one took all --total-timesteps")
        state = {"global_step": self.global_step, "wall_s": self.wall_s}
        self._attempt("finished.json", lambda: _write_json(self.folder / "finished.json", state))

    def close(self) -> None:
        """Close all files and the bar; safe to call twice."""
        with contextlib.suppress(OSError):
            self._bar.close()
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None
        self._metrics.close()
        self._evaluations.close()
        self._attempt("TensorBoard events", self._tensorboard.close)
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _attempt(self, target: str, write: Callable[[], object]) -> bool:
        """Run `write`; a failure is said once per target. Returns whether it worked."""
        try:
            write()
        except OSError as error:
            if target not in self._warned:
                self._warned.add(target)
                self.message(f"warning: cannot write {target}: {error.strerror or error}; the run goes on")
            return False
        return True

    def _rate(self) -> tuple[float, str]:
        """Steps per second and the time left at that rate, h:mm:ss; unknown while the warm-up alone has been timed."""
        step, since = self._rate_origin
        rate = (self.global_step - step) / max(time.monotonic() - since, 1e-9)
        known = rate > 0 and self._trained
        return rate, tqdm.format_interval((self.total_steps - self.global_step) / rate) if known else "?"


def _lock(folder: Path) -> int:
    """A file descriptor that keeps other processes from training in `folder` until it is closed, by a kill too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{folder}: another process is training this run") from None
    except OSError:
        pass  # no locks on this file system
    return descriptor


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())


def _start_wandb(folder: Path, config: dict[str, Any], message: Callable[[str], None]) -> Any:
    """A wandb run, or None with one line that says why; tracking is never a reason not to train."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]

        return wandb.init(project="his", name="/".join(folder.parts[-3:]), dir=str(folder), config=config)
    except ImportError:
        message("--track needs wandb: pip install wandb")
    except Exception as error:
        message(f"--track: wandb does not start ({' '.join(str(error).split())}); the run goes on without")
