"""The curvature level: extremes, trace and flatness of every node's block, and the optimiser's own view of
it.

Eigenvalues are of the mean loss over the probe, per (parameter unit)², weight and bias of a node
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.blocks import GramBlocks, LayerBlocks, OuterBlocks, ScaledBlocks
from nndiag.measures.implicit import ImplicitBlocks
from nndiag.measures.plan import LayerRule
from nndiag.measures.remembering import Remembering
from nndiag.measures.schedule import solver_vectors
from nndiag.measures.update_map import update_map
from nndiag.measures.weights import numbers
from nndiag.records.measured import Floats, OptimizerFacts
from nndiag.spectrum import (
    Among,
    Asking,
    Blocks,
    Extremes,
    Lead,
    Stack,
    answered,
    dense_extremes,
    lanczos,
    power,
    random_vectors,
)
from nndiag.spectrum import joined as extremes_joined
from nndiag.spectrum.dense import TILE_BYTES

DENSE_SIZE = 40
"""Blocks up to this size are solved densely whatever the solver: exact, and cheaper."""

MOST_PRODUCTS, MOST_EXACTING, EXACTING = 64, 512, 1e-5
"""The most products that Lanczos makes, and where the tolerance is below that: smallest eigenvalues are slow."""

LEAST_INDEFINITE = 12
"""Products before the ends of a block are believed that may have negative eigenvalues."""

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
    rule: LayerRule,
    workspace: int | None = None,
    among: tuple[int, int] | None = None,
) -> LayerCurvature:
    """Measure the blocks of one layer.

    Args:
        blocks: of all its nodes.
        fold_sizes: samples of every fold, ``(folds,)``.
        settings: solver and tolerance.
        rule: how the optimiser sees the blocks, where it is known.
        workspace: bytes that a solver may take; it then treats some nodes after the others.
        among: the place of the first node in its layer and the nodes of that, where these are not all: random start
            vectors are those of the layer.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    solve = partial(_solve, settings=settings, generator=generator, workspace=workspace, among=among)
    traces = blocks.traces()
    folds, lead, known = len(fold_sizes), None, None
    iterated = settings.solver == "lanczos" and not solved_densely(blocks.size, settings.solver)
    if iterated and isinstance(blocks, OuterBlocks | GramBlocks):
        lead, known = blocks.lead(traces, settings.tolerance, folds)
    multiplied: LayerBlocks | Remembering = blocks
    if workspace is None and isinstance(blocks, ImplicitBlocks):
        multiplied = Remembering(blocks)
    found = solve(multiplied, blocks.like, lead=lead, traces=traces if blocks.semidefinite else None)
    seen = of_seen = None
    if rule.divisor is not None:
        scale, decay = rule.scaling(blocks.like)
        seen = solve(ScaledBlocks(blocks, scale, decay), blocks.like)
        of_seen = blocks.forms_by_fold(seen.vectors * scale, folds)
    forms = [_forms(multiplied, found, folds, known)]
    if found.smallest_vectors is not None:
        forms.append(blocks.forms_by_fold(found.smallest_vectors, folds))
    return curvature_of(found, seen, traces, forms, fold_sizes, rule.facts, of_seen)


def _forms(blocks: LayerBlocks | Remembering, found: Extremes, folds: int, known: Tensor | None) -> Tensor:
    """Return the shares of the folds at the vectors found, some of which are those that are ``known``."""
    if known is None or found.unmoved is None or not isinstance(blocks, OuterBlocks):
        return blocks.forms_by_fold(found.vectors, folds)
    moved = torch.nonzero(~found.unmoved).flatten()
    known[:, moved] = blocks.restricted(moved).forms_by_fold(found.vectors[moved], folds)
    return known


