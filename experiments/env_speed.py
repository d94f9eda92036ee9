"""How much of the raw physics rate is left after observations, rewards and resets: `python -m experiments.env_speed`.

Prints the rate of `MAMuJoCoVecEnv` and of a bare loop over `mj_step`, measured in turns in one process and one thread,
and the median of the ratios of neighbouring measurements. Absolute rates depend on the machine and on what else runs
on it; the ratio hardly does.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's compiled modules carry no type information)

import argparse
import statistics
import time

import mujoco
import numpy as np

from common.mamujoco import SCENARIOS, MAMuJoCoVecEnv


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


def env_rate(env: MAMuJoCoVecEnv, actions: np.ndarray) -> float:
    """Environment steps per second of the vector environment. `actions`: (T, E, U)."""
    per_agent = [[np.ascontiguousarray(a) for a in np.split(joint, env.num_agents, axis=1)] for joint in actions]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in per_agent:
        env.step(action)
    return len(actions) * env.num_envs / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="rate of the vector environment relative to bare mj_step")
    parser.add_argument("--scenario", default="HalfCheetah-6x1", choices=SCENARIOS)
    parser.add_argument("--num-envs", type=int, default=10, help="environments stepped together")
    parser.add_argument("--steps", type=int, default=500, help="steps of every environment per round")
    parser.add_argument("--rounds", type=int, default=11, help="rounds; each measures both once")
    args = parser.parse_args()

    env = MAMuJoCoVecEnv(args.scenario, args.num_envs)
    rng = np.random.default_rng(0)
    bare, ours = [], []
    for _ in range(args.rounds):
        actions = rng.uniform(-1, 1, (args.steps, args.num_envs, env.model.nu)).astype(np.float32)
        bare.append(bare_rate(env, actions))
        ours.append(env_rate(env, actions))
    ratio = statistics.median(o / b for o, b in zip(ours, bare))
    print(
        f"{args.scenario}, {args.num_envs} environments, 1 thread, {args.rounds} rounds of {args.steps} steps, in turns"
    )
    print(f"bare mj_step      {statistics.median(bare):10,.0f} environment steps/s (median)")
    print(f"MAMuJoCoVecEnv    {statistics.median(ours):10,.0f} environment steps/s (median)")
    print(f"ratio             {ratio:10.3f} (median over rounds)")


if __name__ == "__main__":
    main()
