"""What the tests of happo.py, hatrpo.py and mappo.py share: tiny runs, toy tasks, random rollouts."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import CPU
from script_helpers import ROOT, Driver

from baselines import happo, hatrpo, mappo
from common.mpe import MPEVecEnv
from common.vecenv import RenderError, StepResult, VecEnv

SCRIPTS: dict[str, Any] = {"happo": happo, "hatrpo": hatrpo, "mappo": mappo}

# A run of a second or two in which everything happens: rollouts of 60 steps, episodes of 25 steps of 4 environments,
# checkpoints in the middle of rollouts, minibatches, and evaluations with 2 environments.
TINY: dict[str, Any] = dict(
    scenario="simple_spread",
    seed=3,
    total_timesteps=800,
    num_envs=4,
    rollout_steps=15,
    hidden_sizes=(16, 16),
    critic_epochs=2,
    critic_minibatches=2,
    eval_every=200,
    eval_episodes=2,
    eval_envs=2,
    log_every=100,
    save_every=400,
)
PPO: dict[str, Any] = dict(epochs=2, minibatches=2)


class BaselineDriver(Driver):
    """A `Driver` of a script in baselines/, whose runs lie under benchmark/scenario."""

    def folder_of(self, runs_dir: Path, **overrides: Any) -> Path:
        values = self.tiny | overrides
        benchmark = self.module.PRESETS[values["scenario"]]["benchmark"]
        label = "BiDexMJ" if benchmark == "bidexhands" else benchmark
        return runs_dir / self.name / label / values["scenario"] / f"seed{values['seed']}"

    def script(self, *argv: object, code: str = "") -> list[str]:
        assert not code
        return [sys.executable, str(ROOT / f"baselines/{self.name}.py"), *(str(word) for word in argv)]

    def run_script(self, *argv: object, code: str = "") -> subprocess.CompletedProcess[str]:
        words = self.script(*argv, code=code)
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)


DRIVERS = {
    name: BaselineDriver(module, MPEVecEnv, TINY | ({} if name == "hatrpo" else PPO))
    for name, module in SCRIPTS.items()
}


class Errand(VecEnv):
    """Each agent sees a number x_i of its own in [-1, 1]; the team is paid -(sum_i a_i - sum_i x_i)^2.

    The best policy, a_i = x_i, is worth 0, doing nothing -N / 3. Episodes have `length` steps, each with new numbers,
    and end by time limit. The observation is (x, -x, 1, -1), of which LayerNorm leaves a function that grows with x.
    """

    max_episode_steps, render_fps = 1000, 10

    def __init__(self, num_envs: int, num_agents: int = 3, length: int = 2):
        self.num_envs, self.num_agents, self.length = num_envs, num_agents, length
        self.obs_dims, self.action_dims, self.state_dim = [4] * num_agents, [1] * num_agents, 2 * num_agents
        self.action_low, self.action_high = ([np.full(1, s, np.float32)] * num_agents for s in (-1, 1))
        self.rng, self.clock = np.random.default_rng(0), 0
        self.x = np.zeros((num_envs, num_agents), np.float32)

    def observe(self) -> tuple[list[np.ndarray], np.ndarray]:
        one = np.ones_like(self.x)
        obs = np.stack([self.x, -self.x, one, -one], -1)
        return [obs[:, i].copy() for i in range(self.num_agents)], np.concatenate([self.x, -self.x], 1)

    def draw(self) -> None:
        self.x = self.rng.uniform(-1, 1, self.x.shape).astype(np.float32)

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        self.rng, self.clock = np.random.default_rng(seed), 0
        self.draw()
        return self.observe()

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        joint = self._join_actions(actions).clip(-1, 1)
        reward = -((joint.sum(1) - self.x.sum(1)) ** 2).astype(np.float32)
        self.clock = (self.clock + 1) % self.length
        truncated = np.full(self.num_envs, self.clock == 0)
        self.draw()
        return StepResult(*self.observe(), reward, np.zeros_like(truncated), truncated, *self.observe())

    def get_state(self) -> dict[str, Any]:
        return {"clock": self.clock, "x": self.x.copy(), "rng": self.rng.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.clock, self.x = state["clock"], np.array(state["x"])
        self.rng.bit_generator.state = state["rng"]

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        raise RenderError("a toy has no picture")


def small_args(module: Any, **values: Any) -> Any:
    """Arguments of a run that takes milliseconds an update."""
    return module.Args(**(dict(num_envs=6, rollout_steps=12, hidden_sizes=(8, 8), device="cpu") | values))


def random_rollout(module: Any, env: VecEnv, args: Any, seed: int = 0) -> Any:
    """A full buffer of unrelated numbers, about one step in five an end of one kind or the other."""
    buffer, rng = module.RolloutBuffer(env, args.rollout_steps, CPU), np.random.default_rng(seed)

    def normal(dim: int) -> np.ndarray:
        return rng.standard_normal((env.num_envs, dim)).astype(np.float32)

    for _ in range(args.rollout_steps):
        obs, actions = [normal(dim) for dim in env.obs_dims], [0.4 * normal(dim) for dim in env.action_dims]
        kind = rng.choice(3, env.num_envs, p=[0.8, 0.1, 0.1])
        reward = 3 * normal(1)[:, 0]
        buffer.add(obs, normal(env.state_dim), actions, reward, normal(env.state_dim), kind == 1, kind == 2)
    assert buffer.full
    return buffer


def random_batch(module: Any, env: VecEnv, args: Any, seed: int = 0) -> Any:
    """What `random_rollout` becomes for the updates."""
    torch.manual_seed(seed)
    critic, value_norm = module.Critic(env.state_dim, args), module.ValueNorm(CPU)
    return module.make_batch(random_rollout(module, env, args, seed), critic, value_norm, env, args)


def flat_parameters(module: torch.nn.Module) -> torch.Tensor:
    """A copy of all parameters, one vector."""
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])
