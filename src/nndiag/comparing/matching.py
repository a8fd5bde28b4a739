"""Two networks whose nodes are in different order: which node of one is which of the other.

By best assignment: the sum of distances between what both reports say of a node is least, layer by layer. Source: Kuhn
1955, "The Hungarian method", in the form of shortest augmenting paths (Jonker and Volgenant 1987).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nndiag.comparing.run import Floats, LayerRun, Run
from nndiag.errors import UsageError

MOST = 2048
"""Nodes of a layer that are assigned; the time grows with the cube."""


def matched(run: Run) -> Run:
    """Return a run of two checkpoints with the nodes of the first put in the order of the second.

    What does not depend on the order of the layer before is compared: norms, bias, curvature; in the first layer, whose
    inputs have one order, also the directions. A layer whose nodes say nothing of themselves keeps its order.

    Raises:
        UsageError: a layer is too wide to be assigned.
    """
    layers = tuple(_matched(layer, first=not place) for place, layer in enumerate(run.layers))
    return replace(run, layers=layers)


def _matched(layer: LayerRun, *, first: bool) -> LayerRun:
    if layer.nodes > MOST:
        why = f"layer {layer.name} has {layer.nodes:,} nodes, and at most {MOST:,} can be matched"
        raise UsageError("--match", why, "compare without --match")
    if layer.nodes == 1 or not layer.present.all():
        return layer
    before, after = _features(layer, 0, first), _features(layer, 1, first)
    if not before.size or not after.size:
        return layer
    cost = np.square(after[:, None, :] - before[None, :, :]).sum(axis=2)
    order = assignment(cost)
    return _reordered(layer, order)


def _features(layer: LayerRun, place: int, first: bool) -> Floats:
    """Return what is known of every node, ``(nodes, k)``, each column scaled by its spread over both checkpoints."""
    columns = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for values in (np.log(layer.weights), layer.biases, np.log(np.abs(layer.curvatures) + 1e-30)):
            usable = np.where(np.isfinite(values), values, 0.0)
            spread = usable.std()
            if spread > 0:
                columns.append(usable[place] / spread)
    if first and layer.directions is not None and np.isfinite(layer.directions).all():
        columns += list(layer.directions[place].T * 3.0)
    return np.stack(columns, axis=1) if columns else np.zeros((layer.nodes, 0))


def _reordered(layer: LayerRun, order: NDArray[np.int64]) -> LayerRun:
    """Return the layer with the first checkpoint's node ``order[i]`` in place ``i``."""

    def put(values: NDArray[Any]) -> NDArray[Any]:
        return np.stack([values[0][order], values[1]])

    return replace(
        layer, states=put(layer.states), norms=put(layer.norms), weights=put(layer.weights), biases=put(layer.biases),
        curvatures=put(layer.curvatures), directions=None if layer.directions is None else put(layer.directions),
    )  # fmt: skip


def assignment(cost: Floats) -> NDArray[np.int64]:
    """Return for each row of a square matrix the column assigned to it, every column once, the sum least.

    Args:
        cost: ``(n, n)``, finite.
    """
    n = len(cost)
    padded = np.zeros((n + 1, n + 1))
    padded[1:, 1:] = cost
    of_rows, of_columns = np.zeros(n + 1), np.zeros(n + 1)
    row_of = np.zeros(n + 1, dtype=np.int64)  # of each column; column 0 is where a search starts
    for row in range(1, n + 1):
        row_of[0] = row
        least, way = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=np.int64)
        used = np.zeros(n + 1, dtype=bool)
        column = 0
        while row_of[column]:
            used[column] = True
            here = row_of[column]
            reduced = padded[here] - of_rows[here] - of_columns
            better = ~used & (reduced < least)
            least[better], way[better] = reduced[better], column
            open_ = np.where(used, np.inf, least)
            open_[0] = np.inf
            column = int(open_.argmin())
            delta = open_[column]
            of_rows[row_of[used]] += delta
            of_columns[used] -= delta
            least[~used] -= delta
        while column:
            before = way[column]
            row_of[column] = row_of[before]
            column = int(before)
    found = np.empty(n, dtype=np.int64)
    found[row_of[1:] - 1] = np.arange(n)
    return found
