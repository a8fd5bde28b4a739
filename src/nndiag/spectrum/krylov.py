"""Krylov spaces of many symmetric matrices at once, kept orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.spectrum.eigenpairs import eigenpairs, tridiagonal
from nndiag.spectrum.ends import Ritz
from nndiag.spectrum.raised import raised
from nndiag.spectrum.record import unit

REPEATED = 0.5
"""All vectors are made orthogonal a second time where more than this share of them must be."""
ROOM = 6
"""Vectors of a basis that room is made for at first."""
TINY = torch.finfo(torch.float64).tiny


class Krylov:
    """The bases and tridiagonal matrices as they grow; a finished block has exhausted its Krylov space.

    Args:
        first: unit vectors, ``(nodes, size)``.
        limit: the most products there will be.
        random: those which the spectrum is to be seen by; the first ones where they are not given.
    """

    def __init__(self, first: Tensor, limit: int, random: Tensor | None = None) -> None:
        nodes = len(first)
        self._random = random
        self.basis = first.new_empty(min(limit, ROOM) + 1, nodes, first.shape[1])
        self.basis[0] = first
        self.overlap = torch.zeros(nodes, limit, dtype=torch.float64, device=first.device)
        self.alpha = torch.zeros(nodes, limit, dtype=torch.float64, device=first.device)
        self.beta = torch.zeros_like(self.alpha)
        self.finished = torch.zeros(nodes, dtype=torch.bool, device=first.device)
        self.count = 0
        self._told = torch.ones_like(self.finished)
        self._scale = torch.zeros(nodes, dtype=torch.float64, device=first.device)
        self._astray = torch.zeros_like(self._scale)

    @property
    def current(self) -> Tensor:
        """The vectors to be multiplied next, ``(nodes, size)``."""
        return self.basis[self.count]

    def extend(self, image: Tensor) -> None:
        """Add one vector, made of the images of ``current``, to every Krylov space that is not exhausted."""
        step = self.count
        if self._random is None:
            self.overlap[:, step] = float(step == 0)
        else:
            overlap = torch.linalg.vecdot(self.basis[step], self._random).double()
            self.overlap[:, step] = torch.where(self._told, overlap, 0.0)
        self._reserve(step + 2)
        known = self.basis[: step + 1].movedim(0, 1)
        image, overlap = _remainder(image, known)
        alpha = overlap[:, step].double()
        beta = image.norm(dim=1).double()
        before = (overlap.double().square().sum(dim=1) + beta.square()).sqrt()
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
            image, _ = _remainder(image, known)
            beta = image.norm(dim=1).double()
        elif len(again):
            some, _ = _remainder(image[again], known[again])
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
        self.overlap, self._told, self._astray = self.overlap[index], self._told[index], self._astray[index]
        self._random = None if self._random is None else self._random[index]

    def promising(self, traces: Tensor | None) -> Tensor:
        """Say which blocks may be known after two products: those of which one eigenvalue is half of the trace or more.

        After one ``α_1 + β_1²/α_1`` is a lower bound of it, for semidefinite blocks of which the traces are known.
        """
        if traces is None:
            return torch.zeros_like(self.finished)
        return 2 * (self.alpha[:, 0] + self.beta[:, 0].square() / self.alpha[:, 0]) > traces

    def combined(self, states: Tensor) -> Tensor:
        """Return unit vectors given by their components in the bases, ``(nodes, size)``."""
        return unit((states.to(self.basis)[:, None] @ self.basis[: self.count].movedim(0, 1))[:, 0])

    def densities(self, values: Tensor, states: Tensor, which: Tensor) -> Tensor:
        """Return the squared overlaps of Ritz vectors of some blocks with the random vectors, ``(which, count)``.

        What these have outside the Krylov space, where the directions are that it has not met, counts for the value
        nearest to zero: a start that leans towards the large ones leaves few of them out.
        """
        squares = torch.einsum("nk,nkm->nm", self.overlap[which, : self.count], states).square_()
        outside = (1 - squares.sum(dim=1, keepdim=True)).clamp_min_(0)
        squares.scatter_add_(1, values.abs().argmin(dim=1, keepdim=True), outside)
        return squares / squares.sum(dim=1, keepdim=True)

    def ritz(self, semidefinite: bool = False) -> Ritz:
        """Solve the tridiagonal problems; the residual of a Ritz value is ``β_m |s_m|``, ``s_m`` the last component."""
        alpha, off = self.alpha[:, : self.count], self.beta[:, : self.count - 1]
        values, states = eigenpairs(tridiagonal(alpha, off))
        residuals = self.beta[:, self.count - 1, None] * states[:, -1, :].abs()
        precision = torch.finfo(self.basis.dtype).eps
        more = raised(alpha, self.beta[:, : self.count], precision) if semidefinite else None
        return Ritz(values, states, residuals, self.finished, precision, more)


def leaning(random: Tensor) -> Tensor:
    """Return the unit sums of random unit vectors with the constant one, ``(nodes, size)``.

    Inputs that are never negative, as behind a ReLU, have their largest eigenvalue near it; no other loses by it.
    """
    constant = torch.full_like(random, random.shape[1] ** -0.5)
    opposite = torch.linalg.vecdot(random, constant) < 0  # to the same side, or the sum might vanish
    return unit(torch.where(opposite[:, None], -constant, constant).add_(random))


def _remainder(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``v − Σ_j o_j q_j`` and ``o_j = ⟨q_j, v⟩``, by products of rows, many times faster than of columns.

    Args:
        vectors: ``v``, ``(nodes, size)``.
        basis: ``q``, ``(nodes, count, size)``.
    """
    overlap = vectors[:, None] @ basis.mT
    return torch.baddbmm(vectors[:, None], overlap, basis, alpha=-1)[:, 0], overlap[:, 0]
