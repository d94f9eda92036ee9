"""Which way up a HalfCheetah runs: the torso's angle in episodes of the best policy of a run.

    python -m experiments.posture RUN_FOLDER ... --csv posture.csv

An episode of a HalfCheetah goes on whichever way up it lies, and sliding forward on the back is a local optimum worth
about a third of running. With few seeds, how many runs end there decides who is ahead.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import his_mamujoco
from common import checkpoint
from common.mamujoco import MAMuJoCoVecEnv
from experiments.command_line import Parser, whole, write_rows

SEED = 20251111  # of the episodes: the same for all runs
PITCH = 1  # of `raw_state`: the torso's angle rooty, radians; 0 level, positive with the nose down


class Posture(NamedTuple):
    """Over the second half of the episodes, when the robot runs as it will; returns are of whole episodes."""

    return_mean: float
    pitch_deg: float  # median of the torso's angle to the level in degrees, within (-180, 180]
    upside_down: float  # share of the steps in which the torso's back points down


def describe(pitch: np.ndarray) -> tuple[float, float]:
    """Median angle in degrees, turns taken off, and share upside down, of torso angles in radians."""
    turned = np.angle(np.exp(1j * pitch))  # a robot that rolled over once has 2 pi more
    upside_down = np.cos(pitch) < 0
    # The median of angles near +-180 degrees must not be 0: take it where they lie together.
    centre = np.angle(np.exp(1j * pitch).mean())
    median = centre + np.median(np.angle(np.exp(1j * (turned - centre))))
    return float(np.degrees(np.angle(np.exp(1j * median)))), float(upside_down.mean())


def measure(folder: Path, episodes: int) -> tuple[dict[str, str], Posture]:
    """What a run's policy file says of itself, and the posture of its policy in `episodes` deterministic episodes.

    Raises ValueError if the run is not of a HalfCheetah, CheckpointError, OSError or KeyError if it cannot be read.
    """
    saved: dict[str, Any] = json.loads((folder / "config.json").read_text())["args"]
    if not saved["scenario"].startswith("HalfCheetah"):
        raise ValueError(f"scenario {saved['scenario']}, and only a HalfCheetah is measured")
    names = {field.name for field in dataclasses.fields(his_mamujoco.Args)}
    values: dict[str, Any] = {name: value for name, value in saved.items() if name in names}
    values["hidden_sizes"] = tuple(values["hidden_sizes"])
    args, device = his_mamujoco.Args(**values), torch.device("cpu")
    env = MAMuJoCoVecEnv(args.scenario, episodes, args.obs_mode, args.obs_neighbors)
    learner = his_mamujoco.Learner(env, his_mamujoco.Streams(SEED, device), args, device)
    path = folder / "checkpoints/policy.safetensors"
    tensors, about = checkpoint.load_policy(path)
    checkpoint.fill(nn.ModuleList(learner.actors), tensors, path)
    obs, _ = env.reset(SEED)
    returns, pitch = np.zeros(episodes), []
    for _ in range(env.max_episode_steps):
        pitch.append(env.raw_state[:, PITCH])
        step = env.step(learner.act(his_mamujoco.to_tensors(obs, device), deterministic=True))
        obs = step.obs
        returns += step.reward
    return about, Posture(float(returns.mean()), *describe(np.array(pitch[env.max_episode_steps // 2 :])))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each run; returns the exit status."""
    parser = Parser("experiments.posture", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of HIS or HASAC on a HalfCheetah")
    parser.add_argument("--episodes", type=partial(whole, low=1), default=8, help="episodes of each run")
    parser.add_argument("--csv", type=Path, help="file to write the same to")
    args = parser.parse_args(argv)
    parser.needs_writable("--csv", args.csv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("    return  pitch in degrees  upside down  step and run")
    for run in args.runs:
        try:
            about, found = measure(run, args.episodes)
        except (checkpoint.CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
            parser.error(f"{run}: no policy of HIS or HASAC on a HalfCheetah: {str(error).partition(chr(10))[0]}")
        step = int(about["global_step"])
        named = {name: round(value, 3) for name, value in found._asdict().items()}
        rows.append({"task": about["scenario"], "run": run.name, "global_step": step, **named})
        print(f"{found.return_mean:10.0f}{found.pitch_deg:18.0f}{found.upside_down:13.2f}  {step:,} {run}", flush=True)
    if args.csv:
        write_rows(args.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
