"""Lanczos with full reorthogonalisation, batched over all blocks: one run gives both ends of every spectrum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nndiag.spectrum.asking import Asking, Request
from nndiag.spectrum.eigenpairs import eigenpairs
from nndiag.spectrum.record import Extremes, Stack

CHECKS = (3, 4, 5, 6, 8, 10, 13, 18, 25, 34, 46)
"""After how many products the errors are looked at; blocks that have converged then leave the stack."""
REPEATED = 0.5
"""All vectors are made orthogonal a second time where more than this share of them must be."""
ROOM = 6
"""Vectors of a basis that room is made for at first."""
WORTH_LEAVING = 0.8
"""The stack is rebuilt only where at most this share of it is still at work."""
TINY = torch.finfo(torch.float64).tiny


def lanczos(
    stack: Stack,
    start: Tensor,
    *,
    tolerance: float = 1e-3,
    max_products: int = 64,
    both_vectors: bool = False,
) -> Asking:
    """Ask for products, and return the extremes of every block.

    A Ritz value θ has the residual ``r = β_m |s_m|``, ``s_m`` the last component of its eigenvector in the Krylov
    basis: an eigenvalue lies within ``r`` of it. (``r²/γ`` would be sharper, but the gap ``γ`` is not known: two close
    eigenvalues look like one until late.) Of a semidefinite block the smallest eigenvalue lies between zero and the
    smallest Ritz value, and is zero where the rank is known to be short.

    What is returned of a block is what was known at the first look at which its errors were small enough, whichever
    blocks were still at work beside it: so it does not depend on how a stack is divided.

    Args:
        stack: what is known of the matrices; the rank may become known while products are made.
        start: random unit vectors, ``(nodes, size)``. The start is their sum with the constant unit vector: inputs
            that are never negative, as behind a ReLU, have their largest eigenvalue near it, and no other loses by it.
        tolerance: largest error accepted, relative to the largest magnitude seen in the block.
        max_products: when to stop all the same.
        both_vectors: whether to return the vectors of the smallest values too.

    Returns:
        Extremes; blocks whose errors stay above the tolerance have ``converged`` False, and so have those whose numbers
        are not finite, with NaN for their extremes.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.1; Ubaru, Chen and Saad 2017 for the
    quadrature.
    """
    limit = min(max_products, stack.size)
    krylov = _Krylov(start, limit)
    results = _Results(start, limit, both_vectors)
    owners = torch.arange(stack.nodes, device=start.device)
    settled = torch.zeros_like(owners, dtype=torch.bool)
    index: Tensor | None = None
    while True:
        krylov.extend((yield Request(krylov.current, index)))
        done = krylov.count == limit or bool(krylov.finished.all())
        if not done and krylov.count not in CHECKS:
            continue
        ends = _ends(stack, krylov, tolerance)
        now = ~settled if done else ends.settled & ~settled
        results.put(owners, ends, krylov, torch.nonzero(now).flatten())
        settled = settled | ends.settled
        left = torch.nonzero(~settled).flatten()
        if done or len(left) == 0:
            return results.extremes(krylov.count)
        if len(left) <= WORTH_LEAVING * len(owners):
            index = owners = owners[left]
            settled = settled[left]
            krylov.restrict(left)


class _Krylov:
    """The bases and tridiagonal matrices as they grow; a finished block has exhausted its Krylov space."""

    def __init__(self, start: Tensor, limit: int) -> None:
        nodes = len(start)
        self._random = start
        self.basis = start.new_empty(min(limit, ROOM) + 1, nodes, start.shape[1])
        constant = torch.where(start.sum(dim=1, keepdim=True) < 0, -1.0, 1.0) * start.shape[1] ** -0.5
        self.basis[0] = _unit(start + constant.to(start))  # on the same side, or the sum might vanish
        self.overlap = torch.zeros(nodes, limit, dtype=torch.float64, device=start.device)
        self.alpha = torch.zeros(nodes, limit, dtype=torch.float64, device=start.device)
        self.beta = torch.zeros_like(self.alpha)
        self.finished = torch.zeros(nodes, dtype=torch.bool, device=start.device)
        self.count = 0
        self._told = torch.ones_like(self.finished)
        self._scale = torch.zeros(nodes, dtype=torch.float64, device=start.device)
        self._astray = torch.zeros_like(self._scale)

    @property
    def current(self) -> Tensor:
        """The vectors to be multiplied next, ``(nodes, size)``."""
        return self.basis[self.count]

    def extend(self, image: Tensor) -> None:
        """Add one vector, made of the images of ``current``, to every Krylov space that is not exhausted."""
        step = self.count
        overlap = torch.linalg.vecdot(self.basis[step], self._random).double()
        self.overlap[:, step] = torch.where(self._told, overlap, 0.0)
        self._reserve(step + 2)
        known = self.basis[: step + 1].movedim(0, 1)
        overlap = known @ image[:, :, None]
        alpha = overlap[:, step, 0].double()
        image = _without(image, known, overlap)
        beta = image.norm(dim=1).double()
        before = (overlap.double().square().sum(dim=(1, 2)) + beta.square()).sqrt()
        image, beta = self._orthogonal(image, known, before, beta)
        self._scale = torch.maximum(self._scale, torch.maximum(alpha.abs(), before))
        exhausted = beta <= 100 * torch.finfo(image.dtype).eps * self._scale
        # the padding of finished blocks repeats the first entry, which lies inside their spectrum
        self.alpha[:, step] = torch.where(self.finished, self.alpha[:, 0], alpha)
        self.finished = self.finished | exhausted
        self.beta[:, step] = torch.where(self.finished, 0.0, beta)
        # what follows so small a remainder is mostly rounding, and its overlap with anything would be chance
        self._told = self._told & (beta > torch.finfo(image.dtype).eps ** 0.5 * self._scale)
        inverse = torch.where(self.finished, 0.0, 1 / beta.clamp_min(TINY))
        torch.mul(image, inverse.to(image)[:, None], out=self.basis[step + 1])
        self.count = step + 1

    def _orthogonal(
        self, image: Tensor, known: Tensor, before: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make vectors orthogonal to the basis a second time, once they would not be so to half precision.

        What is left of their length says how many digits were cancelled so far. Half of all digits are enough for Ritz
        values that are exact to rounding (Simon 1984, "The Lanczos algorithm with partial reorthogonalization",
        section 3), and the second time is enough (Parlett).
        """
        eps = torch.finfo(image.dtype).eps
        self._astray = (self._astray + eps) * before / beta.clamp_min(TINY)
        again = torch.nonzero(~self.finished & (self._astray > eps**0.5)).flatten() if self.count else ()
        if len(again) > REPEATED * len(image):
            image = _without(image, known, known @ image[:, :, None])
            beta = image.norm(dim=1).double()
        elif len(again):
            own = known[again]
            some = _without(image[again], own, own @ image[again][:, :, None])
            image[again], beta[again] = some, some.norm(dim=1).double()
        return image, beta

    def _reserve(self, vectors: int) -> None:
        """Make room for so many vectors, and for more at once."""
        if vectors <= len(self.basis):
            return
        grown = self.basis.new_empty(min(2 * vectors, self.alpha.shape[1] + 1), *self.basis.shape[1:])
        grown[: self.count + 1] = self.basis[: self.count + 1]
        self.basis = grown

    def restrict(self, index: Tensor) -> None:
        """Keep these blocks alone."""
        basis = self.basis.new_empty(len(self.basis), len(index), self.basis.shape[2])
        for place in range(self.count + 1):
            torch.index_select(self.basis[place], 0, index, out=basis[place])
        self.basis, self.alpha, self.beta = basis, self.alpha[index], self.beta[index]
        self.finished, self._scale = self.finished[index], self._scale[index]
        self.overlap, self._random = self.overlap[index], self._random[index]
        self._told, self._astray = self._told[index], self._astray[index]

    def combined(self, states: Tensor, which: Tensor) -> Tensor:
        """Return unit vectors given by their components in the bases of some blocks, ``(which, size)``."""
        vectors = states.to(self.basis)[:, 0, None] * self.basis[0, which]
        for place in range(1, self.count):
            vectors.addcmul_(states[:, place, None].to(self.basis), self.basis[place, which])
        return _unit(vectors)

    def densities(self, values: Tensor, states: Tensor, which: Tensor) -> Tensor:
        """Return the squared overlaps of Ritz vectors of some blocks with the random vectors, ``(which, count)``.

        What these have outside the Krylov space, where the directions are that it has not met, counts for the value
        nearest to zero: a start that leans towards the large ones leaves few of them out.
        """
        squares = torch.einsum("nk,nkm->nm", self.overlap[which, : self.count], states).square_()
        outside = (1 - squares.sum(dim=1, keepdim=True)).clamp_min_(0)
        squares.scatter_add_(1, values.abs().argmin(dim=1, keepdim=True), outside)
        return squares / squares.sum(dim=1, keepdim=True)

    def tridiagonal(self) -> Tensor:
        """Return the tridiagonal matrices, ``(nodes, count, count)`` float64."""
        alpha, off = self.alpha[:, : self.count], self.beta[:, : self.count - 1]
        return torch.diag_embed(alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return unit


def _without(vectors: Tensor, basis: Tensor, overlap: Tensor) -> Tensor:
    """Return ``v − Σ_j o_j q_j`` as a product of rows, which is many times faster than one of columns."""
    return torch.baddbmm(vectors[:, None], overlap.mT, basis, alpha=-1).squeeze(1)


@dataclass(frozen=True)
class _Ends:
    """What the tridiagonal problems say: Ritz values and vectors, and how far the ends may be off."""

    values: Tensor  # (nodes, count)
    states: Tensor  # (nodes, count, count)
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    converged: Tensor

    @property
    def settled(self) -> Tensor:
        """Where more products would tell nothing new, as of blocks whose numbers are not finite."""
        return self.converged | self.values[:, 0].isnan()


def _ends(stack: Stack, krylov: _Krylov, tolerance: float) -> _Ends:
    """Solve the tridiagonal problems."""
    values, states = eigenpairs(krylov.tridiagonal())
    residuals = krylov.beta[:, krylov.count - 1, None] * states[:, -1, :].abs()
    scale = values.abs().amax(dim=1)
    smallest, smallest_error = _smallest(stack, values, residuals[:, 0], scale)
    enough = (residuals[:, -1] <= tolerance * scale) & (smallest_error <= tolerance * scale)
    return _Ends(values, states, smallest, residuals[:, -1], smallest_error, krylov.finished | enough)


class _Results:
    """The extremes of all blocks, put down block by block as they are known."""

    def __init__(self, start: Tensor, width: int, both_vectors: bool) -> None:
        nodes = len(start)

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(nodes, *shape, dtype=torch.float64, device=start.device)

        self._found = Extremes(
            largest=numbers(),
            smallest=numbers(),
            largest_error=numbers(),
            smallest_error=numbers(),
            vectors=torch.empty_like(start),
            values=numbers(width),
            weights=numbers(width),
            converged=torch.zeros(nodes, dtype=torch.bool, device=start.device),
            products=0,
            smallest_vectors=torch.empty_like(start) if both_vectors else None,
        )

    def put(self, owners: Tensor, ends: _Ends, krylov: _Krylov, which: Tensor) -> None:
        """Put down what is known of these blocks of the ones at work; quadratures are padded with weight zero."""
        found, into, count = self._found, owners[which], krylov.count
        values, states = ends.values[which], ends.states[which]
        found.largest[into], found.smallest[into] = values[:, -1], ends.smallest[which]
        found.largest_error[into] = ends.largest_error[which]
        found.smallest_error[into] = ends.smallest_error[which]
        found.converged[into] = ends.converged[which]
        found.values[into, :count], found.values[into, count:] = values, values[:, -1:]
        found.weights[into, :count] = krylov.densities(values, states, which)
        found.vectors[into] = krylov.combined(states[:, :, -1], which)
        if found.smallest_vectors is not None:
            found.smallest_vectors[into] = krylov.combined(states[:, :, 0], which)

    def extremes(self, products: int) -> Extremes:
        """Return them all."""
        return replace(self._found, products=products)


def _smallest(stack: Stack, values: Tensor, residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest eigenvalues and their errors, with what is known of semidefinite and rank-short blocks."""
    smallest = values[:, 0]
    if not stack.semidefinite:
        return smallest, residual
    if stack.rank_bound < stack.size:
        return torch.zeros_like(smallest), torch.zeros_like(residual)
    rounding = torch.finfo(torch.float32).eps * scale
    return smallest, torch.minimum(residual, smallest.clamp_min(0) + rounding)
