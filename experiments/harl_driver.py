"""Drives the HASAC update of HARL (https://github.com/PKU-MARL/HARL) for `experiments.update_speed --harl`.

HARL is not part of this project: the user names a checkout of it. What is timed is its own `OffPolicyHARunner.train()`
with its own tuned configuration, networks and replay buffer. Only what an update never touches is replaced: the
environments (spaces alone are enough), the log folder, and packages that merely have to be importable.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box

from common.vecenv import VecEnv


class Spaces:
    """All that a HARL runner asks of its vector environment before the first step."""

    def __init__(self, env: VecEnv):
        self.n_agents = env.num_agents
        self.observation_space = [Box(-np.inf, np.inf, (dim,)) for dim in env.obs_dims]
        self.share_observation_space = [Box(-np.inf, np.inf, (env.state_dim,))] * env.num_agents
        self.action_space = [Box(-1.0, 1.0, (dim,)) for dim in env.action_dims]


def commit_of(checkout: str) -> str:
    """The commit of the checkout, "unknown" where it is no git repository of its own."""
    command = ["git", "-C", checkout, "rev-parse", "--show-toplevel", "HEAD"]
    try:
        root, commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).split("\n")[:2]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit if Path(root) == Path(checkout).resolve() else "unknown"


def import_base_runner(checkout: str, module: str) -> ModuleType:
    """HARL's module harl.runners.`module`, whatever of its requirements is installed."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    stubs: dict[str, dict[str, Any]] = {"yaml": {}, "setproctitle": {"setproctitle": lambda title: None}}
    stubs["uu"] = {"Error": Exception}  # of the standard library until Python 3.12
    stubs["gym"] = {"spaces": spaces}
    for name, content in stubs.items():
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(content)
    if "harl.envs" not in sys.modules:  # its __init__ loads the loggers of every simulator
        envs = ModuleType("harl.envs")
        vars(envs).update(__path__=[str(Path(checkout) / "harl/envs")], LOGGER_REGISTRY={})
        sys.modules["harl.envs"] = envs
    return importlib.import_module(f"harl.runners.{module}")


def tuned_config(checkout: str, scenario: str, algorithm: str) -> dict[str, Any]:
    """The configuration HARL publishes for `algorithm` on `scenario`, by our name of it."""
    if scenario.startswith("simple_"):
        version = "v3" if scenario == "simple_speaker_listener" else "v2"
        name = f"pettingzoo_mpe/{scenario}_{version}-continuous"
    else:
        robot, partition = scenario.split("-")
        robot = "manyagent_swimmer" if robot == "ManyAgentSwimmer" else f"{robot}-v2"
        name = f"mamujoco/{robot}-{partition}"
    return json.loads((Path(checkout) / "tuned_configs" / name / algorithm / "config.json").read_text())


def named_as_ours(weights: Mapping[str, Any], body: str) -> dict[str, Any]:
    """The weights of an on-policy network of HARL's by the names of `baselines/`, whose hidden layers are in `body`."""
    modules = {"base.feature_norm": f"{body}.0", "act.action_out.fc_mean": "mean", "v_out": "net.1"}
    named = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        layer = module.removeprefix("base.mlp.fc.")
        ours = f"{body}.{int(layer) + 1}" if layer != module else modules.get(module, "")
        named["log_std" if kind == "log_std" else f"{ours}.{kind}"] = value
    return named


def fill(buffer: Any, rows: int, rng: np.random.Generator) -> None:
    """Put `rows` random transitions of 1000-step episodes into a HARL replay buffer."""
    observations = [buffer.share_obs, buffer.next_share_obs, *buffer.obs, *buffer.next_obs]
    for array in [*observations, buffer.rewards]:
        array[:rows] = rng.standard_normal(array[:rows].shape, dtype=np.float32)
    for array in buffer.actions:
        array[:rows] = rng.uniform(-1, 1, array[:rows].shape)
    buffer.dones[:rows, 0] = np.arange(rows) // buffer.n_rollout_threads % 1000 == 999
    buffer.idx = buffer.cur_size = rows


def hasac_update(
    checkout: str, scenario: str, env: VecEnv, rows: int, threads: int, batch_size: int = 0
) -> Callable[[], None]:
    """HARL's HASAC `train()` as shipped, with a filled replay buffer; batch_size 0 keeps HARL's own."""
    base = import_base_runner(checkout, "off_policy_base_runner")
    config = tuned_config(checkout, scenario, "hasac")
    args: dict[str, Any] = config["algo_args"]
    args["device"] |= {"cuda": False, "torch_threads": threads}
    args["eval"]["use_eval"] = False
    args["algo"]["batch_size"] = batch_size or args["algo"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        overrides = dict(
            init_dir=lambda *args, **kwargs: (folder, folder, folder, None),
            save_config=lambda *args: None,
            make_train_env=lambda *args: Spaces(env),
        )
        vars(base).update(overrides)
        runner_module = importlib.import_module("harl.runners.off_policy_ha_runner")
        runner = runner_module.OffPolicyHARunner(config["main_args"], args, config["env_args"])
        runner.log_file.close()
    fill(runner.buffer, rows, np.random.default_rng(0))
    return runner.train
