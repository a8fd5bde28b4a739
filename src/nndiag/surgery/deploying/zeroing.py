"""Nodes that shapes do not let go: set to the constant that they are, which costs nothing and can be skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nndiag.replay.kinds import Layer
from nndiag.surgery.deploying.agreement import DisagreementError, check
from nndiag.surgery.deploying.editing import put
from nndiag.surgery.deploying.tracing import Batches

Rows = Mapping[str, Tensor]
_LAST = (nn.Linear, nn.Embedding)


def zeroed(
    model: nn.Module, batches: Batches, layer: Layer, nodes: Sequence[int]
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Return new parameters of a layer, and the nodes whose weights are zero in them without a change of any output.

    Every weight of such a node is zero; its bias is zero too, or else the constant that it put out.

    Args:
        model: in eval mode; it is left as it is.
        batches: the probe.
        layer: of the model.
        nodes: the nodes to try; those whose weights the outputs depend on are left as they are.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    before = {slot.parameter: named[slot.parameter].detach() for slot in layer.slots}
    values = {name: tensor.clone() for name, tensor in before.items()}
    constants = _means(model, batches, layer)
    done: list[int] = []

    def attempt(some: Sequence[int], biases: Tensor | None) -> bool:
        tried = _without(layer, values, some, biases)
        changed = copy.deepcopy(model)
        put(changed, tried)
        try:
            check(model, changed, batches)
        except DisagreementError:
            return False
        values.update(tried)
        return True

    left = _halving(list(nodes), lambda some: attempt(some, None), done)
    if constants is not None and left:
        _halving(left, lambda some: attempt(some, constants), done)
    changed = {name: value for name, value in values.items() if not torch.equal(value, before[name])}
    return changed, tuple(sorted(done))


def placeholder(
    model: nn.Module, batches: Batches, layer: Layer, node: int, readers: Sequence[tuple[str, int, Tensor]]
) -> dict[str, Tensor] | None:
    """Return parameters with which one node puts out a constant that nothing reads; ``None`` where that would show.

    It keeps the place of a layer of which nothing is needed: its weights are zero, its bias is one.

    Args:
        model: in eval mode; it is left as it is.
        batches: the probe.
        layer: of the model.
        node: of the layer.
        readers: the parameters that read it, along which axis, and at which places: they become zero there.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    before = {slot.parameter: named[slot.parameter].detach() for slot in layer.slots}
    biases = torch.ones(layer.nodes) if layer.biases else None
    values = _without(layer, before, [node], biases)
    for name, axis, places in readers:
        now = values.get(name, named[name].detach())
        values[name] = now.index_fill(axis, places.to(now.device), 0.0)
    changed = copy.deepcopy(model)
    put(changed, values)
    try:
        check(model, changed, batches)
    except DisagreementError:
        return None
    return values


def silent(model: nn.Module, layer: Layer, nodes: Sequence[int]) -> set[int]:
    """Return the nodes whose weights are all zero."""
    named = dict(model.named_parameters(remove_duplicate=False))
    values = {slot.parameter: named[slot.parameter].detach() for slot in layer.weights}
    return {node for node in nodes if _silent(layer, values, node)}


def _silent(layer: Layer, values: Rows, node: int) -> bool:
    return not any(bool(slot.rows(values[slot.parameter])[node].any()) for slot in layer.weights)


def _halving(nodes: list[int], attempt: Callable[[Sequence[int]], bool], done: list[int]) -> list[int]:
    """Try nodes together, and where that fails each half by itself; return those that failed alone."""
    if not nodes:
        return []
    if attempt(nodes):
        done += nodes
        return []
    if len(nodes) == 1:
        return nodes
    middle = len(nodes) // 2
    return _halving(nodes[:middle], attempt, done) + _halving(nodes[middle:], attempt, done)


def _without(layer: Layer, values: Rows, nodes: Sequence[int], biases: Tensor | None) -> dict[str, Tensor]:
    """Return the parameters of a layer with the weights of some nodes zero, and their biases as given or zero."""
    found = {}
    for slot in layer.slots:
        rows = slot.rows(values[slot.parameter]).clone()
        rows[list(nodes)] = 0
        if biases is not None and slot in layer.biases:
            rows[list(nodes)] = biases[list(nodes), None].to(rows)
        found[slot.parameter] = slot.parameter_of(rows)
    return found


def _means(model: nn.Module, batches: Batches, layer: Layer) -> Tensor | None:
    """Return the mean of what each node of a layer puts out, ``(nodes,)``; ``None`` where that is not known."""
    module = dict(model.named_modules()).get(layer.name)
    if module is None or len(layer.biases) != 1 or layer.biases[0].width != 1:
        return None
    sums, count = torch.zeros(layer.nodes, dtype=torch.float64), 0

    def see(_: nn.Module, __: object, output: object) -> None:
        nonlocal sums, count
        if isinstance(output, Tensor):
            axis = -1 if isinstance(module, _LAST) or layer.label == "Conv1D" else 1
            rows = output.movedim(axis, -1).reshape(-1, output.shape[axis])
            if rows.shape[1] == layer.nodes:
                sums, count = sums + rows.double().sum(dim=0).cpu(), count + len(rows)

    hook = module.register_forward_hook(see)
    try:
        with torch.no_grad():
            for batch in batches:
                model(*(x.clone() for x in batch))
    finally:
        hook.remove()
    return sums / count if count else None
