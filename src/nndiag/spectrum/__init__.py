"""Extreme eigenvalues of many symmetric matrices at once, from products alone.

This room knows no module, no layer and no loss: a solver sees a stack of blocks through ``Blocks`` and returns
``Extremes``. What a block is the curvature of must not come in.
"""

from nndiag.spectrum.asking import Among, Asking, Request, answered, extremes_by, fills, placed, scaled
from nndiag.spectrum.dense import dense_extremes
from nndiag.spectrum.lanczos import lanczos
from nndiag.spectrum.lead import Lead, Starts, Tally, shared_directions, worth_leading
from nndiag.spectrum.leading import NODES_AT_ONCE, ROWS_AT_ONCE, Leading, shared_lead, summed_lead
from nndiag.spectrum.power import power
from nndiag.spectrum.record import Blocks, Extremes, Stack, joined, random_vectors

__all__ = [
    "NODES_AT_ONCE",
    "ROWS_AT_ONCE",
    "Among",
    "Asking",
    "Blocks",
    "Extremes",
    "Lead",
    "Leading",
    "Request",
    "Stack",
    "Starts",
    "Tally",
    "answered",
    "dense_extremes",
    "extremes_by",
    "fills",
    "joined",
    "lanczos",
    "placed",
    "power",
    "random_vectors",
    "scaled",
    "shared_directions",
    "shared_lead",
    "summed_lead",
    "worth_leading",
]
