"""What a replay keeps of one layer for its curvature, and in which of the forms of ``blocks``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.measures.blocks import GramBlocks, NodeBlocks, OuterBlocks, RowBlocks
from nndiag.measures.folds import FoldRows
from nndiag.measures.implicit import ImplicitBlocks, Segment
from nndiag.measures.shown import Shown
from nndiag.replay.jacobian import beside, jacobian, same_inputs
from nndiag.replay.kinds import Layer, tiles
from nndiag.spectrum import Tally

EXPECTED_PRODUCTS = 7
"""How many products a solver takes, for the choice of the form."""
SECONDS_PER_PATCH, SECONDS_PER_ENTRY = 1.5e-9, 6e-10
"""Laying out one entry of a patch; one elementwise operation on one entry."""
FLOPS_OF_MATRIX, FLOPS_OF_LAYER = 7e10, 1.2e11
"""Rates of batched matrix products and of the layer's own function. Only their proportions matter."""
SECONDS_PER_KEPT = 5e-10
"""Multiplying one entry of a Jacobian that is kept, there and back."""
WHOLE_BYTES, ROWS_BYTES = 512 * 2**20, 64 * 2**20
"""Blocks of one layer that take more than this are never added up whole, Jacobians of one never kept."""

Way = Literal["whole", "rows", "implicit"]
"""Blocks are added up, Jacobians are kept, or what they are made of is."""


class Capture:
    """Collects the rows of one layer, pass by pass, and gives its blocks in the end.

    Args:
        layer: the layer.
        samples: samples of the whole probe.
        folds: folds of the probe.
        dense: whether the blocks themselves will be wanted.
        way: of keeping layers with several positions, and all layers if it is ``"whole"``; by default the cheapest.
        nodes: the nodes wanted of one group, or of whole groups; all by default.
    """

    def __init__(
        self,
        layer: Layer,
        samples: int,
        folds: int,
        dense: bool = False,
        *,
        way: Way | None = None,
        nodes: tuple[int, int] | None = None,
    ) -> None:
        self.layer = layer
        self.bytes = 0
        self._samples, self._folds = samples, folds
        self._always = way == "whole"
        self._way: Way | None = "whole" if dense else way
        self._nodes = nodes or (0, layer.nodes)
        self._inputs: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._row_folds: list[Tensor] = []
        self._segments: list[Segment] = []
        self._jacobians: list[Tensor] = []
        self._sums: Tensor | None = None
        self._tally: Tally | None = None
        self._rows = 0

    def add(self, shown: Shown, folds: FoldRows) -> None:
        """Keep what the passes after one forward pass showed, of samples that no other shows.

        Args:
            shown: of the layer.
            folds: of the rows of the batch.
        """
        use, gradients = shown.use, shown.columns
        if shown.jacobians:
            self.add_jacobians(torch.stack(shown.jacobians), folds)
            return
        if shown.weights is not None:
            if not self._always:
                self._add_outer(use, shown.weights, folds)
                return
            self._note(Tally.of(_only_inputs(use), shown.weights))
            self._add_whole(use, [[shown.weights.sqrt()[:, :, None, None]]], folds)
            self._rows = min(self._rows, self._samples)  # one input a sample, however many passes
            return
        self._way = self._way or self.cheapest(use, gradients)
        if self._way == "whole":
            self._add_whole(use, gradients, folds)
        elif self._way == "rows":
            own = _jacobians(use, use.inputs(), gradients, *self._nodes)
            self._add_rows(own.flatten(0, 1), folds.of_row.repeat_interleave(len(gradients)))
        else:
            self._add_segment(use, tuple(tuple(of_column) for of_column in gradients), folds)

    def add_jacobians(self, rows: Tensor, folds: FoldRows) -> None:
        """Keep Jacobians ``(columns, batch, nodes, size)``; ``folds`` are those of the samples of the batch."""
        if self._way is None:
            self._way = "whole" if fits_whole(self.layer, self._folds, rows.element_size()) else "rows"
        own = rows[:, :, slice(*self._nodes)]
        if self._way != "whole":
            self._add_rows(own.flatten(0, 1), folds.of_row.repeat(len(rows)))
            return
        self._rows += len(rows) * len(folds)
        _add_products(self._whole_sums(rows), own.transpose(0, 1), folds)

    def blocks(self) -> NodeBlocks:
        """Return the blocks of the nodes; what was kept goes over to them, so that this can be asked for once."""
        if self._inputs:
            inputs, weights, folds = (_joined(x) for x in (self._inputs, self._weights, self._row_folds))
            return OuterBlocks(inputs, weights, folds, self._samples)
        if self._jacobians:
            return RowBlocks(self._jacobians, self._row_folds, self._samples)
        if self._sums is not None:
            total = self._sums.sum(dim=0) / self._samples
            return GramBlocks(self._sums, total, self._samples, self._rows, self._tally)
        return ImplicitBlocks(self.layer, self._segments, self._samples)

    def cheapest(self, use: LayerUse, gradients: Sequence[Sequence[Tensor]]) -> Way:
        """Return the way that takes the least time, going by one batch of so many columns of several positions."""
        layer, positions, columns = self.layer, _positions(gradients), len(gradients)
        rows, entries = self._samples * columns, self._samples * positions
        jacobians = rows * layer.nodes * layer.size
        forming = entries * layer.size * SECONDS_PER_PATCH
        forming += 2 * jacobians * positions / layer.groups / FLOPS_OF_MATRIX
        product = 4 * entries * layer.size * layer.nodes / FLOPS_OF_LAYER
        product += 4 * columns * entries * layer.nodes * SECONDS_PER_ENTRY
        seconds: dict[Way, float] = {"implicit": EXPECTED_PRODUCTS * product}
        if self._folds * layer.nodes * layer.size**2 * 8 <= WHOLE_BYTES:
            seconds["whole"] = forming + 2 * jacobians * layer.size / FLOPS_OF_MATRIX
        if jacobians * gradients[0][0].element_size() <= ROWS_BYTES:
            seconds["rows"] = forming + EXPECTED_PRODUCTS * jacobians * SECONDS_PER_KEPT
        return min(seconds, key=seconds.__getitem__)

    def _count(self, *tensors: Tensor) -> None:
        self.bytes += sum(t.numel() * t.element_size() for t in tensors)

    def _add_outer(self, use: LayerUse, weights: Tensor, folds: FoldRows) -> None:
        inputs = _only_inputs(use)
        self._inputs.append(inputs)
        self._weights.append(weights)
        self._row_folds.append(folds.of_row)
        self._count(inputs, weights, folds.of_row)

    def _note(self, tally: Tally) -> None:
        """Note of the rows what their sums do not tell, where all nodes are wanted."""
        if self._nodes != (0, self.layer.nodes):
            return
        if self._tally is None:
            self._tally = tally
        else:
            self._tally.add(tally)

    def _add_rows(self, rows: Tensor, folds: Tensor) -> None:
        self._jacobians.append(rows)
        self._row_folds.append(folds)
        self._count(rows, folds)

    def _add_segment(self, use: LayerUse, gradients: tuple[tuple[Tensor, ...], ...], folds: FoldRows) -> None:
        self._count(*(g for of_column in gradients for g in of_column), folds.of_row)
        shares = tuple(share.kind.merged(share) for share in use.shares)
        self._segments.append(Segment(shares, gradients, folds.of_row))
        self._count(*(x for share in shares for one in share.uses for x in one.inputs.values()))

    def _add_whole(self, use: LayerUse, gradients: Sequence[Sequence[Tensor]], folds: FoldRows) -> None:
        layer, inputs, like = self.layer, use.inputs(), gradients[0][0]
        sums = self._whole_sums(like)
        rows = len(folds) * len(gradients)
        self._rows += rows
        begin, end = self._nodes
        for first, last in tiles(layer, rows, like.element_size()):
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                own = _jacobians(use, inputs, gradients, start, stop)
                _add_products(sums[:, start - begin : stop - begin], own, folds)

    def _whole_sums(self, like: Tensor) -> Tensor:
        if self._sums is None:
            layer = self.layer
            begin, end = self._nodes
            self._sums = like.new_zeros(self._folds, end - begin, layer.size, layer.size)
            self._count(self._sums, self._sums[0])
        return self._sums


