"""Random streams: everything random in a run is drawn from a named generator derived from one seed."""

import numpy as np
import torch
from torch import Tensor


class Streams:
    """Named random streams of one seed. None is shared, so that no use of one shifts another.

    `environment`, `evaluation` and `networks` are seeds (non-negative int32); the other names are `torch.Generator`s:
    exploration (actions in the environments), minibatch (replay sampling), policy (actions sampled in updates),
    agent_order (sequential update; always on the CPU) and coalitions (Shapley estimator).
    """

    NAMES = ("exploration", "minibatch", "policy", "agent_order", "coalitions")

    def __init__(self, seed: int, device: torch.device):
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3 + len(self.NAMES)) >> 1]
        self.environment, self.evaluation, self.networks = seeds[:3]
        generators = [torch.Generator("cpu" if name == "agent_order" else device) for name in self.NAMES]
        self.exploration, self.minibatch, self.policy, self.agent_order, self.coalitions = generators
        for generator, stream_seed in zip(generators, seeds[3:], strict=True):
            generator.manual_seed(stream_seed)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of every generator, uint8 tensors."""
        return {name: getattr(self, name).get_state() for name in self.NAMES}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go back to what `state_dict` returned."""
        for name in self.NAMES:
            getattr(self, name).set_state(saved[name])
