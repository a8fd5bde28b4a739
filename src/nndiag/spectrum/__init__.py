"""Extreme eigenvalues of many symmetric matrices at once, from products alone.

This room knows no module, no layer and no loss: a solver sees a stack of blocks through ``Blocks`` and
returns
``Extremes``. What a block is the curvature of must not come in.
"""

from nndiag.spectrum.asking import Among, Asking, Request, answered, placed, scaled
from nndiag.spectrum.dense import dense_extremes
from nndiag.spectrum.lanczos import lanczos, lanczos_extremes
from nndiag.spectrum.power import power, power_extremes
from nndiag.spectrum.record import Blocks, Extremes, Stack, joined, random_vectors

__all__ = [
    "Among",
    "Asking",
    "Blocks",
    "Extremes",
    "Request",
    "Stack",
    "answered",
    "dense_extremes",
    "joined",
    "lanczos",
    "lanczos_extremes",
    "placed",
    "power",
    "power_extremes",
    "random_vectors",
    "scaled",
]
