"""Kinds in which an output is a sum over columns of inputs: ``z[n, u, t] = Σ_j W[u, j] A[n, group(u), j, t] + b[u]``.

Gradients are held as ``(batch, nodes, own outputs, positions)``; a node has more than one output of its own where it is
a gated unit or an attention head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nndiag.replay.kinds.base import Kind, Layer, Share, Use
from nndiag.replay.units import Units

TILE_BYTES = 64 * 2**20


class ColumnKind(Kind):
    """What follows from the columns and from the function itself; those are what a kind has to say.

    ``elementwise`` says that every node has an input of its own.
    """

    functions: ClassVar[Mapping[str, Sequence[str]]]
    elementwise: ClassVar[bool] = False

    @abstractmethod
    def columns(self, use: Use) -> Tensor:
        """Return ``A`` without the ones of a bias, ``(rows, groups, fan_in, positions)``."""

    @abstractmethod
    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the function's output with other parameters, ``(rows, outputs, positions)``."""

    @abstractmethod
    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of weight and bias at ``(rows, outputs, positions)`` cotangents."""

    def fits(self, use: Use, output: Tensor) -> bool:
        """Every call."""
        return True

    def units(self, output: Tensor, layer: Layer) -> Units | None:
        """Channels follow the batch."""
        return Units(1, layer.nodes)

    def leading(self, use: Use, output_shape: Sequence[int]) -> Sequence[int]:
        """Rows come first."""
        return output_shape[:1]

    def spread(self, use: Use, output: Tensor) -> Tensor:
        """Channels follow the rows, positions follow the channels."""
        return output.flatten(2) if output.dim() > 2 else output.unsqueeze(2)

    def gather(self, share: Share, gradients: Sequence[Tensor]) -> Tensor:
        """Return ``(batch, nodes, own outputs, positions)``."""
        parts = [
            _apart(use, self.spread(use, gradients[place]))
            for use, place in zip(share.uses, share.places, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def inputs(self, share: Share) -> Tensor:
        """Return the columns, ones last for a bias, ``(batch, groups, fan_in, positions)``."""
        columns = self.joined(share)
        if share.uses[0].bias is None:
            return columns
        ones = columns.new_ones(*columns.shape[:2], 1, columns.shape[3])
        return torch.cat([columns, ones], dim=2)

    def joined(self, share: Share) -> Tensor:
        """Return the columns of all calls side by side, without ones."""
        parts = [columns_apart(use, self.columns(use)) for use in share.uses]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def jacobian(self, share: Share, inputs: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
        """``J[n, i] = Σ_t g[n, i, :, t] A[n, :, t]``; both ends at group boundaries, or inside one group."""
        own = g.shape[2]
        per_group = g.shape[1] * own // inputs.shape[1]
        first, last = start * own // per_group, (stop * own - 1) // per_group
        cotangents = g[:, start:stop].reshape(g.shape[0], last - first + 1, -1, g.shape[3])
        products = cotangents @ inputs[:, first : last + 1].mT
        if own == 1:
            return products.reshape(g.shape[0], stop - start, -1)
        products = products.reshape(g.shape[0], stop - start, own, -1)
        if share.uses[0].bias is None:
            return products.flatten(2)
        return torch.cat([products[..., :-1].flatten(2), products[..., -1]], dim=2)

    def squared_norms(self, share: Share, inputs: Tensor, g: Tensor) -> Tensor:
        """Return ``‖J[n, i]‖²`` by the cheapest of three ways.

        With one position ``J`` is an outer product. With few, ``‖J[n, i]‖² = Σ_{t,u} g_t g_u ⟨A_t, A_u⟩`` (the ghost
        norm of Goodfellow 2015) needs no Jacobian. Else Jacobians are formed for a tile of nodes at a time.
        """
        groups, size, positions = inputs.shape[1], share.width, g.shape[3]
        if positions == 1:
            norms = inputs.square().sum(dim=(2, 3)).repeat_interleave(g.shape[1] // groups, dim=1)
            return g.square().sum(dim=(2, 3)) * norms
        if groups == 1 and positions * (size + g.shape[1]) < size * g.shape[1]:
            images = (g.flatten(1, 2) @ self.overlaps(share, inputs, positions)).reshape_as(g)
            ghosts: Tensor = torch.linalg.vecdot(images.flatten(2), g.flatten(2))
            return ghosts.clamp_min_(0)
        parts = [
            self.jacobian(share, inputs, g, start, stop).square_().sum(dim=2)
            for start, stop in tiles(share.layer, len(g), g.element_size(), nodes=g.shape[1])
        ]
        return torch.cat(parts, dim=1)

    def overlaps(self, share: Share, inputs: Tensor, positions: int) -> Tensor:
        """Return ``⟨A_t, A_u⟩`` of every sample, ``(batch, positions, positions)``, where there is one group."""
        return inputs[:, 0].mT @ inputs[:, 0]

    def reach(self, share: Share, g: Tensor) -> Tensor:
        """``Σ_{n,t} g²``."""
        return g.double().square().sum(dim=(0, 2, 3))

    def lookups(self, share: Share) -> Tensor | None:
        """Every node takes part in every call."""
        return None

    def merged(self, share: Share) -> Share:
        """Return the share as it is."""
        return share

    def respond(self, share: Share, rows: Tensor) -> Tensor:
        """Return the function of other parameters."""
        first = share.uses[0]
        weight = first.weight.parameter_of(rows[:, : first.weight.width])
        bias = None if first.bias is None else first.bias.parameter_of(rows[:, first.weight.width :])
        parts = [_apart(use, self.operate(use, weight, bias)) for use in share.uses]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def contract(self, share: Share, g: Tensor, response: Tensor) -> Tensor:
        """``Σ_t g u``."""
        if g.is_contiguous() and response.is_contiguous():  # faster only where nothing must be copied for it
            return torch.einsum("nip,nip->ni", g.flatten(2), response.flatten(2))
        return (g * response).sum(dim=(2, 3))

    def weigh(self, share: Share, q: Tensor, g: Tensor, sums: Tensor) -> None:
        """Add ``q g``."""
        sums.addcmul_(q[:, :, None, None], g)

    def pull_back(self, share: Share, cotangents: Tensor) -> Tensor:
        """Return the gradients of all calls, added up."""
        first = share.uses[0]
        total: Tensor | None = None
        start = 0
        for use in share.uses:
            positions = cotangents.shape[3] if len(share.uses) == 1 else _positions(use, self.count(use))
            back = _together(use, cotangents[..., start : start + positions])
            start += positions
            weight, bias = self.parameter_gradient(use, back)
            rows = first.weight.rows(weight)
            if first.bias is not None:
                assert bias is not None
                rows = torch.cat([rows, first.bias.rows(bias)], dim=1)
            total = rows if total is None else total + rows
        assert total is not None
        return total

    @abstractmethod
    def count(self, use: Use) -> tuple[int, int]:
        """Return rows and positions of the function's output."""


