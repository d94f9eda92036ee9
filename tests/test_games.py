"""Tiny team games with a known best policy: what the whole learner finds, and whom it credits."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, ToyEnv

import his_mamujoco as hm


def game(active: int, target: float) -> Any:
    """Three agents, r = -(sum of the first `active` actions - target)^2; the other agents' actions do not matter."""
    return lambda args, num_envs: ToyEnv(
        num_envs, [1, 1, 1], lambda joint: -((joint[:, :active].sum(1) - target) ** 2), constant_obs=True
    )


def trained(monkeypatch: pytest.MonkeyPatch, make_env: Any, seed: int, updates: int, **values: Any) -> hm.Run:
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


def greedy(run: hm.Run) -> tuple[np.ndarray, float]:
    """The three deterministic actions and their reward; the optimum is 0."""
    obs, _ = run.env.reset(0)
    actions = run.learner.act(hm.to_tensors(obs, CPU), deterministic=True)
    return np.array([a[0, 0] for a in actions]), float(run.env.step(actions).reward.mean())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("values", [{"credit": "none"}, {"credit_coef": 0.05}], ids=str)
def test_team_finds_an_interior_optimum(seed: int, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(monkeypatch, game(3, 1.2), seed, 500, **values)
    assert greedy(run)[1] > -0.15  # doing nothing gets -1.44, uniform actions -2.44


@pytest.mark.parametrize("seed", [1, 2])
def test_team_with_full_credit_finds_an_optimum_where_credit_points(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # every agent's credit grows with its action, and so does the reward: the best actions are all 1
    actions, reward = greedy(trained(monkeypatch, game(3, 3.0), seed, 400))
    assert reward > -0.5 and (actions > 0.7).all()  # doing nothing gets -9


@pytest.mark.parametrize("seed", [1, 2])
def test_full_credit_overshoots_an_interior_optimum(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # a property of Eq. (10), kept in sight: the credit counts an agent's action also beside absent others, whose
    # actions are 0 and beside whom it had better be larger, so that the second term pulls beyond the team's optimum
    actions, reward = greedy(trained(monkeypatch, game(3, 1.2), seed, 400))
    assert -0.9 < reward < -0.2 and 1.6 < actions.sum() < 2.2


@pytest.mark.parametrize("seed", [1, 2])
def test_agent_without_influence_gets_no_credit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(monkeypatch, game(2, 1.2), seed, 600)
    batch = run.buffer.sample(2000, torch.Generator().manual_seed(0))
    args, generator = hm.Args(num_coalitions=6), torch.Generator().manual_seed(0)
    credit = hm.HistoricalCredit(run.learner.critic, batch, run.env.action_dims, generator, args)
    phi, ranks = credit.phi.detach().numpy(), credit.ranks
    size = np.abs(phi).mean(1)
    assert size[2] < 0.05 and size[2] < 0.08 * size[:2].min()
    # the true credits of the other two: absent agents act 0, and the agent without influence changes nothing
    a = batch.actions[:, :2].numpy()
    reward = {present: -((a[:, list(present)].sum(1) - 1.2) ** 2) for present in [(), (0,), (1,), (0, 1)]}
    for i in range(2):
        first, second = reward[(i,)] - reward[()], reward[(0, 1)] - reward[(1 - i,)]
        joins_first = (ranks[:, :, i] < ranks[:, :, 1 - i]).float().mean(0).numpy()
        true = joins_first * first + (1 - joins_first) * second
        assert np.abs(phi[i] - true).mean() < 0.12
