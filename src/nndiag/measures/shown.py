"""What the backward passes after one forward pass show of a layer, taken in pass by pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nndiag.measures.batchview import LayerUse
from nndiag.replay.jacobian import same_inputs


class Shown:
    """The gradients at the outputs of one layer, of every column of the loss curvature that was passed back.

    Where the nodes have one position a sample and share its input, ``weights`` are all that is kept,
    ``h_{n,i} = Σ_c g_{c,n,i}²``, ``(batch, nodes)``: the gradients of one pass can be forgotten before the next. Else
    ``columns`` has one tensor a share for every pass, as its kind holds them.

    Args:
        use: the calls of the layer in the forward pass.
    """

    def __init__(self, use: LayerUse) -> None:
        self.use = use
        self.weights: Tensor | None = None
        self.columns: list[Sequence[Tensor]] = []

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Take in one pass: its gradients at the outputs of all calls of the network."""
        own = self.use.gather(gradients)
        if not _one_position(self.use, own):
            self.columns.append(own)
            return
        g = own[0][:, :, 0, 0]
        self.weights = g.square() if self.weights is None else self.weights.addcmul_(g, g)


def _one_position(use: LayerUse, own: Sequence[Tensor]) -> bool:
    g = own[0]
    return same_inputs(use.shares, g) and g.shape[3] == 1
