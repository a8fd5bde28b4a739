"""What the backward passes after one forward pass show of a layer, taken in pass by pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.replay.jacobian import jacobian, same_inputs
from nndiag.replay.kinds import ColumnKind


class Shown:
    """What is kept of the gradients at the outputs of one layer, of every column of the loss curvature.

    Where the nodes have one position a sample and share its input, these are ``weights``, ``h_{n,i} = Σ_c g_{c,n,i}²``,
    ``(batch, nodes)``; where every node has an input of its own, ``jacobians``, ``(batch, nodes, size)`` for every
    pass, which are smaller: either way the gradients of one pass can be forgotten before the next. Else ``columns`` has
    one tensor a share for every pass, as its kind holds them.

    Args:
        use: the calls of the layer in the forward pass.
    """

    def __init__(self, use: LayerUse) -> None:
        self.use = use
        self.weights: Tensor | None = None
        self.jacobians: list[Tensor] = []
        self.columns: list[Sequence[Tensor]] = []
        self._elementwise = all(
            isinstance(share.kind, ColumnKind) and share.kind.elementwise for share in use.shares
        )
        self._inputs: list[Tensor] | None = None

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Take in one pass: its gradients at the outputs of all calls of the network."""
        own = self.use.gather(gradients)
        if self._elementwise:
            self._inputs = self._inputs or self.use.inputs()
            layer = self.use.layer
            self.jacobians.append(jacobian(layer, self.use.parts(self._inputs, own), 0, layer.nodes))
        elif _one_position(self.use, own):
            g = own[0][:, :, 0, 0]
            self.weights = g.square() if self.weights is None else self.weights.addcmul_(g, g)
        else:
            self.columns.append(own)


def _one_position(use: LayerUse, own: Sequence[Tensor]) -> bool:
    g = own[0]
    return same_inputs(use.shares, g) and g.shape[3] == 1
