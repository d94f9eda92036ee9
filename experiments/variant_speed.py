"""What each ablation costs: `python -m experiments.variant_speed --json results/variant_speed.json`.

Times updates of HIS, of HASAC with HIS's values and of HIS's ablations, each with the paper's values for the scenario.
The actors are updated with every `policy_frequency`-th update, so a sample is the mean of that many. All variants are
measured in turns in one process, forwards and backwards in alternate rounds; a ratio is the median over rounds of the
ratio within a round.
"""

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from common import runlog
from common.streams import Streams
from experiments.command_line import Parser
from experiments.suites import TASKS, VARIANTS, script_of, settings_of
from experiments.update_speed import CPU, filled_buffer, milliseconds, torch_threads, write

MEASURED = "his none share local no-bc action M1 M2 M3 M5".split()


def updates_of(scenario: str, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """For each variant a function that does `policy_frequency` updates of its own networks."""
    script: Any = importlib.import_module(script_of("his", scenario).removesuffix(".py"))
    paper = replace(script.Args(), scenario=scenario, **script.PRESETS[scenario])
    paper = replace(paper, batch_size=options.batch_size or paper.batch_size)
    env = script.make_env(paper, paper.num_envs)
    buffer = filled_buffer(paper, env, options.rows)

    def updates(variant: str) -> Callable[[], None]:
        args = replace(paper, **settings_of(variant, scenario))
        learner = script.Learner(env, Streams(1, CPU), args, CPU)

        def step() -> None:
            for _ in range(args.policy_frequency):
                learner.update(buffer)

        return step

    return {variant: updates(variant) for variant in options.variants}


def measure(scenario: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each variant ms an update (the median), `to_his` (the ratio) and `samples_ms` (rounds)."""
    script: Any = importlib.import_module(script_of("his", scenario).removesuffix(".py"))
    frequency = replace(script.Args(), **script.PRESETS[scenario]).policy_frequency
    steps = updates_of(scenario, options)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for step in [*steps.values()] * 2:  # the first calls are slow
        step()
    for turn in range(options.rounds):
        for name in steps if turn % 2 == 0 else reversed(steps):
            samples[name].append(milliseconds(steps[name], "highest")[0] / frequency)
    return {
        name: dict(
            ms=statistics.median(mine),
            to_his=statistics.median(a / b for a, b in zip(mine, samples["his"])),
            samples_ms=[round(each, 3) for each in mine],
        )
        for name, mine in samples.items()
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("experiments.variant_speed", "milliseconds of an update of each ablation")
    parser.add_argument("--scenarios", nargs="+", default=["simple_spread", "HalfCheetah-6x1"], help="tasks to measure")
    parser.add_argument("--variants", nargs="+", default=MEASURED, help="names of docs/experiments.md; his is added")
    parser.add_argument("--rounds", type=int, default=15, help="rounds; each measures every variant once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rows", type=int, default=100_000, help="transitions in the replay buffer")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the value of the scenario")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results there too")
    options = parser.parse_args(argv)
    for scenario in options.scenarios:
        if scenario not in TASKS:
            parser.error(f"--scenarios {scenario}: must be among {', '.join(TASKS)}")
    known = [name for name, variant in VARIANTS.items() if variant.script == VARIANTS["his"].script]
    for variant in options.variants:
        if variant not in known:
            parser.error(f"--variants {variant}: must be among {', '.join(known)}")
    if min(options.rounds, options.threads) < 1 or options.rows < 1000:
        parser.error("--rounds and --threads must be at least 1, --rows at least 1000")
    options.variants = list(dict.fromkeys(["his", *options.variants]))
    return options


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    with torch_threads(options.threads):
        report = runlog.describe(vars(options), ["-m", "experiments.variant_speed", *argv]) | dict(scenarios={})
        for scenario in options.scenarios:
            report["scenarios"][scenario] = measure(scenario, options)
            print(f"{scenario}\n{'':10}{'ms':>8}{'/ his':>8}")
            for name, row in report["scenarios"][scenario].items():
                print(f"{name:10}{row['ms']:8.1f}{row['to_his']:8.2f}", flush=True)
    write(options.json, report)


if __name__ == "__main__":
    main()
