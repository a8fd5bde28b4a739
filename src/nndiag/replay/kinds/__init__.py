"""The kinds of layers whose nodes can be measured, one file each.

A kind turns its own way of using parameters into the one picture that everything downstream works on: per
group of nodes, columns of inputs ``A`` of shape ``(batch, groups, size, positions)``, and cotangents
``g`` of the nodes' outputs, ``(batch, nodes, positions)``. The gradient of node ``i`` for sample ``n`` is
``Σ_t g[n, i, t] A[n, group(i), :, t]``, weight first and bias last. Adding a kind is one file and one entry
in ``KINDS``.
"""

from nndiag.replay.kinds.base import Kind, Layer
from nndiag.replay.kinds.convolution import Convolution
from nndiag.replay.kinds.linear import Linear
from nndiag.replay.kinds.transposed import TransposedConvolution

KINDS: tuple[Kind, ...] = (Linear(), Convolution(), TransposedConvolution())

__all__ = ["KINDS", "Kind", "Layer"]
