"""HARL's on-policy training and ours beside it: `python -m experiments.harl_compare CHECKOUT happo HalfCheetah-2x3`.

HARL's runner (see `harl_train`) collects rollouts in our environment, updates and goes on. A learner of ours starts
from HARL's weights, is given every rollout of HARL's, and updates beside it. Printed for each round is how far the
weights of the two have come apart, and next to it how far two learners of ours have that differed at first by the
rounding of the last digit: clipping and Adam make differences grow, and nothing can agree better than that.

The tests hold one round of updates to numbers recorded from HARL; this holds what is carried from round to round, too:
value statistics, optimisers, time-outs, the order of agents.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from common.streams import Streams
from experiments import harl_driver, harl_train
from experiments.command_line import Parser, whole

CPU = torch.device("cpu")


def load_from_harl(learner: Any, runner: Any) -> None:
    """Give `learner` the weights of HARL's runner."""
    for actor, theirs in zip(learner.actors, runner.actor):  # HARL lists a shared one once for every agent
        actor.load_state_dict(harl_driver.named_as_ours(theirs.actor.state_dict(), "body"))
    learner.critic.load_state_dict(harl_driver.named_as_ours(runner.critic.critic.state_dict(), "net.0"))


def weights(learner: Any) -> list[torch.Tensor]:
    """All weights: over actors, then of the critic, a vector each."""
    networks = [*learner.actors, learner.critic]
    return [torch.cat([w.detach().flatten() for w in network.state_dict().values()]) for network in networks]


def apart(a: Any, b: Any) -> tuple[float, float]:
    """Largest difference of a weight of the actors, and of the critic."""
    *actors, critic = (float((x - y).abs().max()) for x, y in zip(weights(a), weights(b), strict=True))
    return max(actors), critic


def rollout_of(runner: Any) -> dict[str, np.ndarray]:
    """HARL's rollout as `RolloutBuffer.data` has it. No value follows an end, so what state stands there is all one."""
    critic, actors = runner.critic_buffer, runner.actor_buffer
    truncated, ended = 1 - critic.bad_masks[1:], 1 - critic.masks[1:]
    return dict(
        obs=np.concatenate([buffer.obs[:-1] for buffer in actors], axis=-1),
        actions=np.concatenate([buffer.actions for buffer in actors], axis=-1),
        state=critic.share_obs[:-1],
        final_state=critic.share_obs[1:],
        reward=critic.rewards,
        terminated=ended * (1 - truncated),
        truncated=truncated,
    )


def shuffles(seed: int) -> Callable[..., torch.Tensor]:
    """A `torch.randperm` that gives the same order of n whoever asks and however often."""
    return lambda n, **_: torch.from_numpy(np.random.default_rng([seed, n]).permutation(n))


def compare(
    checkout: str, algorithm: str, scenario: str, rounds: int, tell: Callable[..., None]
) -> tuple[float, float]:
    """Run HARL for `rounds` rounds of updates and ours beside it; `tell` is called after each.

    Returns HARL's last policies' mean return in HARL's evaluation and in ours, which play other episodes.
    """
    script: Any = importlib.import_module(f"baselines.{algorithm}")
    args = replace(script.Args(), scenario=scenario, **script.PRESETS[scenario])
    make_env = partial(harl_train.make_env, scenario)
    steps = rounds * args.rollout_steps * args.num_envs
    with tempfile.TemporaryDirectory() as folder:
        runner = harl_train.runner(checkout, algorithm, scenario, 1, steps, make_env, folder)
        runner.algo_args["eval"]["use_eval"] = False
        env = make_env(args.num_envs)
        ours, nudged = (script.Learner(env, Streams(1, CPU), args, CPU) for _ in range(2))
        load_from_harl(ours, runner)
        load_from_harl(nudged, runner)
        with torch.no_grad():
            for network in (*nudged.actors, nudged.critic):
                for weight in network.parameters():
                    weight.mul_(1 + 1e-7 * torch.randn_like(weight))
        theirs = script.Learner(env, Streams(1, CPU), args, CPU)  # a place for HARL's weights
        train, order = runner.train, torch.randperm
        done = 0

        def train_all() -> Any:
            nonlocal done
            done += 1
            rollout = {key: torch.from_numpy(rows.astype(np.float32)) for key, rows in rollout_of(runner).items()}
            torch.randperm = shuffles(done)
            try:
                info = train()
                for learner in (ours, nudged):
                    buffer = script.RolloutBuffer(env, args.rollout_steps, CPU)
                    buffer.data, buffer.position = rollout, args.rollout_steps
                    learner.update(buffer)
            finally:
                torch.randperm = order
            load_from_harl(theirs, runner)
            tell(done, int(rollout["truncated"].sum()), apart(ours, theirs), apart(ours, nudged))
            return info

        runner.train = train_all
        runner.run()
        runner.prep_rollout()
        runner.eval()
        runner.logger.log_file.close()
    eval_env = make_env(min(args.eval_envs, args.eval_episodes))
    result = script.evaluate(theirs, eval_env, args.seed, args.eval_episodes, CPU)
    return float(np.mean(runner.logger.eval_episode_rewards)), float(result.returns.mean())


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("experiments.harl_compare", "HARL's on-policy training and ours beside it")
    parser.add_argument("--rounds", type=partial(whole, low=1), default=7, help="rounds of updates")
    args = harl_train.parse(parser, argv)
    torch.manual_seed(0)
    lines = []

    def tell(done: int, timeouts: int, harl: tuple[float, float], rounding: tuple[float, float]) -> None:
        numbers = "".join(f"{number:12.1e}" for number in (*harl, *rounding))
        lines.append(f"{done:5}{timeouts:11}{numbers}")

    returns = compare(args.checkout, args.algorithm, args.scenario, args.rounds, tell)
    print("largest difference of a weight: ours and HARL's; ours and ours from weights that are 1e-7 off")
    print("round  time-outs      actors      critic      actors      critic")
    print("\n".join(lines))
    print("return of HARL's last policies: {:.1f} in HARL's evaluation, {:.1f} in ours".format(*returns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
