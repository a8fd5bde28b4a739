"""A look at the first samples of a probe: what the curvature of each layer will keep, and what passes take.

One backward pass over three samples shows the shapes that everything follows from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.activations import COVARIANCE_LIMIT
from nndiag.measures.batchview import LayerUse
from nndiag.measures.budget import graph_tensors, storage_bytes
from nndiag.measures.capture import Capture, fits_whole
from nndiag.measures.curvature import solved_densely
from nndiag.measures.folds import FoldRows
from nndiag.measures.replaying import Replay
from nndiag.measures.sampling import forward_work
from nndiag.measures.schedule import Form, Need, Passing, Setting
from nndiag.measures.shown import Shown
from nndiag.records.level import Level
from nndiag.replay.kinds import Layer
from nndiag.replay.passes import Forward

INFLUENCE_PASSES = 2
"""Backward passes of the first replay beside those of the curvature: of the loss, and of seeded outputs."""


@dataclass(frozen=True)
class Look:
    """What the layers need, what passes take, and the columns of the loss curvature.

    ``columns`` are the backward passes that a sample takes in the mean, rounded up, ``passes`` the same not rounded,
    ``samples`` the share of samples that take any; ``work`` the multiplications of a forward pass, a sample.
    """

    needs: tuple[Need, ...]
    setting: Setting
    columns: int
    passes: float
    samples: float
    work: float


def look_at(replay: Replay, seen: Forward, solvers: int = 1) -> Look:
    """Look at a forward pass over the first samples.

    Args:
        replay: whose samples have been found.
        seen: the forward pass that found them.
        solvers: how many solve every block.
    """
    curved = replay.plan.level >= Level.CURVATURE
    columns, passes, samples, of_seeds = 0, 0.0, 0.0, 0
    needs, call_bytes, patches, tile, of_alone = [], 0.0, 0.0, 0.0, 0
    count = len(seen.output)
    if curved:
        seeds = replay.look(seen)
        passes, samples = seeds.expected, seeds.samples
        columns = math.ceil(passes)
        of_seeds = seeds.held(min(replay.probe.batch_size, len(replay.probe)))
        gradients = seen.gradients(torch.ones_like(seen.output))
        call_bytes = sum(g.numel() * g.element_size() for g in gradients) / count
        for use in replay.uses(seen):
            own = use.gather(gradients)
            shown = Shown(use)
            shown.add(gradients)
            if shown.jacobians:
                needs.append(_need_by_jacobians(replay, use.layer, seen.output, passes))
            else:
                needs.append(_need(replay, shown, own, passes))
            patches = max(patches, _patches(use, own))
            if needs[-1].form != "outer":
                tile = max(tile, columns * needs[-1].vector)
        alone = [_need_by_jacobians(replay, layer, seen.output, passes) for layer in _alone(replay)]
        of_alone = columns * sum(need.vector for need in alone)
        needs += alone
    passing = _passing(replay, seen, columns, call_bytes, patches, tile, of_alone, of_seeds)
    work = forward_work(seen)
    setting = Setting(
        samples=len(replay.probe),
        folds=replay.probe.fold_count,
        batch_size=min(replay.probe.batch_size, len(replay.probe)),
        solver=replay.plan.solver,
        passing=passing,
        replaying=2 * work * (1 + samples + 2 * passes),
        solvers=solvers,
    )
    return Look(tuple(needs), setting, columns, passes, samples, work)


def _alone(replay: Replay) -> list[Layer]:
    return [layer for name, layer in replay.by_jacobians.items() if name not in replay.left_out]


def _need(replay: Replay, shown: Shown, own: Sequence[Tensor], passes: float) -> Need:
    """Try what is kept of the few samples in the layer's cheapest form; ``own`` are its gradients."""
    layer, probe, plan = shown.use.layer, replay.probe, replay.plan
    trial = Capture(layer, len(probe), probe.fold_count, way="implicit")
    itemsize, positions = own[0].element_size(), max(1, sum(g[0, 0].numel() for g in own if g.dim() > 1))
    form: Form = "outer"
    if shown.weights is None:
        form = "whole" if plan.solver == "dense" else trial.cheapest(shown.use, [own] * math.ceil(passes))
    per_sample = 0.0
    if form == "rows":
        per_sample = passes * (layer.nodes * layer.size * itemsize + 8)
    elif form != "whole":
        count = len(own[0])
        trial.add(shown, FoldRows(torch.arange(count) % probe.fold_count))
        more = sum(g.numel() * itemsize for g in own) if form == "implicit" else 0
        per_sample = (trial.bytes + max(0.0, passes - 1) * more) / count
    rows = 1 if form == "outer" else passes
    summing = 2 * rows * layer.nodes * layer.size * (layer.size + positions / layer.groups)
    multiplying = 4 * layer.nodes * positions * (layer.size + (passes if form == "implicit" else 0))
    if form == "rows":
        multiplying = 4 * passes * layer.nodes * layer.size
    return Need(
        layer.name, layer.nodes, layer.size, itemsize, form, per_sample, summing, multiplying,
        solved_densely(layer.size, plan.solver), layer.groups,
    )  # fmt: skip


def _need_by_jacobians(replay: Replay, layer: Layer, output: Tensor, passes: float) -> Need:
    probe, size = replay.probe, output.element_size()
    dense = solved_densely(layer.size, replay.plan.solver)
    whole = replay.plan.solver == "dense" or fits_whole(layer, probe.fold_count, size)
    row = layer.nodes * layer.size * size
    return Need(
        layer.name, layer.nodes, layer.size, size, "whole" if whole else "rows",
        0.0 if whole else passes * (row + 8), 2 * passes * layer.nodes * layer.size**2,
        4 * passes * layer.nodes * layer.size, dense,
    )  # fmt: skip


def _patches(use: LayerUse, own: Sequence[Tensor]) -> float:
    """Return the bytes a sample of what a layer's rows are made of, beside its gradients."""
    return 2 * sum(x.numel() * x.element_size() for x in use.inputs()) / len(own[0])


def _passing(
    replay: Replay,
    seen: Forward,
    columns: int,
    call_bytes: float,
    patches: float,
    tile: float,
    of_alone: int,
    of_seeds: int,
) -> Passing:
    count, output = len(seen.output), seen.output
    model = replay.model
    inputs = [x for call in seen.calls if call.use is not None for x in call.use.inputs.values()]
    constants = [*model.parameters(), *model.buffers(), *replay.probe.inputs]
    held = storage_bytes([*graph_tensors(output), *inputs], constants) / count
    gradients = call_bytes * max(1, columns, INFLUENCE_PASSES)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    entries = [math.prod(call.shape) / count for call in seen.calls]
    # the observer works on a layer's outputs in double precision, and sums up their products
    observed = 4 * 8 * max(entries, default=0)
    products = sum(2 * 8 * min(layer.nodes, COVARIANCE_LIMIT) ** 2 for layer in replay.layers)
    of_output = output.numel() * output.element_size() / count
    seeds = of_output * (2 + columns)
    return Passing(
        fixed=int(2 * parameters + products + of_seeds),
        per_sample=held + gradients + max(patches, observed) + seeds,
        tile=tile,
        alone=of_alone,
        aside=3 * of_output,
    )
