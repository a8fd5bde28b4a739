"""Lanczos with full reorthogonalisation, batched over all blocks: one run gives both ends of every spectrum."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from nndiag.spectrum.record import Blocks, Extremes, random_vectors

CHECKS = (4, 6, 9, 13, 18, 25, 34, 46)
"""After how many products the errors are looked at; blocks that have converged then leave the stack."""
WORTH_LEAVING = 0.8
"""The stack is rebuilt only where at most this share of it is still at work."""
TINY = torch.finfo(torch.float64).tiny


def lanczos_extremes(
    blocks: Blocks,
    like: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float = 1e-3,
    max_products: int = 64,
    both_vectors: bool = False,
) -> Extremes:
    """Return the extremes of every block by Lanczos from one random start vector per block.

    A Ritz value θ has the residual ``r = β_m |s_m|``, ``s_m`` the last component of its eigenvector in the Krylov
    basis: an eigenvalue lies within ``r`` of it. (``r²/γ`` would be sharper, but the gap ``γ`` is not known: two close
    eigenvalues look like one until late.) Of a semidefinite block the smallest eigenvalue lies between zero and the
    smallest Ritz value, and is zero where the rank is known to be short.

    Args:
        blocks: the stack of symmetric matrices.
        like: gives dtype and device of the vectors.
        generator: source of the start vectors.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        max_products: when to stop all the same.
        both_vectors: whether to return the vectors of the smallest values too.

    Returns:
        Extremes; blocks whose errors stay above the tolerance have ``converged`` False.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.1; Ubaru, Chen and Saad 2017 for the
    quadrature.
    """
    limit = min(max_products, blocks.size)
    krylov = _Krylov(random_vectors(blocks, like, generator), limit)
    owners = torch.arange(blocks.nodes, device=like.device)
    result: Extremes | None = None
    while True:
        krylov.extend(blocks)
        done = krylov.count == limit or bool(krylov.finished.all())
        if not done and krylov.count not in CHECKS:
            continue
        found = _ritz(blocks, krylov, tolerance, both_vectors)
        result = _placed(result, found, owners, limit)
        left = torch.nonzero(~found.converged).flatten()
        if done or len(left) == 0:
            return result
        smaller = blocks.restricted(left) if len(left) <= WORTH_LEAVING * len(owners) else None
        if smaller is not None:
            blocks, owners = smaller, owners[left]
            krylov.restrict(left)


class _Krylov:
    """The bases and tridiagonal matrices as they grow; a finished block has exhausted its Krylov space."""

    def __init__(self, start: Tensor, limit: int) -> None:
        nodes = len(start)
        self._limit = limit
        self.basis = start.new_zeros(nodes, min(limit, CHECKS[0]) + 1, start.shape[1])
        self.basis[:, 0] = start
        self.alpha = torch.zeros(nodes, limit, dtype=torch.float64, device=start.device)
        self.beta = torch.zeros_like(self.alpha)
        self.finished = torch.zeros(nodes, dtype=torch.bool, device=start.device)
        self.count = 0
        self._scale = torch.zeros(nodes, dtype=torch.float64, device=start.device)

    def extend(self, blocks: Blocks) -> None:
        """Add one vector to every Krylov space that is not exhausted."""
        step = self.count
        self._reserve(step + 2)
        current, known = self.basis[:, step], self.basis[:, : step + 1]
        image = blocks.product(current)
        overlap = known @ image[:, :, None]
        alpha = overlap[:, step, 0].double()
        before = image.norm(dim=1).double()
        image = torch.baddbmm(image[:, :, None], known.mT, overlap, alpha=-1)
        if step:  # the second time is what keeps the basis orthogonal (Parlett: twice is enough)
            image = torch.baddbmm(image, known.mT, known @ image, alpha=-1)
        image = image.squeeze(2)
        beta = image.norm(dim=1).double()
        self._scale = torch.maximum(self._scale, torch.maximum(alpha.abs(), before))
        exhausted = beta <= 100 * torch.finfo(image.dtype).eps * self._scale
        # the padding of finished blocks repeats the first entry, which lies inside their spectrum
        self.alpha[:, step] = torch.where(self.finished, self.alpha[:, 0], alpha)
        self.finished = self.finished | exhausted
        self.beta[:, step] = torch.where(self.finished, 0.0, beta)
        inverse = torch.where(self.finished, 0.0, 1 / beta.clamp_min(TINY))
        torch.mul(image, inverse.to(image)[:, None], out=self.basis[:, step + 1])
        self.count = step + 1

    def _reserve(self, vectors: int) -> None:
        """Make room for the basis up to the next look at the errors."""
        if vectors <= self.basis.shape[1]:
            return
        room = min(next((c for c in CHECKS if c + 1 >= vectors), self._limit), self._limit) + 1
        grown = self.basis.new_zeros(len(self.basis), room, self.basis.shape[2])
        grown[:, : self.basis.shape[1]] = self.basis
        self.basis = grown

    def restrict(self, index: Tensor) -> None:
        """Keep these blocks alone."""
        self.basis, self.alpha, self.beta = self.basis[index], self.alpha[index], self.beta[index]
        self.finished, self._scale = self.finished[index], self._scale[index]

    def combined(self, states: Tensor) -> Tensor:
        """Return unit vectors given by their components in the basis, ``(nodes, count) → (nodes, size)``."""
        vectors = (self.basis[:, : self.count].mT @ states[:, :, None].to(self.basis)).squeeze(2)
        unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
        return unit

    def tridiagonal(self) -> Tensor:
        """Return the tridiagonal matrices, ``(nodes, count, count)`` float64."""
        alpha, off = self.alpha[:, : self.count], self.beta[:, : self.count - 1]
        return torch.diag_embed(alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)


def _ritz(blocks: Blocks, krylov: _Krylov, tolerance: float, both_vectors: bool) -> Extremes:
    """Solve the tridiagonal problems and say how far their ends may be off."""
    count = krylov.count
    values, states = torch.linalg.eigh(krylov.tridiagonal())
    residuals = krylov.beta[:, count - 1, None] * states[:, -1, :].abs()
    scale = values.abs().amax(dim=1)
    largest_error = residuals[:, -1]
    smallest, smallest_error = _smallest(blocks, values, residuals[:, 0], scale)
    accepted = tolerance * scale
    return Extremes(
        largest=values[:, -1],
        smallest=smallest,
        largest_error=largest_error,
        smallest_error=smallest_error,
        vectors=krylov.combined(states[:, :, -1]),
        values=values,
        weights=states[:, 0, :] ** 2,
        converged=krylov.finished | ((largest_error <= accepted) & (smallest_error <= accepted)),
        products=count,
        smallest_vectors=krylov.combined(states[:, :, 0]) if both_vectors else None,
    )


def _placed(whole: Extremes | None, part: Extremes, owners: Tensor, width: int) -> Extremes:
    """Return the result of all blocks with those of ``owners`` replaced; quadratures are padded with weight zero."""
    if whole is None and part.values.shape[1] == width:
        return part
    found = {}
    for field in fields(Extremes):
        new = getattr(part, field.name)
        if field.name == "products" or new is None:
            found[field.name] = new
            continue
        if field.name in ("values", "weights"):
            padding = new[:, -1:] if field.name == "values" else torch.zeros_like(new[:, -1:])
            new = torch.cat([new, padding.expand(-1, width - new.shape[1])], dim=1)
        found[field.name] = new if whole is None else getattr(whole, field.name).index_copy(0, owners, new)
    return Extremes(**found)


def _smallest(blocks: Blocks, values: Tensor, residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest eigenvalues and their errors, with what is known of semidefinite and rank-short blocks."""
    smallest = values[:, 0]
    if not blocks.semidefinite:
        return smallest, residual
    if blocks.rank_bound < blocks.size:
        return torch.zeros_like(smallest), torch.zeros_like(residual)
    rounding = torch.finfo(torch.float32).eps * scale
    return smallest, torch.minimum(residual, smallest.clamp_min(0) + rounding)
