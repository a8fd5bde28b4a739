"""Gradients of single samples with respect to single nodes, over all uses of a layer's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nndiag.replay.kinds import ColumnKind, Layer, Share, tiles

Part = tuple[Share, Tensor, Tensor]
"""Calls that use the same parameters, their inputs, and gradients at their outputs, as their kind holds them."""


def jacobian(layer: Layer, parts: Sequence[Part], start: int, stop: int) -> Tensor:
    """Return ``J`` of the nodes ``start:stop`` as ``(batch, stop − start, size)``.

    Args:
        layer: the layer.
        parts: one for each way in which its parameters are used.
        start: first node.
        stop: one past the last; both as ``tiles`` gives them.
    """
    if len(parts) == 1 and parts[0][0].complete:
        share, inputs, g = parts[0]
        return share.kind.jacobian(share, inputs, g, start, stop)
    found: Tensor | None = None
    for share, inputs, g in parts:
        own = share.kind.jacobian(share, inputs, g, start, stop)
        if found is None:
            found = own.new_zeros(len(own), stop - start, layer.size)
        share.add_to(found, own)
    assert found is not None
    return found


def same_inputs(shares: Sequence[Share], g: Tensor) -> bool:
    """Whether all parameters are used in one way, a node having one output a position, all with the same inputs.

    Args:
        shares: the ways in which a layer's parameters are used.
        g: gradients at the outputs of the first of them.
    """
    share = shares[0]
    if len(shares) > 1 or not share.complete or share.layer.groups > 1:
        return False
    kind = share.kind
    return isinstance(kind, ColumnKind) and not kind.elementwise and g.shape[2] == 1


def beside(
    shares: Sequence[Share], gradients: tuple[tuple[Tensor, ...], ...]
) -> tuple[tuple[Tensor, ...], ...]:
    """Return the columns of gradients as one, side by side like more nodes, where nodes have the same inputs."""
    if len(gradients) == 1 or not same_inputs(shares, gradients[0][0]):
        return gradients
    return ((torch.cat([g for (g,) in gradients], dim=1),),)


def squared_norms(layer: Layer, parts: Sequence[Part]) -> Tensor:
    """Return ``‖J[n, i]‖²`` as ``(batch, nodes)``."""
    slots = [slot for share, _, _ in parts for slot in share.slots]
    if len(slots) == len(set(slots)):  # no parameter is used in two ways: nothing to add up before squaring
        return torch.stack([s.kind.squared_norms(s, inputs, g) for s, inputs, g in parts]).sum(dim=0)
    g = parts[0][2]
    return torch.cat(
        [jacobian(layer, parts, a, b).square().sum(dim=2) for a, b in tiles(layer, len(g), g.element_size())],
        dim=1,
    )