def fits_whole(layer: Layer, folds: int, itemsize: int) -> bool:
    """Whether the blocks of a layer known by Jacobians are added up whole, memory allowing."""
    return folds * layer.nodes * layer.size**2 * itemsize <= WHOLE_BYTES


def _joined(parts: list[Tensor]) -> Tensor:
    """Put the parts together and forget them."""
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    parts.clear()
    return found


def _only_inputs(use: LayerUse) -> Tensor:
    """Return the inputs of a layer with one position, ``(batch, size)``."""
    return use.inputs()[0][:, 0, :, 0]


def _positions(gradients: Sequence[Sequence[Tensor]]) -> int:
    """Return how many positions a sample has in the calls of a layer."""
    return sum(g[0, 0].numel() for g in gradients[0])


def _jacobians(
    use: LayerUse, inputs: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], start: int, stop: int
) -> Tensor:
    """Return the Jacobians of a tile of nodes, ``(batch, columns, stop - start, size)``."""
    if not same_inputs(use.shares, gradients[0][0]):
        return torch.stack([jacobian(use.layer, use.parts(inputs, g), start, stop) for g in gradients], dim=1)
    (of_all,) = beside(use.shares, tuple((g[:, start:stop],) for (g,) in gradients))
    found = jacobian(use.layer, use.parts(inputs, of_all), 0, of_all[0].shape[1])
    return found.reshape(len(found), len(gradients), stop - start, -1)


def _add_products(sums: Tensor, jacobians: Tensor, folds: FoldRows) -> None:
    """Add ``Σ J Jᵀ`` over the rows of each fold.

    Args:
        sums: ``(folds, nodes, size, size)``.
        jacobians: ``(batch, columns, nodes, size)``.
        folds: of the batch.
    """
    for fold, rows in folds.rows.items():
        own = jacobians[rows].flatten(0, 1).movedim(0, 1)
        sums[fold].baddbmm_(own.mT, own)
