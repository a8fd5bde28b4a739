"""The sums of a scan's replay taken in the precision of the training step, in as few passes over them as it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.measures.activations import ActivationObserver, Reading
from nndiag.replay.kinds import Layer
from nndiag.replay.nonlinearity import Nonlinearity

_NOT_NEGATIVE = frozenset(["relu", "relu6", "sigmoid", "softplus"])


class QuickObserver(ActivationObserver):
    """Sums up a batch; units are not compared with each other."""

    def produced(self, layer: Layer, z: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return sum, sum of squares and count of a layer's outputs per unit."""
        count, origin = z.shape[0] * z.shape[2], z[0, :, 0].double()
        shift, squares = _sums(z, origin)
        return shift + origin * count, squares + origin * (2 * shift + origin * count), count

    def _reading(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> Reading:
        count = y.shape[0] * y.shape[2]
        origin = self._origin.setdefault(layer.name, y[0, :, 0].double())
        shift, squares = _sums(y, origin)
        total = shift + origin * count
        is_flat = None if activation is None or activation.flat is None else activation.flat(z)
        flat_in = None if is_flat is None else is_flat.sum(dim=2)  # (batch, units)
        by_sample = flat_in if z.shape[0] == len(self._fold_of) else None
        positive = activation is not None and activation.name in _NOT_NEGATIVE
        return Reading(
            activation=activation,
            entries=count,
            open_count=None if flat_in is None else count - flat_in.sum(dim=0).double(),
            open_by_fold=None if by_sample is None else self._opened(z.shape[2] - by_sample),
            open_anywhere=None if by_sample is None else (by_sample < z.shape[2]).any(dim=1),
            highest=None if by_sample is None else z.flatten(1).amax(dim=1),
            absolute=total if positive else torch.linalg.vector_norm(y, 1, dim=(0, 2)).double(),
            total=total,
            squares=squares,
            low=y.amin(dim=(0, 2)).double(),
            high=y.amax(dim=(0, 2)).double(),
            products=None,
        )

    def _opened(self, by_sample: Tensor) -> Tensor:
        counts = by_sample.new_zeros(self._folds, by_sample.shape[1], dtype=torch.float64)
        return counts.index_add_(0, self._fold_of.to(by_sample.device), by_sample.double())


def _sums(values: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and sum of squares per unit of ``(batch, units, rest)`` minus ``origin``, as doubles."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    shifted = wide - origin.to(wide)[None, :, None]
    squares = torch.linalg.vector_norm(shifted, dim=(0, 2)).double().square()
    return shifted.sum(dim=(0, 2)).double(), squares
