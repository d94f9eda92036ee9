"""The rate of Bi-DexHands on MuJoCo and where its time goes: `python -m experiments.bidex_speed`.

Measures 1 thread and `--threads` threads (or `--sim mujoco_warp`) in turns in one process and prints the median of the
ratios of neighbouring measurements, beside the split of one thread's time into physics, reading and formulas
(observations and rewards), and the rest (writing actions, episode starts). Absolute rates depend on the machine and on
what else runs on it. A ratio of two threads needs two free cores: where none is free, only the bound that the split
allows says something.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from common.bidexhands import SCENARIOS, BiDexHandsVecEnv, tasks
from experiments.command_line import Parser, whole


def rate(env: BiDexHandsVecEnv, actions: list[list[np.ndarray]]) -> float:
    """Environment steps per second; `actions`: one list over agents a step."""
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return len(actions) * env.num_envs / (time.perf_counter() - start)


def shares(env: BiDexHandsVecEnv, actions: list[list[np.ndarray]]) -> dict[str, float]:
    """Parts of the processor time of a one-threaded run: physics, reading, formulas, rest; they sum to 1."""
    spent = {"physics": 0.0, "reading": 0.0, "formulas": 0.0}

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.thread_time()
            result = function(*args)
            spent[part] += time.thread_time() - start
            return result

        return run

    originals = tasks.observe, tasks.evaluate
    env._simulate, env._read = timed(env._simulate, "physics"), timed(env._read, "reading")
    tasks.observe, tasks.evaluate = (timed(function, "formulas") for function in originals)
    start = time.thread_time()
    try:
        for action in actions:
            env.step(action)
    finally:
        tasks.observe, tasks.evaluate = originals
        del env._simulate, env._read
    total = time.thread_time() - start
    parts = {part: seconds / total for part, seconds in spent.items()}
    return {**parts, "rest": 1.0 - sum(parts.values())}


def main() -> None:
    parser = Parser("experiments.bidex_speed", "rate of Bi-DexHands on MuJoCo")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="ShadowHandOver", help="a task, or all")
    parser.add_argument("--num-envs", type=partial(whole, low=1), default=20, help="environments stepped together")
    parser.add_argument("--threads", type=partial(whole, low=1), default=2, help="threads to compare with one")
    parser.add_argument("--sim", choices=("mujoco", "mujoco_warp"), default="mujoco", help="what to compare with")
    parser.add_argument("--steps", type=partial(whole, low=1), default=75, help="steps of every environment per round")
    parser.add_argument(
        "--rounds", type=partial(whole, low=1), default=7, help="rounds; each measures every number of threads once"
    )
    args = parser.parse_args()
    if args.sim == "mujoco_warp":
        try:
            BiDexHandsVecEnv(SCENARIOS[0], 1, args.sim).close()
        except ImportError as error:
            parser.error(f"--sim mujoco_warp: {error}")

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{args.num_envs} environments, uniform random actions, {args.rounds} rounds of {args.steps} steps, in turns")
    print(f"{os.cpu_count()} processors, load average before the start {load:.1f}")
    other = f"{args.threads} threads" if args.sim == "mujoco" else args.sim
    print(f"{'scenario':30s} {'1 thread':>9s} {other:>11s} {'ratio':>6s} {'bound':>6s}   share of one thread's time")
    for scenario in SCENARIOS if args.scenario == "all" else [args.scenario]:
        threads = args.threads if args.sim == "mujoco" else 1
        envs = [BiDexHandsVecEnv(scenario, args.num_envs), BiDexHandsVecEnv(scenario, args.num_envs, args.sim, threads)]
        rng = np.random.default_rng(0)
        shape = (args.steps, 2, args.num_envs, envs[0].action_dims[0])
        rates: list[list[float]] = [[], []]
        for env in envs:
            env.reset(seed=0)
        for _ in range(args.rounds):
            actions = [list(step) for step in rng.uniform(-1, 1, shape).astype(np.float32)]
            for env, measured in zip(envs, rates):
                measured.append(rate(env, actions))
        parts = shares(envs[0], actions)
        ratio = statistics.median(many / one for one, many in zip(*rates))
        bound = 1.0 / (1.0 - parts["physics"] * (1.0 - 1.0 / threads)) if args.sim == "mujoco" else float("nan")
        one, many = (statistics.median(r) for r in rates)
        split = ", ".join(f"{part} {share:.0%}" for part, share in parts.items())
        print(f"{scenario:30s} {one:9,.0f} {many:11,.0f} {ratio:6.2f} {bound:6.2f}   {split}", flush=True)
        for env in envs:
            env.close()


if __name__ == "__main__":
    main()
