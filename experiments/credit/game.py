"""The cooperative game that a masked critic plays in each state: its values, Shapley values, convexity and core.

A coalition is a set of agents; its value v(C) is the critic's of the joint action in which all agents outside C have
the zero action (HIS, Algorithm 1 line 15). Shapes: N agents, T states, M draws, S state size. A table of values is
float64 (2^N, T); the bits of its first index say who is in the coalition, agent 0 the lowest.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from common import shapley

Value = Callable[[np.ndarray], np.ndarray]
"""Members (T, N) or (1, N) bool -> the coalitions' values, float64 (T,)."""
Critic = Callable[[Tensor, Tensor], Tensor]
"""State (T, S) and joint action (T, sum A_i) -> value (T,)."""


def masked_value(critic: Critic, state: np.ndarray, actions: np.ndarray, widths: Sequence[int]) -> Value:
    """v(C) = Q(s, a_C) in every state, with zeros in the slots of absent agents (READINGS 4 and 8).

    state float32 (T, S), actions float32 (T, sum A_i), widths: A_i of each agent. The critic computes in float32, as in
    training; sums and differences of its values are then taken in float64.
    """
    states, joint = torch.from_numpy(state), torch.from_numpy(actions)
    agent_of_slot = np.repeat(np.arange(len(widths)), widths)

    def value(members: np.ndarray) -> np.ndarray:
        present = torch.from_numpy(members[:, agent_of_slot])
        with torch.no_grad():
            return critic(states, torch.where(present, joint, 0.0)).double().numpy()

    return value


def all_values(value: Value, num_agents: int) -> np.ndarray:
    """The table (2^N, T) of every coalition's value."""
    bits = np.arange(2**num_agents)[:, None] >> np.arange(num_agents) & 1
    return np.stack([value(row[None] > 0) for row in bits])


def lookup(table: np.ndarray) -> Value:
    """The same values read from a table instead of asking the critic."""
    num_agents, column = int(math.log2(len(table))), np.arange(table.shape[1])
    return lambda members: table[members @ (1 << np.arange(num_agents)), column]


def exact(table: np.ndarray) -> np.ndarray:
    """Shapley values (N, T) from the table: Eq. (3) of HIS."""
    num_agents = int(math.log2(len(table)))
    sizes = np.array([bits.bit_count() for bits in range(len(table))])
    phi = np.zeros((num_agents, table.shape[1]))
    for i in range(num_agents):
        without = np.flatnonzero(np.arange(len(table)) >> i & 1 == 0)
        weight = np.array([1 / (num_agents * math.comb(num_agents - 1, int(size))) for size in sizes[without]])
        phi[i] = weight @ (table[without + (1 << i)] - table[without])
    return phi


def draw(value: Value, num_agents: int, num_states: int, draws: int, how: str, seed: int) -> np.ndarray:
    """Marginal contributions along random permutations, (M, N, T): their mean over M estimates the Shapley values.

    `how`: "permutation", or "antithetic", where draws 2k and 2k + 1 are a permutation and its reverse (M even).
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = shapley.draw_ranks(draws, num_states, num_agents, how, generator).numpy()  # (M, T, N)
    if how == "antithetic":  # draw_ranks puts all the reverses behind
        ranks = ranks.reshape(2, draws // 2, num_states, num_agents).swapaxes(0, 1).reshape(ranks.shape)
    nobody, everybody = value(ranks[0] < 0), value(ranks[0] >= 0)
    phi = np.empty((draws, num_agents, num_states))
    for m, rank in enumerate(ranks):
        on_the_way = [value(rank < size) for size in range(1, num_agents)]
        gains = np.diff(np.stack([nobody, *on_the_way, everybody]), axis=0)  # by position
        phi[m] = np.take_along_axis(gains, rank.T, axis=0)  # by agent
    return phi


def convexity(table: np.ndarray) -> np.ndarray:
    """Share (T,) of the inequalities v(C+i+j) - v(C+j) >= v(C+i) - v(C) that hold, over all i < j and C without both.

    All of them hold exactly where the game is convex (supermodular; Shapley 1971). Differences that the critic's
    float32 cannot tell from 0 count as holding.
    """
    num_agents, bits, held = int(math.log2(len(table))), np.arange(len(table)), []
    for i in range(num_agents):
        for j in range(i + 1, num_agents):
            rest = bits[bits & (1 << i | 1 << j) == 0]
            second = table[rest + (1 << i) + (1 << j)] - table[rest + (1 << j)] - table[rest + (1 << i)] + table[rest]
            held.append(second >= -rounding(table))
    return np.concatenate(held).mean(0) if held else np.ones(table.shape[1])


def rounding(table: np.ndarray) -> np.ndarray:
    """What float32 may be off by in a difference of values, (T,)."""
    return 8 * np.finfo(np.float32).eps * np.abs(table).max(0)


def hybrid(table: np.ndarray) -> np.ndarray:
    """The paper's payoff x_i = v(N) / 2N + phi_i / 2 (Theorem 2), (N, T), of the game v - v(nobody)."""
    num_agents = int(math.log2(len(table)))
    return (table[-1] - table[0]) / (2 * num_agents) + exact(table) / 2


def core_slack(table: np.ndarray, payoff: np.ndarray) -> np.ndarray:
    """min over coalitions C of payoff(C) - (v(C) - v(nobody)), (T,); below 0 some coalition would do better alone.

    payoff (N, T) must share out v(N) - v(nobody); it is in the core where the slack is not negative.
    """
    bits = np.arange(1, len(table) - 1)[:, None] >> np.arange(len(payoff)) & 1  # all but nobody and everybody
    return (bits @ payoff - (table[1:-1] - table[0])).min(0) if len(bits) else np.zeros(table.shape[1])
