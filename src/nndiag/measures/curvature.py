"""The curvature level: extremes, trace and flatness of every node's block, and the optimiser's own view of
it.

Eigenvalues are of the mean loss over the probe, per (parameter unit)², weight and bias of a node
together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.blocks import LayerBlocks, ScaledBlocks
from nndiag.measures.update_map import update_map
from nndiag.measures.weights import numbers
from nndiag.records.measured import Floats, OptimizerFacts
from nndiag.spectrum import Blocks, Extremes, dense_extremes, lanczos_extremes, power_extremes

DENSE_SIZE = 40
"""Blocks up to this size are solved densely whatever the solver: exact, and cheaper."""

FLAT_SHARE = 1e-3
"""Without a learning rate a direction is flat where its curvature is below this share of the block's
largest."""


@dataclass(frozen=True)
class CurvatureSettings:
    """How to solve: ``solver`` is ``"lanczos"``, ``"power"`` or ``"dense"``; ``tolerance`` relative to the
    largest eigenvalue."""

    solver: str = "lanczos"
    tolerance: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class LayerCurvature:
    """Per-node results of one layer, and how the solver fared."""

    per_node: dict[str, Floats]
    per_fold: dict[str, Floats]
    converged: bool
    products: int


def layer_curvature(
    blocks: LayerBlocks,
    fold_sizes: Tensor,
    settings: CurvatureSettings,
    optimizer: OptimizerFacts | None,
    preconditioner: Tensor | None,
) -> LayerCurvature:
    """Measure the blocks of one layer.

    Args:
        blocks: of all its nodes.
        fold_sizes: samples of every fold, ``(folds,)``.
        settings: solver and tolerance.
        optimizer: the update rule, where it is known.
        preconditioner: Adam's ``P = √v̂ + ε`` as ``(nodes, size)``, where it is known.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    found = _solve(blocks, blocks.like, settings, generator)
    per_fold = {"lambda_max": _by_fold(blocks, found.vectors, fold_sizes)}
    if found.smallest_vectors is not None:
        per_fold["lambda_min"] = _by_fold(blocks, found.smallest_vectors, fold_sizes)
    per_node = {
        "lambda_max": numbers(found.largest),
        "lambda_min": numbers(found.smallest),
        "lambda_max_error": numbers(found.largest_error),
        "lambda_min_error": numbers(found.smallest_error),
        "trace": numbers(blocks.traces()),
        "lambda_max_se": _standard_error(per_fold["lambda_max"]),
        "flat_fraction": _flat_fraction(found, optimizer, preconditioner is None),
    }
    seen = found
    if preconditioner is not None:
        assert optimizer is not None
        scaled = ScaledBlocks(blocks, preconditioner.rsqrt().to(blocks.like), optimizer.coupled_decay)
        seen = _solve(scaled, blocks.like, settings, generator)
        per_node["lambda_max_preconditioned"] = numbers(seen.largest)
    if optimizer is not None and (preconditioner is not None or not optimizer.is_adam):
        per_node.update(update_map(numbers(seen.largest), numbers(seen.smallest), optimizer))
    return LayerCurvature(per_node, per_fold, bool(found.converged.all()), found.products)


def _solve(blocks: Blocks, like: Tensor, settings: CurvatureSettings, generator: torch.Generator) -> Extremes:
    both = not blocks.semidefinite
    if settings.solver == "dense" or (settings.solver == "lanczos" and blocks.size <= DENSE_SIZE):
        return dense_extremes(blocks, like, both_vectors=both)
    solver = power_extremes if settings.solver == "power" else lanczos_extremes
    return solver(blocks, like, generator=generator, tolerance=settings.tolerance, both_vectors=both)


def _by_fold(blocks: LayerBlocks, vectors: Tensor, fold_sizes: Tensor) -> Floats:
    """Return ``vᵀ H_fold v`` of every fold and node, ``(folds, nodes)``."""
    return numbers(blocks.forms_by_fold(vectors, len(fold_sizes)).cpu() / fold_sizes[:, None])


def _standard_error(by_fold: Floats) -> Floats:
    if len(by_fold) < 2:
        return np.full(by_fold.shape[1], np.nan)
    spread: Floats = by_fold.std(axis=0, ddof=1) / np.sqrt(len(by_fold))
    return spread


def _flat_fraction(found: Extremes, optimizer: OptimizerFacts | None, plain: bool) -> Floats:
    """Share of a block's directions that do not relax within the horizon, or are flat beside the steepest.

    Counted on the quadrature of the solver: exact for dense, one random vector's estimate for Lanczos.
    """
    edge = FLAT_SHARE * found.values[:, -1:]
    if plain and optimizer is not None and optimizer.lr and optimizer.horizon:
        edge = torch.full_like(edge, 1.0 / (optimizer.lr * optimizer.horizon))
    flat = (found.values.abs() <= edge.clamp_min(0)).double()
    return numbers((found.weights * flat).sum(dim=1).clamp(0, 1))
