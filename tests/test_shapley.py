"""The Shapley credit against enumeration: a table game in place of the critic, every coalition's value known."""

import ast
import math
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

import his_mamujoco as hm
from common import shapley

EXACT = 1e-9
# What mutants are made of: (module, names).
PARTS = (
    (hm, ("min_q", "shapley_values", "HistoricalCredit")),
    (shapley, ("draw_ranks", "exact_values", "sampled_value")),
)
ORIGINAL = SimpleNamespace(**{name: getattr(module, name) for module, names in PARTS for name in names})


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with double_precision():
        yield


# ---- table games and their Shapley values by enumeration -------------------------------------------------------------
class TableCritic:
    """Q_2 of a joint action is the table's entry for the agents whose actions are not zero; Q_1 is larger.

    table (G, 2^N): row g is the game of the states with state[:, 0] == g; bit i of a column stands for agent i.
    """

    def __init__(self, table: np.ndarray, dims: list[int]):
        self.table, self.dims = torch.as_tensor(np.atleast_2d(table), dtype=torch.float64), dims

    def __call__(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        present = [(part != 0).double() for part in actions.split(self.dims, dim=1)]
        assert all((p == p[:, :1]).all() for p in present), "an agent's slots are masked together or not at all"
        bits = sum(p[:, 0].long() << i for i, p in enumerate(present))
        value = self.table[state[:, 0].long(), bits]
        return value + 1.0, value


class Game(SimpleNamespace):
    critic: Any
    state: Tensor
    actions: Tensor
    dims: list[int]


def game_of(table: np.ndarray, dims: list[int], batch_size: int = 1) -> Game:
    """`batch_size` rows of one game (table (2^N,)), with actions of random size and sign."""
    actions = torch.rand(batch_size, sum(dims), generator=torch.Generator().manual_seed(1)) + 0.1
    return Game(
        critic=TableCritic(table, dims),
        state=torch.zeros(batch_size, 1),
        actions=actions * torch.tensor([1.0, -1.0]).repeat(sum(dims))[: sum(dims)],
        dims=dims,
    )


def credit_of(impl: Any, game: Game, ranks: Tensor | None = None, **values: Any) -> Any:
    """The script's credit of the game, with the permutations given where there are some."""
    args = hm.Args(credit="local", **values)  # nothing is computed ahead
    credit = impl.HistoricalCredit(game.critic, game, game.dims, torch.Generator(), args)
    credit.ranks = credit.ranks if ranks is None else ranks
    return credit


def sampled(impl: Any, game: Game, ranks: Tensor, marginal: str = "difference") -> Tensor:
    """(N, B): one pass of N + 1 values a permutation."""
    return credit_of(impl, game, ranks, marginal=marginal).of(game.actions)


def sampled_one_by_one(impl: Any, game: Game, ranks: Tensor, marginal: str = "difference") -> Tensor:
    """(N, B): each agent by the definition."""
    credit = credit_of(impl, game, ranks, marginal=marginal)
    return torch.stack([credit.of(game.actions, agent) for agent in range(len(game.dims))])


def exact(impl: Any, game: Game, marginal: str = "difference") -> Tensor:
    return credit_of(impl, game, shapley="exact", marginal=marginal).of(game.actions)


def random_table(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=2**n)


def enumerated(table: np.ndarray, n: int, marginal: str = "difference") -> np.ndarray:
    """Eq. (3) as a sum over subsets."""
    phi = np.zeros(n)
    for i in range(n):
        for size in range(n):
            weight = 1 / (n * math.comb(n - 1, size))  # = size! (n - size - 1)! / n!
            for members in combinations([j for j in range(n) if j != i], size):
                bits = sum(1 << j for j in members)
                phi[i] += weight * (table[bits | 1 << i] - (table[bits] if marginal == "difference" else 0))
    return phi


def all_ranks(n: int) -> Tensor:
    """(n!, n): ranks[p, i] is the position of agent i in order p."""
    orders = list(permutations(range(n)))
    return torch.tensor([[order.index(i) for i in range(n)] for order in orders])


def over_all_orders(impl: Any, table: np.ndarray, dims: list[int], marginal: str = "difference") -> np.ndarray:
    """shapley_values averaged over all n! orders, one order a batch row."""
    ranks = all_ranks(len(dims))
    game = game_of(table, dims, len(ranks))
    return sampled(impl, game, ranks[None], marginal).mean(1).numpy()


def by_definition(impl: Any, table: np.ndarray, dims: list[int], marginal: str = "difference") -> np.ndarray:
    return exact(impl, game_of(table, dims), marginal)[:, 0].numpy()


def random_ranks(n: int, draws: int, batch_size: int) -> Tensor:
    """(draws, batch_size, n) random positions that do not come from the code under test."""
    rng = np.random.default_rng(7)
    return torch.as_tensor(rng.permuted(np.tile(np.arange(n), (draws, batch_size, 1)), axis=-1))


# ---- the checks, functions of the implementation so that mutants can be given to them --------------------------------
MIXED = [1, 2, 1, 3]


def check_efficiency(impl: Any, table: np.ndarray | None = None, dims: list[int] = MIXED) -> None:
    n = len(dims)
    table = random_table(n) if table is None else table
    game = game_of(table, dims, 24)
    phi = sampled(impl, game, random_ranks(n, 1, 24))
    np.testing.assert_allclose(phi.sum(0), np.full(24, table[-1] - table[0]), rtol=0, atol=EXACT)


def check_all_orders(impl: Any, table: np.ndarray | None = None, dims: list[int] = MIXED) -> None:
    table = random_table(len(dims)) if table is None else table
    for marginal in ("difference", "value"):
        expected = enumerated(table, len(dims), marginal)
        np.testing.assert_allclose(over_all_orders(impl, table, dims, marginal), expected, rtol=0, atol=EXACT)


def check_definition(impl: Any, table: np.ndarray | None = None, dims: list[int] = MIXED) -> None:
    table = random_table(len(dims)) if table is None else table
    for marginal in ("difference", "value"):
        expected = enumerated(table, len(dims), marginal)
        np.testing.assert_allclose(by_definition(impl, table, dims, marginal), expected, rtol=0, atol=EXACT)


def check_mean_over_draws(impl: Any) -> None:
    """All n! orders as draws of one row: the mean over M, not over the batch."""
    table, n = random_table(4), 4
    game = game_of(table, MIXED)
    for phi in (sampled(impl, game, all_ranks(n)[:, None]), sampled_one_by_one(impl, game, all_ranks(n)[:, None])):
        np.testing.assert_allclose(phi[:, 0], enumerated(table, n), rtol=0, atol=EXACT)


def check_asked_coalitions(impl: Any) -> None:
    """sampled_value asks for the agents strictly before and for those with the agent, in every draw."""
    ranks, asked = random_ranks(4, 3, 8), []

    def value(members: Tensor) -> Tensor:
        asked.append(members)
        return torch.zeros(8)

    for agent in range(4):
        asked.clear()
        impl.sampled_value(value, ranks, "difference", agent)
        assert len(asked) == 6
        for draw, rank in enumerate(ranks):
            for b in range(8):
                before = {j for j in range(4) if rank[b, j] < rank[b, agent]}
                both = [set(torch.nonzero(asked[2 * draw + k][b]).flatten().tolist()) for k in (0, 1)]
                assert both == [before | {agent}, before]


def check_fast_form_equals_definition(impl: Any) -> None:
    """One pass of N + 1 critic calls gives what 2 N M calls by the definition give, on a real critic."""
    torch.manual_seed(3)
    n, batch_size, draws = len(MIXED), 16, 3
    critic = hm.TwinCritic(5, sum(MIXED), (16, 16)).double()
    state, actions = torch.randn(batch_size, 5), torch.rand(batch_size, sum(MIXED)) * 2 - 1
    game = Game(critic=critic, state=state, actions=actions, dims=MIXED)
    ranks = random_ranks(n, draws, batch_size)
    for marginal in ("difference", "value"):
        fast, slow = (form(impl, game, ranks, marginal) for form in (sampled, sampled_one_by_one))
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def check_prefix_law(impl: Any, how: str = "permutation", num: int = 2, n: int = 4) -> None:
    """The predecessors of each agent are C with probability |C|! (n - |C| - 1)! / n!."""
    ranks = impl.draw_ranks(num, 10_000, n, how, torch.Generator().manual_seed(11))
    assert ranks.shape == (num, 10_000, n)
    assert (ranks.sort(-1).values == torch.arange(n)).all()
    for draw in ranks.numpy():  # antithetic draws are dependent: each half on its own
        for i in range(n):
            prefix = ((draw < draw[:, i : i + 1]) << np.arange(n)).sum(1)
            others = [bits for bits in range(2**n) if not bits >> i & 1]
            expected = [1 / (n * math.comb(n - 1, bits.bit_count())) for bits in others]
            counts = np.array([(prefix == bits).sum() for bits in others])
            assert counts.sum() == len(draw)
            assert stats.chisquare(counts, np.array(expected) * len(draw)).pvalue > 1e-4


def check_antithetic_pairs(impl: Any) -> None:
    """Each permutation comes with its reverse, and the two halves share no permutation otherwise."""
    ranks = impl.draw_ranks(4, 50, 5, "antithetic", torch.Generator().manual_seed(2))
    assert ranks.shape == (4, 50, 5)
    np.testing.assert_array_equal(ranks[:2] + ranks[2:], np.full((2, 50, 5), 4))
    assert not torch.equal(ranks[0], ranks[1])


class Asked:
    """A critic that keeps the last joint action it was asked about."""

    actions: Tensor

    def __call__(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        self.actions = actions
        return actions[:, 0], actions[:, 0]


def masked(impl: Any, actions: Tensor, members: Tensor, dims: list[int]) -> Tensor:
    """What the critic is asked for a coalition: the first of a permutation in which `members` come first."""
    critic = Asked()
    order = torch.argsort(~members, dim=1, stable=True)
    ranks = order.argsort(1)
    rows = []
    for b in range(len(actions)):
        one = Game(critic=critic, state=torch.zeros(1, 1), actions=actions[b : b + 1], dims=dims)
        agent = int(order[b, members[b].sum() - 1])  # the last to join the coalition
        credit_of(impl, one, ranks[None, b : b + 1], marginal="value").of(one.actions, agent)
        rows.append(critic.actions)
    return torch.cat(rows)


def check_masking(impl: Any) -> None:
    """Zero in the slots of absent agents, the action itself in every other slot: nothing moves."""
    dims, rng = [2, 1, 3], np.random.default_rng(5)
    actions, members = torch.as_tensor(rng.normal(size=(10, 6))), torch.as_tensor(rng.random((10, 3)) < 0.5)
    members[~members.any(1), 1] = True
    got = masked(impl, actions, members, dims)
    edges = [0, 2, 3, 6]
    for b in range(10):
        for i, (start, stop) in enumerate(pairwise(edges)):
            expected = actions[b, start:stop] if members[b, i] else torch.zeros(stop - start)
            assert torch.equal(got[b, start:stop], expected)


def check_min_of_twins(impl: Any) -> None:
    twins: Any = lambda state, actions: (actions[:, 0], -actions[:, 0])  # noqa: E731
    values = impl.min_q(twins, torch.zeros(2, 1), torch.tensor([[2.0], [-3.0]]))
    assert values.tolist() == [-2.0, -3.0]


# ---- T1: axioms ------------------------------------------------------------------------------------------------------
@st.composite
def games(draw: st.DrawFn, lowest: int = 1, highest: int = 6) -> tuple[np.ndarray, list[int]]:
    n = draw(st.integers(lowest, highest))
    values = draw(hnp.arrays(np.float64, 2**n, elements=st.floats(-100, 100, width=32)))
    return values, draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))


