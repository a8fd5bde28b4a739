"""Lanczos with full reorthogonalisation, batched over all blocks: one run gives both ends of every
spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.spectrum.record import Blocks, Extremes, random_vectors

CHECK_EVERY = 4
"""Products between two looks at the residuals."""


@dataclass
class _Krylov:
    """The basis and the tridiagonal matrices, as they grow; a finished block has exhausted its Krylov
    space."""

    basis: list[Tensor]  # each (nodes, size)
    alpha: list[Tensor]  # each (nodes,) float64
    beta: list[Tensor]
    finished: Tensor  # (nodes,) bool


def lanczos_extremes(
    blocks: Blocks,
    like: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-4,
    max_products: int = 64,
) -> Extremes:
    """Return the extremes of every block by Lanczos from one random start vector per block.

    A Ritz value θ with Ritz vector y has the residual ``β_m |s_m|``, ``s_m`` the last component of its
    eigenvector in
    the Krylov basis; an eigenvalue lies within it. Where the rank of a block is known to be below its size
    and the
    block is positive semidefinite up to rounding, its smallest eigenvalue is at most zero, which
    ``rank_bound`` says.

    Args:
        blocks: the stack of symmetric matrices.
        like: gives dtype and device of the vectors.
        generator: source of the start vectors.
        tolerance: largest residual accepted, relative to the largest magnitude seen in the block.
        max_products: when to stop all the same.

    Returns:
        Extremes; blocks whose residuals stay above the tolerance have ``converged`` False.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.1; Ubaru, Chen and Saad 2017 for
    the quadrature.
    """
    limit = min(max_products, blocks.size)
    krylov = _Krylov([random_vectors(blocks, like, generator)], [], [], _none(blocks, like))
    ritz = None
    while len(krylov.alpha) < limit:
        _extend(blocks, krylov)
        done = len(krylov.alpha) == limit or bool(krylov.finished.all())
        if done or len(krylov.alpha) % CHECK_EVERY == 0:
            ritz = _ritz(blocks, krylov, tolerance)
            if done or bool(ritz.converged.all()):
                break
    assert ritz is not None
    return ritz


def _none(blocks: Blocks, like: Tensor) -> Tensor:
    return torch.zeros(blocks.nodes, dtype=torch.bool, device=like.device)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(left, right)
    return product.double()


def _extend(blocks: Blocks, krylov: _Krylov) -> None:
    """Add one vector to every Krylov space that is not exhausted."""
    current = krylov.basis[-1]
    image = blocks.product(current)
    alpha = _dot(current, image)
    size_before = image.norm(dim=1).double()
    stacked = torch.stack(krylov.basis, dim=1)  # (nodes, m, size)
    for _ in range(2):  # twice is enough (Parlett)
        overlap = torch.einsum("nmp,np->nm", stacked, image)
        image = image - torch.einsum("nmp,nm->np", stacked, overlap)
    beta = image.norm(dim=1).double()
    rounding = 100 * torch.finfo(image.dtype).eps
    exhausted = beta <= rounding * torch.maximum(size_before, _scale(krylov, alpha))
    krylov.alpha.append(torch.where(krylov.finished, krylov.alpha[0] if krylov.alpha else alpha, alpha))
    krylov.finished = krylov.finished | exhausted
    beta = torch.where(krylov.finished, torch.zeros_like(beta), beta)
    krylov.beta.append(beta)
    inverse = torch.where(
        beta > 0, 1 / beta.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(beta)
    )
    krylov.basis.append(image * inverse.to(image)[:, None])


def _scale(krylov: _Krylov, alpha: Tensor) -> Tensor:
    """Return the largest entry of each tridiagonal matrix so far: a lower bound of the norm."""
    return torch.stack([*krylov.alpha, *krylov.beta, alpha]).abs().amax(dim=0)


def _ritz(blocks: Blocks, krylov: _Krylov, tolerance: float) -> Extremes:
    """Solve the tridiagonal problems.

    The padding of finished blocks repeats α₁, which lies inside their spectrum.
    """
    alpha = torch.stack(krylov.alpha, dim=1)  # (nodes, m)
    off = torch.stack(krylov.beta, dim=1)
    count = alpha.shape[1]
    tridiagonal = torch.diag_embed(alpha)
    if count > 1:
        tridiagonal = tridiagonal + torch.diag_embed(off[:, :-1], 1) + torch.diag_embed(off[:, :-1], -1)
    values, states = torch.linalg.eigh(tridiagonal)
    errors = off[:, -1:] * states[:, -1, :].abs()
    scale = values.abs().amax(dim=1)
    smallest, smallest_error = _semidefinite_end(blocks, values[:, 0], errors[:, 0], scale)
    basis = torch.stack(krylov.basis[:count], dim=1)
    vectors = torch.einsum("nmp,nm->np", basis, states[:, :, -1].to(basis))
    norms = vectors.norm(dim=1, keepdim=True)
    return Extremes(
        largest=values[:, -1],
        smallest=smallest,
        largest_error=errors[:, -1],
        smallest_error=smallest_error,
        vectors=vectors / norms.clamp_min(torch.finfo(vectors.dtype).tiny),
        values=values,
        weights=states[:, 0, :] ** 2,
        converged=(errors[:, -1] <= tolerance * scale) & (smallest_error <= tolerance * scale),
        products=count,
    )


def _semidefinite_end(
    blocks: Blocks, smallest: Tensor, error: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Use a known rank deficit: zero is then an eigenvalue, so a positive Ritz value is only on its way to
    it."""
    if blocks.rank_bound >= blocks.size:
        return smallest, error
    positive = smallest > -1e-6 * scale
    zero = torch.zeros_like(smallest)
    return torch.where(positive, zero, smallest), torch.where(positive, zero, error)
