"""The benchmarks behind one command line: `--benchmark` and `--scenario` to an environment, for scripts that serve all.

A script's `Args` inherits `BenchmarkArgs`; scenario names are unique over the benchmarks, so that `--scenario` alone
says which one it is, and `--benchmark` alone takes its first scenario.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import bidexhands, cli, mamujoco, mpe
from common.vecenv import VecEnv

NUM_AGENTS: dict[str, dict[str, int]] = {  # benchmark -> scenario -> N
    "mpe": dict(mpe.NUM_AGENTS),
    "mamujoco": dict(mamujoco.NUM_AGENTS),
    "bidexhands": dict(bidexhands.NUM_AGENTS),
}
DEFAULT_SCENARIOS = {"mpe": "simple_spread", "mamujoco": "HalfCheetah-2x3", "bidexhands": "ShadowHandOver"}
# Which fields of `BenchmarkArgs` only one benchmark has.
OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "mpe": ("rules", "env_backend"),
    "mamujoco": ("obs_mode", "obs_neighbors"),
    "bidexhands": (
        *("sim", "sim_threads", "base_force_scale", "isaac_done_semantics", "isaac_python", "isaac_task_root"),
    ),
}
LIMITS: dict[str, tuple[float | None, float | None]] = dict(
    obs_neighbors=(0, None), sim_threads=(1, None), base_force_scale=(0, None)
)
RESUMABLE = ("sim_threads", "isaac_python", "isaac_task_root")


@dataclass
class BenchmarkArgs:
    """The part of the arguments that picks and sets up an environment."""

    benchmark: Literal["mpe", "mamujoco", "bidexhands"] = "mpe"
    """family of tasks; need not be given where --scenario is"""
    scenario: str = "simple_spread"
    """task: simple_..., <robot>-<agents>x<action dims of each>, ShadowHand...; picks the preset of everything below"""
    rules: Literal["mpe2", "harl"] = "mpe2"
    """mpe: the published environment of today (mpe2) or the older one of HARL (docs/environments.md)"""
    env_backend: Literal["batched", "mpe2"] = "batched"
    """mpe: our numpy implementation, or the package itself, to check against (much slower)"""
    obs_mode: Literal["full", "local", "joints"] = "full"
    """mamujoco: every agent sees the standardised state and its id (HARL), own and nearby joints, or own joints only"""
    obs_neighbors: int = 1
    """mamujoco, with --obs-mode local: how many links away an agent still sees a joint"""
    sim: Literal["mujoco", "mujoco_warp", "isaacgym"] = "mujoco"
    """bidexhands: our port, on the CPU; the same on a GPU; or the original, in a Python of its own"""
    sim_threads: int = 1
    """bidexhands: CPU threads of --sim mujoco; they change no result"""
    base_force_scale: float = 0.25
    """bidexhands: factor on force and torque of a hand's floating base, calibrated (docs/bidexhands.md)"""
    isaac_done_semantics: bool = False
    """bidexhands: book-keeping as in HARL: time limits terminate, and a transition leads from an end to a beginning"""
    isaac_python: str = ""
    """bidexhands, with --sim isaacgym: the Python 3.6 to 3.8 that has Isaac Gym (docs/isaacgym.md)"""
    isaac_task_root: str = ""
    """bidexhands, with --sim isaacgym: a clone of HARL or DexterousHands"""


