"""One training step: HASAC to the bit without credit, gradients that stay where they belong, order, cadence, shapes."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CPU,
    ToyEnv,
    double_precision,
    filled_buffer,
    noisy_env,
    parameters_of,
    random_batch,
    small_args,
    small_learner,
)
from torch import Tensor

import his_mamujoco as hm
from common import shapley
from common.streams import Streams


# ---- T6: HASAC to the bit --------------------------------------------------------------------------------------------
class PlainHasac:
    """HASAC for this network and these streams, written as one plain update on lists of tensors."""

    def __init__(self, learner: hm.Learner, env: ToyEnv, args: hm.Args):
        def copies(module: torch.nn.Module) -> list[Tensor]:
            return [p.detach().clone().requires_grad_() for p in module.parameters()]

        self.actors = [copies(actor) for actor in learner.actors]
        self.q1, self.q2 = copies(learner.critic.q1), copies(learner.critic.q2)
        self.target_q1, self.target_q2 = ([p.detach().clone() for p in q] for q in (self.q1, self.q2))
        self.log_alpha = torch.zeros(env.num_agents + 1, requires_grad=True)
        self.entropies = torch.tensor([*(-float(d) for d in env.action_dims), -float(sum(env.action_dims))])
        self.actor_adam = [torch.optim.Adam(p, lr=args.actor_lr, fused=True) for p in self.actors]
        self.critic_adam = torch.optim.Adam(self.q1 + self.q2, lr=args.critic_lr, fused=True)
        self.alpha_adam = torch.optim.Adam([self.log_alpha], lr=args.alpha_lr)
        self.args, self.streams, self.updates = args, Streams(args.seed, CPU), 0

    @staticmethod
    def value(q: list[Tensor], state: Tensor, actions: Tensor) -> Tensor:
        x = torch.cat([state, actions], dim=1)
        x = F.relu(F.linear(x, q[0], q[1]))
        x = F.relu(F.linear(x, q[2], q[3]))
        return F.linear(x, q[4], q[5])[:, 0]

    def policy(self, i: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        """action and log-probability"""
        p = self.actors[i]
        x = torch.tanh(F.linear(F.relu(F.linear(obs, p[0], p[1])), p[2], p[3]))
        mean, log_std = F.linear(x, p[4], p[5]).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        noise = torch.randn(mean.shape, generator=self.streams.policy)
        u = mean + torch.exp(log_std) * noise
        gauss = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(1)
        log_prob = gauss - (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(1)
        return torch.tanh(u), log_prob  # tanh last: autograd adds gradients up in the order of the operations

    def update(self, buffer: hm.ReplayBuffer) -> None:
        self.updates += 1
        batch = buffer.sample(self.args.batch_size, self.streams.minibatch)
        alpha, n = self.log_alpha.detach().exp(), len(self.actors)
        with torch.no_grad():
            drawn = [self.policy(i, batch.next_obs[i]) for i in range(n)]
            next_actions, entropy = torch.cat([a for a, _ in drawn], dim=1), torch.stack([p for _, p in drawn]).sum(0)
            q1, q2 = (self.value(q, batch.next_state, next_actions) for q in (self.target_q1, self.target_q2))
            y = batch.reward + batch.discount * (torch.minimum(q1, q2) - alpha[-1] * entropy)
        q1, q2 = (self.value(q, batch.state, batch.actions) for q in (self.q1, self.q2))
        loss = ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()
        if self.updates % self.args.policy_frequency:
            return
        drawn = [self.policy(i, batch.obs[i]) for i in range(n)]
        actions, log_probs = [a.detach() for a, _ in drawn], torch.stack([p.detach() for _, p in drawn])
        order = torch.randperm(n, generator=self.streams.agent_order).tolist()
        for turn, i in enumerate(order):
            joint = torch.cat([drawn[j][0] if j == i else actions[j] for j in range(n)], dim=1)
            q1, q2 = (self.value(q, batch.state, joint) for q in (self.q1, self.q2))
            loss = (alpha[i] * drawn[i][1] - torch.minimum(q1, q2)).mean()
            gradients = torch.autograd.grad(loss, self.actors[i])
            for p, g in zip(self.actors[i], gradients):
                p.grad = g
            self.actor_adam[i].step()
            if turn < n - 1:
                with torch.no_grad():
                    actions[i] = self.policy(i, batch.obs[i])[0]
        self.alpha_adam.zero_grad()
        self.log_alpha.grad = -(torch.cat([log_probs.mean(1), log_probs.sum(0).mean()[None]]) + self.entropies)
        self.alpha_adam.step()
        with torch.no_grad():
            for targets, online in ((self.target_q1, self.q1), (self.target_q2, self.q2)):
                for target, p in zip(targets, online):
                    target.lerp_(p, self.args.tau)

    def parameters(self) -> list[Tensor]:
        lists = [*self.actors, self.q1, self.q2, self.target_q1, self.target_q2, [self.log_alpha]]
        return [p.detach() for part in lists for p in part]


def updated(args: hm.Args, updates: int, steps: int = 60) -> list[Tensor]:
    env = noisy_env()
    learner, buffer = small_learner(env, args), filled_buffer(env, steps, args)
    for _ in range(updates):
        learner.update(buffer)
    return parameters_of(learner)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_no_credit_is_hasac_to_the_bit() -> None:
    env, args = noisy_env(), small_args(credit="none", policy_frequency=2)
    learner, buffer = small_learner(env, args), filled_buffer(env, 60, args)
    plain = PlainHasac(learner, env, args)
    start = parameters_of(learner)
    for update in range(200):
        learner.update(buffer)
        plain.update(buffer)
        assert equal(parameters_of(learner), plain.parameters()), f"update {update}"
    assert not any(torch.equal(a, b) for a, b in zip(start, parameters_of(learner)))  # everything has moved


def test_zero_weight_credit_is_no_credit_to_the_bit() -> None:
    # coalitions have a stream of their own: drawing them shifts nothing else
    assert equal(updated(small_args(credit="none"), 200), updated(small_args(credit="his", credit_coef=0.0), 200))
    none = updated(small_args(credit="none"), 20)
    for values in ({"num_coalitions": 3}, {"shapley": "exact"}, {"credit": "share"}, {"credit_actions": "policy"}):
        assert equal(none, updated(small_args(**{"credit": "his", "credit_coef": 0.0, **values}), 20))


@pytest.mark.parametrize(
    "values",
    [
        {"credit": "his"},
        {"credit": "share"},
        {"credit": "local"},
        {"credit": "his", "credit_actions": "policy"},
        {"credit": "his", "box_cox": False},
        {"credit": "his", "marginal": "value"},
        {"credit": "his", "shapley": "exact"},
        {"credit": "his", "num_coalitions": 2, "shapley": "antithetic"},
        {"credit": "his", "num_coalitions": 2},
        {"credit": "his", "boxcox_scale": "geometric"},
        {"credit": "his", "boxcox_high": 0.5},
        {"credit": "his", "floor": "minus_beta_times_max"},
        {"credit": "his", "floor": "none"},
        {"credit": "his", "below_floor": "hard", "beta": 1.0},
        {"credit": "his", "mini_epochs": 2},
        {"credit": "none", "mini_epochs": 2},
        {"credit": "his", "auto_alpha": False},
    ],
    ids=str,
)
def test_every_variant_changes_the_update_and_repeats_itself(values: dict[str, Any]) -> None:
    result = updated(small_args(**values), 6)
    assert all(torch.isfinite(p).all() for p in result)
    assert equal(result, updated(small_args(**values), 6))
    assert not equal(result, updated(small_args(credit="none"), 6))
    if values != {"credit": "his"}:
        assert not equal(result, updated(small_args(), 6))


# ---- by hand ---------------------------------------------------------------------------------------------------------
class FixedActor(torch.nn.Module):
    """mean = obs[:, :dim], sigma = exp(log_std)"""

    def __init__(self, dim: int, log_std: float):
        super().__init__()
        self.dim, self.log_std = dim, log_std

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return obs[:, : self.dim], torch.full((len(obs), self.dim), self.log_std)


def test_critic_target_of_two_agents_by_hand() -> None:
    batch = hm.Batch(
        obs=[],
        state=torch.zeros(2, 1),
        actions=torch.zeros(2, 3),
        reward=torch.tensor([1.0, -2.0]),
        discount=torch.tensor([0.9, 0.0]),
        next_obs=[torch.tensor([[0.3], [0.1]]), torch.tensor([[-0.2, 0.5], [0.0, 0.2]])],
        next_state=torch.tensor([[4.0], [5.0]]),
    )
    actors: Any = [FixedActor(1, -1.0), FixedActor(2, 0.5)]
    target_critic: Any = lambda state, actions: (state[:, 0] + actions.sum(1), state[:, 0] + 2 * actions[:, 0])  # noqa: E731
    y = hm.critic_target(batch, actors, target_critic, torch.tensor(0.7), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn(2, 1, generator=generator).tolist(), torch.randn(2, 2, generator=generator).tolist()]
    actions, log_prob = [], 0.0
    for agent, log_std, mean in ((0, -1.0, [0.3]), (1, 0.5, [-0.2, 0.5])):
        for j, m in enumerate(mean):
            e = noise[agent][0][j]
            a = math.tanh(m + math.exp(log_std) * e)
            actions.append(a)
            log_prob += -0.5 * e * e - log_std - 0.5 * math.log(2 * math.pi) - math.log(1 - a * a)
    value = min(4 + sum(actions), 4 + 2 * actions[0])
    assert y.shape == (2,)
    assert float(y[0]) == pytest.approx(1 + 0.9 * (value - 0.7 * log_prob), rel=1e-5)
    assert float(y[1]) == -2.0


def test_critic_loss_is_the_sum_of_both_mean_squares() -> None:
    env = noisy_env()
    critic, batch = hm.TwinCritic(4, 4, (8, 8)), random_batch(env, 5)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    target, before = torch.arange(5.0), copy.deepcopy(critic)
    q1, q2 = before(batch.state, batch.actions)
    metrics = hm.update_critic(critic, optimizer, batch, target)
    loss = ((q1 - target) ** 2).sum() / 5 + ((q2 - target) ** 2).sum() / 5
    assert float(metrics["losses/critic"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    for p, old, g in zip(critic.parameters(), before.parameters(), gradients):
        torch.testing.assert_close(p.detach(), (old - 0.1 * g).detach())


def test_temperature_step_by_hand() -> None:
    log_alpha = torch.tensor([0.1, -0.2, 0.3], requires_grad=True)
    log_probs = torch.tensor([[1.0, 2.0, 6.0], [-4.0, 0.0, 1.0]])  # means 3, -1; of the sums 2
    target_entropy = torch.tensor([-1.0, -2.0, -3.0])
    hm.update_temperature(log_alpha, torch.optim.SGD([log_alpha], lr=0.5), log_probs, target_entropy)
    torch.testing.assert_close(log_alpha.detach(), torch.tensor([0.1 + 0.5 * 2, -0.2 + 0.5 * -3, 0.3 + 0.5 * -1]))


def test_target_entropies_are_minus_the_action_sizes() -> None:
    learner = small_learner(noisy_env(), small_args())
    assert learner.target_entropy.tolist() == [-1, -2, -1, -4]
    assert learner.log_alpha.tolist() == [0, 0, 0, 0]
    fixed = small_learner(noisy_env(), small_args(auto_alpha=False, alpha=0.3))
    torch.testing.assert_close(fixed.log_alpha.exp(), torch.full((4,), 0.3))


def test_polyak_step_by_hand() -> None:
    critic, target = hm.TwinCritic(1, 1, (2, 2)), hm.TwinCritic(1, 1, (2, 2))
    expected = [0.75 * t + 0.25 * p for t, p in zip(target.parameters(), critic.parameters())]
    hm.update_target(critic, target, 0.25)
    for t, e in zip(target.parameters(), expected):
        torch.testing.assert_close(t, e)


# ---- T8: gradients ---------------------------------------------------------------------------------------------------
class WatchedSGD(torch.optim.SGD):
    """Tells `before` and `after` of each step."""

    def __init__(self, parameters: Any, lr: float, before: Any, after: Any = lambda: None):
        super().__init__(parameters, lr=lr)
        self.before, self.after = before, after

    def step(self, closure: Any = None) -> None:
        self.before()
        super().step(closure)
        self.after()


class Setting:
    """Two or three actors, a critic and a batch, with `update_actors` ready to be called."""

    def __init__(self, args: hm.Args, batch_size: int = 6, seed: int = 0):
        self.env, self.args, self.seed = noisy_env(), args, seed
        torch.manual_seed(seed)
        dims = zip(self.env.obs_dims, self.env.action_dims)
        self.actors = [hm.Actor(obs, action, (6, 6)) for obs, action in dims]
        self.critic = hm.TwinCritic(self.env.state_dim, sum(self.env.action_dims), (6, 6))
        self.batch = random_batch(self.env, batch_size)
        self.slots = torch.repeat_interleave(torch.arange(3), torch.tensor(self.env.action_dims))
        self.alpha = torch.tensor([0.3, 0.5, 0.7])

    def run(self, optimizers: Any, critic: Any = None, diagnose: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        streams = Streams(self.seed, CPU)
        critic = self.critic if critic is None else critic
        rest = (self.batch, self.alpha, streams, self.args, diagnose)
        return hm.update_actors(self.actors, optimizers, critic, *rest)

    def order(self) -> list[int]:
        return torch.randperm(3, generator=Streams(self.seed, CPU).agent_order).tolist()


def test_local_learns_the_same_with_both_readings_of_the_marginal() -> None:
    """Q(s, a_C) without the agent has no gradient to its action: READING 3 does not reach HIS-LOCAL, it does HIS."""

    def learnt(credit: Any, marginal: Any) -> list[Tensor]:
        setting = Setting(small_args(credit=credit, marginal=marginal, num_coalitions=2))
        setting.run([torch.optim.Adam(actor.parameters(), 1e-2) for actor in setting.actors])
        return [p.detach() for actor in setting.actors for p in actor.parameters()]

    for credit in ("local", "his"):
        pairs = zip(learnt(credit, "difference"), learnt(credit, "value"), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (credit == "local")


@pytest.mark.parametrize("credit", ["none", "his", "share", "local"])
@pytest.mark.parametrize("diagnose", [False, True])
def test_the_step_of_an_agent_changes_that_agent_only(credit: Any, diagnose: bool) -> None:
    setting = Setting(small_args(credit=credit))
    modules = [*setting.actors, setting.critic]
    seen: list[int] = []
    snapshot: list[list[Tensor]] = []

    def take() -> list[list[Tensor]]:
        return [[p.detach().clone() for p in module.parameters()] for module in modules]

    def before(agent: int) -> None:
        waiting = [i for i in range(3) if i != agent and i not in seen]
        assert all(p.grad is None for i in waiting for p in setting.actors[i].parameters())
        assert all(p.grad is not None for p in setting.actors[agent].parameters())
        snapshot[:] = take()

    def after(agent: int) -> None:
        seen.append(agent)
        for i, (old, new) in enumerate(zip(snapshot, take())):
            assert equal(old, new) == (i != agent)

    optimizers = [
        WatchedSGD(actor.parameters(), 0.1, lambda i=i: before(i), lambda i=i: after(i))
        for i, actor in enumerate(setting.actors)
    ]
    start = take()
    setting.run(optimizers, diagnose=diagnose)
    assert seen == setting.order()
    assert equal(start[3], take()[3])
    assert all(p.grad is None and p.requires_grad for p in setting.critic.parameters())


def test_critic_step_leaves_the_actors_and_the_target_alone() -> None:
    env, args = noisy_env(), small_args(policy_frequency=100)
    learner, buffer = small_learner(env, args), filled_buffer(env, 60, args)
    actors = [p.detach().clone() for actor in learner.actors for p in actor.parameters()]
    critic = [p.detach().clone() for p in learner.critic.parameters()]
    learner.update(buffer)
    assert equal(actors, [p for actor in learner.actors for p in actor.parameters()])
    assert equal(critic, list(learner.target_critic.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters()))
    assert all(p.grad is None for m in (*learner.actors, learner.target_critic) for p in m.parameters())


@pytest.mark.parametrize(
    "values",
    [
        {"credit": "none"},
        {"credit": "his", "floor": "none", "box_cox": False},
        {"credit": "share", "floor": "none", "box_cox": False},
        {"credit": "local", "num_coalitions": 2},
        {"credit": "local", "shapley": "exact"},
        {"credit": "local", "marginal": "value"},
        {"credit": "his", "floor": "none", "box_cox": False, "credit_coef": 3.0, "num_coalitions": 2},
    ],
    ids=str,
)
def test_actor_gradient_equals_finite_differences(values: dict[str, Any]) -> None:
    # readings without stop-gradient constants: there the loss may simply be differenced
    with double_precision():
        setting = Setting(small_args(**values))
        setting.batch = setting.batch._replace(actions=0.9 * setting.batch.actions)
        agent = setting.order()[0]  # nobody has moved before the first agent
        caught: list[Tensor] = []

        def losses() -> float:
            idle = [torch.optim.SGD(actor.parameters(), lr=0.0) for actor in setting.actors]
            return float(setting.run(idle)[1][f"losses/actor_{agent}"])

        def catch() -> None:
            caught.extend(g for p in setting.actors[agent].parameters() if (g := p.grad) is not None)

        optimizers: list[Any] = [torch.optim.SGD(actor.parameters(), lr=0.0) for actor in setting.actors]
        optimizers[agent] = WatchedSGD(setting.actors[agent].parameters(), 0.0, catch)
        setting.run(optimizers)
        gradients = [g.clone() for g in caught]
        rng = np.random.default_rng(0)
        for p, gradient in zip(setting.actors[agent].parameters(), gradients, strict=True):
            direction = torch.tensor(rng.normal(size=p.shape))
            ends = []
            for step in (1e-6, -1e-6):
                p.data.add_(step * direction)
                ends.append(losses())
                p.data.sub_(step * direction)
            slope = (ends[0] - ends[1]) / 2e-6
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_actor_loss_is_the_sum_of_its_two_terms() -> None:
    # losses/actor of the first agent, put together from the parts
    setting = Setting(small_args(credit="his", credit_coef=0.5, num_coalitions=2))
    agent = setting.order()[0]
    before = copy.deepcopy(setting.actors)
    idle = [torch.optim.SGD(actor.parameters(), lr=0.0) for actor in setting.actors]
    _, metrics = setting.run(idle)
    streams, batch = Streams(0, CPU), setting.batch
    policies = [actor(obs) for actor, obs in zip(before, batch.obs)]
    samples = [hm.sample_action(*policy, streams.policy) for policy in policies]
    q = hm.min_q(setting.critic, batch.state, torch.cat([s.action for s in samples], dim=1))
    main = -(q - setting.alpha[agent] * samples[agent].log_prob).mean()
    ranks = shapley.draw_ranks(2, 6, 3, "permutation", streams.coalitions)

    def value(members: Tensor) -> Tensor:
        return hm.min_q(setting.critic, batch.state, torch.where(members[:, setting.slots], batch.actions, 0.0))

    phi = hm.shapley_values(value, ranks, "difference")
    u = torch.atanh(batch.actions.clamp(-hm.ACTION_BOUND, hm.ACTION_BOUND)).split(setting.env.action_dims, 1)
    history, _ = hm.historical_loss(*policies[agent], u[agent], phi[agent], setting.args)
    torch.testing.assert_close(metrics[f"losses/actor_{agent}"], (main + history).detach())
    torch.testing.assert_close(metrics[f"credit/shapley_{agent}"], phi[agent].mean().detach())


def test_efficiency_gap_is_reported_and_nearly_zero() -> None:
    setting = Setting(small_args())
    idle = [torch.optim.SGD(actor.parameters(), lr=0.0) for actor in setting.actors]
    _, metrics = setting.run(idle, diagnose=True)
    assert float(metrics["credit/efficiency_gap"]) < 1e-5
    for agent in range(3):
        assert -1.001 <= float(metrics[f"diag/grad_cosine_{agent}"]) <= 1.001
        assert float(metrics[f"diag/grad_norm_main_{agent}"]) > 0
        assert float(metrics[f"diag/grad_norm_history_{agent}"]) > 0


# ---- sequential update -----------------------------------------------------------------------------------------------
class RecordingCritic(hm.TwinCritic):
    """Keeps every joint action it is asked about."""

    def forward(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.__dict__.setdefault("seen", []).append(actions.detach().clone())
        return super().forward(state, actions)


@pytest.mark.parametrize("seed", range(4))
def test_later_agents_see_the_new_actions_of_earlier_ones(seed: int) -> None:
    setting = Setting(small_args(credit="none"), seed=seed)
    dims, before = setting.env.action_dims, copy.deepcopy(setting.actors)
    critic: Any = RecordingCritic(setting.env.state_dim, sum(dims), (6, 6))
    setting.run([torch.optim.SGD(actor.parameters(), lr=1.0) for actor in setting.actors], critic)
    order, generator = setting.order(), Streams(seed, CPU).policy
    with torch.no_grad():
        actions = [hm.sample_action(*a(o), generator).action for a, o in zip(before, setting.batch.obs)]
        assert len(critic.seen) == 3
        for agent, joint in zip(order, critic.seen):
            for got, expected in zip(joint.split(dims, dim=1), actions):
                assert torch.equal(got, expected)
            redrawn = hm.sample_action(*setting.actors[agent](setting.batch.obs[agent]), generator).action
            assert not torch.allclose(redrawn, actions[agent])
            actions[agent] = redrawn


def test_every_order_of_agents_occurs() -> None:
    assert {tuple(Setting(small_args(), seed=seed).order()) for seed in range(60)} == {
        (a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b
    }


def test_log_probs_are_those_of_the_policies_before_their_steps() -> None:
    setting = Setting(small_args())
    before, generator = copy.deepcopy(setting.actors), Streams(0, CPU).policy
    log_probs, _ = setting.run([torch.optim.SGD(actor.parameters(), lr=1.0) for actor in setting.actors])
    expected = [hm.sample_action(*a(o), generator).log_prob for a, o in zip(before, setting.batch.obs)]
    assert torch.equal(log_probs, torch.stack(expected).detach())


def test_credit_looks_at_historical_actions_masked_or_whole() -> None:
    setting = Setting(small_args(credit="his"))
    dims = setting.env.action_dims
    critic: Any = RecordingCritic(setting.env.state_dim, sum(dims), (6, 6))
    setting.run([torch.optim.SGD(actor.parameters(), lr=0.1) for actor in setting.actors], critic)
    assert len(critic.seen) == (3 + 1) + 3  # N + 1 coalitions before the loop, then one call an agent
    for joint in critic.seen[:4]:
        for part, historical in zip(joint.split(dims, 1), setting.batch.actions.split(dims, 1)):
            assert all(torch.equal(row, old) or not row.any() for row, old in zip(part, historical))
    for joint in critic.seen[4:]:
        assert not torch.isclose(joint, setting.batch.actions).all(1).any()


def test_action_variant_credits_the_sampled_actions() -> None:
    setting = Setting(small_args(credit="his", credit_actions="policy"))
    dims = setting.env.action_dims
    critic: Any = RecordingCritic(setting.env.state_dim, sum(dims), (6, 6))
    setting.run([torch.optim.SGD(actor.parameters(), lr=0.1) for actor in setting.actors], critic)
    for joint in critic.seen:
        for part, historical in zip(joint.split(dims, 1), setting.batch.actions.split(dims, 1)):
            assert not (torch.isclose(part, historical) & (part != 0)).any()


# ---- T9: cadence -----------------------------------------------------------------------------------------------------
class SilentLog:
    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: None


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("train_interval", [1, 7])
@pytest.mark.parametrize("update_per_train", [1, 3])
@pytest.mark.parametrize("policy_frequency", [1, 2, 5])
def test_counts_of_updates_follow_the_formula(
    num_envs: int,
    train_interval: int,
    update_per_train: int,
    policy_frequency: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    counts: dict[str, int] = dict.fromkeys(("update_critic", "update_actors", "update_temperature", "update_target"), 0)

    def counted(name: str) -> Any:
        original = getattr(hm, name)

        def call(*values: Any, **named: Any) -> Any:
            counts[name] += 1
            return original(*values, **named)

        return call

    for name in counts:
        monkeypatch.setattr(hm, name, counted(name))
    monkeypatch.setattr(hm, "make_env", lambda args, n: ToyEnv(n, [1, 1], lambda joint: joint.sum(1)))
    args = small_args(
        num_envs=num_envs,
        train_interval=train_interval,
        update_per_train=update_per_train,
        policy_frequency=policy_frequency,
        hidden_sizes=(4, 4),
        batch_size=4,
        warmup_steps=20,
        total_timesteps=20 + 23 * num_envs,
        eval_every=50,
        log_every=20,
        save_every=10**9,
    )
    run: Any = hm.Run(args, CPU)
    log: Any = SilentLog()
    assert hm.train(run, tmp_path, log) == 0
    warm_up = math.ceil(20 / num_envs)
    rounds = (math.ceil(args.total_timesteps / num_envs) - warm_up) // train_interval
    critic = rounds * train_interval * update_per_train
    late = critic // policy_frequency
    assert critic > 0
    assert counts == dict(update_critic=critic, update_actors=late, update_temperature=late, update_target=late)
    assert run.learner.update_step == critic
    assert run.progress.global_step == num_envs * math.ceil(args.total_timesteps / num_envs)
    for optimizer in run.learner.actor_optimizers:
        assert all(float(state["step"]) == late for state in optimizer.state.values())


def test_mini_epochs_multiply_the_actor_steps_only() -> None:
    env, args = noisy_env(), small_args(mini_epochs=3)
    learner, buffer = small_learner(env, args), filled_buffer(env, 60, args)
    for _ in range(8):
        learner.update(buffer)
    adams = [*learner.actor_optimizers, learner.critic_optimizer, learner.alpha_optimizer]
    steps = [{float(state["step"]) for state in adam.state.values()} for adam in adams]
    assert steps == [{12.0}, {12.0}, {12.0}, {8.0}, {4.0}]


def test_fixed_temperatures_are_never_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hm, "update_temperature", lambda *values: pytest.fail("temperature updated"))
    env, args = noisy_env(), small_args(auto_alpha=False, alpha=0.4)
    learner, buffer = small_learner(env, args), filled_buffer(env, 60, args)
    metrics = [learner.update(buffer) for _ in range(2)][-1]
    assert all(float(metrics[f"losses/alpha_{i}"]) == pytest.approx(0.4) for i in (0, 1, 2, "critic"))


def test_warm_up_acts_uniformly_and_then_the_policy_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hm, "make_env", lambda args, n: ToyEnv(n, [1, 2], lambda joint: joint.sum(1)))
    run = hm.Run(small_args(num_envs=50, warmup_steps=2000, train_interval=10**6, buffer_size=10_000), CPU)
    calls: list[int] = []
    act = run.learner.act
    monkeypatch.setattr(run.learner, "act", lambda *values: calls.append(run.progress.global_step) or act(*values))
    for _ in range(44):
        hm.act_and_store(run)
    assert calls == [2000, 2050, 2100, 2150]
    uniform = run.buffer.data["actions"][:2000].numpy()
    assert (np.abs(uniform) <= 1).all()
    assert abs(uniform.mean()) < 0.03 and uniform.var() == pytest.approx(1 / 3, abs=0.02)


# ---- T10: shapes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("credit", ["none", "his", "share", "local"])
def test_metrics_are_scalars_and_rows_stay_rows(credit: Any) -> None:
    env, args = noisy_env(), small_args(credit=credit)
    learner, buffer = small_learner(env, args), filled_buffer(env, 60, args)
    metrics = [learner.update(buffer, diagnose=True) for _ in range(2)][-1]
    assert {key: value.shape for key, value in metrics.items() if value.shape != ()} == {}
    assert {f"losses/actor_{i}" for i in range(3)} < set(metrics)
    assert learner.batch is not None
    target = hm.critic_target(learner.batch, *target_inputs(learner))
    q1, q2 = learner.critic(learner.batch.state, learner.batch.actions)
    assert target.shape == q1.shape == q2.shape == learner.batch.reward.shape == learner.batch.discount.shape == (32,)


def target_inputs(learner: hm.Learner) -> tuple[Any, Any, Tensor, torch.Generator]:
    return learner.actors, learner.target_critic, torch.tensor(0.1), torch.Generator()


def permuted(batch: hm.Batch, order: Tensor) -> hm.Batch:
    parts: Any = [[x[order] for x in part] if isinstance(part, list) else part[order] for part in batch]
    return hm.Batch(*parts)


def test_losses_do_not_depend_on_the_order_of_the_rows() -> None:
    # a (B, B) loss, or rows of different transitions put together, would
    env, order = noisy_env(), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    batch, target = random_batch(env, 32), torch.randn(32)
    critic = hm.TwinCritic(env.state_dim, sum(env.action_dims), (8, 8))
    losses = []
    for rows, y in ((batch, target), (permuted(batch, order), target[order])):
        twin = copy.deepcopy(critic)
        losses.append(hm.update_critic(twin, torch.optim.SGD(twin.parameters(), 0.0), rows, y)["losses/critic"])
    torch.testing.assert_close(losses[0], losses[1])

    actors = [hm.Actor(obs, action, (8, 8)) for obs, action in zip(env.obs_dims, env.action_dims)]
    ranks = torch.stack([torch.randperm(3) for _ in range(32)])
    outcomes = []
    for rows, rank in ((batch, ranks), (permuted(batch, order), ranks[order])):
        credit = hm.HistoricalCredit(critic, rows, env.action_dims, torch.Generator(), small_args())
        credit.ranks = rank[None]
        credit.phi = credit.of(rows.actions)
        policies = [actor(obs) for actor, obs in zip(actors, rows.obs)]
        samples = [hm.sample_action(*policy, torch.Generator()) for policy in policies]
        losses = [credit.loss(i, policies[i], samples[i], rows.actions)[0] for i in range(3)]
        outcomes.append((credit.phi, torch.stack(losses)))
    torch.testing.assert_close(outcomes[0][0][:, order], outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


def test_wrong_shapes_raise() -> None:
    env, args = noisy_env(), small_args()
    learner, batch = small_learner(env, args), random_batch(env, 8)
    critic = learner.critic
    with pytest.raises(RuntimeError):  # an action too few
        critic(batch.state, batch.actions[:, :-1])
    with pytest.raises(RuntimeError):  # agents exchanged
        hm.critic_target(batch._replace(next_obs=batch.next_obs[::-1]), *target_inputs(learner))
    with pytest.raises(ValueError):  # an agent too few
        hm.critic_target(batch._replace(next_obs=batch.next_obs[:-1]), *target_inputs(learner))
    with pytest.raises(RuntimeError):  # permutations of another batch
        credit = hm.HistoricalCredit(critic, batch, env.action_dims, torch.Generator(), args)
        credit.ranks = credit.ranks[:, :5]
        credit.of(batch.actions)
    with pytest.raises((RuntimeError, IndexError)):  # an agent too few
        hm.HistoricalCredit(critic, batch, env.action_dims[:-1], torch.Generator(), args)
    zeros = torch.zeros(8, 2)
    with pytest.raises(RuntimeError):  # phi of another batch
        hm.historical_loss(zeros, zeros, zeros, torch.zeros(5), args)
    with pytest.raises(RuntimeError):  # actions of another agent
        hm.historical_loss(zeros, zeros, torch.zeros(8, 3), torch.zeros(8), args)
    with pytest.raises(RuntimeError):  # samples for one agent's log-probability missing
        hm.update_temperature(learner.log_alpha, learner.alpha_optimizer, torch.zeros(2, 8), learner.target_entropy)


@pytest.mark.filterwarnings("error")
def test_a_column_in_place_of_a_row_is_no_silent_broadcast() -> None:
    env, args = noisy_env(), small_args()
    learner, batch = small_learner(env, args), random_batch(env, 8)
    with pytest.raises(AssertionError):  # torch itself only warns of a (8, 1) target for (8,)
        hm.update_critic(learner.critic, learner.critic_optimizer, batch, torch.zeros(8, 1))


# ---- the learner as a whole ------------------------------------------------------------------------------------------
def test_a_non_finite_loss_stops_with_its_name() -> None:
    env, args = noisy_env(), small_args()
    buffer = filled_buffer(env, 60, args)
    buffer.data["reward"].fill_(math.nan)
    with pytest.raises(hm.NonFiniteError, match="losses/critic"):
        small_learner(env, args).update(buffer)
    learner = small_learner(env, small_args(policy_frequency=1))
    with torch.no_grad():
        learner.log_alpha[1] = math.inf
    with pytest.raises(hm.NonFiniteError, match="losses/actor_1"):
        learner.update(filled_buffer(env, 60, args))


def test_a_restored_learner_goes_on_as_the_saved_one() -> None:
    env, args = noisy_env(), small_args()
    buffer, first = filled_buffer(env, 60, args), small_learner(env, args)
    for _ in range(5):
        first.update(buffer)
    second = small_learner(env, small_args(seed=9))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.streams.load_state_dict(first.streams.state_dict())
    for _ in range(6):
        first.update(buffer)
        second.update(buffer)
    assert equal(parameters_of(first), parameters_of(second)) and second.update_step == 11


def test_deterministic_actions_are_the_squashed_means() -> None:
    env = noisy_env()
    learner, obs = small_learner(env, small_args()), [torch.randn(4, dim) for dim in env.obs_dims]
    greedy = learner.act(obs, deterministic=True)
    for action, actor, o in zip(greedy, learner.actors, obs):
        np.testing.assert_array_equal(action, torch.tanh(actor(o)[0]).detach())
    sampled = [learner.act(obs) for _ in range(2)]
    assert all((a != b).all() for a, b in pairwise([*zip(*sampled)][0]))
    assert [a.shape for a in greedy] == [a.shape for a in sampled[0]] == [(4, 1), (4, 2), (4, 1)]
