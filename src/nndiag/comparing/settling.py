"""Whether a run has come to rest: converged, loss settled while the norm grows, oscillating, diverging, or moving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nndiag.comparing.run import Floats, LayerRun, Run, at, mean_between

Word = Literal["converged", "norm-growing", "oscillating", "diverging", "not-finite", "moving", "unknown"]

OSCILLATION = 0.05
"""A run oscillates where, relative to ``‖θ‖``, the step there is larger than this and that of two checkpoints
is small.
"""

_BACK = 0.25
"""The distance of two checkpoints apart from one and the same, as a share of that of neighbours."""

_AS_A_LOGARITHM = 0.5
"""Growth from T/2 to T over that from T/4 to T/2: 1 for a logarithm, 0 for what converges."""


@dataclass(frozen=True)
class Settling:
    """How the loss and the norm of the parameters end.

    ``loss_change`` is the change between the means of the last two quarters over the range of the loss in the run,
    ``norm_growth`` the growth of ``‖θ‖`` over the last half, relative. ``growth_per_doubling`` is ``b ln 2`` of the fit
    ``‖θ‖ = a + b ln t`` over the last three quarters, with its standard error ``growth_error``.
    """

    word: Word
    loss_settled: bool = False
    norm_growing: bool = False
    loss_change: float | None = None
    norm_growth: float | None = None
    growth_per_doubling: float | None = None
    growth_error: float | None = None


def settling(run: Run, thresholds: Mapping[str, float]) -> Settling:
    """Return how a run ends; ``unknown`` for fewer than four checkpoints."""
    losses, norms, times = run.losses, run.parameter_norms, run.times
    if len(times) < 4 or not run.span:
        return Settling("unknown")
    if np.isnan(norms[-1]) or (np.isnan(losses[-1]) and np.isfinite(losses).any()):
        return Settling("not-finite")
    if np.isnan(norms).any():
        return Settling("unknown")
    quarter, half = (float(at(norms, times, run.when(share))) for share in (0.25, 0.5))
    late, early = float(norms[-1]) - half, half - quarter
    growth = late / max(float(norms[-1]), 1e-300)
    slope, error = _logarithm(times - times[0], norms)
    growing = growth >= thresholds["growing_norm"] and late >= _AS_A_LOGARITHM * early and slope > 2 * error
    settled, change = _loss(run, thresholds["settled_loss"])
    known = {
        "loss_settled": settled, "norm_growing": growing, "loss_change": change, "norm_growth": growth,
        "growth_per_doubling": slope * np.log(2), "growth_error": error * np.log(2),
    }  # fmt: skip
    if norms[-1] >= thresholds["growth_ratio"] * half and half >= norms[0]:
        return Settling("diverging", **known)
    if oscillates(run):
        return Settling("oscillating", **known)
    if settled and growing:
        return Settling("norm-growing", **known)
    return Settling(
        "converged" if settled and abs(growth) < thresholds["growing_norm"] else "moving", **known
    )


def _loss(run: Run, tolerance: float) -> tuple[bool, float | None]:
    """Return whether the mean loss of the last two quarters is the same, and by how much it is not."""
    losses = run.losses
    if np.isnan(losses).any():
        return False, None
    third, fourth = (
        mean_between(losses, run.times, run.when(a), run.when(b)) for a, b in ((0.5, 0.75), (0.75, 1.0))
    )
    scale = max(float(np.ptp(losses)), 1e-300)
    if np.ptp(losses) <= 1e-9 * max(abs(float(losses[-1])), 1e-300):
        return True, 0.0
    change = (fourth - third) / scale
    return abs(change) <= tolerance, change


def _logarithm(times: Floats, norms: Floats) -> tuple[float, float]:
    """Return slope and standard error of the least-squares line of the norm in ``ln t``, over the last three
    quarters.
    """
    inside = times >= 0.25 * times[-1]
    if inside.sum() < 3:
        return 0.0, np.inf
    x, y = np.log(times[inside]), norms[inside]
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def oscillates(run: Run) -> bool:
    """Whether the last half of the run goes to and fro: far from one checkpoint to the next, and back at the one
    after.
    """
    first = min(int(np.searchsorted(run.times, run.when(0.5))), len(run.times) - 4)
    one, two, size = (np.zeros(len(run.times) - first - lag) for lag in (1, 2, 1))
    for layer in run.layers:
        vectors = _vectors(layer, first)
        if np.isnan(vectors).any():
            continue
        one += _squares(vectors[1:] - vectors[:-1])
        two += _squares(vectors[2:] - vectors[:-2])
        size += _squares(vectors[1:])
    if not size.all():
        return False
    far = np.median(np.sqrt(one / size))
    return bool(far > OSCILLATION and np.median(np.sqrt(two)) < _BACK * np.median(np.sqrt(one)))


def _squares(vectors: NDArray[np.float32]) -> Floats:
    found: Floats = np.einsum("tnk,tnk->t", vectors, vectors).astype(float)
    return found


def _vectors(layer: LayerRun, first: int) -> NDArray[np.float32]:
    """Return sketches of the weight vectors themselves from a checkpoint on, ``(checkpoints, nodes, k)``."""
    if layer.directions is None:
        return np.full((len(layer.states) - first, 1, 1), np.nan, np.float32)
    found: NDArray[np.float32] = layer.directions[first:] * layer.weights[first:, :, None].astype(np.float32)
    return found
