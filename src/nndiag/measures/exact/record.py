"""What a refinement is asked for, what it returns, and how that is put beside the Gauss-Newton numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nndiag.measures.curvature import CurvatureSettings, LayerCurvature
from nndiag.records.measured import Floats, Mask

AUTO_WORK = 1e11
"""What ``auto`` may spend on exact products: vectors multiplied times operations of one forward pass over the probe."""


@dataclass(frozen=True)
class ExactSettings:
    """How to refine.

    ``mode`` is ``"hessian"``: every node, with its exact trace, whatever it costs; or ``"auto"``: as many of the nodes
    that matter as ``work`` allows. ``solver`` is that of the blocks, with the seed of everything random. ``room``
    bounds what the vectors of one pass, kept graphs and formed blocks may each take, in bytes. ``batch_size`` is that
    which the probe would have without a budget.
    """

    mode: Literal["auto", "hessian"]
    solver: CurvatureSettings = field(default_factory=CurvatureSettings)
    work: float = AUTO_WORK
    room: int = 512 * 2**20
    batch_size: int | None = None


@dataclass(frozen=True)
class LayerBound:
    """The smallest and largest eigenvalue of the whole block of a layer, between which those of its nodes lie.

    ``missed`` is what the smallest may lie below ``smallest``, but for one chance in a thousand; ``largest`` is a Ritz
    value, and so at most the largest eigenvalue. ``excluded`` says that no node of the layer can have negative
    curvature beyond a negligible share of ``largest``.
    """

    smallest: float
    largest: float
    missed: float
    products: int
    excluded: bool

    @property
    def measures(self) -> dict[str, float]:
        """The bound as measures of a layer."""
        return {
            "block_lambda_min": self.smallest,
            "block_lambda_max": self.largest,
            "block_lambda_min_error": self.missed,
        }


@dataclass(frozen=True)
class ExactLayer:
    """Exact curvature of some nodes of a layer.

    Every array of ``curvature`` is over ``nodes``, in ascending order; it is ``None`` where there are none. ``bound``
    is ``None`` where all nodes were refined without asking for it first.
    """

    nodes: NDArray[np.intp]
    curvature: LayerCurvature | None
    bound: LayerBound | None = None


@dataclass(frozen=True)
class Refinement:
    """Layers by name that were refined, and one sentence where something could not be done."""

    layers: Mapping[str, ExactLayer] = field(default_factory=dict)
    note: str | None = None


def merged(found: LayerCurvature | None, exact: ExactLayer, nodes: int) -> tuple[LayerCurvature | None, Mask]:
    """Return a layer's curvature with the exact numbers in their places, and the mask of the nodes that have them.

    Args:
        found: Gauss-Newton numbers of all nodes; ``None`` where there are none.
        exact: the refined nodes.
        nodes: how many nodes the layer has.

    Returns:
        The curvature; a measure that only refined nodes have is NaN for the others.
    """
    mask = np.zeros(nodes, dtype=bool)
    if exact.curvature is None:
        return found, mask
    mask[exact.nodes] = True
    own = exact.curvature
    before = LayerCurvature({}, {}, True, 0) if found is None else found
    both = LayerCurvature(
        _filled(before.per_node, own.per_node, exact.nodes, nodes),
        _filled(before.per_fold, own.per_fold, exact.nodes, nodes),
        before.converged and own.converged,
        max(before.products, own.products),
    )
    return both, mask


def _filled(
    before: Mapping[str, Floats], own: Mapping[str, Floats], index: NDArray[np.intp], nodes: int
) -> dict[str, Floats]:
    found = dict(before)
    for name, values in own.items():
        whole = before.get(name, np.full((*values.shape[:-1], nodes), np.nan)).copy()
        whole[..., index] = values
        found[name] = whole
    return found
