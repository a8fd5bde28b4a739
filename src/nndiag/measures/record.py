"""Putting the numbers of one layer together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.activations import Sums
from nndiag.measures.duplicates import duplicate_rows
from nndiag.measures.gradients import (
    GradientSums,
    gradient_measures,
    mean_gradient_measures,
    torque_of_layer,
)
from nndiag.measures.sketch import NodeRows, sketch
from nndiag.measures.weights import WEIGHT_MEASURES, numbers, weight_measures
from nndiag.records.level import Level
from nndiag.records.measured import Floats, LayerMeasures, Measured
from nndiag.records.predictions import Predictions
from nndiag.replay.kinds import Layer


def layer_record(
    layer: Layer,
    rows: Tensor,
    activity: Sums | None,
    gradients: GradientSums | None,
    mean_gradient: Tensor | None,
    samples: int,
    *,
    reached: bool = True,
    apart: bool = True,
    lookups: Tensor | None = None,
) -> LayerMeasures:
    """Return the record of a layer from its parameters and the sums of a replay.

    Args:
        layer: the layer.
        rows: parameters, ``(nodes, size)``.
        activity: sums of its outputs; ``None`` where the probe never reached it.
        gradients: sums of gradients of single samples; ``None`` where samples are not apart.
        mean_gradient: gradient of the mean loss, like ``rows``; ``None`` without targets.
        samples: how many the sums are over.
        reached: whether the probe ran the layer.
        apart: whether the rows of its outputs are the samples.
        lookups: how often each node took part, where not all always do.
    """
    base = weights_record(layer, NodeRows.split(rows, layer.weight_size))
    mean = None if mean_gradient is None else mean_gradient_measures(rows, mean_gradient, layer.weight_size)
    return completed(base, activity, gradients, mean, samples, reached=reached, apart=apart, lookups=lookups)


def completed(
    base: LayerMeasures,
    activity: Sums | None,
    gradients: GradientSums | None,
    mean: Mapping[str, Floats] | None,
    samples: int,
    *,
    reached: bool = True,
    apart: bool = True,
    lookups: Tensor | None = None,
) -> LayerMeasures:
    """Return what the parameters say of a layer together with what passes showed, as ``layer_record`` has it."""
    node, whole, duplicates = dict(base.per_node), dict(base.per_layer), dict(base.duplicates)
    fold: dict[str, Floats] = {}
    activation = None
    if activity is not None:
        more, fold, of_layer = activity.measures(apart=apart and gradients is not None)
        node.update(more)
        whole.update(of_layer)
        duplicates["outputs"] = activity.duplicates()
        activation = activity.activation
    if mean is not None:
        node.update(mean)
        whole.update(torque_of_layer(mean["torque_ratio"]))
    if gradients is not None:
        node.update(gradient_measures(gradients, samples, node, node.get("preactivation_std")))
    if lookups is not None:
        node["lookups"] = numbers(lookups)
    return replace(
        base,
        activation=None if activation is None else activation.name,
        per_layer=whole,
        per_node=node,
        per_fold=fold,
        duplicates=duplicates,
        reached=reached,
        observed=None if lookups is None else numbers(lookups) > 0,
        is_output=activity is not None and activity.is_output,
    )


def weights_record(layer: Layer, rows: NodeRows, repetitions: bool = True) -> LayerMeasures:
    """Return what the parameters alone say of a layer, reading every one of them once; nodes that repeat each other's
    weights only where ``repetitions`` are looked for.
    """
    seen = sketch(rows)
    same, turned = duplicate_rows(rows, layer.groups, seen) if repetitions else ((), ())
    base = base_record(layer, weight_measures(rows, seen), seen.directions)
    return replace(base, duplicates={"weights": same, "negated_weights": turned})


def base_record(layer: Layer, node: Mapping[str, Floats], directions: Tensor) -> LayerMeasures:
    """Return a record that holds what the parameters alone say, their repetitions left out.

    Args:
        layer: the layer.
        node: measures per node, as ``weight_measures`` has them.
        directions: sketches of the unit weight vectors, ``(nodes, 16)`` or fewer.
    """
    return LayerMeasures(
        name=layer.name,
        kind=layer.label,
        nodes=layer.nodes,
        fan_in=layer.fan_in,
        parameters=layer.parameters,
        activation=None,
        per_layer={"weight_norm_median": float(np.median(node["weight_norm"]))},
        per_node=node,
        per_fold={},
        duplicates={"weights": (), "negated_weights": ()},
        reached=False,
        directions=directions.numpy().astype(np.float16),
    )


def only_observed(record: LayerMeasures) -> LayerMeasures:
    """Leave only what the parameters say of nodes that the probe never used: nothing else was measured there."""
    if record.observed is None or record.observed.all():
        return record
    kept = {*WEIGHT_MEASURES, "lookups"}
    return replace(
        record,
        per_node={
            name: values if name in kept else np.where(record.observed, values, np.nan)
            for name, values in record.per_node.items()
        },
        per_fold={
            name: np.where(record.observed, values, np.nan) for name, values in record.per_fold.items()
        },
    )


def with_class_samples(record: LayerMeasures, predictions: Predictions | None) -> LayerMeasures:
    """Add ``class_samples`` to the outputs of a classifier: how many samples are labelled with each one's class; and
    ``absent_classes``, how many of them no label names.
    """
    choices = None if predictions is None else predictions.choices
    if not record.is_output or choices is None or choices.present is None or not any(choices.present):
        return record
    if record.observed is not None or len(choices.present) != record.nodes:
        return record
    counts = np.array(choices.present, dtype=np.float64)
    return replace(
        record,
        per_node={**record.per_node, "class_samples": counts},
        per_layer={**record.per_layer, "absent_classes": float((counts == 0).sum())},
    )


def weights_only(layers: tuple[Layer, ...], tensors: Mapping[str, Tensor]) -> Measured:
    """Return what the weights alone say.

    Args:
        layers: the layers.
        tensors: parameters by name; each is asked for when its layer's turn comes, and let go after it.
    """
    found = tuple(weights_record(layer, NodeRows.of(layer, tensors)) for layer in layers)
    return Measured(level=Level.WEIGHTS, layers=found)


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating tensor is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
