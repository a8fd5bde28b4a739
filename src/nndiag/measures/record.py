"""Putting the numbers of one layer together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.activations import Sums
from nndiag.measures.gradients import (
    GradientSums,
    gradient_measures,
    mean_gradient_measures,
    torque_of_layer,
)
from nndiag.measures.weights import duplicate_rows, weight_measures
from nndiag.records.level import Level
from nndiag.records.measured import Floats, LayerMeasures, Measured
from nndiag.replay.kinds import Layer


def layer_record(
    layer: Layer,
    rows: Tensor,
    activity: Sums | None,
    gradients: GradientSums | None,
    mean_gradient: Tensor | None,
    samples: int,
) -> LayerMeasures:
    """Return the record of a layer from its parameters and the sums of a replay.

    Args:
        layer: the layer.
        rows: parameters, ``(nodes, size)``.
        activity: sums of its outputs; ``None`` where the probe never reached it.
        gradients: sums of gradients of single samples; ``None`` where samples are not apart.
        mean_gradient: gradient of the mean loss, like ``rows``; ``None`` without targets.
        samples: how many the sums are over.
    """
    has_bias = layer.bias is not None
    node: dict[str, Floats] = weight_measures(rows, has_bias)
    fold: dict[str, Floats] = {}
    whole: dict[str, float] = {"weight_norm_median": float(np.median(node["weight_norm"]))}
    same, turned = duplicate_rows(rows.cpu())
    duplicates = {"weights": same, "negated_weights": turned}
    activation = None
    if activity is not None:
        more, fold, of_layer = activity.measures(apart=gradients is not None)
        node.update(more)
        whole.update(of_layer)
        duplicates["outputs"] = activity.duplicates()
        activation = activity.activation
    if mean_gradient is not None:
        mean = mean_gradient_measures(rows, mean_gradient, has_bias)
        node.update(mean)
        whole.update(torque_of_layer(mean["torque_ratio"]))
    if gradients is not None:
        node.update(gradient_measures(gradients, samples, node, node.get("preactivation_std")))
    return LayerMeasures(
        name=layer.name,
        kind=layer.label,
        nodes=layer.nodes,
        fan_in=layer.fan_in,
        parameters=layer.parameters,
        activation=None if activation is None else activation.name,
        per_layer=whole,
        per_node=node,
        per_fold=fold,
        duplicates=duplicates,
        reached=activity is not None,
        is_output=activity is not None and activity.is_output,
    )


def weights_only(layers: tuple[Layer, ...], tensors: Mapping[str, Tensor]) -> Measured:
    """Return what the weights alone say.

    Args:
        layers: the layers.
        tensors: parameters by name.
    """
    found = tuple(layer_record(layer, layer.rows(tensors), None, None, None, 0) for layer in layers)
    return Measured(level=Level.WEIGHTS, layers=found)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating tensor is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
