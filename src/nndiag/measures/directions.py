"""Which way the weights of a node point, in so few numbers that every report can hold them.

Two checkpoints are then compared without their weights: ``‖u_s − u_t‖ ≈ ‖S u_s − S u_t‖`` for a fixed random ``S`` with
random columns of length 1. Where a node has no more than 16 weights, ``S`` is the identity. Source: Johnson and
Lindenstrauss 1984.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WIDTH = 16
"""Numbers a node. The squared length of a difference is right in the mean, with a relative error of √(2/16)."""

_LONGEST = 1 << 14
"""Weights after which the columns of ``S`` come again."""


def directions_of(
    first: int, columns: int, weights: int, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Return the part of ``Sᵀ`` that belongs to some weights, ``(columns, 16)``: times it, they are a share of ``S w``.

    Args:
        first: place of the first of these columns among all weights of a node.
        columns: how many.
        weights: how many weights a node has.
        dtype: float32 or float64.
        device: the CPU by default.
    """
    table = _table(weights, dtype, device or torch.device("cpu"))
    start = first % len(table)
    if columns == len(table) and not start:
        return table
    if start + columns <= len(table):
        return table[start : start + columns]
    return table[torch.arange(first, first + columns, device=table.device) % len(table)]


@lru_cache(maxsize=8)
def _table(weights: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``Sᵀ``, ``(weights, 16)``, the same every time."""
    if weights <= WIDTH:
        return torch.eye(weights, WIDTH, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(min(weights, _LONGEST), WIDTH, dtype=torch.float64, generator=generator)
    table: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return table.to(device, dtype)


def unit(sums: Tensor, norms: Tensor, weights: int) -> Tensor:
    """Return ``S w / ‖w‖``, ``(nodes, min(weights, 16))``; NaN where a norm is zero or not finite."""
    usable = torch.isfinite(norms) & (norms > 0)
    return torch.where(usable[:, None], sums / norms[:, None], torch.nan)[:, :weights]
