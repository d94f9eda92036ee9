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

EXACT = 1e-9
CREDIT_FUNCTIONS = ("min_q", "draw_ranks", "masked", "shapley_values", "coalitions_of", "shapley_value_of")


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
    slots: Tensor


def game_of(table: np.ndarray, dims: list[int], batch_size: int = 1) -> Game:
    """`batch_size` rows of one game (table (2^N,)), with actions of random size and sign."""
    actions = torch.rand(batch_size, sum(dims), generator=torch.Generator().manual_seed(1)) + 0.1
    return Game(
        critic=TableCritic(table, dims),
        state=torch.zeros(batch_size, 1),
        actions=actions * torch.tensor([1.0, -1.0]).repeat(sum(dims))[: sum(dims)],
        slots=torch.repeat_interleave(torch.arange(len(dims)), torch.tensor(dims)),
    )


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
    phi = impl.shapley_values(game.critic, game.state, game.actions, ranks[None], game.slots, marginal)
    return phi.mean(1).numpy()


def by_definition(impl: Any, table: np.ndarray, dims: list[int], marginal: str = "difference") -> np.ndarray:
    game, n = game_of(table, dims), len(dims)
    rest = (game.slots, marginal)
    return np.array(
        [
            impl.shapley_value_of(i, game.critic, game.state, game.actions, impl.coalitions_of(i, n, None), *rest)[0]
            for i in range(n)
        ]
    )


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
    phi = impl.shapley_values(game.critic, game.state, game.actions, random_ranks(n, 1, 24), game.slots, "difference")
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
    phi = impl.shapley_values(
        game.critic, game.state, game.actions, all_ranks(n)[:, None], game.slots, "difference"
    ).numpy()
    np.testing.assert_allclose(phi[:, 0], enumerated(table, n), rtol=0, atol=EXACT)


def check_drawn_coalitions(impl: Any) -> None:
    """coalitions_of(ranks): the agents strictly before, in every draw, with equal weights."""
    ranks = random_ranks(4, 3, 8)
    for agent in range(4):
        drawn = impl.coalitions_of(agent, 4, ranks)
        assert [weight for _, weight in drawn] == [1 / 3] * 3
        for (members, _), rank in zip(drawn, ranks):
            for b in range(8):
                before = {j for j in range(4) if rank[b, j] < rank[b, agent]}
                assert set(torch.nonzero(members[b]).flatten().tolist()) == before


def check_fast_form_equals_definition(impl: Any) -> None:
    """One pass of N + 1 critic calls gives what 2 N M calls by the definition give, on a real critic."""
    torch.manual_seed(3)
    n, batch_size, draws = len(MIXED), 16, 3
    critic = hm.TwinCritic(5, sum(MIXED), (16, 16)).double()
    state, actions = torch.randn(batch_size, 5), torch.rand(batch_size, sum(MIXED)) * 2 - 1
    slots = torch.repeat_interleave(torch.arange(n), torch.tensor(MIXED))
    ranks = random_ranks(n, draws, batch_size)
    for marginal in ("difference", "value"):
        fast = impl.shapley_values(critic, state, actions, ranks, slots, marginal)
        for i in range(n):
            coalitions = impl.coalitions_of(i, n, ranks)
            slow = impl.shapley_value_of(i, critic, state, actions, coalitions, slots, marginal)
            torch.testing.assert_close(fast[i], slow.detach(), rtol=0, atol=1e-12)


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


def check_masking(impl: Any) -> None:
    """Zero in the slots of absent agents, the action itself in every other slot: nothing moves."""
    dims, rng = [2, 1, 3], np.random.default_rng(5)
    slots = torch.repeat_interleave(torch.arange(3), torch.tensor(dims))
    actions, members = torch.as_tensor(rng.normal(size=(10, 6))), torch.as_tensor(rng.random((10, 3)) < 0.5)
    got = impl.masked(actions, members, slots)
    edges = [0, 2, 3, 6]
    for b in range(10):
        for i, (start, stop) in enumerate(pairwise(edges)):
            expected = actions[b, start:stop] if members[b, i] else torch.zeros(stop - start)
            assert torch.equal(got[b, start:stop], expected)
    shared = impl.masked(actions, torch.tensor([[True, False, True]]), slots)  # one coalition for all rows
    assert torch.equal(shared, actions * torch.tensor([1.0, 1, 0, 1, 1, 1]))


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
    check_efficiency(hm, *game)


