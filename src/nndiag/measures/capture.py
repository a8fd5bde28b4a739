"""What a replay keeps of one layer for its curvature, and in which of the forms of ``blocks``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.measures.blocks import GramBlocks, ImplicitBlocks, NodeBlocks, OuterBlocks, RowBlocks, Segment
from nndiag.replay.jacobian import jacobian
from nndiag.replay.kinds import ColumnKind, Layer, tiles

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
        self._jacobians: list[Tensor] = []
        self._sums: Tensor | None = None
        self._rows = 0

    def add(self, use: LayerUse, gradients: Sequence[Sequence[Tensor]], folds: Tensor) -> None:
        """Keep what one forward pass showed.

        Args:
            use: the calls of the layer.
            gradients: per column one tensor a share, as its kind holds them.
            folds: fold of every row of the batch.
        """
        if _one_position(use, gradients):
            self._add_outer(use, gradients, folds)
            return
        if self._whole is None:
            self._whole = self._prefer_whole(_positions(use, gradients), len(gradients))
        if self._whole:
            self._add_whole(use, gradients, folds)
        else:
            kept = tuple(tuple(of_column) for of_column in gradients)
            self._segments.append(Segment(use.shares, kept, folds))

    def add_jacobians(self, rows: Tensor, folds: Tensor) -> None:
        """Keep Jacobians ``(columns, batch, nodes, size)``; ``folds`` is of every sample of the batch."""
        size = self.layer.size
        if self._whole is None:
            self._whole = self._folds * self.layer.nodes * size * size * rows.element_size() <= WHOLE_BYTES
        flat, of_row = rows.flatten(0, 1), folds.repeat(len(rows))
        if not self._whole:
            self._jacobians.append(flat.movedim(0, 1))
            self._row_folds.append(of_row)
            return
        sums = self._whole_sums(rows)
        self._rows += len(flat)
        for fold in range(self._folds):
            own = flat[of_row == fold].movedim(0, 1)
            sums[fold].baddbmm_(own.mT, own)

    def blocks(self) -> NodeBlocks:
        """Return the blocks of all nodes."""
        if self._inputs:
            return OuterBlocks(
                torch.cat(self._inputs), torch.cat(self._weights), torch.cat(self._row_folds), self._samples
            )
        if self._jacobians:
            return RowBlocks(torch.cat(self._jacobians, dim=1), torch.cat(self._row_folds), self._samples)
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

    def _add_outer(self, use: LayerUse, gradients: Sequence[Sequence[Tensor]], folds: Tensor) -> None:
        self._inputs.append(use.inputs()[0][:, 0, :, 0])
        weights = torch.zeros_like(gradients[0][0][:, :, 0, 0])
        for (g,) in gradients:
            weights.addcmul_(g[:, :, 0, 0], g[:, :, 0, 0])
        self._weights.append(weights)
        self._row_folds.append(folds)

    def _add_whole(self, use: LayerUse, gradients: Sequence[Sequence[Tensor]], folds: Tensor) -> None:
        layer, inputs = self.layer, use.inputs()
        like = gradients[0][0]
        sums = self._whole_sums(like)
        self._rows += len(folds) * len(gradients)
        members = [_rows_of(folds, fold, self._folds) for fold in range(self._folds)]
        for start, stop in tiles(layer, len(folds) * len(gradients), like.element_size()):
            for part in _jacobians(use, inputs, gradients, start, stop):
                for fold, rows in enumerate(members):
                    own = part[rows].movedim(0, 1)
                    sums[fold, start:stop].baddbmm_(own.mT, own)

    def _whole_sums(self, like: Tensor) -> Tensor:
        if self._sums is None:
            layer = self.layer
            self._sums = like.new_zeros(self._folds, layer.nodes, layer.size, layer.size)
        return self._sums


def _plain(use: LayerUse, gradients: Sequence[Sequence[Tensor]]) -> bool:
    """Whether all parameters are used in one way, a node having one output a position, all with the same inputs."""
    share = use.shares[0]
    if len(use.shares) > 1 or not share.complete or use.layer.groups > 1:
        return False
    return isinstance(share.kind, ColumnKind) and gradients[0][0].shape[2] == 1


def _one_position(use: LayerUse, gradients: Sequence[Sequence[Tensor]]) -> bool:
    return _plain(use, gradients) and gradients[0][0].shape[3] == 1


def _positions(use: LayerUse, gradients: Sequence[Sequence[Tensor]]) -> int:
    """Return how many positions a sample has in the calls of a layer."""
    return sum(g[0, 0].numel() for g in gradients[0])


def _jacobians(
    use: LayerUse, inputs: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], start: int, stop: int
) -> Iterator[Tensor]:
    """Yield the Jacobians of a tile of nodes, a column at a time; one product forms them all where it can."""
    if len(gradients) == 1 or not _plain(use, gradients):
        for of_column in gradients:
            yield jacobian(use.layer, use.parts(inputs, of_column), start, stop)
        return
    together = torch.cat([g[:, start:stop, 0] for (g,) in gradients], dim=1) @ inputs[0][:, 0].mT
    for place in range(len(gradients)):
        yield together[:, place * (stop - start) : (place + 1) * (stop - start)]


def _rows_of(folds: Tensor, fold: int, count: int) -> slice | Tensor:
    """Return the rows of one fold: a slice, which copies nothing, where folds follow each other in turn."""
    turn = (torch.arange(len(folds), device=folds.device) + int(folds[0])) % count if len(folds) else folds
    if torch.equal(turn, folds):
        return slice((fold - int(folds[0])) % count if len(folds) else 0, None, count)
    return torch.nonzero(folds == fold).flatten()
