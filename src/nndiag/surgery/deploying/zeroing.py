"""Nodes that shapes do not let go: set to the constant that they are, which costs nothing and can be skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nndiag.replay.kinds import Layer
from nndiag.surgery.deploying.agreement import DisagreementError, Reference
from nndiag.surgery.deploying.editing import put
from nndiag.surgery.deploying.tracing import Batches

Rows = Mapping[str, Tensor]
_MOST_TRIALS = 64
"""Replays for one layer; nodes that have not been tried by then are left."""
_LAST = (nn.Linear, nn.Embedding)


def zeroed(
    model: nn.Module, reference: Reference, layer: Layer, nodes: Sequence[int]
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Set the weights of nodes to zero; return what changed, and the nodes for which no output did.

    Every weight of such a node is zero; its bias is zero too, or else the constant that it put out.

    Args:
        model: in eval mode; it is changed in place.
        reference: what it has to put out.
        layer: of the model.
        nodes: the nodes to try; those whose weights the outputs depend on are left as they are.
    """
    before = _parameters(model, layer)
    constants = _means(model, reference.batches, layer)
    done: list[int] = []
    tries = iter(range(_MOST_TRIALS))

    def attempt(some: Sequence[int], biases: Tensor | None) -> bool:
        tried = _without(layer, _parameters(model, layer), some, biases)
        return next(tries, None) is not None and _kept(model, reference, tried)

    left = _halving(list(nodes), lambda some: attempt(some, None), done)
    if constants is not None and left:
        _halving(left, lambda some: attempt(some, constants), done)
    now = _parameters(model, layer)
    changed = {name: value for name, value in now.items() if not torch.equal(value, before[name])}
    return changed, tuple(sorted(done))


def placeholder(
    model: nn.Module,
    reference: Reference,
    layer: Layer,
    node: int,
    readers: Sequence[tuple[str, int, Tensor]],
) -> dict[str, Tensor]:
    """Let one node put out a constant that nothing reads, where no output changes; return what changed.

    It keeps the place of a layer of which nothing is needed: its weights are zero, its bias is one.

    Args:
        model: in eval mode; it is changed in place.
        reference: what it has to put out.
        layer: of the model.
        node: of the layer.
        readers: the parameters that read it, along which axis, and at which places: they become zero there.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    biases = torch.ones(layer.nodes) if layer.biases else None
    values = _without(layer, _parameters(model, layer), [node], biases)
    for name, axis, places in readers:
        now = values.get(name, named[name].detach())
        values[name] = now.index_fill(axis, places.to(now.device), 0.0)
    return values if _kept(model, reference, values) else {}


def _kept(model: nn.Module, reference: Reference, values: Rows) -> bool:
    """Put values into a model; where an output changes, put the old ones back."""
    named = dict(model.named_parameters(remove_duplicate=False))
    before = {name: named[name].detach() for name in values}
    put(model, values)
    try:
        reference.check(model)
    except DisagreementError:
        put(model, before)
        return False
    return True


def _parameters(model: nn.Module, layer: Layer) -> dict[str, Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {slot.parameter: named[slot.parameter].detach() for slot in layer.slots}


def silent(model: nn.Module, layer: Layer, nodes: Sequence[int]) -> set[int]:
    """Return the nodes whose weights are all zero."""
    values, picked = _parameters(model, layer), list(nodes)
    heavy = torch.zeros(len(picked), dtype=torch.bool)
    for slot in layer.weights:
        heavy |= slot.rows(values[slot.parameter])[picked].ne(0).any(dim=1).cpu()
    return {node for node, weighs in zip(picked, heavy.tolist(), strict=True) if not weighs}


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