def bits_of(n: int, keep: list[int]) -> np.ndarray:
    """For each coalition bitmask: the mask with agent i renamed keep[i]."""
    return np.array([sum(1 << keep[i] for i in range(n) if bits >> i & 1) for bits in range(2**n)])


@settings(max_examples=50)
@given(games())
def test_every_draw_is_efficient(game: tuple[np.ndarray, list[int]]) -> None:
    check_efficiency(ORIGINAL, *game)


@settings(max_examples=50)
@given(games(highest=5))
def test_all_orders_give_the_enumerated_value(game: tuple[np.ndarray, list[int]]) -> None:
    check_all_orders(ORIGINAL, *game)


@settings(max_examples=25)
@given(games())
def test_all_coalitions_give_the_enumerated_value(game: tuple[np.ndarray, list[int]]) -> None:
    check_definition(ORIGINAL, *game)


@settings(max_examples=25)
@given(games(highest=5), st.data())
def test_null_player_gets_nothing_in_any_draw(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    null = data.draw(st.integers(0, n - 1))
    table = table[np.arange(2**n) & ~(1 << null)]  # the same value with and without the agent
    played = game_of(table, dims, 12)
    phi = sampled(ORIGINAL, played, random_ranks(n, 2, 12))
    np.testing.assert_allclose(phi[null], np.zeros(12), rtol=0, atol=EXACT)
    np.testing.assert_allclose(by_definition(ORIGINAL, table, dims)[null], 0, rtol=0, atol=EXACT)


@settings(max_examples=25)
@given(games(lowest=2, highest=5), st.data())
def test_symmetric_players_get_the_same(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    i, j = data.draw(st.permutations(range(n)))[:2]
    keep = list(range(n))
    keep[i], keep[j] = j, i
    table = (table + table[bits_of(n, keep)]) / 2  # unchanged when i and j swap
    for phi in (over_all_orders(ORIGINAL, table, dims), by_definition(ORIGINAL, table, dims)):
        np.testing.assert_allclose(phi[i], phi[j], rtol=0, atol=EXACT)


@settings(max_examples=25)
@given(games(highest=5), st.data())
def test_values_of_a_sum_of_games_add_up(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    other = data.draw(hnp.arrays(np.float64, 2**n, elements=st.floats(-100, 100, width=32)))
    ranks = random_ranks(n, 1, 12)
    phis = []
    for values in (table, other, 2 * table + other):
        played = game_of(values, dims, 12)
        phis.append(sampled(ORIGINAL, played, ranks).numpy())
    np.testing.assert_allclose(2 * phis[0] + phis[1], phis[2], rtol=0, atol=EXACT)


@settings(max_examples=25)
@given(games(highest=5), st.data())
def test_relabelling_the_agents_relabels_the_values(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    keep = data.draw(st.permutations(range(n)))  # agent i of the old game is agent keep[i] of the new one
    renamed = np.empty_like(table)
    renamed[bits_of(n, keep)] = table
    new_dims = [0] * n
    for i in range(n):
        new_dims[keep[i]] = dims[i]
    for value in (over_all_orders, by_definition):
        np.testing.assert_allclose(
            value(ORIGINAL, renamed, new_dims)[keep], value(ORIGINAL, table, dims), rtol=0, atol=EXACT
        )


# ---- T2: oracles -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_draws_are_averaged(n: int) -> None:
    table, dims = random_table(n, n), [1, 2, 1, 3, 2][:n]
    game = game_of(table, dims)
    phi = sampled(ORIGINAL, game, all_ranks(n)[:, None])
    np.testing.assert_allclose(phi[:, 0], enumerated(table, n), rtol=0, atol=EXACT)


def test_rows_of_a_batch_are_separate_games() -> None:
    tables = np.stack([random_table(3, seed) for seed in range(5)])
    dims = [2, 1, 2]
    game = game_of(tables[0], dims, 5)
    game.critic, game.state = TableCritic(tables, dims), torch.arange(5.0)[:, None]
    phi = sampled(ORIGINAL, game, all_ranks(3)[:, None].expand(-1, 5, -1))
    expected = np.stack([enumerated(table, 3) for table in tables], axis=1)
    np.testing.assert_allclose(phi, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("how, num", [("permutation", 1), ("permutation", 3), ("antithetic", 2), ("antithetic", 4)])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_sampled_estimate_is_unbiased(how: str, num: int, n: int) -> None:
    table, dims, batch_size = random_table(n, 30 + n), [1, 2, 1, 3, 1, 2][:n], 20_000
    game = game_of(table, dims, batch_size)
    ranks = shapley.draw_ranks(num, batch_size, n, how, torch.Generator().manual_seed(4))
    assert ranks.shape[0] == num
    phi = sampled(ORIGINAL, game, ranks).numpy()
    error = phi.std(1) / math.sqrt(batch_size) + 1e-12
    assert (np.abs(phi.mean(1) - enumerated(table, n)) < 4 * error).all()


def test_antithetic_draws_have_less_variance() -> None:
    n, batch_size = 4, 4000
    game = game_of(np.arange(2**n) ** 1.5, [1] * n, batch_size)
    spread = {}
    for how in ("permutation", "antithetic"):
        ranks = shapley.draw_ranks(2, batch_size, n, how, torch.Generator().manual_seed(4))
        phi = sampled(ORIGINAL, game, ranks)
        spread[how] = float(phi.var(1).sum())
    assert spread["antithetic"] < 0.5 * spread["permutation"]


@pytest.mark.parametrize("how, num", [("permutation", 1), ("permutation", 2), ("antithetic", 2)])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_predecessors_follow_the_papers_law(how: str, num: int, n: int) -> None:
    check_prefix_law(ORIGINAL, how, num, n)


def test_one_agent_is_always_first() -> None:
    assert not shapley.draw_ranks(2, 5, 1, "permutation", torch.Generator()).any()


def test_ranks_repeat_with_the_generator() -> None:
    draws = [shapley.draw_ranks(3, 5, 4, "permutation", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_antithetic_draws_are_pairs_of_reverses() -> None:
    check_antithetic_pairs(ORIGINAL)


def test_asked_coalitions_are_the_predecessors_without_and_with_the_agent() -> None:
    check_asked_coalitions(ORIGINAL)


def test_fast_form_equals_the_definition_for_the_same_ranks() -> None:
    check_fast_form_equals_definition(ORIGINAL)


def test_masking_zeros_the_absent_agents_own_slots() -> None:
    check_masking(ORIGINAL)


def test_masking_replaces_non_finite_actions_too() -> None:
    # a product with a 0/1 mask would keep NaN and infinity
    actions = torch.tensor([[float("nan"), 1.0]])
    assert masked(ORIGINAL, actions, torch.tensor([[False, True]]), [1, 1]).tolist() == [[0.0, 1.0]]


def test_value_of_a_coalition_is_the_smaller_twin() -> None:
    check_min_of_twins(ORIGINAL)


def test_all_coalitions_are_asked_for_once() -> None:
    for n in range(1, 7):
        asked: list[tuple[bool, ...]] = []

        def value(members: Tensor, asked: list[tuple[bool, ...]] = asked) -> Tensor:
            asked.append(tuple(members[0].tolist()))
            return torch.ones(1)

        ranks = torch.zeros(1, 1, n)
        np.testing.assert_allclose(shapley.exact_values(value, ranks, "value"), 1)  # the weights sum to one
        assert len(asked) == len(set(asked)) == 2**n


def test_value_reading_leaves_out_the_value_without_the_agent() -> None:
    # v(C) = |C|: a contribution is 1, the coalition's own value with the agent is |C| + 1
    game = game_of(np.array([bits.bit_count() for bits in range(8)], dtype=float), [1, 2, 1])
    ranks = torch.tensor([[[2, 0, 1]]])
    difference, value = (sampled(ORIGINAL, game, ranks, marginal) for marginal in ("difference", "value"))
    assert difference[:, 0].tolist() == [1, 1, 1] and value[:, 0].tolist() == [3, 1, 2]


@pytest.mark.parametrize("how", ["exact", "permutation"])
def test_credit_of_one_agent_is_differentiable(how: Any) -> None:
    critic, ranks = hm.TwinCritic(1, 3, (8, 8)), random_ranks(3, 2, 4)

    def phi(actions: Tensor) -> Tensor:
        game = Game(critic=critic, state=torch.zeros(4, 1), actions=actions, dims=[1, 1, 1])
        return credit_of(ORIGINAL, game, ranks, shapley=how).of(actions, 1)

    actions = torch.rand(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(phi(actions).sum(), actions)
    assert (gradient[:, 1] != 0).any()
    step = torch.tensor([0.0, 1e-6, 0.0])
    slope = (phi(actions + step) - phi(actions - step)) / 2e-6
    torch.testing.assert_close(gradient[:, 1], slope.detach(), rtol=0, atol=1e-6)


def test_share_gives_everyone_the_value_of_the_joint_action() -> None:
    game = game_of(random_table(4), MIXED, 6)
    credit = ORIGINAL.HistoricalCredit(game.critic, game, game.dims, torch.Generator(), hm.Args(credit="share"))
    assert torch.equal(credit.phi, torch.full((4, 6), float(random_table(4)[-1])))


# ---- the theorems of the paper ---------------------------------------------------------------------------------------
def convex_table(n: int, seed: int) -> np.ndarray:
    """A sum of unanimity games with weights >= 0 is convex; most weights are 0 so that players differ."""
    rng = np.random.default_rng(seed)
    dividends = rng.random(2**n) * (rng.random(2**n) < 0.4)
    dividends[0] = 0
    return np.array([sum(dividends[sub] for sub in range(2**n) if sub & bits == sub) for bits in range(2**n)])


def split_of(table: np.ndarray, n: int) -> np.ndarray:
    """x_i = v(N) / (2 n) + phi_i(v / 2)"""
    return table[-1] / (2 * n) + over_all_orders(ORIGINAL, table / 2, [1] * n)


def excess(payoff: np.ndarray, table: np.ndarray, n: int) -> np.ndarray:
    """x(C) - v(C) of every coalition."""
    return np.array([sum(payoff[i] for i in range(n) if bits >> i & 1) for bits in range(2**n)]) - table


@settings(max_examples=25)
@given(games(highest=5))
def test_theorem_2_the_split_shares_out_the_grand_coalition(game: tuple[np.ndarray, list[int]]) -> None:
    table, dims = game
    table = table - table[0]
    assert split_of(table, len(dims)).sum() == pytest.approx(table[-1], abs=1e-8)


def test_theorem_3_has_a_counter_example() -> None:
    table = np.array([0.0, 10.0, 0.0, 10.0])  # convex, additive: v({1}) = 10, v({2}) = 0
    payoff = split_of(table, 2)
    np.testing.assert_allclose(payoff, [7.5, 2.5], atol=EXACT)
    assert excess(payoff, table, 2).min() == pytest.approx(-2.5)


def test_corrected_core_condition_holds_in_both_directions() -> None:
    outcomes = set()
    for seed in range(120):
        n = 2 + seed % 4
        table = convex_table(n, seed)
        for a in range(2**n):  # convex: v(A) + v(B) <= v(A or B) + v(A and B)
            for b in range(2**n):
                assert table[a] + table[b] <= table[a | b] + table[a & b] + 1e-9
        phi = enumerated(table, n)
        sizes = [bits.bit_count() for bits in range(2**n)]
        parts = [sum(phi[i] for i in range(n) if bits >> i & 1) for bits in range(2**n)]
        condition = all(size * table[-1] / (2 * n) + part / 2 >= v - 1e-9 for size, part, v in zip(sizes, parts, table))
        in_core = bool(excess(split_of(table, n), table, n).min() >= -1e-9)
        assert in_core == condition
        outcomes.add(in_core)
    assert outcomes == {True, False}  # the theorem as printed fails often; the condition is not vacuous


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_symmetric_convex_games_keep_the_split_in_the_core(n: int) -> None:
    table = np.array([float(bits.bit_count()) ** 1.7 for bits in range(2**n)])
    assert excess(split_of(table, n), table, n).min() >= -1e-9


# ---- T3: deliberate mistakes -----------------------------------------------------------------------------------------
def sources() -> dict[str, str]:
    """The text of every part; read once, so that an edit under a running suite does no harm."""
    found = {}
    for module, names in PARTS:
        text = Path(str(module.__file__)).read_text()
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
                found[node.name] = ast.get_source_segment(text, node) or ""
    return found


SOURCES = sources()


def mutant(part: str, old: str, new: str) -> SimpleNamespace:
    """The credit with one of its parts rewritten; they call each other, not the originals."""
    spaces = {module: dict(vars(module)) for module, _ in PARTS}
    for module, names in PARTS:
        for name in names:
            source = SOURCES[name]
            if name == part:
                assert source.count(old) == 1, f"{old!r} is no longer in {part}: write this mutant anew"
                source = source.replace(old, new)
            exec(compile(source, f"<mutant of {name}>", "exec"), spaces[module])
    spaces[hm]["shapley"] = SimpleNamespace(**{name: spaces[shapley][name] for name in PARTS[1][1]})
    return SimpleNamespace(**{name: spaces[module][name] for module, names in PARTS for name in names})


# One argsort alone in draw_ranks is no mistake: the inverse of a uniform permutation is one too. Mixing both is.
MUTANTS = {
    "contribution taken by the inverse permutation": (
        *("shapley_values", ".gather(0, rank.T)", ".gather(0, rank.argsort(-1).T)"),
        check_all_orders,
    ),
    "coalition taken by the inverse permutation": (
        *("shapley_values", "rank < size", "rank.argsort(-1) < size"),
        check_all_orders,
    ),
    "one agent too many in the prefix": ("shapley_values", "rank < size", "rank <= size", check_all_orders),
    "one agent too few in the prefix": ("shapley_values", "rank < size", "rank < size - 1", check_all_orders),
    "contribution of the agent one place later": (
        *("shapley_values", "rank.T)", "(rank.T + 1) % num_agents)"),
        check_all_orders,
    ),
    "agent in its own coalition": ("sampled_value", "rank < rank", "rank <= rank", check_asked_coalitions),
    "successors for predecessors": ("sampled_value", "rank < rank", "rank > rank", check_asked_coalitions),
    "draws of one agent summed": ("sampled_value", "phi / len(ranks)", "phi", check_fast_form_equals_definition),
    "value of nobody taken as zero": ("shapley_values", "[nobody, ", "[0 * nobody, ", check_efficiency),
    "value of everybody taken as zero": ("shapley_values", ", everybody]", ", 0 * everybody]", check_efficiency),
    "values of the wrong coalitions": ("exact_values", "bits >> i & 1", "bits >> (i + 1) & 1", check_definition),
    "size of the coalition with the agent": ("exact_values", "sum(members) - member", "sum(members)", check_definition),
    "off-by-one coalition weight": (
        *("exact_values", "math.factorial(num_agents - size - 1)", "math.factorial(num_agents - size)"),
        check_definition,
    ),
    "Banzhaf's coalition weight": (
        "exact_values",
        "math.factorial(size) * math.factorial(num_agents - size - 1) / math.factorial(num_agents)",
        "0.5 ** (num_agents - 1)",
        check_definition,
    ),
    "draws summed, not averaged": ("shapley_values", "phi / len(ranks)", "phi", check_mean_over_draws),
    "only the last draw": ("shapley_values", "phi = phi + contribution", "phi = contribution", check_mean_over_draws),
    "slots of other agents masked": (
        *("HistoricalCredit", "members[:, self.agent_of_slot]", "members[:, self.agent_of_slot.flip(0)]"),
        check_masking,
    ),
    "members masked, others kept": (
        *("HistoricalCredit", "members[:, self.agent_of_slot]", "~members[:, self.agent_of_slot]"),
        check_all_orders,
    ),
    "larger twin": ("min_q", "torch.minimum", "torch.maximum", check_min_of_twins),
    "ranks of the wrong reverse": ("draw_ranks", "num_agents - 1 - ranks", "ranks", check_antithetic_pairs),
    "reverse off by one": ("draw_ranks", "num_agents - 1 - ranks", "num_agents - ranks", check_antithetic_pairs),
    "twice the draws": ("draw_ranks", "num // 2 if", "num if", check_antithetic_pairs),
    "draws of one shared permutation": (
        "draw_ranks",
        "torch.rand(draws, batch_size, num_agents, generator=generator, device=generator.device)",
        "torch.rand(draws, 1, num_agents, generator=generator).expand(-1, batch_size, -1)",
        check_prefix_law,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    function, old, new, check = MUTANTS[name]
    check(mutant(function, old, old))  # the rewriting itself changes nothing
    broken = mutant(function, old, new)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check(broken)


def test_wrong_inverse_cannot_show_with_two_agents() -> None:
    # why the checks above have four agents
    check_all_orders(mutant("shapley_values", ".gather(0, rank.T)", ".gather(0, rank.argsort(-1).T)"), dims=[1, 2])
