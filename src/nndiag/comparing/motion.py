"""How the nodes of a layer move from checkpoint to checkpoint.

Source: the project's own definitions; for the smoothed curvature an exponential moving average in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nndiag.comparing.run import Floats, LayerRun, Run

SMOOTHING = 0.1
"""Time constant of the smoothed curvature, as a share of the run: it does not depend on the number of checkpoints."""


@dataclass(frozen=True)
class Motion:
    """Measures ``(checkpoints, nodes)``; the first row of what compares with the checkpoint before is NaN.

    ``rho`` is ``‖θ_t‖/‖θ_{t−1}‖``, ``direction_change`` ``‖u_t − u_{t−1}‖`` of the unit weight vectors (0 none, 2
    turned back; NaN where no directions were kept), ``bias_drift`` ``b_t − b_0``, ``norm_growth`` ``‖θ_t‖/‖θ_0‖``,
    ``lambda_smoothed`` the moving average of λ_max.
    """

    rho: Floats
    direction_change: Floats
    bias_drift: Floats
    norm_growth: Floats
    lambda_smoothed: Floats

    def of(self, node: int) -> dict[str, list[float | None]]:
        """Return the measures of a node by name, a number a checkpoint; those never taken are absent."""
        found = {}
        for name in self.__dataclass_fields__:
            column = getattr(self, name)[:, node]
            if (finite := np.isfinite(column)).any():
                pairs = zip(column.tolist(), finite.tolist(), strict=True)
                found[name] = [value if there else None for value, there in pairs]
        return found


def motion_of(layer: LayerRun, run: Run) -> Motion:
    """Return how the nodes of a layer move."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.full_like(layer.norms, np.nan)
        rho[1:] = layer.norms[1:] / layer.norms[:-1]
        growth = layer.norms / layer.norms[:1]
    return Motion(
        rho=rho,
        direction_change=_turned(layer),
        bias_drift=layer.biases - layer.biases[:1],
        norm_growth=growth,
        lambda_smoothed=smoothed(layer.curvatures, run.times, SMOOTHING * run.span),
    )


def turn_between(layer: LayerRun, first: int, second: int) -> Floats:
    """Return ``‖u_second − u_first‖`` per node, NaN where it is not known."""
    if layer.directions is None:
        return np.full(layer.nodes, np.nan)
    difference = layer.directions[second] - layer.directions[first]
    found: Floats = np.sqrt(np.einsum("nk,nk->n", difference, difference)).astype(float)
    return found


def _turned(layer: LayerRun) -> Floats:
    found = np.full_like(layer.norms, np.nan)
    if layer.directions is not None and len(found) > 1:
        difference = np.diff(layer.directions, axis=0)
        found[1:] = np.sqrt(np.einsum("tnk,tnk->tn", difference, difference))
    return found


def smoothed(values: Floats, times: Floats, constant: float) -> Floats:
    """Return the exponential moving average ``m_t = m_{t−1} + (1 − e^{−Δt/τ})(v_t − m_{t−1})``; gaps keep the mean.

    Args:
        values: ``(checkpoints, nodes)``, NaN where there is none.
        times: of the checkpoints.
        constant: ``τ``, in the same unit; 0 smooths nothing.
    """
    found = values.copy()
    for place in range(1, len(times)):
        step = float(times[place] - times[place - 1])
        weight = 1.0 - np.exp(-step / constant) if constant > 0 else 1.0
        before, now = found[place - 1], values[place]
        mixed = before + weight * (now - before)
        found[place] = np.where(np.isnan(now), before, np.where(np.isnan(before), now, mixed))
    return found
