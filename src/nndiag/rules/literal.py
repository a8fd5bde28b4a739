"""The profile ``literal``: nodes judged by the eigenvalues of ``A = I − αH`` alone, as first proposed.

A node is degenerate where ``σ_min(H) < 1e-4`` or any eigenvalue of ``A`` has ``|1 − αλ| ∈ [0.99, 1.01]``; else a source
where one is above; else a sink, which has collapsed where ``‖θ‖ < 1e-4``. It flags every healthy node, because the rank
of a block is at most that of its samples and real inputs have constant features: it is kept for comparison.
"""

from __future__ import annotations

import numpy as np

from nndiag.records.measured import LayerMeasures
from nndiag.rules.base import Context, Hit, where
from nndiag.rules.weights import non_finite

LITERAL_CODES = frozenset(["ND101", "ND102", "ND252", "ND401", "ND402"])
"""What the profile reports."""

SIGMA_MIN = 1e-4
UNIT_CIRCLE = 0.01
COLLAPSED = 1e-4
Evidence = dict[str, float | int | str | bool | None]
PROFILE: Evidence = {"profile": "literal"}


def literal_hits(layer: LayerMeasures, context: Context) -> dict[str, list[Hit]]:
    """Return the findings of a layer's nodes by code; without all eigenvalues only whether numbers are finite."""
    found = {"ND101": list(non_finite(layer, context))} | {code: [] for code in ("ND102", "ND401", "ND402")}
    smallest = layer.per_node.get("sigma_min")
    if smallest is None:
        return found
    nowhere = np.full(layer.nodes, np.nan)
    distance = layer.per_node.get("unit_circle_distance", nowhere)
    facts = context.measured.optimizer
    largest, lowest = layer.per_node["lambda_max"], layer.per_node["lambda_min"]
    rate = facts.lr if facts is not None and facts.lr else np.nan
    beyond = np.maximum(np.abs(1 - rate * largest), np.abs(1 - rate * lowest)) > 1
    norm = layer.per_node["parameter_norm"]
    flat, near = smallest < SIGMA_MIN, distance <= UNIT_CIRCLE
    for i in where(flat | near):
        evidence: Evidence = {"sigma_min": float(smallest[i]), "threshold": SIGMA_MIN, **PROFILE}
        if distance[i] == distance[i]:
            evidence["unit_circle_distance"] = float(distance[i])
        said = (
            f"σ_min below {SIGMA_MIN:g}"
            if flat[i]
            else "an eigenvalue of I − αH within 0.01 of the unit circle"
        )
        found["ND401"].append(Hit(i, f"degenerate by the literal rule: {said}", evidence))
    for i in where(~(flat | near) & beyond):
        evidence = {
            "lambda_max": float(largest[i]),
            "lambda_min": float(lowest[i]),
            "threshold": 1.0,
            **PROFILE,
        }
        found["ND402"].append(
            Hit(i, "source by the literal rule: an eigenvalue of I − αH beyond 1", evidence)
        )
    for i in where(~(flat | near) & ~beyond & (norm < COLLAPSED)):
        evidence = {"parameter_norm": float(norm[i]), "threshold": COLLAPSED, **PROFILE}
        found["ND102"].append(
            Hit(i, f"degenerate sink by the literal rule: ‖θ‖ below {COLLAPSED:g}", evidence)
        )
    return found
