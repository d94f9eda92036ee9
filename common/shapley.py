"""Coalitions of agents: which ones to evaluate, and the weights with which the Shapley value averages over them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_EXACT_AGENTS = 8  # 256 evaluations
Value = Callable[[Tensor], Tensor]  # members of a coalition (B or 1, N) bool -> its value in each state (B,)


def draw_ranks(num: int, batch_size: int, num_agents: int, how: str, generator: torch.Generator) -> Tensor:
    """Positions of the agents in uniformly random permutations, (num, B, N): ranks[m, b, i] is agent i's position.

    The predecessors of agent i form coalition C with probability |C|! (N - |C| - 1)! / N!, that of Eq. (8) of HIS.
    `how="antithetic"` pairs each permutation with its reverse.
    """
    draws = num // 2 if how == "antithetic" else num
    noise = torch.rand(draws, batch_size, num_agents, generator=generator, device=generator.device)
    ranks = noise.argsort(-1).argsort(-1)  # the inverse of the permutation: agent -> position
    return torch.cat([ranks, num_agents - 1 - ranks]) if how == "antithetic" else ranks


def exact_values(value: Value, ranks: Tensor, marginal: str) -> Tensor:
    """Shapley values (N, B) from all 2^N coalitions, Eq. (3) of HIS; gradients flow through `value`.

    Of `ranks` (M, B, N) only N and the device are used. marginal: "difference", v(C + i) - v(C), or "value", v(C + i).
    """
    num_agents = ranks.shape[-1]
    weights, values = ranks.new_zeros(num_agents, 2**num_agents, dtype=torch.float64), []
    for bits in range(2**num_agents):
        members = [bool(bits >> i & 1) for i in range(num_agents)]
        values.append(value(torch.tensor([members], device=ranks.device)))
        for i, member in enumerate(members):
            size = sum(members) - member  # of C, which is this coalition without i
            weight = math.factorial(size) * math.factorial(num_agents - size - 1) / math.factorial(num_agents)
            if member:
                weights[i, bits] = weight
            elif marginal == "difference":
                weights[i, bits] = -weight
    return weights.to(values[0].dtype) @ torch.stack(values)


def sampled_value(value: Value, ranks: Tensor, marginal: str, agent: int) -> Tensor:
    """Shapley value (B,) of one agent by the definition, from the permutations of `draw_ranks` (M, B, N).

    Two evaluations a permutation, of which that without the agent does not depend on the agent's own action: gradients
    flow through the other one only. `marginal` as in `exact_values`.
    """
    phi = torch.zeros(ranks.shape[1], device=ranks.device)
    for rank in ranks:
        phi = phi + value(rank <= rank[:, agent : agent + 1])
        if marginal == "difference":
            with torch.no_grad():
                without = value(rank < rank[:, agent : agent + 1])
            phi = phi - without
    return phi / len(ranks)
