"""HARL's own on-policy training in our environments: `python -m experiments.harl_train CHECKOUT happo HalfCheetah-2x3`.

Ours are compared with HARL's published figures, which older code made, with an older MuJoCo. This tells the two apart:
HARL's runner, buffers, networks, updates and evaluation, as they are in a checkout of any of its commits, with the
configuration that HARL publishes for the task, on our environment. What it gives is what `baselines/` should give;
where a figure says something else, the reason lies in what made the figure.

HARL (https://github.com/PKU-MARL/HARL) is not part of this project; `harl_driver` says what of it is replaced.
"""

import csv
import importlib
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import provenance
from common.mamujoco import MAMuJoCoVecEnv
from common.mpe import MPEVecEnv
from common.vecenv import VecEnv
from experiments import harl_driver
from experiments.command_line import Parser, whole
from experiments.suites import MAMUJOCO, MPE

ALGORITHMS = {"happo": "OnPolicyHARunner", "hatrpo": "OnPolicyHARunner", "mappo": "OnPolicyMARunner"}


class HarlEnv(harl_driver.Spaces):
    """A `VecEnv` as HARL's runners want theirs: arrays (environments, agents, .), the state once for every agent."""

    def __init__(self, env: VecEnv, seed: int):
        super().__init__(env)
        self._env, self._seed = env, seed

    def _stack(self, obs: list[np.ndarray], state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        nothing_forbidden = np.full(self._env.num_envs, None)
        return np.stack(obs, axis=1), np.repeat(state[:, None], self.n_agents, axis=1), nothing_forbidden

    def reset(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New episodes in every environment, others at every call."""
        obs = self._stack(*self._env.reset(self._seed))
        self._seed += self._env.num_envs
        return obs

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """One step of all; ended episodes are followed by their successors, and time-outs are "bad" transitions."""
        result = self._env.step(list(np.swapaxes(actions, 0, 1)))
        obs, state, nothing_forbidden = self._stack(result.obs, result.state)
        rewards = np.repeat(result.reward[:, None, None], self.n_agents, axis=1)
        dones = np.repeat((result.terminated | result.truncated)[:, None], self.n_agents, axis=1)
        infos = [[{"bad_transition": bool(ended)}] * self.n_agents for ended in result.truncated]
        return obs, state, rewards, dones, infos, nothing_forbidden


class _Writer:
    """Stands for the TensorBoard writer."""

    def add_scalars(self, *args: Any) -> None:
        pass


def runner(
    checkout: str, algorithm: str, scenario: str, seed: int, steps: int, make_env: Callable[[int], VecEnv], folder: str
) -> Any:
    """HARL's runner of `algorithm` with its published configuration of `scenario`; it writes into `folder`."""
    base = harl_driver.import_base_runner(checkout, "on_policy_base_runner")
    config = harl_driver.tuned_config(checkout, scenario, algorithm)
    args: dict[str, Any] = config["algo_args"]
    args["device"] |= {"cuda": False, "torch_threads": 1}
    args["seed"] = {"seed": seed, "seed_specify": True}
    args["train"]["num_env_steps"] = steps
    name = config["main_args"]["env"]
    logger = importlib.import_module(f"harl.envs.{name}.{name}_logger")
    logger_class = next(value for key, value in vars(logger).items() if key.endswith("Logger") and key != "BaseLogger")
    vars(base).update(
        init_dir=lambda *args, **kwargs: (folder, folder, folder, _Writer()),
        save_config=lambda *args: None,
        make_train_env=lambda name, seed, count, args: HarlEnv(make_env(count), 1000 * seed),
        make_eval_env=lambda name, seed, count, args: HarlEnv(make_env(count), 10_000_000 + 1000 * seed),
        get_num_agents=lambda name, args, envs: envs.n_agents,
        LOGGER_REGISTRY={name: logger_class},
    )
    module = "on_policy_ma_runner" if ALGORITHMS[algorithm] == "OnPolicyMARunner" else "on_policy_ha_runner"
    runner_class = getattr(importlib.import_module(f"harl.runners.{module}"), ALGORITHMS[algorithm])
    return runner_class(config["main_args"], args, config["env_args"])


def evaluations(progress: Path) -> list[tuple[int, float]]:
    """(environment steps, mean return) of each evaluation in HARL's progress.txt."""
    rows = csv.reader(progress.read_text().splitlines())
    return [(int(step), float(value)) for step, value in rows]


def make_env(scenario: str, count: int) -> VecEnv:
    """`count` copies, under HARL's rules."""
    return MPEVecEnv(scenario, count, "harl") if scenario in MPE else MAMuJoCoVecEnv(scenario, count)


def parse(parser: Parser, argv: Sequence[str] | None) -> Namespace:
    """The command line: where HARL is, what it is to train, and what `parser` has besides."""
    parser.add_argument("checkout", help="a checkout of HARL")
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument("scenario", choices=[*MAMUJOCO, *MPE], metavar="scenario")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not (Path(args.checkout) / "harl/runners").is_dir():
        parser.error(f"{args.checkout}: no checkout of HARL there")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("experiments.harl_train", "HARL's own on-policy training in our environments")
    parser.add_argument("--seed", type=partial(whole, low=1), default=1, help="random seed")
    parser.add_argument("--total-timesteps", type=partial(whole, low=1), default=500_000, help="environment steps")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to add the evaluations to")
    args = parse(parser, argv)
    run_of = [args.scenario, args.algorithm, harl_driver.commit_of(args.checkout), args.seed]
    commit = provenance.git_commit()
    make = partial(make_env, args.scenario)
    with tempfile.TemporaryDirectory() as folder:
        run = runner(args.checkout, args.algorithm, args.scenario, args.seed, args.total_timesteps, make, folder)
        run.run()
        run.logger.log_file.close()
        found = evaluations(Path(folder) / "progress.txt")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if file.tell() == 0:
            rows.writerow("scenario algorithm harl_commit seed global_step return commit".split())
        rows.writerows([*run_of, step, f"{value:.2f}", commit] for step, value in found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
