"""What `act_and_store` of every script puts into its buffer, against a task whose every step has a name of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from helpers import CPU

import his_bidexhands
import his_mamujoco
import his_mpe
from baselines import facmac, happo, hasac_mpe, hatrpo, mappo, ppo, sqddpg
from common.vecenv import RenderError, StepResult, VecEnv

OFF_POLICY = [his_mpe, his_mamujoco, his_bidexhands, hasac_mpe, facmac, sqddpg]
ON_POLICY = [happo, hatrpo, mappo, ppo]
LENGTHS, STEPS = (2, 3, 100), 12  # environment 0 terminates, environment 1 runs out of time, environment 2 goes on


class Ledger(VecEnv):
    """Two agents; state (environment, episode, step), which agent i sees with i at its end. Keeps the actions."""

    num_agents, obs_dims, action_dims, state_dim, max_episode_steps, render_fps = 2, [4, 4], [1, 2], 3, 100, 10

    def __init__(self, num_envs: int):
        self.num_envs, self.received = num_envs, []
        self.action_low = [-np.ones(dim, np.float32) for dim in self.action_dims]
        self.action_high = [np.ones(dim, np.float32) for dim in self.action_dims]
        self.episode, self.clock = np.zeros((2, num_envs), dtype=int)

    def observe(self) -> tuple[list[np.ndarray], np.ndarray]:
        state = np.stack([np.arange(self.num_envs), self.episode, self.clock], 1).astype(np.float32)
        return [np.concatenate([state, np.full((self.num_envs, 1), i, np.float32)], 1) for i in range(2)], state

    def reset(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        return self.observe()

    def step(self, actions: Sequence[np.ndarray]) -> StepResult:
        self.received.append(np.concatenate(actions, 1))
        reward = (100 * self.episode + self.clock).astype(np.float32)
        self.clock = self.clock + 1
        final = self.observe()
        ended = self.clock == np.resize(LENGTHS, self.num_envs)
        by_itself = np.arange(self.num_envs) % 3 == 0
        self.episode, self.clock = self.episode + ended, np.where(ended, 0, self.clock)
        return StepResult(*self.observe(), reward, ended & by_itself, ended & ~by_itself, *final)

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        pass

    def render(self, width: int = 480, height: int = 480) -> np.ndarray:
        raise RenderError("a ledger has no picture")


@pytest.mark.parametrize("script", OFF_POLICY + ON_POLICY, ids=lambda script: script.SCRIPT)
def test_each_step_is_stored_with_its_own_successor_and_end(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_env(args: Any, num_envs: int) -> VecEnv:
        return ppo.JointAgent(Ledger(num_envs)) if script is ppo else Ledger(num_envs)

    monkeypatch.setattr(script, "make_env", make_env)
    values: dict[str, Any] = dict(buffer_size=99, warmup_steps=6) if script in OFF_POLICY else dict(rollout_steps=STEPS)
    values |= dict(share_param=False) if script is mappo else {}  # its agents differ in size
    run = script.Run(script.Args(num_envs=3, hidden_sizes=(8, 8), device="cpu", **values), CPU)
    for _ in range(STEPS):
        script.act_and_store(run)

    found = {key: rows.numpy().reshape(-1, 3, rows.shape[-1])[:STEPS] for key, rows in run.buffer.data.items()}
    clock, episode = ([[of(t, length) for length in LENGTHS] for t in range(STEPS)] for of in (np.mod, np.floor_divide))
    state = np.stack([np.tile(range(3), (STEPS, 1)), np.array(episode), np.array(clock)], -1)
    successor = state + [0, 0, 1]
    ended = successor[..., 2] == LENGTHS
    assert ended.sum(0).tolist() == [6, 4, 0]

    def seen(state: np.ndarray) -> np.ndarray:
        one = np.ones((STEPS, 3, 1))
        return state if script is ppo else np.concatenate([state, 0 * one, state, one], -1)

    expected = dict(state=state, obs=seen(state), reward=100 * state[..., 1] + state[..., 2])
    expected |= dict(terminated=ended & (np.arange(3) == 0))
    if script in OFF_POLICY:
        expected |= dict(next_state=successor, next_obs=seen(successor), ended=ended)
    else:
        expected |= dict(final_state=successor, truncated=ended & (np.arange(3) == 1))
    env = run.env.env if script is ppo else run.env
    expected |= dict(actions=np.array(env.received))
    assert expected.keys() == found.keys()
    for key, rows in expected.items():
        np.testing.assert_array_equal(found[key].squeeze(), rows.squeeze(), err_msg=key)
    episodes = [[100 * k * n + n * (n - 1) / 2, n] for n, times in ((2, 6), (3, 4)) for k in range(times)]
    assert sorted(run.finished) == sorted(episodes)
