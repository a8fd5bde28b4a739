"""Eigenvalues and eigenvectors of a stack of small symmetric matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def eigenpairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(values, vectors)`` as ``torch.linalg.eigh`` does, and NaN for values of matrices that are not finite.

    Such are the blocks of a network whose numbers have left the range of its type; LAPACK would give up all of them.

    Args:
        matrices: ``(matrices, size, size)``.
    """
    usable = torch.isfinite(matrices).flatten(1).all(dim=1)
    values, vectors = torch.linalg.eigh(torch.where(usable[:, None, None], matrices, 0.0))
    return torch.where(usable[:, None], values, torch.nan), vectors


def tridiagonal(diagonal: Tensor, off: Tensor) -> Tensor:
    """Return symmetric matrices ``(matrices, size, size)`` of their diagonals and what lies beside them."""
    return torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
