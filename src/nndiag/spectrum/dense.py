"""Every eigenvalue, by forming the blocks: exact, for small blocks and for checking the other solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.spectrum.eigenpairs import eigenpairs
from nndiag.spectrum.record import Blocks, Extremes

TILE_BYTES = 64 * 2**20


def dense_extremes(
    blocks: Blocks, like: Tensor, *, both_vectors: bool = False, tile_bytes: int = TILE_BYTES
) -> Extremes:
    """Return the extremes by ``eigh`` of each block in float64, a tile of blocks at a time.

    Args:
        blocks: the stack.
        like: gives dtype and device of the vectors returned.
        both_vectors: whether to return the vectors of the smallest values too.
        tile_bytes: what the blocks of a tile may take.

    Returns:
        Extremes with zero errors; ``values`` are all eigenvalues with equal weights.
    """
    size = blocks.size
    tile = max(1, tile_bytes // (8 * size * size))
    parts = []
    for start in range(0, blocks.nodes, tile):
        matrices = blocks.matrices(start, min(blocks.nodes, start + tile)).double()
        parts.append(eigenpairs((matrices + matrices.mT) / 2))
    values = torch.cat([found for found, _ in parts])
    vectors = torch.cat([found[:, :, -1] for _, found in parts])
    lowest = torch.cat([found[:, :, 0] for _, found in parts]).to(like) if both_vectors else None
    zeros = torch.zeros_like(values[:, 0])
    return Extremes(
        largest=values[:, -1],
        smallest=values[:, 0],
        largest_error=zeros,
        smallest_error=zeros,
        vectors=vectors.to(like),
        values=values,
        weights=torch.full_like(values, 1.0 / size),
        converged=~values[:, 0].isnan(),
        products=size,
        smallest_vectors=lowest,
        every=True,
    )
