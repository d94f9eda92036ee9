"""The best policy and critic of a run folder, rebuilt by the script that trained them."""

import dataclasses
import importlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from common import checkpoint, cli
from common.device import pick_device
from common.streams import Streams
from common.vecenv import VecEnv

ROOT = Path(__file__).resolve().parent.parent.parent
Progress = Callable[..., Any]
"""`tqdm` with the settings of this program."""


@dataclasses.dataclass
class Trained:
    """A run's best policy and critic, on the CPU."""

    folder: Path
    script: str
    """the script's name, as in the folder's path"""
    config: dict[str, Any]
    args: Any
    module: Any
    learner: Any
    num_agents: int
    action_dims: list[int]
    global_step: int
    """environment steps after which this policy was the best"""
    eval_return: float
    """mean return of the evaluation that made it the best"""
    notes: list[str]
    """what had to be assumed, a line each"""

    def make_env(self, num_envs: int) -> VecEnv:
        """Fresh copies of the run's task."""
        return self.module.make_env(self.args, num_envs)

    def critic(self, state: Tensor, actions: Tensor) -> Tensor:
        """min(Q_1, Q_2) of states (B, S) and joint actions (B, sum A_i), (B,)."""
        return self.module.min_q(self.learner.critic, state, actions)

    def act(self, obs: list[np.ndarray]) -> list[np.ndarray]:
        """Deterministic actions, N arrays (E, A_i), of N observations (E, O_i)."""
        return self.learner.act([torch.from_numpy(o) for o in obs], deterministic=True)

    @property
    def seed(self) -> int:
        """The seed of the run's evaluation episodes."""
        return Streams(self.args.seed, torch.device("cpu")).evaluation


def load(folder: Path) -> Trained:
    """Read a run folder; `cli.UsageError`, one line, says what is missing or does not fit."""
    config = read_config(folder)
    script = script_of(folder, config)
    # The rest of experiments/ imports no script, it starts them as processes and reads what they wrote. Networks can
    # only be rebuilt by the code that defines them, and each script defines its own: so here the script is imported.
    module = importlib.import_module(script if (ROOT / f"{script}.py").exists() else f"baselines.{script}")
    if not hasattr(module, "min_q"):
        raise cli.UsageError(f"{folder}: {script}.py has no critic of joint actions whose agents could be masked")
    path = folder / "checkpoints/best.pt"
    if not path.exists():
        raise cli.UsageError(
            f"{folder}: no critic there: checkpoints/best.pt is missing (the first evaluation writes it)"
        )
    args, notes = restore_args(module.Args, config["args"], folder, f"{script}.py")
    try:
        saved = checkpoint.load(path)
        device = pick_device("cpu", args.torch_threads, args.matmul_precision)
        env = module.make_env(args, 1)
        learner = module.Learner(env, Streams(args.seed, device), args, device)
        learner.load_state_dict(saved["learner"])
    except (checkpoint.CheckpointError, ValueError, ImportError) as error:
        raise cli.UsageError(str(error)) from error
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise cli.UsageError(f"{path}: does not fit {script}.py of this checkout: {reason[:200]}") from error
    about = saved["progress"]
    sizes = (env.num_agents, list(env.action_dims))
    env.close()
    where = (folder, script, config, args, module, learner)
    return Trained(*where, *sizes, about["global_step"], about["best_return"], notes)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run folder."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config["args"], dict) or not isinstance(config["command"], str):
            raise TypeError("args and command are not what a run writes")
        return config
    except OSError as error:
        raise cli.UsageError(f"{folder}: no run there: cannot read config.json: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise cli.UsageError(f"{folder}: its config.json is not that of a run: {error}") from error


def script_of(folder: Path, config: dict[str, Any]) -> str:
    """Which script made a run: "script" in its config.json, or the first word of its command that is a Python file."""
    words = [Path(word).stem for word in shlex.split(config["command"]) if word.endswith(".py")]
    script = config.get("script") or (words[0] if words else "")
    known = {path.stem for path in [*ROOT.glob("his_*.py"), *(ROOT / "baselines").glob("[a-z]*.py")]}
    if script not in known:
        raise cli.UsageError(f"{folder}: made by {script or 'no script'}: it takes runs of scripts and baselines only")
    return script


def restore_args(args_type: type, saved: dict[str, Any], folder: Path, script: str) -> tuple[Any, list[str]]:
    """The run's arguments for use on the CPU, and notes. A field that the script does not know is an error.

    A field that the run does not know yet has its default, which keeps what was done before there was the field; that
    is said in a note.
    """
    hints, known = get_type_hints(args_type), {field.name for field in dataclasses.fields(args_type)}
    if unknown := saved.keys() - known:
        raise cli.UsageError(f"{folder}: its config.json has {min(unknown)}, which {script} of this checkout lacks")
    values = {k: tuple(v) if get_origin(hints.get(k)) is tuple else v for k, v in saved.items()}
    notes = []
    if missing := sorted(known - saved.keys()):
        notes.append(f"an older run: defaults taken for {', '.join(missing)}")
    if values.get("sim") == "mujoco_warp":
        values["sim"] = "mujoco"
        notes.append("--sim mujoco_warp: played on the CPU by --sim mujoco, the same model")
    values |= {"device": "cpu", "compile": False, "resume": "", "evaluate": ""}
    try:
        return args_type(**values), notes
    except TypeError as error:
        raise cli.UsageError(f"{folder}: its config.json does not fit {script}: {error}") from error
