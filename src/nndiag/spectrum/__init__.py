"""Extreme eigenvalues of many symmetric matrices at once, from products alone.

This room knows no module, no layer and no loss: a solver sees a stack of blocks through ``Blocks`` and
returns
``Extremes``. What a block is the curvature of must not come in.
"""

from nndiag.spectrum.dense import dense_extremes
from nndiag.spectrum.lanczos import lanczos_extremes
from nndiag.spectrum.power import power_extremes
from nndiag.spectrum.record import Blocks, Extremes

__all__ = ["Blocks", "Extremes", "dense_extremes", "lanczos_extremes", "power_extremes"]