def tiles(
    layer: Layer, rows: int, itemsize: int, tile_bytes: int = TILE_BYTES, nodes: int | None = None
) -> list[tuple[int, int]]:
    """Cut a layer's nodes into ranges whose Jacobians of ``rows`` samples stay below ``tile_bytes``.

    A range lies inside one group or covers whole groups. ``nodes`` says how many there are where several columns of
    gradients stand side by side.
    """
    nodes = layer.nodes if nodes is None else nodes
    per_group = nodes // layer.groups
    fitting = max(1, tile_bytes // max(1, rows * layer.size * itemsize))
    if fitting >= per_group:
        step = (fitting // per_group) * per_group
        return [(s, min(nodes, s + step)) for s in range(0, nodes, step)]
    found = []
    for group in range(layer.groups):
        begin, end = group * per_group, (group + 1) * per_group
        found += [(s, min(end, s + fitting)) for s in range(begin, end, fitting)]
    return found


def _positions(use: Use, count: tuple[int, int]) -> int:
    rows, positions = count
    return use.samples.before * use.samples.after * positions if rows else positions


def _apart(use: Use, z: Tensor) -> Tensor:
    """Return ``(rows, outputs, positions)`` as ``(batch, nodes, own outputs, positions)``."""
    before, after = use.samples.before, use.samples.after
    outer, inner = use.weight.outer, use.weight.inner
    rows, outputs, positions = z.shape
    if before == after == outer == inner == 1:
        return z.unsqueeze(2)
    batch, nodes = use.samples.batch(rows), outputs // (outer * inner)
    seen = z.reshape(before, batch, after, outer, nodes, inner, positions)
    return seen.permute(1, 4, 3, 5, 0, 2, 6).reshape(batch, nodes, outer * inner, before * after * positions)


def _together(use: Use, g: Tensor) -> Tensor:
    """Return ``(batch, nodes, own outputs, positions)`` as ``(rows, outputs, positions)``: the way back."""
    before, after = use.samples.before, use.samples.after
    outer, inner = use.weight.outer, use.weight.inner
    batch, nodes = g.shape[:2]
    if before == after == outer == inner == 1:
        return g.squeeze(2)
    seen = g.reshape(batch, nodes, outer, inner, before, after, -1).permute(4, 0, 5, 2, 1, 3, 6)
    return seen.reshape(before * batch * after, outer * nodes * inner, -1)


def columns_apart(use: Use, columns: Tensor) -> Tensor:
    """Return ``(rows, groups, fan_in, positions)`` as ``(batch, groups, fan_in, positions)``."""
    before, after = use.samples.before, use.samples.after
    if before == after == 1:
        return columns
    rows, groups, fan_in, positions = columns.shape
    seen = columns.reshape(before, use.samples.batch(rows), after, groups, fan_in, positions)
    return seen.permute(1, 3, 4, 0, 2, 5).reshape(-1, groups, fan_in, before * after * positions)
