"""What small and large are measured against: medians over the nodes that have the measure at all."""

from __future__ import annotations

from statistics import median

import numpy as np

from nndiag.records.measured import Floats, LayerMeasures, Measured
from nndiag.rules.base import Scales
from nndiag.rules.gradients import loss_moved
from nndiag.rules.nodes import multiplies, while_active

_MEDIANS = ("weight_norm", "output_std", "gradient_norm", "gradient_reach", "lambda_max", "tangent_kernel")
_LARGEST = ("gradient_reach", "output_reach")


def model_scales(measured: Measured) -> dict[str, float]:
    """Return the medians over layers of their medians, the largest of each reach as ``<name>_max``, and the largest
    median norm of the layers that multiply their inputs.
    """
    found = {}
    for name in _MEDIANS:
        values = [_median(layer.per_node[name]) for layer in measured.layers if name in layer.per_node]
        found[name] = _median(np.array(values))
    moved = [_median(moves) for layer in measured.layers if (moves := loss_moved(layer)) is not None]
    found["loss_moved"] = _median(np.array(moved))
    norms = (median(layer.per_node["weight_norm"].tolist()) for layer in measured.layers if multiplies(layer))
    found["weight_norm_of_largest"] = max(norms, default=0.0)
    for name in _LARGEST:
        found[f"{name}_max"] = max((_largest(layer, name) for layer in measured.layers), default=0.0)
    return found


def layer_scales(layer: LayerMeasures, model: dict[str, float]) -> Scales:
    """Return the scales of one layer: medians, that of the tangent kernel while active, and the largest of each reach
    as ``<name>_max``.
    """
    found = {name: _median(layer.per_node[name]) for name in _MEDIANS if name in layer.per_node}
    if "tangent_kernel" in found:
        found["tangent_kernel"] = _median(while_active(layer, layer.per_node["tangent_kernel"]))
    found |= {f"{name}_max": _largest(layer, name) for name in _LARGEST}
    return Scales(found, model)


def _largest(layer: LayerMeasures, name: str) -> float:
    values = layer.per_node.get(name)
    return 0.0 if values is None else float(np.nanmax(values, initial=0.0))


def _median(values: Floats) -> float:
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.median(positive)) if positive.size else 0.0
