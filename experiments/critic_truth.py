"""What the critic of a particle-task run believes, and what happens: at every step of an episode and beyond its end.

    python -m experiments.critic_truth RUN_FOLDER ... --csv truth.csv

Time-outs are no ends for the critic (Table 1: proper time limits): the value of an episode's last state stands in its
targets, with n_step 20 of 25 in four of five. No transition starts in a last state, so nothing ever corrects the value
there. For each checkpoint of the runs the policies play on, as if there were no limit:

    V_critic(t) = E[min(Q_1, Q_2)(s_t, a_t) - alpha_c log pi(a_t | s_t)],                 the critic's soft value
    V_true(t)   = E[-alpha_c log pi(a_t | s_t) + sum_{k<m} gamma^k r_{t+k} + gamma^m V_true(t + m)],

which is what it is an estimate of: the same windows as the critic's targets have, of m = n_step steps or to the limit,
with the entropy bonus where a window begins (Eq. 11, 12; the n-step return itself holds rewards alone, as HARL's does).
For runs of `experiments/ideas.py --idea terminal`, to whose critic a time-out is an end, the sum ends there, too.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import his_mpe
from common import checkpoint
from common.mpe import MPEVecEnv
from experiments.command_line import Parser, whole, write_rows

SEED = 20251111  # of the episodes and the policies' noise: the same for all checkpoints
SHOWN = (0, 5, 10, 15, 20, 24, 25, 50)
LEFT_OUT = 1e-3  # share of a constant reward's value that lies behind the last step played


class Truth(NamedTuple):
    """Means over the episodes at each step t from 0, (T,)."""

    critic: np.ndarray
    true: np.ndarray
    reward: np.ndarray
    distance: np.ndarray  # of the agents from the middle of the plane, world units


def measure(saved: dict[str, Any], episodes: int, beyond: int) -> Truth:
    """`saved`: a checkpoint of his_mpe.py, of its baseline or of experiments/ideas.py; T is to `beyond` the limit."""
    names = {field.name for field in dataclasses.fields(his_mpe.Args)}
    values: dict[str, Any] = {k: v for k, v in saved["args"].items() if k in names}
    values["hidden_sizes"] = tuple(values["hidden_sizes"])
    args, device = his_mpe.Args(**values), torch.device("cpu")
    env = MPEVecEnv(args.scenario, episodes, args.rules)
    learner = his_mpe.Learner(env, his_mpe.Streams(SEED, device), args, device)
    learner.load_state_dict(saved["learner"])
    alpha = float(learner.log_alpha[-1].detach().exp())
    limit = env.max_episode_steps
    last = limit if saved["args"].get("idea") == "terminal" else limit + beyond
    horizon = last if last == limit else last + math.ceil(math.log(LEFT_OUT) / math.log(args.gamma))
    env.max_episode_steps = horizon + 1
    obs, state = env.reset(SEED)
    steps: list[list[np.ndarray]] = []
    for _ in range(horizon):
        with torch.no_grad():
            policies = [actor(o) for actor, o in zip(learner.actors, his_mpe.to_tensors(obs, device), strict=True)]
            samples = [his_mpe.sample_action(*policy, learner.streams.policy) for policy in policies]
            q = his_mpe.min_q(learner.critic, torch.as_tensor(state), torch.cat([s.action for s in samples], dim=1))
            bonus = -alpha * sum(sample.log_prob for sample in samples)
        distance = np.linalg.norm(env.get_state()["positions"], axis=2).mean(1)
        step = env.step([sample.action.numpy() for sample in samples])
        steps.append([(q + bonus).numpy(), np.asarray(bonus), step.reward, distance])
        obs, state = step.obs, step.state
    critic, bonus, reward, distance = (np.array(column, dtype=float) for column in zip(*steps))
    true = np.zeros((horizon + 1, episodes))
    discounts = args.gamma ** np.arange(args.n_step + 1)[:, None]
    for t in reversed(range(horizon)):
        end = min(t + args.n_step, limit if t < limit else horizon)
        true[t] = bonus[t] + (discounts[: end - t] * reward[t:end]).sum(0) + discounts[end - t] * true[end]
    return Truth(*(column[:last].mean(1) for column in (critic, true, reward, distance)))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each checkpoint; returns the exit status."""
    parser = Parser("experiments.critic_truth", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of particle tasks, off-policy")
    parser.add_argument("--episodes", type=partial(whole, low=1), default=200, help="episodes of each checkpoint")
    parser.add_argument("--beyond", type=partial(whole, low=0), default=26, help="steps beyond the limit to list")
    parser.add_argument("--csv", type=Path, help="file to write every step to")
    args = parser.parse_args(argv)
    parser.needs_writable("--csv", args.csv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        paths = sorted((run / "checkpoints").glob("step_*.pt"), key=lambda path: int(path.stem[5:]))
        if not paths:
            parser.error(f"{run}: no checkpoint there")
        for path in paths:
            try:
                saved = checkpoint.load(path)
                truth = measure(saved, args.episodes, args.beyond)
            except (checkpoint.CheckpointError, KeyError, TypeError, ValueError, RuntimeError) as error:
                parser.error(f"{path}: not of an off-policy run of a particle task: {str(error).partition(chr(10))[0]}")
            about = {"run": run.name, "global_step": saved["progress"]["global_step"]}
            print(f"{about['run']}, step {about['global_step']:,}")
            print("    t    critic      true    reward  distance")
            for t, values in enumerate(zip(*truth)):
                named = dict(zip(Truth._fields, (round(float(value), 4) for value in values)))
                rows.append({**about, "t": t, **named})
                if t in SHOWN:
                    print(f"{t:5d}{values[0]:10.1f}{values[1]:10.1f}{values[2]:10.2f}{values[3]:10.2f}", flush=True)
    if args.csv:
        write_rows(args.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
