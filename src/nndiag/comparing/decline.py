"""How fast a layer dies: the half-life of its living nodes, and when it crosses what a policy allows.

The share of living nodes is fitted as ``a(t) = exp(c − k t)`` by weighted least squares of its logarithm, from the last
checkpoint at which none had died. Layers do not always die at one pace: where the fit misses when half of the nodes had
died, that time itself is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nndiag.comparing.run import Floats, LayerRun, Run


@dataclass(frozen=True)
class Decline:
    """``half_life ± half_life_error`` in units of the run's clock; ``None`` where the layer does not decline.

    ``crosses_at ± crosses_error`` is when the degenerate share exceeds ``limit``: between two checkpoints where it has
    (``crossed``), else at the current pace.
    """

    half_life: float | None
    half_life_error: float | None
    limit: float | None
    crosses_at: float | None
    crosses_error: float | None
    crossed: bool


def decline_of(layer: LayerRun, run: Run, limit: float | None) -> Decline | None:
    """Return how a layer declines; ``None`` where none of its nodes has died along the run."""
    share = layer.degenerate.mean(axis=1)
    share[~layer.present] = np.nan
    if np.isnan(share[-1]) or not share[-1] > np.nanmin(share):
        return None
    fit = _fit(1 - share, run, layer.nodes)
    half_life = half_error = None
    if fit is not None and fit.rate > 0:
        half_life = math.log(2) / fit.rate
        half_error = half_life * math.sqrt(fit.variance[1][1]) / fit.rate
    seen = _halved(1 - share, run.times)
    if seen is not None and (half_life is None or not seen[0] <= half_life <= seen[1]):
        half_life, half_error = sum(seen) / 2, (seen[1] - seen[0]) / 2
    if limit is None:
        return Decline(half_life, half_error, None, None, None, False)
    if share[-1] > limit:
        after = int(np.flatnonzero(share <= limit)[-1]) + 1 if (share <= limit).any() else 0
        before = max(after - 1, 0)
        low, high = run.times[before], run.times[after]
        return Decline(half_life, half_error, limit, float(low + high) / 2, float(high - low) / 2, True)
    if fit is None or fit.rate <= 0 or limit >= 1:
        return Decline(half_life, half_error, limit, None, None, False)
    wanted = math.log(1 - limit)
    time = (fit.start - wanted) / fit.rate
    slope = np.array([1 / fit.rate, -time / fit.rate])
    error = math.sqrt(float(slope @ np.array(fit.variance) @ slope))
    return Decline(half_life, half_error, limit, max(time + fit.origin, float(run.times[-1])), error, False)


def _halved(alive: Floats, times: Floats) -> tuple[float, float] | None:
    """Return between which times after the last at which none had died half of the nodes had, and stayed so."""
    start = _untouched(alive)
    over = np.flatnonzero(alive > alive[start] / 2)
    if over[-1] == len(alive) - 1:
        return None
    return float(times[over[-1]] - times[start]), float(times[over[-1] + 1] - times[start])


def _untouched(alive: Floats) -> int:
    """Return the last checkpoint at which most nodes were alive."""
    return int(np.flatnonzero(alive >= np.nanmax(alive))[-1])


@dataclass(frozen=True)
class _Fit:
    start: float
    rate: float
    variance: tuple[tuple[float, float], tuple[float, float]]
    origin: float


def _fit(alive: Floats, run: Run, nodes: int) -> _Fit | None:
    """Return ``ln a = start − rate (t − origin)``, weighted by what the counts of nodes make sure."""
    known, first = np.isfinite(alive), _untouched(alive)
    inside = known & (alive > 0)
    inside[:first] = False
    if inside.sum() < 3:
        return None
    a, origin = alive[inside], float(run.times[first])
    t, y = run.times[inside] - origin, np.log(a)
    weight = nodes * a / np.maximum(1 - a, 0.5 / nodes)
    design = np.stack([np.ones_like(t), -t], axis=1)
    normal = design.T @ (weight[:, None] * design)
    if np.linalg.cond(normal) > 1e14:
        return None
    inverse = np.linalg.inv(normal)
    start, rate = inverse @ (design.T @ (weight * y))
    rest = y - design @ np.array([start, rate])
    scale = float((weight * rest) @ rest) / (len(t) - 2)
    variance = inverse * max(scale, 1.0)
    return _Fit(
        float(start), float(rate),
        ((float(variance[0, 0]), float(variance[0, 1])), (float(variance[1, 0]), float(variance[1, 1]))), origin,
    )  # fmt: skip
