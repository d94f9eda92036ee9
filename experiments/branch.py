"""Branch a run at one of its checkpoints: a second run that goes on from there with something changed.

    python -m experiments.branch RUN_FOLDER no-credit --step 250000 -- --credit none --total-timesteps 275000

What became of a run, and what would have: the two share every number up to the checkpoint, random streams included, and
only the change tells them apart. After `--` stand flags of the script; `--idea` makes it one of experiments/ideas.py.
The last line printed is the command that trains the branch.
"""

import dataclasses
import importlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import checkpoint, cli, runlog
from experiments import ideas
from experiments.command_line import Parser

# What shapes neither networks, buffer, environments nor optimisers, so that the checkpoint fits and the change tells.
CHANGEABLE = tuple(
    "credit num_coalitions beta xi box_cox credit_coef credit_actions shapley marginal floor below_floor boxcox_low "
    "boxcox_high boxcox_scale policy_frequency mini_epochs batch_size gamma tau idea idea_strength".split()
)


def script_of(config: dict[str, Any], changes: Sequence[str]) -> tuple[str, Any]:
    """The script that made a run or, with `--idea` among the changes, experiments/ideas.py; and its module."""
    script = shlex.split(config["command"])[1]
    name = Path(script).stem
    with_idea = any(word.partition("=")[0] == "--idea" for word in changes)
    if name == "ideas" or (with_idea and name.startswith("his_")):
        benchmark = ideas.TASKS[config["args"]["scenario"]].benchmark
        return "experiments/ideas.py", ideas.with_ideas(importlib.import_module(f"his_{benchmark}"))
    folder = "baselines." if Path(script).parent.name == "baselines" else ""
    return f"{folder.replace('.', '/')}{name}.py", importlib.import_module(folder + name)


def pick_checkpoint(run: Path, step: int | None) -> Path:
    """checkpoints/step_<step>.pt of a run, the newest without a step; UsageError names those that there are."""
    found = {int(path.stem.removeprefix("step_")): path for path in (run / "checkpoints").glob("step_*.pt")}
    if not found:
        raise cli.UsageError(f"{run}: no checkpoint to branch from (a run keeps its last two)")
    step = max(found) if step is None else step
    if step not in found:
        raise cli.UsageError(f"--step {step}: {run} has checkpoints of steps {', '.join(map(str, sorted(found)))}")
    return found[step]


def copy(run: Path, source: Path, step: int, folder: Path) -> None:
    """What the branch needs of its run: records, best policy where it is not of a later step, the checkpoint."""
    for record in ("metrics.jsonl", "eval.csv"):  # the continued run cuts off what lies behind the checkpoint
        shutil.copy2(run / record, folder / record)
    best = run / "checkpoints/policy.safetensors"
    if best.exists() and int(checkpoint.load_policy(best)[1]["global_step"]) <= step:
        for file in (best, best.with_name("best.pt")):
            shutil.copy2(file, folder / "checkpoints" / file.name)
    place = folder / "checkpoints" / source.name
    try:
        os.link(source, place)  # it may hold gigabytes, and nobody writes into one that is there
    except OSError:
        shutil.copy2(source, place)


def branch(run: Path, name: str, step: int | None, changes: Sequence[str]) -> tuple[str, Path]:
    """Make the folder of the branch beside that of the run; returns the script that goes on with it, and the folder.

    Raises UsageError and CheckpointError, with nothing made, for what cannot be branched.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        script, module = script_of(config, changes)
    except OSError as error:
        raise cli.UsageError(f"{run}: no run there: cannot read config.json: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, ImportError) as error:
        raise cli.UsageError(f"{run}: its config.json is none of a script of ours: {error}") from error
    run = Path(os.path.abspath(run)) if run.name in ("", "..") else run  # the branch goes beside it
    argv = ["--resume", str(run), *changes]
    args = cli.parse(module.Args, module.PRESETS, module.LIMITS, argv, script, (*module.RESUMABLE, *CHANGEABLE))
    args = dataclasses.replace(args, resume="", run_name=name)
    module.check_args(args)
    source = pick_checkpoint(run, step)
    saved = checkpoint.load(source)
    if args.total_timesteps <= saved["log"]["global_step"]:
        raise cli.UsageError(f"--total-timesteps {args.total_timesteps}: {source} is there already: give more after --")
    _, words = module.task_and_variant(args)
    folder = runlog.run_folder(run.parent, "", "", args.seed, "-".join([*words, *name.split()]))
    made = runlog.describe(dataclasses.asdict(args), ["-m", "experiments.branch", *sys.argv[1:]])
    branched = {"checkpoint": str(source), **{key: value for key, value in made.items() if key != "args"}}
    runlog.create(folder, {**config, "args": made["args"], "branched": branched})
    try:
        copy(run, source, saved["log"]["global_step"], folder)
    except (OSError, checkpoint.CheckpointError) as error:
        shutil.rmtree(folder)
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise cli.UsageError(f"cannot copy {reason}") from error
    return script, folder


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser("experiments.branch", __doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("name", help="--run-name of the branch")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    args = parser.parse_args(words[:cut])
    try:
        script, folder = branch(args.run, args.name, args.step, words[cut + 1 :])
    except (cli.UsageError, checkpoint.CheckpointError) as error:
        parser.error(str(error))
    print(f"python {script} --resume {shlex.quote(str(folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
