"""Two networks whose nodes are in different order: which node of one is which of the other.

By best assignment: the sum of squared distances between what both reports say of a node is least, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nndiag.comparing.assigning import EXACT, Assignment, assignment
from nndiag.comparing.run import Floats, LayerRun, Run

_NAMED = ("Embedding", "EmbeddingBag")
"""Layers whose nodes have a meaning of their own, as the rows of an embedding are tokens: their order stays."""


@dataclass(frozen=True)
class Matching:
    """A run of two checkpoints with the nodes of the first in the order of the second.

    ``excess`` says, of layers too wide to be matched exactly, by which share the sum of distances may be above the
    least.
    """

    run: Run
    excess: Mapping[str, float]


def matched(run: Run, exact: int = EXACT) -> Matching:
    """Find for each node of the second checkpoint of a run which one of the first it is.

    What does not depend on the order of the layer before is compared: norms, bias, curvature; in the first layer, whose
    inputs have one order, also the directions. A layer whose nodes say nothing of themselves keeps its order, and so do
    embeddings and the outputs of the network, whose nodes mean the same in both.

    Args:
        run: of two checkpoints.
        exact: nodes of a layer up to which the assignment has to be the best.
    """
    layers, excess = [], {}
    for place, layer in enumerate(run.layers):
        found = _assigned(layer, first=not place, exact=exact)
        layers.append(layer if found is None else _reordered(layer, found.columns))
        if found is not None and layer.nodes > exact:
            excess[layer.name] = found.excess
    return Matching(replace(run, layers=tuple(layers)), excess)


def _assigned(layer: LayerRun, *, first: bool, exact: int) -> Assignment | None:
    if layer.nodes == 1 or layer.is_output or layer.kind in _NAMED or not layer.present.all():
        return None
    before, after = _features(layer, 0, first), _features(layer, 1, first)
    if not before.size:
        return None

    def costs(node: int) -> Floats:
        found: Floats = np.square(before - after[node]).sum(axis=1)
        return found

    if layer.nodes > exact:
        return assignment(layer.nodes, costs, exact)
    return assignment(layer.nodes, np.stack([costs(i) for i in range(layer.nodes)]).__getitem__)


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
