"""The columns of a softmax in closed form, where each of them gets a backward pass of its own anyway."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = 64
"""Up to so many classes the columns are kept: they take the square of that, a sample."""


def triangular_columns(logits: Tensor) -> Tensor:
    """Return the columns of a triangular ``L`` with ``L Lᵀ = diag(p) − ppᵀ``, one fewer than there are classes.

    ``L_jj = √(p_j q_j / q_{j−1})`` and ``L_ij = −L_jj p_i / q_j`` for ``i > j``, with the tails ``q_j = Σ_{k>j} p_k``:
    nothing is subtracted, so that small probabilities keep their digits.

    Args:
        logits: or log-probabilities, ``(batch, classes)``.

    Returns:
        ``(classes − 1, batch, classes)`` float64.

    Source: Tanabe and Sagae 1992, "An exact Cholesky decomposition and the generalized inverse of the
    variance-covariance matrix of the multinomial distribution, with applications".
    """
    p = torch.softmax(logits.double(), dim=1)
    tails = p.flip(1).cumsum(dim=1).flip(1)  # q_{j−1}, from j = 0
    before, after = tails[:, :-1], tails[:, 1:]
    diagonal = (p[:, :-1] * _share(after, before)).sqrt_()
    columns = _share(p[:, None, :], after[:, :, None]).mul_(-diagonal[:, :, None]).triu(1)
    columns.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return columns.movedim(1, 0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the quotient, 0 of nothing: never the inverse by itself, which the smallest numbers do not have."""
    return torch.where(whole > 0, part / whole, 0.0)
