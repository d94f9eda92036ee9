"""What hand-written and random policies get in the particle environments: `python -m experiments.mpe_bounds`.

The oracles act on the agents' observations. Speakers name the goal. A mover drives to its target, no faster than it
can still stop there; before the first word has arrived it drives to the middle of the landmarks. In simple_spread the
agents share out the landmarks so that the sum of the distances is smallest, and keep their targets two radii apart;
the best of all six assignments, tried out in advance, would earn more. None is a proven optimum. `informed` has
the same drivers knowing the goal from the first step on, which no policy of the task can; for simple_speaker_listener
tests/test_mpe.py compares it with the optimum found by dynamic programming.

Prints mean return (the sum over agents and steps) and its standard error, and writes them as JSON.
"""

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.mpe import SCENARIOS, MPEVecEnv
from common.runlog import describe
from experiments.command_line import Parser, whole

STEP, DRAG, MAX_PUSH = 0.1, 0.75, 0.5  # seconds, velocity kept in a step, largest change of velocity in a step
Policy = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def stopping_distance(speed: np.ndarray) -> np.ndarray:
    """World units covered by what moves with `speed` in this step and then brakes as hard as it can."""
    distance = np.zeros_like(speed)
    while np.any(speed > 0):
        distance, speed = distance + STEP * speed, np.maximum(DRAG * speed - MAX_PUSH, 0.0)
    return distance


_SPEEDS = np.linspace(0.0, 2.0, 4001)  # 2 is the fastest that MAX_PUSH sustains
_STOPS = stopping_distance(_SPEEDS)


class Oracle:
    """Hand-written policy of one environment; `informed` movers see the goal directly."""

    def __init__(self, env: MPEVecEnv, informed: bool = False):
        self.env, self.informed = env, informed
        self.lag = 1.0 if env.rules == "mpe2" else 0.0  # mpe2 moves with the velocity of before the push
        self.right, self.left, self.up, self.down = (2, 1, 4, 3) if env.rules == "mpe2" else (1, 2, 3, 4)

    def __call__(self, obs: Sequence[np.ndarray]) -> list[np.ndarray]:
        actions = [np.zeros((self.env.num_envs, dim), dtype=np.float32) for dim in self.env.action_dims]
        if self.env.scenario == "simple_spread":
            targets = spread_targets(obs, 2 * self.env.task.agent_radius)
            for agent, target in enumerate(targets):
                self.drive(actions[agent], obs[agent][:, :2], target)
            return actions
        reference = self.env.scenario == "simple_reference"
        colors = [o[:, 8:11] for o in obs] if reference else [obs[0][:, :3]]
        goals = [color.argmax(1) for color in colors]  # that speaker k knows
        for speaker, follower, goal in zip(self.env.task.speakers, self.env.task.followers, goals):
            first = 5 if reference else 0  # channel
            own = slice(first, first + self.env.task.channels)
            actions[speaker][:, own] = -1.0
            actions[speaker][np.arange(len(goal)), first + goal] = 1.0
            heard = obs[follower][:, 11:14] if reference else obs[follower][:, 8:11]
            landmarks = obs[follower][:, 2:8].reshape(-1, 3, 2)  # seen from the follower
            target = landmarks[np.arange(len(goal)), goal if self.informed else heard.argmax(1)]
            silent = np.zeros(len(goal), dtype=bool) if self.informed else heard.max(1) < 0.75
            target = np.where(silent[:, None], landmarks.mean(1), target)
            self.drive(actions[follower], obs[follower][:, :2], target)
        return actions

    def drive(self, action: np.ndarray, velocity: np.ndarray, target: np.ndarray) -> None:
        """Fill in the movement (E, A): towards `target` (E, 2), seen from the agent, without overshooting it."""
        left = target - self.lag * STEP * velocity
        speed = np.interp(np.abs(left), _STOPS, _SPEEDS) * np.sign(left)
        push = np.clip((speed - DRAG * velocity) / MAX_PUSH, -1.0, 1.0)
        action[:, self.right], action[:, self.left] = push[:, 0], -push[:, 0]
        action[:, self.up], action[:, self.down] = push[:, 1], -push[:, 1]


def spread_targets(obs: Sequence[np.ndarray], apart: float) -> list[np.ndarray]:
    """Targets of the agents, each (E, 2) seen from the agent: the cheapest assignment, kept `apart`."""
    positions = np.stack([o[:, 2:4] for o in obs], axis=1)  # (E, N, 2)
    landmarks = positions[:, :1] + obs[0][:, 4:10].reshape(-1, 3, 2)
    distances = np.linalg.norm(positions[:, :, None] - landmarks[:, None], axis=-1)  # (E, N, 3)
    orders = np.array(list(itertools.permutations(range(3))))
    best = orders[distances[:, np.arange(3), orders].sum(-1).argmin(1)]  # (E, N)
    targets = np.take_along_axis(landmarks, best[..., None], axis=1).astype(np.float64)
    for _ in range(30):  # landmarks nearer than that cannot both be covered without touching
        for i, j in itertools.combinations(range(3), 2):
            between = targets[:, j] - targets[:, i]
            distance = np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-9)
            move = between / distance * np.maximum(1.02 * apart - distance, 0.0) / 2
            targets[:, i] -= move
            targets[:, j] += move
    return list((targets - positions).transpose(1, 0, 2))


def random_policy(env: MPEVecEnv, seed: int = 0) -> Policy:
    """Uniform actions in [-1, 1]."""
    rng = np.random.default_rng(seed)
    return lambda obs: [rng.uniform(-1, 1, (env.num_envs, dim)).astype(np.float32) for dim in env.action_dims]


def returns(env: MPEVecEnv, policy: Policy, seed: int = 0) -> np.ndarray:
    """Return of the first episode of each environment, (E,)."""
    obs, _ = env.reset(seed)
    total = np.zeros(env.num_envs)
    for _ in range(env.max_episode_steps):
        step = env.step(policy(obs))
        obs, total = step.obs, total + step.reward
    return total


def measure(scenario: str, episodes: int, rules: str) -> dict[str, dict[str, float]]:
    """Mean return and standard error of each policy on the same initial states."""
    env = MPEVecEnv(scenario, episodes, rules)
    policies: dict[str, Policy] = {"random": random_policy(env), "oracle": Oracle(env)}
    if env.task.speakers:
        policies["informed"] = Oracle(env, informed=True)
    results = {name: returns(env, policy) for name, policy in policies.items()}
    return {
        name: {"mean": float(r.mean()), "standard_error": float(r.std(ddof=1) / np.sqrt(episodes))}
        for name, r in results.items()
    }


def main() -> None:
    parser = Parser("experiments.mpe_bounds", __doc__)
    parser.add_argument("--episodes", type=partial(whole, low=2), default=5000, help="episodes of each policy and task")
    parser.add_argument("--rules", choices=("mpe2", "harl"), default="mpe2", help="rules of the environments")
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    parser.needs_writable("--json", args.json)
    tasks = {scenario: measure(scenario, args.episodes, args.rules) for scenario in SCENARIOS}
    for scenario, policies in tasks.items():
        cells = [f"{name} {r['mean']:.2f} +- {r['standard_error']:.2f}" for name, r in policies.items()]
        print(f"{scenario:24} {args.rules}: " + ", ".join(cells))
    if args.json:
        about: dict[str, Any] = describe({}, ["-m", "experiments.mpe_bounds", *sys.argv[1:]])
        kept = {key: about[key] for key in ("command", "git_commit", "packages")}
        content = {**kept, "episodes": args.episodes, "seed": 0, "rules": args.rules, "tasks": tasks}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
