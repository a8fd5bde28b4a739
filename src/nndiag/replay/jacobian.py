"""Gradients of single samples with respect to single nodes, from a layer's inputs and the gradients at its
output.

For sample ``n`` and node ``i``: ``J[n, i] = Σ_t g[n, i, t] A[n, group(i), :, t]`` with ``A`` the inputs of
the node, a one last
where it has a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nndiag.replay.kinds.base import Layer, Use

TILE_BYTES = 64 * 2**20


def input_columns(layer: Layer, use: Use) -> Tensor:
    """Return ``A``: the inputs of the nodes, ``(batch, groups, size, positions)``, ones last for a bias."""
    columns = layer.kind.columns(layer, use)
    if layer.bias is None:
        return columns
    ones = columns.new_ones(*columns.shape[:2], 1, columns.shape[3])
    return torch.cat([columns, ones], dim=2)


def jacobian(layer: Layer, columns: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
    """Return ``J`` of the nodes ``start:stop`` as ``(batch, stop - start, size)``.

    Args:
        layer: the layer.
        columns: ``(batch, groups, size, positions)``.
        g: gradients at the layer's output, ``(batch, nodes, positions)``.
        start: first node.
        stop: one past the last; both at group boundaries, or inside one group (see ``tiles``).
    """
    per_group = layer.nodes // layer.groups
    first, last = start // per_group, (stop - 1) // per_group
    groups = last - first + 1
    cotangents = g[:, start:stop].reshape(g.shape[0], groups, -1, g.shape[2])
    products = cotangents @ columns[:, first : last + 1].mT
    return products.reshape(g.shape[0], stop - start, -1)


def tiles(layer: Layer, rows: int, itemsize: int, tile_bytes: int = TILE_BYTES) -> Iterator[tuple[int, int]]:
    """Cut a layer's nodes into ranges whose Jacobians of ``rows`` samples stay below ``tile_bytes``.

    A range lies inside one group or covers whole groups.
    """
    per_group = layer.nodes // layer.groups
    fitting = max(1, tile_bytes // max(1, rows * layer.size * itemsize))
    if fitting >= per_group:
        step = (fitting // per_group) * per_group
        yield from ((s, min(layer.nodes, s + step)) for s in range(0, layer.nodes, step))
        return
    for group in range(layer.groups):
        begin, end = group * per_group, (group + 1) * per_group
        yield from ((s, min(end, s + fitting)) for s in range(begin, end, fitting))


def squared_norms(layer: Layer, columns: Tensor, g: Tensor) -> Tensor:
    """Return ``‖J[n, i]‖²`` as ``(batch, nodes)``, by the cheapest of three ways.

    With one position ``J`` is an outer product. With few, ``‖J[n, i]‖² = Σ_{t,u} g_t g_u ⟨A_t, A_u⟩`` (the
    ghost norm of
    Goodfellow 2015) needs no Jacobian. Else Jacobians are formed for a tile of nodes at a time.

    Args:
        layer: the layer.
        columns: ``(batch, groups, size, positions)``.
        g: ``(batch, nodes, positions)``.
    """
    size, positions = columns.shape[2:]
    if positions == 1:
        per_group = layer.nodes // layer.groups
        norms = columns.square().sum(dim=(2, 3)).repeat_interleave(per_group, dim=1)
        return g.squeeze(2).square() * norms
    if layer.groups == 1 and positions * (size + layer.nodes) < size * layer.nodes:
        return ghost_norms(columns[:, 0], g)
    parts = [
        jacobian(layer, columns, g, start, stop).square().sum(dim=2)
        for start, stop in tiles(layer, len(g), g.element_size())
    ]
    return torch.cat(parts, dim=1)


def ghost_norms(columns: Tensor, g: Tensor) -> Tensor:
    """Return ``Σ_{t,u} g_t g_u ⟨A_t, A_u⟩`` for inputs ``(batch, size, positions)``, as ``(batch, nodes)``."""
    products = columns.mT @ columns
    return ((g @ products) * g).sum(dim=2).clamp_min_(0)
