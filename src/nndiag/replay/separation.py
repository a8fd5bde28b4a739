"""Finding the samples: which rows of a layer's output belong to which, and whether they see each other at all.

Every per-sample formula rests on it. A layer whose first axis is not the sample (sequence-first recurrences and
transformers, flattened batches) or a model that mixes its batch (batch statistics in eval mode) would give wrong
curvature without any error. Two small backward passes tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nndiag.replay.jacobians import dependence
from nndiag.replay.kinds import Layer, Samples
from nndiag.replay.layers import Owners
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import forward
from nndiag.replay.watch import Call


class Blind:
    """An observer that looks at nothing."""

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Nothing."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Nothing."""


@dataclass(frozen=True)
class Separation:
    """Where the samples are in the output of each call of a layer, by the layer's name.

    ``alone`` names the layers that need samples run one by one: with parameters in functions that no kind knows, or an
    output that samples share (positions, looked up once for all). ``left_out`` gives the reason for those for which
    that would be wrong, because samples influence each other.
    """

    samples: Mapping[str, Sequence[Samples]]
    alone: frozenset[str]
    left_out: Mapping[str, str]


def separation(
    model: nn.Module, inputs: Sequence[Tensor], owners: Owners, generator: torch.Generator
) -> Separation:
    """Look at the first three samples of a probe.

    The output of the first alone is sent back, then that of the last alone; the rows of a layer's output that they
    reach must be those of one sample in some regular order.

    Args:
        model: the model, in eval mode.
        inputs: probe inputs; the first three samples are used.
        owners: the layer and slot of every parameter.
        generator: source of the seeds of the backward passes.
    """
    few = [x[:3] for x in inputs]
    count = few[0].shape[0]
    seen = forward(model, few, owners, Blind())
    reached = []
    for row in (0, count - 1):
        seed = torch.zeros_like(seen.output)
        seed[row] = torch.randn(seed[row].shape, generator=generator).to(seed)
        reached.append(seen.gradients(seed))
    found: dict[str, list[Samples]] = {}
    alone = set(seen.watch.used_elsewhere)
    for call, first, last in zip(seen.calls, *reached, strict=True):
        if call.use is None:
            continue
        samples = _samples(call, count, first, last)
        if samples is None:
            alone.add(call.layer.name)
        else:
            found.setdefault(call.layer.name, []).append(samples)
    reason = dependence(model, few, seen.output) if alone else None
    if reason is None:
        return Separation(found, frozenset(alone), {})
    return Separation(found, frozenset(), dict.fromkeys(sorted(alone), reason))


def _samples(call: Call, count: int, first: Tensor, last: Tensor) -> Samples | None:
    """Return the order of samples that agrees with the rows reached from the first and the last sample."""
    assert call.use is not None
    touched = [(call.use.kind.spread(call.use, g) != 0).flatten(1).any(dim=1) for g in (first, last)]
    rows = torch.arange(len(touched[0]), device=first.device)
    leading = call.use.kind.leading(call.use, call.shape)
    for after in _strides(leading, count):
        owner = rows // after % count
        if bool((owner[touched[0]] == 0).all()) and bool((owner[touched[1]] == count - 1).all()):
            return Samples(len(rows) // (after * count), after)
    return None


def _strides(leading: Sequence[int], count: int) -> Iterator[int]:
    """Yield how many rows of one sample may follow each other: samples first, then along every other axis."""
    for axis, size in enumerate(leading):
        if size == count:
            yield math.prod(leading[axis + 1 :])
    for axis, size in enumerate(leading):
        if size % count == 0 and size > count:  # samples flattened together with positions, either way round
            inside = math.prod(leading[axis + 1 :])
            yield inside * (size // count)
            yield inside
