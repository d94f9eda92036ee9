"""What untrained policies earn: `python -m experiments.untrained [--json results/untrained.json]`.

The evaluation that a run would make at step 0, of the networks that it starts with, on the episodes of its seed. The
first evaluation of a run comes only after training has begun, at 10,000 or 100,000 steps; `experiments.report` needs to
know where learning starts from.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import runlog
from experiments.command_line import Parser, whole
from experiments.suites import TASKS, script_of


def untrained(task: str, seed: int, episodes: int) -> float:
    """Mean return of deterministic episodes of a run's policies before its first update."""
    script: Any = importlib.import_module(script_of("his", task).removesuffix(".py"))
    args = replace(script.Args(), scenario=task, seed=seed, eval_episodes=episodes, **script.PRESETS[task])
    run = script.Run(args, torch.device("cpu"))
    env = script.make_env(args, min(args.eval_envs, episodes))
    return float(script.evaluate(run.learner, env, run.streams.evaluation, episodes, run.device).returns.mean())


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("experiments.untrained", "returns of policies before training")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="scenarios (default: all)")
    parser.add_argument("--seeds", type=partial(whole, low=1), default=5, help="runs of each task, seeds 1 to N")
    parser.add_argument(
        "--episodes", type=partial(whole, low=1), default=40, help="deterministic episodes a run, a multiple of 20"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there, too")
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    for task in args.tasks:
        if task not in TASKS:
            parser.error(f"--tasks {task}: must be among {', '.join(TASKS)}")
    if args.episodes > 20 and args.episodes % 20:
        parser.error(f"--episodes {args.episodes}: must be at most 20 or a multiple of it")
    parser.needs_writable("--json", args.json)
    torch.set_num_threads(1)
    known = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    report = runlog.describe(known, ["-m", "experiments.untrained", *argv]) | dict(returns={})
    for task in args.tasks:
        report["returns"][task] = found = [untrained(task, seed, args.episodes) for seed in range(1, args.seeds + 1)]
        print(f"{task:32}" + "".join(f"{value:10.2f}" for value in found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
