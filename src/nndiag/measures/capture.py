"""What a replay keeps of one layer for its curvature, and in which of the three forms of ``blocks``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.measures.blocks import GramBlocks, ImplicitBlocks, NodeBlocks, OuterBlocks, Segment
from nndiag.replay.jacobian import input_columns, jacobian, tiles
from nndiag.replay.kinds import Layer

EXPECTED_PRODUCTS = 7
"""How many products a solver takes, for the choice of the form."""
SECONDS_PER_PATCH, SECONDS_PER_ENTRY = 1.5e-9, 6e-10
"""Laying out one entry of a patch; one elementwise operation on one entry."""
FLOPS_OF_MATRIX, FLOPS_OF_LAYER = 7e10, 1.2e11
"""Rates of batched matrix products and of the layer's own function. Only their proportions matter."""
WHOLE_BYTES = 512 * 2**20
"""Blocks of one layer that take more than this are never added up whole."""


class Capture:
    """Collects the rows of one layer, pass by pass, and gives its blocks in the end.

    Args:
        layer: the layer.
        samples: samples of the whole probe.
        folds: folds of the probe.
        dense: whether the blocks themselves will be wanted.
    """

    def __init__(self, layer: Layer, samples: int, folds: int, dense: bool = False) -> None:
        self.layer = layer
        self._samples, self._folds = samples, folds
        self._whole: bool | None = True if dense else None
        self._inputs: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._row_folds: list[Tensor] = []
        self._segments: list[Segment] = []
        self._sums: Tensor | None = None
        self._rows = 0

    def add(self, use: LayerUse, gradients: Sequence[Tensor], folds: Tensor) -> None:
        """Keep what one forward pass showed.

        Args:
            use: the calls of the layer.
            gradients: per column, ``(batch, nodes, positions)``.
            folds: fold of every row of the batch.
        """
        if use.positions == 1 and self.layer.groups == 1:
            self._add_outer(use, gradients, folds)
            return
        if self._whole is None:
            self._whole = self._prefer_whole(use.positions, len(gradients))
        if self._whole:
            self._add_whole(use, gradients, folds)
        else:
            self._segments.append(Segment(use.uses, torch.stack(list(gradients)), folds))

    def blocks(self) -> NodeBlocks:
        """Return the blocks of all nodes."""
        if self._inputs:
            return OuterBlocks(
                torch.cat(self._inputs), torch.cat(self._weights), torch.cat(self._row_folds), self._samples
            )
        if self._sums is not None:
            return GramBlocks(self._sums, self._sums.sum(dim=0) / self._samples, self._samples, self._rows)
        return ImplicitBlocks(self.layer, self._segments, self._samples)

    def _prefer_whole(self, positions: int, columns: int) -> bool:
        """Compare the time of adding blocks up whole with that of products through the layer's own function."""
        nodes, size = self.layer.nodes, self.layer.size
        if self._folds * nodes * size * size * 8 > WHOLE_BYTES:
            return False
        rows, entries = self._samples * columns, self._samples * positions
        whole = (
            entries * size * SECONDS_PER_PATCH
            + 2 * rows * nodes * size * (positions / self.layer.groups + size) / FLOPS_OF_MATRIX
        )
        product = (
            4 * entries * size * nodes / FLOPS_OF_LAYER + 4 * columns * entries * nodes * SECONDS_PER_ENTRY
        )
        return whole < EXPECTED_PRODUCTS * product

    def _add_outer(self, use: LayerUse, gradients: Sequence[Tensor], folds: Tensor) -> None:
        self._inputs.append(input_columns(self.layer, use.uses[0])[:, 0, :, 0].detach())
        weights = torch.zeros_like(gradients[0][:, :, 0])
        for g in gradients:
            weights.addcmul_(g[:, :, 0], g[:, :, 0])
        self._weights.append(weights)
        self._row_folds.append(folds)

    def _add_whole(self, use: LayerUse, gradients: Sequence[Tensor], folds: Tensor) -> None:
        layer, columns = self.layer, use.columns().detach()
        if self._sums is None:
            self._sums = columns.new_zeros(self._folds, layer.nodes, layer.size, layer.size)
        self._rows += len(folds) * len(gradients)
        members = [_rows_of(folds, fold, self._folds) for fold in range(self._folds)]
        for start, stop in tiles(layer, len(folds) * len(gradients), columns.element_size()):
            for part in _jacobians(layer, columns, gradients, start, stop):
                for fold, rows in enumerate(members):
                    own = part[rows].movedim(0, 1)
                    self._sums[fold, start:stop].baddbmm_(own.mT, own)


def _jacobians(
    layer: Layer, columns: Tensor, gradients: Sequence[Tensor], start: int, stop: int
) -> Iterator[Tensor]:
    """Yield the Jacobians of a tile of nodes, a column at a time; one product forms them all where it can."""
    if layer.groups > 1 or len(gradients) == 1:
        for g in gradients:
            yield jacobian(layer, columns, g, start, stop)
        return
    together = torch.cat([g[:, start:stop] for g in gradients], dim=1) @ columns[:, 0].mT
    for place in range(len(gradients)):
        yield together[:, place * (stop - start) : (place + 1) * (stop - start)]


def _rows_of(folds: Tensor, fold: int, count: int) -> slice | Tensor:
    """Return the rows of one fold: a slice, which copies nothing, where folds follow each other in turn."""
    turn = (torch.arange(len(folds)) + int(folds[0])) % count if len(folds) else folds
    if torch.equal(turn, folds):
        return slice((fold - int(folds[0])) % count if len(folds) else 0, None, count)
    return torch.nonzero(folds == fold).flatten()
