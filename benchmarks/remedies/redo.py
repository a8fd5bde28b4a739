"""ReDo as published, for comparison (Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep RL", section 5).

Every ``F`` steps, units of hidden layers with a dormancy score of at most τ are recycled: incoming weights drawn from
the initial distribution and biases zero, outgoing weights zero, and the moments of Adam of all of them zero.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

EVERY = 50
"""Steps between two recyclings. The paper's 1,000 belongs to runs of millions of steps; these have hundreds."""


def recycle(model: nn.Sequential, optimizer: torch.optim.Optimizer, x: Tensor, tau: float) -> int:
    """Recycle dormant units on a batch, and return how many there were.

    Args:
        model: Linear layers with ReLU between them.
        optimizer: Adam, or one with moments of the parameters' shapes.
        x: the batch that the scores ``E|h_i| / mean_j E|h_j|`` are taken on.
        tau: the largest score of a dormant unit.
    """
    linear = [module for module in model if isinstance(module, nn.Linear)]
    scores, h = [], x
    with torch.no_grad():
        for layer in linear[:-1]:
            h = torch.relu(layer(h))
            size = h.abs().mean(dim=0)
            scores.append(size / (size.mean() + 1e-9))
        count = 0
        for (layer, after), score in zip(pairwise(linear), scores, strict=True):
            dormant = score <= tau
            count += int(dormant.sum())
            fresh = torch.empty_like(layer.weight)
            nn.init.kaiming_normal_(fresh, nonlinearity="relu")
            layer.weight[dormant] = fresh[dormant]
            layer.bias[dormant] = 0.0
            after.weight[:, dormant] = 0.0
            _forget(optimizer, layer.weight, dormant[:, None].expand_as(layer.weight))
            _forget(optimizer, layer.bias, dormant)
            _forget(optimizer, after.weight, dormant[None, :].expand_as(after.weight))
    return count


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor, mask: Tensor) -> None:
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[mask] = 0.0
