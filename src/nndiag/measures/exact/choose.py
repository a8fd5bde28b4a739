"""Which nodes of a layer are worth exact products, where not all can have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from nndiag.records.measured import Floats

NEAR_MARGIN = 0.5
"""A stability margin from which on a node's exact curvature decides."""
EXTREMES = 3
"""How many nodes of largest Gauss-Newton curvature are taken for being so."""


@dataclass(frozen=True)
class Signs:
    """What hints at negative curvature in a layer's nodes, each ``(nodes,)``.

    ``share`` is the node's squared share of the layer's most negative eigenvector; ``residual`` the estimated trace of
    what the Hessian adds to the Gauss-Newton block.
    """

    share: Floats
    residual: Floats


def choose_nodes(
    count: int,
    curvature: Floats,
    margin: Floats | None,
    priority: Floats | None,
    signs: Signs | None,
    generator: torch.Generator,
) -> NDArray[np.intp]:
    """Return at most ``count`` nodes, in ascending order, taken in turn from several lists.

    The lists: what the caller asked for, nodes near or above the stability threshold, the extremes of the layer, nodes
    in which the layer's negative eigenvector lies, nodes of most negative residual trace, and a random sample.

    Args:
        count: how many.
        curvature: ``λ_max`` of every node's Gauss-Newton block.
        margin: stability margins, where there are any.
        priority: the caller's wishes, larger ones first; zero is none.
        signs: hints of negative curvature; ``None`` where the layer has none.
        generator: source of the sample.
    """
    steepest = _descending(curvature)
    lists = [
        [] if priority is None else _descending(priority, priority > 0),
        [] if margin is None else _descending(margin, margin >= NEAR_MARGIN),
        [*steepest[:EXTREMES], *steepest[-1:]],
        [] if signs is None else _descending(signs.share, signs.share > 0),
        [] if signs is None else _descending(-signs.residual, signs.residual < 0),
        torch.randperm(len(curvature), generator=generator).tolist(),
    ]
    chosen = list(dict.fromkeys(_in_turn(lists)))[:count]
    return np.sort(np.array(chosen, dtype=np.intp))


def _descending(values: Floats, mask: NDArray[np.bool_] | None = None) -> list[int]:
    order = np.argsort(-np.nan_to_num(values), kind="stable")
    return [int(i) for i in order if mask is None or mask[i]]


def _in_turn(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    for row in zip_longest(*lists):
        yield from (node for node in row if node is not None)
