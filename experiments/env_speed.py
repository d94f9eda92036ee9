"""Rates of our environments beside what they are measured against: `python -m experiments.env_speed [--benchmark mpe]`.

mamujoco: `MAMuJoCoVecEnv` beside a bare loop over `mj_step`, that is, what is left of the physics after observations,
rewards and resets. mpe: `MPEVecEnv` beside the package mpe2. Both are measured in turns in one process and one thread;
the ratio is the median of the ratios of neighbouring measurements. Absolute rates depend on the machine and on what
else runs on it; the ratio hardly does.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import statistics
import time
from functools import partial

import mujoco
import numpy as np

from common import mpe
from common.mamujoco import SCENARIOS, MAMuJoCoVecEnv
from common.vecenv import VecEnv
from experiments.command_line import Parser, whole


def bare_rate(env: MAMuJoCoVecEnv, actions: np.ndarray) -> float:
    """Environment steps per second of nothing but physics. `actions`: (T, E, U)."""
    rng = np.random.default_rng(0)
    data = [mujoco.MjData(env.model) for _ in range(env.num_envs)]
    for d in data:
        d.qpos[:] += rng.uniform(-env.robot.reset_noise, env.robot.reset_noise, env.model.nq)
    ctrl = [d.ctrl for d in data]
    start = time.perf_counter()
    for action in actions:
        for i in range(env.num_envs):
            ctrl[i][:] = action[i]
            mujoco.mj_step(env.model, data[i], nstep=env.robot.frame_skip)
    return len(actions) * env.num_envs / (time.perf_counter() - start)


def env_rate(env: VecEnv, actions: np.ndarray) -> float:
    """Environment steps per second of a vector environment. `actions`: (T, E, U)."""
    ends = np.cumsum(env.action_dims)[:-1]
    per_agent = [[np.ascontiguousarray(a) for a in np.split(joint, ends, axis=1)] for joint in actions]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in per_agent:
        env.step(action)
    return len(actions) * env.num_envs / (time.perf_counter() - start)


def main() -> None:
    parser = Parser("experiments.env_speed", "rate of a vector environment relative to what it replaces")
    parser.add_argument("--benchmark", choices=("mamujoco", "mpe"), help="mamujoco, or that of --scenario")
    parser.add_argument("--scenario", choices=(*SCENARIOS, *mpe.SCENARIOS), help="HalfCheetah-6x1 or simple_spread")
    parser.add_argument(
        "--num-envs", type=partial(whole, low=1), help="environments stepped together (default: 10 or 20)"
    )
    parser.add_argument("--steps", type=partial(whole, low=1), default=500, help="steps of every environment per round")
    parser.add_argument("--rounds", type=partial(whole, low=1), default=11, help="rounds; each measures both once")
    args = parser.parse_args()
    own = "mpe" if args.scenario in mpe.SCENARIOS else "mamujoco"
    if args.scenario and args.benchmark not in (None, own):
        parser.error(f"--scenario {args.scenario}: not of --benchmark {args.benchmark}")
    if (args.benchmark or own) == "mpe":
        parser.needs("mpe2")

    rng = np.random.default_rng(0)
    if (args.benchmark or own) == "mamujoco":
        scenario, num_envs = args.scenario or "HalfCheetah-6x1", args.num_envs or 10
        env = MAMuJoCoVecEnv(scenario, num_envs)
        names = ("bare mj_step", "MAMuJoCoVecEnv")
        measure = (lambda actions: bare_rate(env, actions), lambda actions: env_rate(env, actions))
    else:
        scenario, num_envs = args.scenario or "simple_spread", args.num_envs or 20
        env, original = mpe.MPEVecEnv(scenario, num_envs), mpe.MPE2VecEnv(scenario, num_envs)
        names = ("mpe2", "MPEVecEnv")
        measure = (lambda actions: env_rate(original, actions[:50]), lambda actions: env_rate(env, actions))
    rates = []
    for _ in range(args.rounds):
        actions = rng.uniform(-1, 1, (args.steps, num_envs, sum(env.action_dims))).astype(np.float32)
        rates.append([rate(actions) for rate in measure])
    base, ours = (statistics.median(column) for column in zip(*rates))
    print(f"{scenario}, {num_envs} environments, 1 thread, {args.rounds} rounds of {args.steps} steps, in turns")
    print(f"{names[0]:16} {base:12,.0f} environment steps/s (median)")
    print(f"{names[1]:16} {ours:12,.0f} environment steps/s (median)")
    print(f"ratio            {statistics.median(b / a for a, b in rates):12.3f} (median over rounds)")


if __name__ == "__main__":
    main()