def curvature_of(
    found: Extremes,
    seen: Extremes | None,
    traces: Tensor,
    forms: Sequence[Tensor],
    fold_sizes: Tensor,
    optimizer: OptimizerFacts | None,
    of_seen: Tensor | None = None,
) -> LayerCurvature:
    """Put the results of solvers together.

    ``lambda_max_se`` and its like are the standard errors of ``vᵀ H_k v`` over the folds ``k``, at the unit vector
    ``v`` that the whole probe gives: the noise of the samples, and of the signs where columns share passes.

    Args:
        found: the extremes of the blocks.
        seen: those of the blocks as the optimiser sees them, where these are others.
        traces: of the blocks, ``(nodes,)``.
        forms: shares of the folds at the vectors of the largest eigenvalues, and of the smallest where those are known.
        fold_sizes: samples of every fold, ``(folds,)``.
        optimizer: the update rule, where it is known.
        of_seen: shares of the folds at the vectors of the largest eigenvalues as the optimiser sees them.
    """
    names, preconditioned = ("lambda_max", "lambda_min"), optimizer is not None and optimizer.is_adam
    per_fold = {name: _by_fold(form, fold_sizes) for name, form in zip(names, forms, strict=False)}
    per_node = {
        "lambda_max": numbers(found.largest),
        "lambda_min": numbers(found.smallest),
        "lambda_max_error": numbers(found.largest_error),
        "lambda_min_error": numbers(found.smallest_error),
        "trace": numbers(traces),
        **{f"{name}_se": _standard_error(values) for name, values in per_fold.items()},
        "flat_fraction": _flat_fraction(found, traces, optimizer, seen is None or not preconditioned),
    }
    if found.every:
        per_node.update(_of_every_eigenvalue(found, optimizer))
    noise = per_node["lambda_max_se"] if of_seen is None else _standard_error(_by_fold(of_seen, fold_sizes))
    if seen is not None and preconditioned:
        per_node["lambda_max_preconditioned"] = numbers(seen.largest)
        per_node["lambda_max_preconditioned_se"] = noise
    if optimizer is not None and (seen is not None or not preconditioned):
        ends = seen or found
        per_node.update(update_map(numbers(ends.largest), numbers(ends.smallest), noise, optimizer))
    return LayerCurvature(per_node, per_fold, bool(found.converged.all()), found.products)


def _of_every_eigenvalue(found: Extremes, optimizer: OptimizerFacts | None) -> dict[str, Floats]:
    """Return what only all eigenvalues tell: ``sigma_min = min |λ|``, and of the plain map ``I − αH`` how near one of
    its eigenvalues is to the unit circle, ``unit_circle_distance = min | |1 − αλ| − 1 |``.
    """
    measures = {"sigma_min": numbers(found.values.abs().amin(dim=1))}
    if optimizer is not None and optimizer.lr:
        distance = ((1 - optimizer.lr * found.values).abs() - 1).abs()
        measures["unit_circle_distance"] = numbers(distance.amin(dim=1))
    return measures


def joined(parts: Sequence[LayerCurvature]) -> LayerCurvature:
    """Put the nodes of several parts of a layer side by side."""
    if len(parts) == 1:
        return parts[0]
    return LayerCurvature(
        {name: np.concatenate([part.per_node[name] for part in parts]) for name in parts[0].per_node},
        {name: np.concatenate([part.per_fold[name] for part in parts], axis=1) for name in parts[0].per_fold},
        all(part.converged for part in parts),
        max(part.products for part in parts),
    )


def solved_densely(size: int, solver: str) -> bool:
    """Whether blocks of this size are solved by forming them."""
    return solver == "dense" or (solver == "lanczos" and size <= DENSE_SIZE)


def solving(
    stack: Stack,
    start: Tensor,
    settings: CurvatureSettings,
    both_vectors: bool,
    lead: Lead | None = None,
    traces: Callable[[], Tensor] | None = None,
) -> Asking:
    """Return the solver that asks for products; ``traces`` are those of semidefinite blocks."""
    if settings.solver == "power":
        return power(stack, start, tolerance=settings.tolerance, both_vectors=both_vectors)
    most = MOST_PRODUCTS if settings.tolerance >= EXACTING else MOST_EXACTING
    return lanczos(
        stack,
        start,
        tolerance=settings.tolerance,
        max_products=most,
        least_products=0 if stack.semidefinite else LEAST_INDEFINITE,
        both_vectors=both_vectors,
        lead=lead,
        traces=traces,
    )


