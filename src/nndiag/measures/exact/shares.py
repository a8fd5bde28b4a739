"""What each layer may spend on exact products, where all blocks of all layers would cost too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nndiag.measures.exact.blocks import SIGNS, SKETCH
from nndiag.measures.exact.bound import BOUND_PRODUCTS, TRACE_SIGNS

SOLVER_PRODUCTS = 22
"""What a solver takes on a large block, both ends by fold included."""
TILED_PRODUCTS = SOLVER_PRODUCTS + 2 * SKETCH + SIGNS
"""Products of a node in the form of ``TiledBlocks``; smaller blocks are cheaper formed."""
BOUND_COST = BOUND_PRODUCTS + TRACE_SIGNS


@dataclass(frozen=True)
class Price:
    """What a layer asks for.

    How many nodes, how many vectors it takes to know the block of one, and whether that may be held.
    """

    nodes: int
    vectors: int
    formable: bool


@dataclass(frozen=True)
class Share:
    """What a layer may spend.

    ``nodes`` are how many may be refined, all of them, without a bound first, where ``whole``; ``formed`` says that
    their blocks may be formed, which an exact trace needs.
    """

    nodes: int
    whole: bool
    formed: bool


def divided(prices: Mapping[str, Price], vectors: float) -> dict[str, Share]:
    """Divide so many vectors: a layer that needs less than its share leaves the rest to the others.

    Args:
        prices: by layer.
        vectors: products of the network's Hessian with one vector that may be spent in all.

    Returns:
        Shares by layer; a layer is missing where there is nothing for it.
    """
    shares = {}
    waiting = sorted(prices, key=lambda name: prices[name].nodes * prices[name].vectors)
    for place, name in enumerate(waiting):
        share, price = vectors / (len(waiting) - place), prices[name]
        tiled = min(price.vectors, TILED_PRODUCTS)
        if price.nodes * price.vectors <= share and price.formable:
            shares[name] = Share(price.nodes, whole=True, formed=True)
            vectors -= price.nodes * price.vectors
        elif price.nodes * tiled <= share:
            shares[name] = Share(price.nodes, whole=True, formed=False)
            vectors -= price.nodes * tiled
        elif (some := int((share - BOUND_COST) // tiled)) > 0:
            shares[name] = Share(some, whole=False, formed=tiled == price.vectors)
            vectors -= share
    return shares
