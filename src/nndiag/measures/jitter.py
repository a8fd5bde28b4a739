"""Masks under noise on the inputs: which units are off for good, and which stand at the edge of their activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nndiag.errors import UsageError
from nndiag.measures.replaying import Replay
from nndiag.measures.weights import numbers
from nndiag.records.measured import LayerMeasures
from nndiag.replay.kinds import Layer
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import forward

DRAWS = 4
"""Noisy passes over the probe."""


class Masks:
    """An observer that keeps where the activation of every call is not flat, ``(batch, units, rest)``."""

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Nothing."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Return the mask; ``None`` where there is no activation that is flat anywhere."""
        return None if activation is None or activation.flat is None else ~activation.flat(z)


def with_jitter(replay: Replay, layers: Sequence[LayerMeasures]) -> tuple[LayerMeasures, ...]:
    """Add ``mask_flips``, the share of masks that noise turns over, and ``jitter_active``, that of open ones under it.

    The noise is Gaussian, ``plan.jitter`` times the standard deviation of each input over the probe (entry by entry),
    drawn ``DRAWS`` times from the plan's seed. Nothing without jitter.

    Raises:
        UsageError: no input of the probe is of floating point.
    """
    size = replay.plan.jitter
    if not size:
        return tuple(layers)
    if not any(x.is_floating_point() for x in replay.probe.inputs):
        raise UsageError(f"--jitter {size:g}", "the inputs of the probe are integers", "leave it out")
    spreads = [x.std(dim=0, correction=0) if x.is_floating_point() else None for x in replay.probe.inputs]
    generator = torch.Generator().manual_seed(replay.plan.seed)
    sums: dict[str, tuple[Tensor, Tensor, float]] = {}
    with torch.no_grad():
        for batch in replay.probe.batches():
            clean = forward(replay.model, batch.inputs, replay.owners, Masks())
            for _ in range(DRAWS):
                noisy = [_noisy(x, s, size, generator) for x, s in zip(batch.inputs, spreads, strict=True)]
                seen = forward(replay.model, noisy, replay.owners, Masks())
                for one, two in zip(clean.calls, seen.calls, strict=False):
                    _add(sums, one.layer.name, one.reading, two.reading)
    return tuple(_with_masks(record, sums) for record in layers)


def _noisy(x: Tensor, spread: Tensor | None, size: float, generator: torch.Generator) -> Tensor:
    if spread is None:
        return x
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float32)
    return x + size * spread * drawn.to(x)


def _add(sums: dict[str, tuple[Tensor, Tensor, float]], name: str, one: object, two: object) -> None:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.shape != two.shape:
        return
    flips, opened = (mask.sum(dim=(0, 2)).double().cpu() for mask in (one != two, two))
    before = sums.get(name)
    entries = float(one.shape[0] * one.shape[2])
    if before is not None:
        flips, opened, entries = flips + before[0], opened + before[1], entries + before[2]
    sums[name] = flips, opened, entries


def _with_masks(record: LayerMeasures, sums: dict[str, tuple[Tensor, Tensor, float]]) -> LayerMeasures:
    found = sums.get(record.name)
    if found is None or len(found[0]) != record.nodes or "active_fraction" not in record.per_node:
        return record
    flips, opened, entries = found
    more = {"mask_flips": numbers(flips / entries), "jitter_active": numbers(opened / entries)}
    return replace(record, per_node={**record.per_node, **more})
