"""How the terms of a loss pull: the norms of their gradients and the angle between them."""

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def gradient_norms(module: nn.Module, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`grad_norm_<term>` of each scalar term and, where there are two, `grad_cosine` of the angle between them.

    Costs a backward pass a term; graphs and `.grad` stay as they are.
    """
    parameters = list(module.parameters())
    gradients = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(term, parameters, retain_graph=True)])
        for name, term in terms.items()
    }
    found = {f"grad_norm_{name}": gradient.norm() for name, gradient in gradients.items()}
    if len(gradients) == 2:
        found["grad_cosine"] = F.cosine_similarity(*gradients.values(), dim=0)
    return found
