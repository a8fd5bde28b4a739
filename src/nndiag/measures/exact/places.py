"""Where the parameters of each node lie among those of its layer, read off the layer's own rearrangement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nndiag.measures.hvp import HessianProducts
    from nndiag.replay.kinds import Layer


def places_of(layer: Layer, products: HessianProducts) -> Tensor:
    """Return the coordinate of every entry of every node in the vectors of ``products``, ``(nodes, size)``.

    ``layer.rows`` only moves entries, so that the rows of the coordinates are the coordinates of the rows; −1 stands
    where it filled in something that is no parameter.

    Args:
        layer: the layer.
        products: with the layer's own parameters.
    """
    coordinates = torch.arange(1, products.size + 1)
    return (layer.rows(products.named(coordinates)) - 1).to(products.like.device)
