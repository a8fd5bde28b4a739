"""Angular noise: turning weights that the gradient only rescales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nndiag.surgery.training.ward import Ward

ANGLES = (0.1, 0.03, 0.01)
"""By how much a node is turned, in radians; the smaller ones where a larger one costs too much."""


def turn(ward: Ward, layer: str, nodes: list[int], angle: float) -> None:
    """Turn the weights of nodes by an angle along ``−g_t``, the descent direction orthogonal to them.

    ``w ← ‖w‖ (cos φ · w/‖w‖ − sin φ · g_t/‖g_t‖)``. The length stays, and to first order the loss does not rise. Where
    ``g_t`` vanishes the direction is random.
    """
    gradients, generator = ward.replay(gradients=True).gradients, ward.generator(layer)
    chosen = torch.tensor(nodes)
    for slot in ward.layers[layer].weights:
        rows = slot.rows(ward.tensors()[slot.parameter])[chosen].double().cpu()
        gradient = gradients.get(slot.parameter)
        slopes = torch.zeros_like(rows) if gradient is None else slot.rows(gradient)[chosen].double().cpu()
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        length = rows.norm(dim=1, keepdim=True)
        along = rows / length.clamp_min(1e-300)
        across = _unit(slopes, along)
        aimless = ~across.isfinite().all(dim=1)
        across[aimless] = _unit(noise, along)[aimless]
        turned = length * (math.cos(angle) * along - math.sin(angle) * across)
        known = turned.isfinite().all(dim=1)
        ward.set_rows(slot, chosen[known], turned[known])


def _unit(rows: Tensor, along: Tensor) -> Tensor:
    """Return the directions of the parts of rows that are orthogonal to others."""
    across = rows - (rows * along).sum(dim=1, keepdim=True) * along
    norm = across.norm(dim=1, keepdim=True)
    return across / torch.where(norm > 1e-12 * rows.norm(dim=1, keepdim=True), norm, 0.0)
