"""The gradient of the probe's loss against what chance makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nndiag.measures.certificate.objective import Objective

GROUPS = 32
"""Groups of samples that the noise is estimated from: single samples where there are no more."""


@dataclass(frozen=True)
class Gradient:
    """``loss`` is ``L``, ``norm`` ``‖∇L‖``, ``noise`` its standard error over the draw of the probe.

    ``noise`` is ``None`` for a single sample. ``typical`` is the root mean square of the groups' gradient norms: what
    cancels to make the mean.
    """

    loss: float
    norm: float
    noise: float | None
    typical: float
    groups: int


def gradient_noise(objective: Objective, generator: torch.Generator) -> Gradient:
    """Measure the gradient of the probe's loss and its sampling noise.

    The samples are dealt out at random to ``K`` groups of ``n_k``, with mean gradients ``g_k``. As a group's gradient
    has the variance ``σ²/n_k``, ``σ² = Σ_k n_k ‖g_k − g‖² / (K − 1)`` is unbiased, and the noise is
    ``√(σ²/N)``: the root of the expected ``‖g − E g‖²``. If the gradient of all the data that the probe was drawn from
    were zero, ``‖g‖`` would be about as large as that. All groups together cost one pass over the probe.

    Args:
        objective: the loss.
        generator: deals out the samples.

    Source: Welford's update of mean and squares, weighted (Chan, Golub and LeVeque 1979): no cancellation.
    """
    samples = objective.samples
    dealt, groups = torch.randperm(samples, generator=generator), min(GROUPS, samples)
    mean = torch.zeros_like(objective.point(), dtype=torch.float64)
    loss, seen, spread, squares = 0.0, 0, 0.0, 0.0
    for start in range(groups):
        group = dealt[start::groups]
        value, part = objective.of_samples(group)
        gradient, size = part.double(), len(group)
        loss += value * size / samples
        away = gradient - mean
        mean += away * (size / (seen + size))
        spread += float(away.square().sum()) * seen * size / (seen + size)
        squares += float(gradient.square().sum()) * size
        seen += size
    objective.passes += 1
    noise = math.sqrt(spread / (groups - 1) / samples) if groups > 1 else None
    return Gradient(loss, float(mean.norm()), noise, math.sqrt(squares / samples), groups)
