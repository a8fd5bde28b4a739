"""The kinds of use that a parameter is put to, one file each.

A kind turns its own way of using parameters into the few things that everything downstream works with: per-sample
gradients of nodes, and products with them. Adding a kind is one file and one entry in ``KINDS``; what no kind knows is
treated by Jacobians (``replay.jacobians``).
"""

from collections.abc import Mapping

from nndiag.replay.kinds.base import Kind, Layer, Samples, Share, Slot, Use
from nndiag.replay.kinds.columns import ColumnKind, tiles
from nndiag.replay.kinds.convolution import Convolution
from nndiag.replay.kinds.embedding import Embedding, EmbeddingBag
from nndiag.replay.kinds.linear import Linear, TransposedLinear
from nndiag.replay.kinds.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from nndiag.replay.kinds.transposed import TransposedConvolution

KINDS: tuple[Kind, ...] = (
    Linear(), TransposedLinear(), Convolution(), TransposedConvolution(), Embedding(), EmbeddingBag(), BatchNorm(),
    GroupNorm(), InstanceNorm(), LayerNorm(), RMSNorm(),
)  # fmt: skip
BY_FUNCTION: Mapping[str, Kind] = {name: kind for kind in KINDS for name in kind.functions}

__all__ = ["BY_FUNCTION", "KINDS", "ColumnKind", "Kind", "Layer", "Samples", "Share", "Slot", "Use", "tiles"]