def presets(
    of_benchmark: Mapping[str, dict[str, Any]], of_scenario: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """For `cli.parse`: each scenario's values, those of its benchmark first, with the benchmark's name."""
    return {
        scenario: {"benchmark": benchmark, **of_benchmark.get(benchmark, {}), **of_scenario.get(scenario, {})}
        for benchmark, scenarios in NUM_AGENTS.items()
        for scenario in scenarios
    }


def with_scenario(argv: Sequence[str], of_benchmark: Mapping[str, str] = DEFAULT_SCENARIOS) -> list[str]:
    """The command line with the benchmark's default scenario, where a benchmark is all it names to start from.

    A benchmark that `of_benchmark` lacks is left for the parser to refuse.
    """
    argv = list(argv)
    flags = {word.partition("=")[0] for word in argv}
    if not flags & {"--scenario", "--resume", "--evaluate"}:
        for word, following in zip(argv, [*argv[1:], ""]):
            flag, equals, value = word.partition("=")
            benchmark = value if equals else following
            if flag == "--benchmark" and benchmark in of_benchmark:
                return ["--scenario", of_benchmark[benchmark], *argv]
    return argv


def check(args: BenchmarkArgs) -> None:
    """UsageError where scenario, benchmark and the flags of one benchmark do not belong together."""
    scenarios = NUM_AGENTS[args.benchmark]
    if args.scenario not in scenarios:
        raise cli.UsageError(
            f"--scenario {args.scenario}: not of --benchmark {args.benchmark}, which has {', '.join(scenarios)}"
        )
    default = BenchmarkArgs()
    for benchmark, fields in OWN_FIELDS.items():
        for field in fields:
            value = getattr(args, field)
            if benchmark != args.benchmark and value != getattr(default, field):
                flag = field.replace("_", "-")
                raise cli.UsageError(f"--{flag} {value}: {args.scenario} is not of --benchmark {benchmark}")
    if args.isaac_done_semantics and (time_limits := getattr(args, "time_limits", "terminate")) != "terminate":
        raise cli.UsageError(
            f"--time-limits {time_limits}: with --isaac-done-semantics every end is a termination, time limits too"
        )


def check_origin(folder: str, script: str) -> None:
    """UsageError where the run in `folder` is one of another script that has the same arguments."""
    origin = json.loads((Path(folder) / "config.json").read_text()).get("script")
    if origin != script:
        raise cli.UsageError(f"{folder}: its config.json does not fit this script: it is a run of {origin}")


def make_env(args: BenchmarkArgs, num_envs: int) -> VecEnv:
    """E copies of the task; UsageError where this machine lacks what it needs."""
    if args.benchmark == "mpe":
        if args.env_backend == "batched":
            return mpe.MPEVecEnv(args.scenario, num_envs, rules=args.rules)
        if args.rules != "mpe2":
            raise cli.UsageError(
                f"--rules {args.rules}: the package mpe2 has today's rules only; use --env-backend batched"
            )
        try:
            return mpe.MPE2VecEnv(args.scenario, num_envs)
        except ImportError as error:
            raise cli.UsageError(f"--env-backend mpe2: {error}") from error
    if args.benchmark == "mamujoco":
        return mamujoco.MAMuJoCoVecEnv(args.scenario, num_envs, args.obs_mode, args.obs_neighbors)
    if args.sim == "isaacgym":
        paths = (args.isaac_python, args.isaac_task_root)
        return bidexhands.IsaacBiDexHandsVecEnv(args.scenario, num_envs, *paths, args.isaac_done_semantics)
    if args.isaac_python or args.isaac_task_root:
        raise cli.UsageError("--isaac-python and --isaac-task-root need --sim isaacgym")
    rest = (args.sim, args.sim_threads, args.base_force_scale, args.isaac_done_semantics)
    try:
        return bidexhands.BiDexHandsVecEnv(args.scenario, num_envs, *rest)
    except ImportError as error:
        raise cli.UsageError(f"--sim {args.sim}: {error}") from error


def task_and_variant(args: BenchmarkArgs) -> tuple[str, list[str]]:
    """benchmark/scenario, and what sets the environment apart from the default one: words for the run folder's name.

    Our port of Bi-DexHands is not the original: its runs are named BiDexMJ/<task>, Isaac Gym's BiDexHands/<task>.
    """
    words, default = [], BenchmarkArgs()
    for field, word in (
        ("rules", args.rules),
        ("env_backend", args.env_backend),
        ("obs_mode", "joints" if args.obs_mode == "joints" else f"local{args.obs_neighbors}"),
        ("sim", "" if args.sim == "isaacgym" else args.sim),
        ("base_force_scale", "" if args.sim == "isaacgym" else f"force{args.base_force_scale:g}"),
        ("isaac_done_semantics", "isaacdone"),
    ):
        if word and getattr(args, field) != getattr(default, field):
            words.append(word)
    hands = "BiDexHands" if args.sim == "isaacgym" else "BiDexMJ"
    return f"{hands if args.benchmark == 'bidexhands' else args.benchmark}/{args.scenario}", words
