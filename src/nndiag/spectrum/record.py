"""What a solver is given and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor


class Stack(Protocol):
    """What is known of a stack of ``nodes`` symmetric matrices of ``size × size``."""

    @property
    def nodes(self) -> int:
        """How many matrices there are."""

    @property
    def size(self) -> int:
        """Rows of one matrix."""

    @property
    def rank_bound(self) -> int:
        """No matrix has a larger rank; ``size`` where nothing is known."""

    @property
    def semidefinite(self) -> bool:
        """Whether no matrix has a negative eigenvalue, up to rounding."""


class Blocks(Stack, Protocol):
    """A stack of symmetric matrices, known by its products."""

    def product(self, vectors: Tensor) -> Tensor:
        """Multiply each matrix by its own vector: ``(nodes, size) → (nodes, size)``."""

    def restricted(self, index: Tensor) -> Blocks | None:
        """Return the stack of these matrices alone; ``None`` where that would not make products cheaper."""

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the matrices ``start:stop`` themselves, ``(stop - start, size, size)``."""


@dataclass(frozen=True)
class Extremes:
    """The signed extremes of every block: ``largest`` is λ_max, never the largest magnitude.

    ``largest_error`` and ``smallest_error`` bound how far each may be off, in the solver's own way. ``vectors``
    are the unit vectors of ``largest``, ``smallest_vectors``, where asked for, those of the smallest values found.
    ``values`` and ``weights`` are nodes and weights of a quadrature of the spectral density (weights sum to one for
    every block).
    ``converged`` says, block by block, whether both errors are below the tolerance asked for. ``second`` is what the
    second largest eigenvalue is known to reach, where more is known of it than ``values`` tell. ``unmoved`` says of
    which blocks ``vectors`` are those that a solver started from, ``every`` whether ``values`` are all eigenvalues.
    Where a lead gave the start, the density is that which this start sees.
    """

    largest: Tensor  # (nodes,) float64
    smallest: Tensor  # (nodes,) float64
    largest_error: Tensor  # (nodes,) float64
    smallest_error: Tensor  # (nodes,) float64
    vectors: Tensor  # (nodes, size)
    values: Tensor  # (nodes, m) float64
    weights: Tensor  # (nodes, m) float64
    converged: Tensor  # (nodes,) bool
    products: int
    smallest_vectors: Tensor | None = None  # (nodes, size)
    second: Tensor | None = None  # (nodes,) float64
    unmoved: Tensor | None = None  # (nodes,) bool
    every: bool = False


def joined(parts: Sequence[Extremes]) -> Extremes:
    """Put the extremes of parts of a stack, solved in the same way, one after the other."""
    if len(parts) == 1:
        return parts[0]
    found = {}
    for field in fields(Extremes):
        values = [getattr(part, field.name) for part in parts]
        if field.name in ("products", "every"):
            found[field.name] = max(values)
        else:
            found[field.name] = None if values[0] is None else torch.cat(values)
    return Extremes(**found)


def random_vectors(nodes: int, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return one random unit vector per block, drawn on the CPU so that every device starts alike."""
    return unit(torch.randn(nodes, size, generator=generator, dtype=like.dtype)).to(like.device)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors ``(nodes, size)`` divided by their lengths; zeros stay zeros."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    found: Tensor = vectors / lengths.clamp_min(torch.finfo(vectors.dtype).tiny)
    return found
