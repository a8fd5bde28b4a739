"""The records of layers, put together from what replays and solvers found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nndiag.measures.curvature import LayerCurvature
from nndiag.measures.exact import Refinement
from nndiag.measures.plan import Update
from nndiag.measures.record import layer_record, only_observed
from nndiag.measures.replaying import Replay
from nndiag.records.measured import LayerMeasures, Mask

CLAIMED_NOISE = 0.01
"""Blocks with more noise than this, as a share of their trace, are not called the Hessian's."""


def proved(replay: Replay, name: str) -> bool:
    """Whether a layer's Gauss-Newton blocks are proved to be the Hessian's."""
    exact = replay.piecewise_linear and replay.noise <= CLAIMED_NOISE
    return exact and name not in replay.not_linear and name not in replay.left_out


def layer_records(
    replay: Replay,
    curvatures: Mapping[str, LayerCurvature],
    exact: Mapping[str, Mask],
    refinement: Refinement,
) -> tuple[LayerMeasures, ...]:
    """Return the records of all layers, with the curvature found so far.

    Args:
        replay: after its first pass over the probe.
        curvatures: by layer.
        exact: the nodes that have exact numbers, by layer, where not all or none do.
        refinement: where the bounds of layers are.
    """
    return _with_influence(list(_by_layer(replay, curvatures, exact, refinement)))


def _by_layer(
    replay: Replay,
    curvatures: Mapping[str, LayerCurvature],
    exact: Mapping[str, Mask],
    refinement: Refinement,
) -> Iterator[LayerMeasures]:
    parameters = dict(replay.model.named_parameters(remove_duplicate=False))
    by_identity = {id(p): n for n, p in replay.model.named_parameters()}
    gradients = {
        name: replay.parameter_gradients[by_identity[id(p)]] / len(replay.probe)
        for name, p in parameters.items()
        if by_identity[id(p)] in replay.parameter_gradients
    }
    for layer in replay.layers:
        record = layer_record(
            layer,
            layer.rows(parameters).detach(),
            replay.observer.sums.get(layer.name),
            replay.gradients[layer.name] if layer.name not in replay.left_out else None,
            layer.rows(gradients) if set(layer.names) <= gradients.keys() else None,
            len(replay.probe),
            reached=layer.name in replay.reached,
            apart=replay.apart(layer),
            lookups=replay.lookups.get(layer.name),
        )
        refined = refinement.layers.get(layer.name)
        if refined is not None and refined.bound is not None:
            record = replace(record, per_layer={**record.per_layer, **refined.bound.measures})
        yield only_observed(
            _with_curvature(replay, record, curvatures.get(layer.name), exact.get(layer.name))
        )


def _with_curvature(
    replay: Replay, record: LayerMeasures, curvature: LayerCurvature | None, exact: Mask | None
) -> LayerMeasures:
    if curvature is None:
        return record
    there = np.ones(record.nodes, dtype=bool) if record.observed is None else record.observed
    if proved(replay, record.name) or (exact is not None and exact[there].all()):
        kind, exact = "hessian", None
    elif exact is not None and exact.any():
        kind = "mixed"
    else:
        kind, exact = "ggn", None
    known = curvature.per_node["lambda_max"]
    known = known if record.observed is None else known[record.observed]
    median = {"lambda_max_median": float(np.median(known))} if known.size else {}
    return replace(
        record,
        curvature_kind=kind,
        exact=exact,
        per_layer={**record.per_layer, **median},
        per_node={**record.per_node, **curvature.per_node},
        per_fold={**record.per_fold, **curvature.per_fold},
    )


def with_rates(
    replay: Replay, records: Sequence[LayerMeasures], update: Update | None
) -> tuple[LayerMeasures, ...]:
    """Add the learning rate of every layer that has one, where it is not the same for all."""
    if update is None or update.facts.lr is not None:
        return tuple(records)
    facts = {layer.name: update.layer_facts(layer) for layer in replay.layers}
    rates = {name: one.lr for name, one in facts.items() if one is not None and one.lr is not None}
    return tuple(
        replace(record, per_layer={**record.per_layer, "learning_rate": rates[record.name]})
        if record.name in rates
        else record
        for record in records
    )


def _with_influence(layers: Sequence[LayerMeasures]) -> tuple[LayerMeasures, ...]:
    """Add every node's ``influence``: its share of the tangent kernel's trace over all nodes measured."""
    kernels = [layer.per_node["tangent_kernel"] for layer in layers if "tangent_kernel" in layer.per_node]
    total = float(sum(np.nansum(kernel) for kernel in kernels))
    if not 0 < total < np.inf:
        return tuple(layers)
    return tuple(
        replace(layer, per_node={**layer.per_node, "influence": layer.per_node["tangent_kernel"] / total})
        if "tangent_kernel" in layer.per_node
        else layer
        for layer in layers
    )
