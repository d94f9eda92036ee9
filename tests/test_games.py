"""Tiny team games with a known best policy: the whole learner finds it, and credits who earned it."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, ToyEnv

import his_mamujoco as hm

TARGET = 1.2


def game(active: int, num_agents: int) -> Any:
    """r = -(sum of the first `active` actions - TARGET)^2; the other agents' actions do not matter."""
    return lambda args, num_envs: ToyEnv(
        num_envs, [1] * num_agents, lambda joint: -((joint[:, :active].sum(1) - TARGET) ** 2), constant_obs=True
    )


def trained(seed: int, monkeypatch: pytest.MonkeyPatch, make_env: Any, updates: int, **values: Any) -> hm.Run:
    """A run of one-step episodes: a uniform warm-up, then ten steps and ten updates in turn."""
    monkeypatch.setattr(hm, "make_env", make_env)
    defaults: dict[str, Any] = dict(
        seed=seed,
        num_envs=10,
        warmup_steps=1000,
        buffer_size=20_000,
        batch_size=64,
        hidden_sizes=(32, 32),
        n_step=1,
        train_interval=10,
        actor_lr=1e-3,
        critic_lr=2e-3,
        alpha_lr=3e-3,
        device="cpu",
    )
    run = hm.Run(hm.Args(**(defaults | values)), CPU)
    while run.learner.update_step < updates:
        hm.act_and_store(run)
        while run.progress.pending_updates:
            run.learner.update(run.buffer)
            run.progress.pending_updates -= 1
    return run


def greedy_reward(run: hm.Run) -> float:
    obs, _ = run.env.reset(0)
    return float(run.env.step(run.learner.act(hm.to_tensors(obs, CPU), deterministic=True)).reward.mean())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("credit", ["his", "none"])
def test_team_finds_the_best_joint_action(seed: int, credit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(seed, monkeypatch, game(3, 3), 2000, credit=credit)
    untrained = -(TARGET**2)
    assert greedy_reward(run) > 0.02 * untrained


@pytest.mark.parametrize("seed", [1, 2])
def test_agent_without_influence_gets_no_credit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(seed, monkeypatch, game(2, 3), 2000)
    batch = run.buffer.sample(2000, torch.Generator().manual_seed(0))
    slots = run.learner.agent_of_slot
    coalitions = [hm.coalitions_of(agent, 3, None) for agent in range(3)]
    rest = (run.learner.critic, batch.state, batch.actions)
    phi = torch.stack([hm.shapley_value_of(i, *rest, coalitions[i], slots, "difference") for i in range(3)])
    size = phi.detach().abs().mean(1).numpy()
    assert size[2] < 0.05 and size[2] < 0.1 * size[:2].min()
    # the true credits: r is known, absent agents act 0
    a = batch.actions[:, :2].numpy()
    reward = {present: -((a[:, list(present)].sum(1) - TARGET) ** 2) for present in [(), (0,), (1,), (0, 1)]}
    for i in range(2):
        true = (reward[(i,)] - reward[()] + reward[(0, 1)] - reward[(1 - i,)]) / 2
        assert np.abs(phi[i].detach().numpy() - true).mean() < 0.1
    assert greedy_reward(run) > -0.02 * TARGET**2
