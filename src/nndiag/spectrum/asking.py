"""Solvers as generators: they ask for products and are sent the images, whoever makes these and when.

One pass over a probe can so answer the solvers of many stacks at once. ``answered`` drives one solver with one stack.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.spectrum.record import Blocks, Extremes, random_vectors


@dataclass(frozen=True)
class Request:
    """Vectors to be multiplied, each by its own block.

    ``vectors`` are ``(k, size)``; ``index`` says of which blocks, ``(k,)``, and is the same tensor for as long as the
    blocks are the same; ``None`` means all.
    """

    vectors: Tensor
    index: Tensor | None = None


Asking = Generator[Request, Tensor, Extremes]
"""A solver at work: yields requests, is sent images shaped like the vectors, returns the extremes."""


def answered(solver: Asking, blocks: Blocks) -> Extremes:
    """Answer a solver with the products of a stack until it is done."""
    current, index, image = blocks, None, None
    while True:
        try:
            request = solver.send(image)  # type: ignore[arg-type]  # nothing, to begin with
        except StopIteration as ended:
            found: Extremes = ended.value
            return found
        if request.index is not index:
            index = request.index
            assert index is not None
            current = blocks.restricted(index) or Among(blocks, index)
        image = current.product(request.vectors)


def extremes_by(
    solve: Callable[..., Asking],
    blocks: Blocks,
    like: Tensor,
    *,
    generator: torch.Generator,
    **options: float,
) -> Extremes:
    """Return what a solver finds of every block from one random start vector per block.

    Args:
        solve: ``lanczos`` or ``power``.
        blocks: the stack of symmetric matrices.
        like: gives dtype and device of the vectors.
        generator: source of the start vectors.
        options: of the solver.
    """
    start = random_vectors(blocks.nodes, blocks.size, like, generator)
    return answered(solve(blocks, start, **options), blocks)


@dataclass(frozen=True)
class Among:
    """Some blocks of a stack that multiplies all at once: the vectors of the others are zero."""

    blocks: Blocks
    index: Tensor

    @property
    def nodes(self) -> int:
        """How many blocks."""
        return len(self.index)

    @property
    def size(self) -> int:
        """Rows of one block."""
        return self.blocks.size

    @property
    def rank_bound(self) -> int:
        """That of the whole stack."""
        return self.blocks.rank_bound

    @property
    def semidefinite(self) -> bool:
        """That of the whole stack."""
        return self.blocks.semidefinite

    def product(self, vectors: Tensor) -> Tensor:
        """Multiply these blocks by their vectors."""
        return self.blocks.product(placed(vectors, self.index, self.blocks.nodes))[self.index]

    def restricted(self, index: Tensor) -> Among:
        """Return fewer of them."""
        return Among(self.blocks, self.index[index])

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the matrices, one by one."""
        return torch.cat([self.blocks.matrices(i, i + 1) for i in self.index[start:stop].tolist()])


def placed(vectors: Tensor, index: Tensor | None, nodes: int) -> Tensor:
    """Return ``(nodes, size)`` with these rows at these places and zeros elsewhere."""
    if index is None:
        return vectors
    return vectors.new_zeros(nodes, vectors.shape[1]).index_copy_(0, index, vectors)


def fills(shift: float | Tensor) -> bool:
    """Whether adding a multiple of the identity, or a diagonal, leaves no rank short."""
    return isinstance(shift, Tensor) or shift != 0


def scaled(solver: Asking, scale: Tensor, shift: float | Tensor = 0.0) -> Asking:
    """Let a solver of ``D (G + wI) D`` ask for products with ``G``.

    Args:
        solver: of the scaled stack.
        scale: the diagonals ``D``, ``(nodes, size)``.
        shift: ``w``, one number or one for each entry, ``(nodes, size)``.
    """
    request = next(solver)
    while True:
        own = scale if request.index is None else scale[request.index]
        vectors = request.vectors * own
        image = yield Request(vectors, request.index)
        try:
            more = shift[request.index] if isinstance(shift, Tensor) and request.index is not None else shift
            request = solver.send((image + vectors * more if fills(shift) else image) * own)
        except StopIteration as ended:
            found: Extremes = ended.value
            return found
