"""Whether the output depends on nodes that no gradient leads to: by code that detaches, or units that are off.

Derivatives cannot tell a node that nothing listens to from one whose output is detached, or that only units listen to
which are off just now. Here the node's weights are set to zero, its bias to zero and to the node's mean output, and the
outputs of the network compared, all suspects together first, then by halves while something changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from nndiag.measures.replaying import Replay
from nndiag.records.level import Level
from nndiag.records.measured import Floats, LayerMeasures
from nndiag.replay.kinds import Layer
from nndiag.replay.passes import main_output

NO_REACH = 1e-9
"""Share of its layer's largest reach up to which a node is a suspect."""
CHANGED = 1e-6
"""Share of the outputs' root mean square by which they differ where a node matters."""
MOST_PASSES = 64
"""Groups of nodes that are tried at most, by two forward passes of one batch each."""

Node = tuple[str, int]


def with_forward_effect(replay: Replay, layers: Sequence[LayerMeasures]) -> tuple[LayerMeasures, ...]:
    """Add ``forward_effect``: ``max |f − f₀| / √E f²`` on the first batch, ``f₀`` without the node.

    NaN for nodes that gradients lead to; 0 where the outputs do not change; where the passes ran out, of several nodes
    together. Suspects are units whose own output varies. Three forward passes of one batch where none of them matters.
    """
    suspects = [(record.name, i) for record in layers for i in _suspects(record)]
    if replay.plan.level < Level.GRADIENTS or not suspects:
        return tuple(layers)
    biased = (record for record in layers if {"bias", "output_mean"} <= record.per_node.keys())
    means = {record.name: record.per_node["output_mean"] for record in biased}
    effects = _Without(replay, means).effects(suspects)
    return tuple(
        replace(record, per_node={**record.per_node, "forward_effect": _column(record, effects)})
        if any(name == record.name for name, _ in suspects)
        else record
        for record in layers
    )


def _suspects(record: LayerMeasures) -> list[int]:
    reach, spread = record.per_node.get("output_reach"), record.per_node.get("output_std")
    if reach is None or spread is None or record.is_output:
        return []
    mask = (reach <= NO_REACH * np.nanmax(reach, initial=0.0)) & (spread > 0)
    return [int(i) for i in mask.nonzero()[0]]


def _column(record: LayerMeasures, effects: Mapping[Node, float]) -> Floats:
    return np.array([effects.get((record.name, i), np.nan) for i in range(record.nodes)])


class _Without:
    """Runs the model with some nodes set to zero, and to their mean where they have a bias."""

    def __init__(self, replay: Replay, means: Mapping[str, Floats]) -> None:
        self._means = means
        self._model, self._inputs = replay.model, next(replay.probe.batches()).inputs
        self._layers: Mapping[str, Layer] = {layer.name: layer for layer in replay.layers}
        self._parameters = {name: p.detach() for name, p in replay.model.named_parameters()}
        self._passes = MOST_PASSES
        self._full = self._output({})
        self._scale = float(self._full.double().square().mean().sqrt()) or 1.0

    def effects(self, nodes: Sequence[Node], together: float = math.inf) -> dict[Node, float]:
        """Return how much the outputs change without each of the nodes; without all of them by ``together``."""
        if self._passes <= 0:
            return dict.fromkeys(nodes, together)
        self._passes -= 1
        change = self._change(nodes)
        if change <= CHANGED:
            return dict.fromkeys(nodes, 0.0)
        if len(nodes) == 1:
            return {nodes[0]: change}
        middle = len(nodes) // 2
        return self.effects(nodes[:middle], change) | self.effects(nodes[middle:], change)

    def _change(self, nodes: Sequence[Node]) -> float:
        found = [self._change_to(nodes, to_mean) for to_mean in (False, True)]
        return max(found)

    def _change_to(self, nodes: Sequence[Node], to_mean: bool) -> float:
        changed: dict[str, Tensor] = {}
        for name in {layer for layer, _ in nodes}:
            indices = [i for layer, i in nodes if layer == name]
            changed |= self._without(self._layers[name], indices, changed, to_mean and name in self._means)
        found = float((self._output(changed) - self._full).abs().max()) / self._scale
        return found if found == found else float("inf")

    def _without(
        self, layer: Layer, nodes: Sequence[int], before: Mapping[str, Tensor], to_mean: bool
    ) -> dict[str, Tensor]:
        """Return the layer's parameters with the rows of these nodes zero, or their biases the nodes' means."""
        leaves = {
            name: before.get(name, self._parameters[name]).clone().requires_grad_(True)
            for name in layer.names
            if name in self._parameters
        }
        if len(leaves) < len(layer.names):
            return {}
        # rows are a view of parameters that only the layer knows: derivatives tell which entries theirs are
        own, every = layer.rows(leaves)[list(nodes)], list(leaves.values())
        inside = torch.autograd.grad(own.sum(), every, retain_graph=True, materialize_grads=True)
        found = {
            name: torch.where(g != 0, 0, leaf.detach())
            for (name, leaf), g in zip(leaves.items(), inside, strict=True)
        }
        if to_mean:
            means = torch.as_tensor(self._means[layer.name][list(nodes)]).to(own)
            biases = torch.autograd.grad((own[:, -1] * means).sum(), every, materialize_grads=True)
            found = {name: value + bias for (name, value), bias in zip(found.items(), biases, strict=True)}
        return found

    def _output(self, changed: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            held = {**self._parameters, **changed}
            return main_output(functional_call(self._model, held, self._inputs)).detach()
