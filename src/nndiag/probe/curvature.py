"""The factor ``S_n`` of the loss's curvature in the output, for every form of loss.

For the mean squared error over M outputs ``B = (2/M) I``, for ``bce_with_logits`` ``B = diag(σ(1−σ))/M``, for a
cross-entropy ``(Σ_c y_c) (diag(p) − ppᵀ)`` at every position (also of log-probabilities under ``nll``: a further
``log_softmax`` changes nothing), for a callable whatever autograd says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.probe.callable_curvature import callable_factor
from nndiag.probe.factor import ColumnFactor, DiagonalFactor, Factor
from nndiag.probe.loss import Loss
from nndiag.probe.softmax import SoftmaxFactor
from nndiag.probe.triangular import CLASSES, triangular_columns

MOST_EXACT = 1024
"""Directions of a sample that are taken one by one where every column is exact."""


def loss_factor(
    loss: Loss, output: Tensor, targets: Tensor | None, coverage: float = 0.99, *, all_exact: bool = False
) -> Factor:
    """Return ``S_n`` with ``B_n = S_n S_nᵀ`` the curvature of ``ℓ_n`` in the output of sample ``n``.

    Args:
        loss: the loss, bound to its probe.
        output: ``(batch, ...)``.
        targets: prepared; needed only where ``loss.curvature_needs_targets``. Without them all labels count.
        coverage: share of the trace that a callable of many outputs is to have in leading columns.
        all_exact: whether every column is taken exactly, so that any will do and none need be leading.

    Raises:
        InputError: the output is not what the loss takes, or a callable has no targets.
    """
    if loss.labels is not None:
        weights = loss.labels.curvature_weights(output.detach(), targets)
        if all_exact and weights.shape[1] == 1 and output.shape[loss.labels.class_axis] <= CLASSES:
            columns = triangular_columns(output.detach().reshape(len(output), -1))
            return ColumnFactor(columns * weights.sqrt(), output)
        return SoftmaxFactor(output, loss.labels.class_axis, weights, MOST_EXACT if all_exact else None)
    flat = output.detach().reshape(len(output), -1).double()
    if loss.form == "identity":
        return DiagonalFactor(torch.full_like(flat, 2.0 / flat.shape[1]), output)
    if loss.form == "sigmoid":
        gate = torch.sigmoid(flat)
        return DiagonalFactor(gate * (1 - gate) / flat.shape[1], output)
    return callable_factor(loss, output, targets, coverage)