def _solve(
    blocks: Blocks,
    like: Tensor,
    settings: CurvatureSettings,
    generator: torch.Generator,
    workspace: int | None,
    among: tuple[int, int] | None,
    lead: Lead | None = None,
    traces: Tensor | None = None,
) -> Extremes:
    both = not blocks.semidefinite
    if solved_densely(blocks.size, settings.solver):
        tile = TILE_BYTES if workspace is None else min(TILE_BYTES, workspace)
        return dense_extremes(blocks, like, both_vectors=both, tile_bytes=tile)
    first, every = among or (0, blocks.nodes)
    if lead is None:
        starts = random_vectors(every, blocks.size, like, generator)[first : first + blocks.nodes]
    else:
        starts = lead.vectors
    itemsize = starts.element_size()
    each = solver_vectors(settings.solver, itemsize) * blocks.size * itemsize
    step = blocks.nodes if workspace is None else min(blocks.nodes, max(1, workspace // each))
    parts = []
    for begin in range(0, blocks.nodes, step):
        index = torch.arange(begin, min(blocks.nodes, begin + step), device=starts.device)
        some = blocks if step == blocks.nodes else blocks.restricted(index) or Among(blocks, index)
        known = lead if lead is None or step == blocks.nodes else lead.restricted(index)
        own = None if traces is None else partial(torch.index_select, traces, 0, index)
        parts.append(answered(solving(some, starts[begin : begin + step], settings, both, known, own), some))
    return extremes_joined(parts)


def _by_fold(forms: Tensor, fold_sizes: Tensor) -> Floats:
    """Return ``vᵀ H_fold v`` of every fold and node, ``(folds, nodes)``."""
    return numbers(forms.cpu() / fold_sizes[:, None])


def _standard_error(by_fold: Floats) -> Floats:
    if len(by_fold) < 2:
        return np.full(by_fold.shape[1], np.nan)
    with np.errstate(invalid="ignore"):  # curvature beyond the range of its type
        spread: Floats = by_fold.std(axis=0, ddof=1) / np.sqrt(len(by_fold))
    return spread


def _flat_fraction(found: Extremes, traces: Tensor, optimizer: OptimizerFacts | None, plain: bool) -> Floats:
    """Share of a block's directions that do not relax within the horizon, or are flat beside the steepest.

    Exact for a dense solver. Else the eigenvalues below the largest, ``λ₁``, are taken to fall geometrically from the
    second that the solver found, ``θ₂``, so that the trace ``T`` is right: ``1 + (T − λ₁)/θ₂ · ln(θ₂/edge)`` of them
    are above the edge (off by 0.01 of the directions in the median, 0.17 at most, on trained convolutional and fully
    connected layers). Of a block with negative eigenvalues it is counted on the quadrature of the solver.
    """
    edge = FLAT_SHARE * found.values[:, -1:]
    if plain and optimizer is not None and optimizer.lr and optimizer.horizon:
        edge = torch.full_like(edge, 1.0 / (optimizer.lr * optimizer.horizon))
    flat = (found.values.abs() <= edge.clamp_min(0)).double()
    quadrature = (found.weights * flat).sum(dim=1).clamp(0, 1)
    size = found.vectors.shape[1]
    if found.every or size == 1:
        return numbers(quadrature)
    edge, largest = edge[:, 0], found.largest
    known = torch.where(found.weights > 0, found.values, -torch.inf)
    second = known.topk(2, dim=1).values[:, 1]
    second = second if found.second is None else torch.fmax(second, found.second)
    tail = (traces.to(largest) - largest).clamp_min(0) / second * torch.log(second / edge)
    above = (largest > edge).double() + torch.where(second > edge, tail, 0)
    return numbers(torch.where(found.smallest < -edge, quadrature, 1 - (above / size).clamp(0, 1)))
