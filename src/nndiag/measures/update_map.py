"""The optimiser's own map near the checkpoint: whether its steps contract or repel along a node's directions.

Linearised, a step is ``I − α(P^{-1/2} H P^{-1/2} + wI)``: ``P = I`` for SGD, ``diag(√v̂ + ε)`` for Adam, ``w`` the
weight decay. Momentum changes the eigenvalue from which on it repels, not the matrix.
"""

from __future__ import annotations

import numpy as np

from nndiag.records.measured import Floats, OptimizerFacts


def update_map(
    largest: Floats, smallest: Floats, noise: Floats, optimizer: OptimizerFacts
) -> dict[str, Floats]:
    """Return what the learning rate makes of the extremes of every node's (preconditioned) block.

    ``update_map_min = 1 − α(λ_max + w)`` and ``update_map_max = 1 − α(λ_min + w)``: the ends of the map's spectrum.
    ``stability_margin = (λ_max + w)/threshold``: above one the map repels; ``stability_margin_se`` is its standard
    error. ``relaxation_steps = 1/(αλ_max)`` of the
    steepest direction, without the decay, which only shrinks. Nothing without a learning rate.

    Args:
        largest: λ_max per node, of the block as the optimiser sees it.
        smallest: λ_min, the same.
        noise: the standard error of ``largest``.
        optimizer: the update rule.

    Source: Cohen et al. 2022, "Adaptive gradient methods at the edge of stability", section 3.
    """
    threshold = optimizer.stability_threshold
    if not optimizer.lr or threshold is None:
        return {}
    decay = optimizer.added_decay
    with np.errstate(divide="ignore"):
        relaxation = 1.0 / (optimizer.lr * np.maximum(largest, 0.0))
    return {
        "relaxation_steps": relaxation,
        "stability_margin": (largest + decay) / threshold,
        "stability_margin_se": noise / threshold,
        "update_map_min": 1.0 - optimizer.lr * (largest + decay),
        "update_map_max": 1.0 - optimizer.lr * (smallest + decay),
    }
