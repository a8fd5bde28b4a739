"""The factor ``S_n`` of the loss's curvature in the output, for every form of loss.

For the mean squared error over M outputs ``B = (2/M) I``, for ``bce_with_logits`` ``B = diag(σ(1−σ))/M``, for a
cross-entropy ``diag(p) − ppᵀ`` at every position (also of log-probabilities under ``nll``: a further ``log_softmax``
changes nothing), for a callable whatever autograd says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.probe.callable_curvature import callable_factor
from nndiag.probe.factor import DiagonalFactor, Factor
from nndiag.probe.loss import Loss
from nndiag.probe.softmax import SoftmaxFactor


def loss_factor(loss: Loss, output: Tensor, targets: Tensor | None, coverage: float = 0.99) -> Factor:
    """Return ``S_n`` with ``B_n = S_n S_nᵀ`` the curvature of ``ℓ_n`` in the output of sample ``n``.

    Args:
        loss: the loss, bound to its probe.
        output: ``(batch, ...)``.
        targets: prepared; needed only where ``loss.curvature_needs_targets``. Without them all labels count.
        coverage: share of the trace that a callable of many outputs is to have in leading columns.

    Raises:
        InputError: the output is not what the loss takes, or a callable has no targets.
    """
    if loss.labels is not None:
        return SoftmaxFactor(output, loss.labels.class_axis, loss.labels.weights(output.detach(), targets))
    flat = output.detach().reshape(len(output), -1).double()
    if loss.form == "identity":
        return DiagonalFactor(torch.full_like(flat, 2.0 / flat.shape[1]), output)
    if loss.form == "sigmoid":
        gate = torch.sigmoid(flat)
        return DiagonalFactor(gate * (1 - gate) / flat.shape[1], output)
    return callable_factor(loss, output, targets, coverage)
