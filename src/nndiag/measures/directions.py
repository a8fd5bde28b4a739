"""Which way the weights of a node point, in so few numbers that every report can hold them.

Two checkpoints are then compared without their weights: ``‖u_s − u_t‖ ≈ ‖S u_s − S u_t‖`` for a fixed random ``S``.
Source: Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams" (count sketch).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SKETCH = 16
"""Numbers a node. The squared length of a difference is right in the mean, with a relative error of √(2/16)."""

_AT_ONCE = 2**22
"""Entries that are looked at together."""


def direction_sketch(rows: Tensor, weights: int) -> NDArray[np.float16]:
    """Return ``S w_i / ‖w_i‖`` per node, ``(nodes, min(weights, 16))``; NaN where a norm is zero or not finite.

    Column ``j`` of ``S`` has one entry, a random sign in row ``j mod 16``: one multiplication a weight. Where a node
    has no more than 16 weights ``S`` is the identity.

    Args:
        rows: ``(nodes, size)``, weights first.
        weights: how many of the entries are weights.
    """
    width = min(weights, SKETCH)
    signs = _signs(weights).to(rows.device)
    found = torch.empty(len(rows), width)
    count = max(1, _AT_ONCE // max(weights, 1))
    for start in range(0, len(rows), count):
        part = rows[start : start + count, :weights].detach().float()
        norm = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        usable = torch.isfinite(norm) & (norm > 0)
        folded = (
            torch.nn.functional.pad(part * signs, (0, -weights % width)).view(len(part), -1, width).sum(1)
        )
        found[start : start + count] = torch.where(usable, folded / norm, torch.nan).cpu()
    return found.numpy().astype(np.float16)


def _signs(count: int) -> Tensor:
    if count <= SKETCH:
        return torch.ones(count)
    drawn = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(0))
    return drawn.float() * 2 - 1
