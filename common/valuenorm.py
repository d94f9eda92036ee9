"""Running normalisation of a value function's targets (ValueNorm)."""

from typing import Any

import torch
from torch import Tensor


class ValueNorm:
    """Mean and variance of value targets: exponential moving averages of batch means, corrected for their start at 0.

    A value network that predicts normalised targets keeps outputs of size 1 whatever the size of the rewards. Before
    the first update the mean is 0 and the variance its lower bound. The averages are kept in float64: the variance is a
    difference of two numbers that may be large beside it.
    """

    BETA = 0.99999  # weight of the past, a batch
    MIN_DEBIASING, MIN_VARIANCE = 1e-5, 1e-2

    def __init__(self, device: torch.device, enabled: bool = True):
        self.enabled = enabled  # otherwise mean 0 and standard deviation 1, always
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        """averages of the batch means, of the batch means of squares, and of 1, each biased towards 0"""

    @torch.no_grad()
    def update(self, targets: Tensor) -> None:
        """Take in one batch of targets, of any shape."""
        targets = targets.double()
        batch = torch.stack([targets.mean(), targets.square().mean(), torch.ones_like(self.sums[0])])
        self.sums.lerp_(batch, 1 - self.BETA)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32 scalars."""
        if not self.enabled:
            return self.sums.new_zeros((), dtype=torch.float32), self.sums.new_ones((), dtype=torch.float32)
        mean, square = self.sums[:2] / self.sums[2].clamp(min=self.MIN_DEBIASING)
        return mean.float(), (square - mean.square()).clamp(min=self.MIN_VARIANCE).sqrt().float()

    def normalize(self, targets: Tensor) -> Tensor:
        """(targets - mean) / std"""
        mean, std = self.mean_std()
        return (targets - mean) / std

    def denormalize(self, values: Tensor) -> Tensor:
        """values * std + mean"""
        mean, std = self.mean_std()
        return values * std + mean

    def state_dict(self) -> dict[str, Any]:
        """Its averages, a copy."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self.sums.copy_(saved["sums"])
