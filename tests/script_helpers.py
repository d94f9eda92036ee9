"""Helpers for the tests that drive a script as a user does: tiny runs, run folders, comparison bit by bit."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import his_mamujoco as H
from common import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "his_mamujoco.py"

# A run of some seconds in which everything happens: robots fall, the buffer wraps, temperatures are tuned. Training has
# 4 environments and evaluation 2, which tells them apart. Steps 1-200 are warm-up; from then on every 20 steps bring a
# round of 5 updates, so updates 21-25 fall due at step 300, where a line is logged.
TINY: dict[str, Any] = dict(
    scenario="Walker2d-2x3",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    warmup_steps=200,
    train_interval=5,
    batch_size=64,
    hidden_sizes=(32, 32),
    auto_alpha=True,
    buffer_size=600,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
TRAINING = ("learner", "streams", "buffer", "env", "obs", "state", "episode_return", "episode_length")
RATES = ("wall_s", "charts/SPS", "charts/updates_per_s")


def flags(values: dict[str, Any]) -> list[str]:
    """The command line that sets these fields of `Args`."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


class Driver:
    """Runs one script: `tiny` holds the values of a run of some seconds in which everything happens."""

    def __init__(self, module: Any, env_class: type, tiny: dict[str, Any]):
        self.module, self.env_class, self.tiny, self.name = module, env_class, tiny, module.SCRIPT

    def command(self, runs_dir: Path, **overrides: Any) -> list[str]:
        """The command line of a tiny run."""
        return flags(self.tiny | {"runs_dir": runs_dir} | overrides)

    def make_args(self, **overrides: Any) -> Any:
        """What the command line of a tiny run gives."""
        values = self.tiny | overrides
        return dataclasses.replace(self.module.Args(), **(self.module.PRESETS[values["scenario"]] | values))

    def folder_of(self, runs_dir: Path, **overrides: Any) -> Path:
        """Where that run lives."""
        values = self.tiny | overrides
        return runs_dir / self.name / values["scenario"] / f"seed{values['seed']}"

    def train(self, runs_dir: Path, **overrides: Any) -> Path:
        """Do a tiny run in this process; returns its folder."""
        assert self.module.main(self.command(runs_dir, **overrides)) == 0
        return self.folder_of(runs_dir, **overrides)

    def script(self, *argv: object, code: str = "") -> list[str]:
        """The words that start the script in a process of its own; `code` runs before main, with the script as H."""
        words = [str(word) for word in argv]
        if not code:
            return [sys.executable, str(ROOT / f"{self.name}.py"), *words]
        start = f"import sys, {self.name} as H\n{code}\nsys.exit(H.main(sys.argv[1:]))"
        return [sys.executable, "-c", start, *words]

    def run_script(self, *argv: object, code: str = "") -> subprocess.CompletedProcess[str]:
        """Run the script to its end in a process of its own."""
        words = self.script(*argv, code=code)
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)

    def usage_error(self, capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
        """Check that this command line ends in one line on stderr and status 2; returns the line."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            self.module.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.count("\n") == 1 and error.startswith(f"{self.name}.py: error: "), error
        return error.rstrip("\n")

    def on_env_step(
        self, monkeypatch: pytest.MonkeyPatch, num_envs: int, at: int, act: Callable[[], object], reset: int = 1
    ) -> None:
        """Call `act` before step `at` after reset number `reset` (from 1) of the environments of that `num_envs`."""
        env_class, resets, steps = self.env_class, 0, 0
        original_reset, original_step = env_class.reset, env_class.step  # pyright: ignore[reportAttributeAccessIssue]

        def count_resets(env: Any, seed: int) -> Any:
            nonlocal resets, steps
            if env.num_envs == num_envs:
                resets, steps = resets + 1, 0
            return original_reset(env, seed)

        def step(env: Any, actions: Any) -> Any:
            nonlocal steps
            if env.num_envs == num_envs:
                steps += 1
                if (resets, steps) == (reset, at):
                    act()
            return original_step(env, actions)

        monkeypatch.setattr(env_class, "reset", count_resets)
        monkeypatch.setattr(env_class, "step", step)

    def on_update(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[Any, Any], object]) -> None:
        """Call `act(learner, buffer)` just before gradient step `at` (from 1)."""
        original = self.module.Learner.update

        def update(learner: Any, buffer: Any, *rest: Any, **named: Any) -> Any:
            if learner.update_step + 1 == at:
                act(learner, buffer)
            return original(learner, buffer, *rest, **named)

        monkeypatch.setattr(self.module.Learner, "update", update)


MAMUJOCO = Driver(H, H.MAMuJoCoVecEnv, TINY)
command, make_args, folder_of, train = MAMUJOCO.command, MAMUJOCO.make_args, MAMUJOCO.folder_of, MAMUJOCO.train
script, run_script, usage_error = MAMUJOCO.script, MAMUJOCO.run_script, MAMUJOCO.usage_error
on_env_step, on_update = MAMUJOCO.on_env_step, MAMUJOCO.on_update


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*.pt"), key=lambda path: int(path.stem.split("_")[1]))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, a dict a line; a line torn by a kill in the middle of its write is left out."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def steady_metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the speed of the machine."""
    return [{key: value for key, value in line.items() if key not in RATES} for line in metrics(folder)]


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places in which two nested containers are not bit-equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = a.detach().cpu().numpy(), b.detach().cpu().numpy()
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))} on one side only"]
        return [line for key in a for line in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [line for i, pair in enumerate(zip(a, b)) for line in differences(*pair, f"{where}/{i}")]
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f"{where}: array {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)} differ"]
    return [] if a == b else [f"{where}: {a!r} and {b!r}"]


def training_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of training itself."""
    saved = checkpoint.load(path)
    return {key: saved[key] for key in TRAINING}


def steady(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what differs between a run and its continuation: command line, time taken, last save."""
    saved = {key: value for key, value in saved.items() if key != "log"}
    incidental = ("resume", "runs_dir", "total_timesteps", "last_save")
    for part in ("args", "progress"):
        saved[part] = {key: value for key, value in saved[part].items() if key not in incidental}
    return saved


def assert_same_run(one: Path, other: Path) -> None:
    """Both runs ended in the same place, bit by bit, and recorded the same on the way there."""
    last, other_last = step_files(one)[-1], step_files(other)[-1]
    assert last.name == other_last.name
    saved = checkpoint.load(last)
    assert set(TRAINING) < saved.keys() and saved["learner"]["update_step"] > 0 and len(saved["buffer"]["data"]) > 0
    assert differences(steady(saved), steady(checkpoint.load(other_last))) == []
    assert steady_metrics(one) == steady_metrics(other)
    assert (one / "eval.csv").read_bytes() == (other / "eval.csv").read_bytes()
    best, other_best = (steady(checkpoint.load(folder / "checkpoints/best.pt")) for folder in (one, other))
    assert differences(best, other_best) == []
    policy, other_policy = (checkpoint.load_policy(f / "checkpoints/policy.safetensors") for f in (one, other))
    assert differences(policy, other_policy) == []