@settings(max_examples=50)
@given(games(highest=5))
def test_all_orders_give_the_enumerated_value(game: tuple[np.ndarray, list[int]]) -> None:
    check_all_orders(hm, *game)


@settings(max_examples=25)
@given(games())
def test_all_coalitions_give_the_enumerated_value(game: tuple[np.ndarray, list[int]]) -> None:
    check_definition(hm, *game)


@settings(max_examples=25)
@given(games(highest=5), st.data())
def test_null_player_gets_nothing_in_any_draw(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    null = data.draw(st.integers(0, n - 1))
    table = table[np.arange(2**n) & ~(1 << null)]  # the same value with and without the agent
    played = game_of(table, dims, 12)
    rest = (random_ranks(n, 2, 12), played.slots, "difference")
    phi = hm.shapley_values(played.critic, played.state, played.actions, *rest)
    np.testing.assert_allclose(phi[null], np.zeros(12), rtol=0, atol=EXACT)
    np.testing.assert_allclose(by_definition(hm, table, dims)[null], 0, rtol=0, atol=EXACT)


@settings(max_examples=25)
@given(games(lowest=2, highest=5), st.data())
def test_symmetric_players_get_the_same(game: tuple[np.ndarray, list[int]], data: st.DataObject) -> None:
    table, dims = game
    n = len(dims)
    i, j = data.draw(st.permutations(range(n)))[:2]
    keep = list(range(n))
    keep[i], keep[j] = j, i
    table = (table + table[bits_of(n, keep)]) / 2  # unchanged when i and j swap
    for phi in (over_all_orders(hm, table, dims), by_definition(hm, table, dims)):
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
        rest = (ranks, played.slots, "difference")
        phis.append(hm.shapley_values(played.critic, played.state, played.actions, *rest).numpy())
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
        np.testing.assert_allclose(value(hm, renamed, new_dims)[keep], value(hm, table, dims), rtol=0, atol=EXACT)


# ---- T2: oracles -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_draws_are_averaged(n: int) -> None:
    table, dims = random_table(n, n), [1, 2, 1, 3, 2][:n]
    game = game_of(table, dims)
    rest = (all_ranks(n)[:, None], game.slots, "difference")
    phi = hm.shapley_values(game.critic, game.state, game.actions, *rest)
    np.testing.assert_allclose(phi[:, 0], enumerated(table, n), rtol=0, atol=EXACT)


def test_rows_of_a_batch_are_separate_games() -> None:
    tables = np.stack([random_table(3, seed) for seed in range(5)])
    dims = [2, 1, 2]
    game = game_of(tables[0], dims, 5)
    critic: Any = TableCritic(tables, dims)
    state = torch.arange(5.0)[:, None]
    ranks = all_ranks(3)[:, None].expand(-1, 5, -1)
    phi = hm.shapley_values(critic, state, game.actions, ranks, game.slots, "difference")
    expected = np.stack([enumerated(table, 3) for table in tables], axis=1)
    np.testing.assert_allclose(phi, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("how, num", [("permutation", 1), ("permutation", 3), ("antithetic", 2), ("antithetic", 4)])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_sampled_estimate_is_unbiased(how: str, num: int, n: int) -> None:
    table, dims, batch_size = random_table(n, 30 + n), [1, 2, 1, 3, 1, 2][:n], 20_000
    game = game_of(table, dims, batch_size)
    ranks = hm.draw_ranks(num, batch_size, n, how, torch.Generator().manual_seed(4))
    assert ranks.shape[0] == num
    phi = hm.shapley_values(game.critic, game.state, game.actions, ranks, game.slots, "difference").numpy()
    error = phi.std(1) / math.sqrt(batch_size) + 1e-12
    assert (np.abs(phi.mean(1) - enumerated(table, n)) < 4 * error).all()


def test_antithetic_draws_have_less_variance() -> None:
    n, batch_size = 4, 4000
    game = game_of(np.arange(2**n) ** 1.5, [1] * n, batch_size)
    spread = {}
    for how in ("permutation", "antithetic"):
        ranks = hm.draw_ranks(2, batch_size, n, how, torch.Generator().manual_seed(4))
        phi = hm.shapley_values(game.critic, game.state, game.actions, ranks, game.slots, "difference")
        spread[how] = float(phi.var(1).sum())
    assert spread["antithetic"] < 0.5 * spread["permutation"]


@pytest.mark.parametrize("how, num", [("permutation", 1), ("permutation", 2), ("antithetic", 2)])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_predecessors_follow_the_papers_law(how: str, num: int, n: int) -> None:
    check_prefix_law(hm, how, num, n)


def test_one_agent_is_always_first() -> None:
    assert not hm.draw_ranks(2, 5, 1, "permutation", torch.Generator()).any()


def test_ranks_repeat_with_the_generator() -> None:
    draws = [hm.draw_ranks(3, 5, 4, "permutation", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_antithetic_draws_are_pairs_of_reverses() -> None:
    check_antithetic_pairs(hm)


def test_drawn_coalitions_are_the_predecessors() -> None:
    check_drawn_coalitions(hm)


def test_fast_form_equals_the_definition_for_the_same_ranks() -> None:
    check_fast_form_equals_definition(hm)


def test_masking_zeros_the_absent_agents_own_slots() -> None:
    check_masking(hm)


def test_masking_replaces_non_finite_actions_too() -> None:
    # a product with a 0/1 mask would keep NaN and infinity
    actions = torch.tensor([[float("nan"), 1.0]])
    assert hm.masked(actions, torch.tensor([[False, True]]), torch.tensor([0, 1])).tolist() == [[0.0, 1.0]]


def test_value_of_a_coalition_is_the_smaller_twin() -> None:
    check_min_of_twins(hm)


def test_all_coalitions_are_listed_once_with_weights_that_sum_to_one() -> None:
    for n in range(1, 7):
        for agent in range(n):
            coalitions = hm.coalitions_of(agent, n, None)
            members = {tuple(m[0].tolist()) for m, _ in coalitions}
            assert len(coalitions) == len(members) == 2 ** (n - 1)
            assert not any(m[agent] for m in members)
            assert sum(weight for _, weight in coalitions) == pytest.approx(1, abs=1e-12)


def test_value_reading_leaves_out_the_value_without_the_agent() -> None:
    # v(C) = |C|: a contribution is 1, the coalition's own value with the agent is |C| + 1
    game = game_of(np.array([bits.bit_count() for bits in range(8)], dtype=float), [1, 2, 1])
    ranks = torch.tensor([[[2, 0, 1]]])
    rest = (ranks, game.slots)
    difference = hm.shapley_values(game.critic, game.state, game.actions, *rest, "difference")
    value = hm.shapley_values(game.critic, game.state, game.actions, *rest, "value")
    assert difference[:, 0].tolist() == [1, 1, 1] and value[:, 0].tolist() == [3, 1, 2]


def test_sampled_value_has_no_gradient_and_the_definition_has() -> None:
    critic = hm.TwinCritic(1, 3, (8, 8))
    slots = torch.tensor([0, 1, 2])
    actions = torch.rand(4, 3, requires_grad=True)
    state, ranks = torch.zeros(4, 1), random_ranks(3, 1, 4)
    assert not hm.shapley_values(critic, state, actions, ranks, slots, "difference").requires_grad
    coalitions = hm.coalitions_of(1, 3, None)
    value = hm.shapley_value_of(1, critic, state, actions, coalitions, slots, "difference")
    (gradient,) = torch.autograd.grad(value.sum(), actions)
    assert (gradient[:, 1] != 0).any()
    # Eq. (3) differentiated by hand: the weighted sum of the gradients of every coalition's value
    shifted = [actions.detach().clone() for _ in range(2)]
    step = 1e-6
    shifted[0][:, 1] += step
    shifted[1][:, 1] -= step
    up, down = (hm.shapley_value_of(1, critic, state, a, coalitions, slots, "difference") for a in shifted)
    torch.testing.assert_close(gradient[:, 1], ((up - down) / (2 * step)).detach(), rtol=0, atol=1e-6)


# ---- the theorems of the paper ---------------------------------------------------------------------------------------
def convex_table(n: int, seed: int) -> np.ndarray:
    """A sum of unanimity games with weights >= 0 is convex; most weights are 0 so that players differ."""
    rng = np.random.default_rng(seed)
    dividends = rng.random(2**n) * (rng.random(2**n) < 0.4)
    dividends[0] = 0
    return np.array([sum(dividends[sub] for sub in range(2**n) if sub & bits == sub) for bits in range(2**n)])


def split_of(table: np.ndarray, n: int) -> np.ndarray:
    """x_i = v(N) / (2 n) + phi_i(v / 2)"""
    return table[-1] / (2 * n) + over_all_orders(hm, table / 2, [1] * n)


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
    """The text of every function of the script; read once, so that an edit under a running suite does no harm."""
    text = Path(hm.__file__).read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    lines = text.splitlines()
    starts = {f.name: min([f.lineno, *(d.lineno for d in f.decorator_list)]) for f in functions}
    return {f.name: "\n".join(lines[starts[f.name] - 1 : f.end_lineno]) for f in functions}


SOURCES = sources()


def mutant(function: str, old: str, new: str) -> SimpleNamespace:
    """The credit functions with one of them rewritten; they call each other, not the originals."""
    namespace = dict(vars(hm))
    for name in CREDIT_FUNCTIONS:
        source = SOURCES[name]
        if name == function:
            assert source.count(old) == 1, f"{old!r} is no longer in {function}: write this mutant anew"
            source = source.replace(old, new)
        exec(compile(source, f"<mutant of {name}>", "exec"), namespace)
    return SimpleNamespace(**{name: namespace[name] for name in CREDIT_FUNCTIONS})


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
    "agent in its own coalition": ("coalitions_of", "rank < rank", "rank <= rank", check_drawn_coalitions),
    "successors for predecessors": ("coalitions_of", "rank < rank", "rank > rank", check_drawn_coalitions),
    "weight of a drawn coalition": ("coalitions_of", "1 / len(ranks)", "1.0", check_fast_form_equals_definition),
    "value of nobody taken as zero": ("shapley_values", "[q_empty, ", "[0 * q_empty, ", check_efficiency),
    "value of everybody taken as zero": ("shapley_values", ", q_full]", ", 0 * q_full]", check_efficiency),
    "empty coalition left out": ("coalitions_of", "range(2**num_agents)", "range(1, 2**num_agents)", check_definition),
    "last coalition left out": ("coalitions_of", "range(2**num_agents)", "range(2**num_agents - 2)", check_definition),
    "off-by-one coalition weight": (
        *("coalitions_of", "math.factorial(num_agents - size - 1)", "math.factorial(num_agents - size)"),
        check_definition,
    ),
    "Banzhaf's coalition weight": (
        "coalitions_of",
        "math.factorial(size) * math.factorial(num_agents - size - 1) / math.factorial(num_agents)",
        "0.5 ** (num_agents - 1)",
        check_definition,
    ),
    "draws summed, not averaged": ("shapley_values", "phi / len(ranks)", "phi", check_mean_over_draws),
    "only the last draw": ("shapley_values", "phi += contribution", "phi = contribution", check_mean_over_draws),
    "slots of other agents masked": (
        *("masked", "members[:, agent_of_slot]", "members[:, agent_of_slot.flip(0)]"),
        check_masking,
    ),
    "members masked, others kept": (
        *("masked", "members[:, agent_of_slot]", "~members[:, agent_of_slot]"),
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
    with pytest.raises((AssertionError, RuntimeError)):
        check(broken)


def test_wrong_inverse_cannot_show_with_two_agents() -> None:
    # why the checks above have four agents
    check_all_orders(mutant("shapley_values", ".gather(0, rank.T)", ".gather(0, rank.argsort(-1).T)"), dims=[1, 2])
