"""How Bi-DexHands on MuJoCo behaves without training: `python -m experiments.bidex_untrained`.

Two tables. The first: return, length and success of the first episode of each environment, with still hands
(actions 0: joint targets in the middle of their ranges, no force) and with Gaussian actions of deviation 0.8. The
second: the mean return of the last 100 finished episodes after 16, 24, ... steps, the number that DexterousHands' PPO
logs (`dataset/*/ppo`, 8 steps an iteration, initial deviation 0.8) report while the policy is nearly untrained; this is
what `base_force_scale` was calibrated with.
"""

from functools import partial

import numpy as np

from common.bidexhands import SCENARIOS, BiDexHandsVecEnv
from experiments.command_line import Parser, positive, whole

WINDOWS = (16, 24, 32, 40, 56, 80)  # steps
# Of the original, iterations 1, 2, 3, 4 (16 to 40 steps) and later; CatchAbreast logs lie between iterations.
ORIGINAL = {
    "ShadowHandCatchOver2Underarm": "0.880  1.471  3.386  3.399  2.58-3.48 later",
    "ShadowHandCatchAbreast": "0.061 (it. 1.7)  0.078 (2.7)  0.097 (3.7)  0.112 (4.7)  0.116 later",
    "ShadowHandTwoCatchUnderarm": "0.79 (it. 4)  0.92 (6)  1.45 (9)",
}


def first_episodes(scenario: str, num_envs: int, sigma: float, scale: float) -> tuple[np.ndarray, ...]:
    """Return, length and success of the first episode of each environment, three arrays (E,)."""
    env, rng = BiDexHandsVecEnv(scenario, num_envs, base_force_scale=scale), np.random.default_rng(0)
    env.reset(seed=3)
    total, length = np.zeros((2, num_envs))
    over, success = np.zeros((2, num_envs), dtype=bool)
    while not over.all():
        result = env.step([rng.normal(0, sigma, (num_envs, dim)) for dim in env.action_dims])
        total += np.where(over, 0.0, result.reward)
        length += ~over
        success |= ~over & env.last_success
        over |= result.terminated | result.truncated
    return total, length, success


def windows(scenario: str, num_envs: int, scale: float) -> list[float]:
    """Mean return of the last 100 finished episodes after each of `WINDOWS`; NaN where none has finished."""
    env, rng = BiDexHandsVecEnv(scenario, num_envs, base_force_scale=scale), np.random.default_rng(0)
    env.reset(seed=1)
    running, returns, means = np.zeros(num_envs), [], []
    for step in range(1, max(WINDOWS) + 1):
        result = env.step([rng.normal(0, 0.8, (num_envs, dim)) for dim in env.action_dims])
        running += result.reward
        done = result.terminated | result.truncated
        returns += running[done].tolist()
        running[done] = 0.0
        if step in WINDOWS:
            means.append(float(np.mean(returns[-100:])) if returns else float("nan"))
    return means


def main() -> None:
    parser = Parser("experiments.bidex_untrained", "untrained behaviour of Bi-DexHands on MuJoCo")
    parser.add_argument("--num-envs", type=partial(whole, low=1), default=150, help="environments of each task")
    parser.add_argument("--base-force-scale", type=positive, default=0.25, help="of the wrench on the hands' bases")
    args = parser.parse_args()

    print(f"first episodes of {args.num_envs} environments, base_force_scale {args.base_force_scale}")
    head = f"{'still: return':>15s} {'length':>7s}   {'random: return':>16s} {'length':>7s} {'success':>8s}"
    print(f"{'scenario':30s} {head}")
    for scenario in SCENARIOS:
        still, still_length, _ = first_episodes(scenario, args.num_envs, 0.0, args.base_force_scale)
        total, length, success = first_episodes(scenario, args.num_envs, 0.8, args.base_force_scale)
        print(
            f"{scenario:30s} {still.mean():7.2f} ± {still.std():5.2f} {still_length.mean():7.1f}   "
            f"{total.mean():8.2f} ± {total.std():5.2f} {length.mean():7.1f} {success.mean():8.2f}",
            flush=True,
        )
    print(f"\nlast 100 finished episodes after {', '.join(map(str, WINDOWS))} steps, actions of deviation 0.8")
    for scenario, original in ORIGINAL.items():
        for scale in (args.base_force_scale, 1.0):
            means = "  ".join(f"{mean:.3f}" for mean in windows(scenario, args.num_envs, scale))
            print(f"{scenario:30s} scale {scale:4.2f}: {means}", flush=True)
        print(f"{'':30s} original  : {original}")


if __name__ == "__main__":
    main()
