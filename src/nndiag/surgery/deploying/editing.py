"""Carrying removals out: new parameters, and a smaller copy of the network that holds them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nndiag.surgery.deploying.attributes import adjust
from nndiag.surgery.deploying.deciding import Removal
from nndiag.surgery.deploying.tracing import Traced
from nndiag.surgery.edits import Edits

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Smaller:
    """A smaller copy of a network, and what became of its parameters: values that changed, and the places that remain
    along the axes of those that shrank.
    """

    module: nn.Module
    values: Values
    kept: Mapping[str, tuple[Tensor | None, ...]]


def shrink(
    model: nn.Module,
    traced: Traced,
    removals: Sequence[Removal],
    changed: Values,
    parents: Collection[str] = (),
) -> Smaller:
    """Return a smaller copy of a network.

    Args:
        model: the network; it is left as it is.
        traced: its places.
        removals: the classes to remove.
        changed: parameters with values that differ otherwise, in the old shapes.
        parents: paths of modules whose own numbers (how many heads, how wide) are changed too.
    """
    values = _absorbed(traced, removals, changed)
    kept = remaining(traced, [removal.root for removal in removals])
    for name, axes in kept.items():
        tensor = values.get(name, traced.places.tensors[name].detach())
        for axis, places in enumerate(axes):
            if places is not None:
                tensor = tensor.index_select(axis, places.to(tensor.device))
        values[name] = tensor
    module = copy.deepcopy(model)
    put(module, values)
    adjust(model, module, kept, {path: _heads(traced, removals, path) for path in parents})
    return Smaller(module, values, kept)


def put(model: nn.Module, values: Values) -> None:
    """Put new tensors in the place of parameters and buffers, under all their names."""
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        old = getattr(model.get_submodule(path), own)
        fresh = value.detach().clone()
        new = nn.Parameter(fresh, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else fresh
        for module in model.modules():
            held = (*module._parameters.items(), *module._buffers.items())
            for attribute in [key for key, tensor in held if tensor is old]:
                setattr(module, attribute, new)


def remaining(traced: Traced, roots: Collection[int]) -> dict[str, tuple[Tensor | None, ...]]:
    """Return, by the name of every tensor that shrinks, the places that remain along each axis (``None``: all)."""
    gone, found = np.fromiter(roots, dtype=np.int64), {}
    for name, axes in traced.places.axes.items():
        keeps: list[Tensor | None] = []
        for axis in axes:
            lost = np.zeros(0, dtype=bool) if axis is None else np.isin(traced.atoms.roots(axis), gone)
            keeps.append(torch.from_numpy(np.flatnonzero(~lost)) if lost.any() else None)
        if any(keep is not None for keep in keeps):
            found[name] = tuple(keeps)
    return found


def _absorbed(traced: Traced, removals: Sequence[Removal], changed: Values) -> dict[str, Tensor]:
    """Return the parameters with outgoing weights merged and constants folded, in the old shapes."""
    tensors = traced.places.tensors
    folded = {fold.name for removal in removals for fold in removal.folds}
    merged = {merge.name for removal in removals for merge in removal.merges}
    exact = {
        name: changed.get(name, tensors[name]).detach().to(torch.float64, copy=True)
        for name in sorted(folded | merged)
    }
    for removal in removals:
        for fold in removal.folds:
            exact[fold.name] += fold.amount
        for merge in removal.merges:
            _add_places(exact[merge.name], merge.axis, merge.places, merge.into, merge.slope)
    made = {name: value.to(tensors[name].dtype) for name, value in exact.items()}
    return _for_all_names(traced, {**changed, **made})


def _add_places(tensor: Tensor, axis: int, places: Tensor, into: Tensor, slope: Tensor) -> None:
    moved = tensor.movedim(axis, 0)
    scaled = moved[places] * slope.reshape(-1, *(1,) * (moved.dim() - 1))
    moved.index_add_(0, into.to(moved.device), scaled)


def _for_all_names(traced: Traced, values: Values) -> dict[str, Tensor]:
    """Give the values of shared tensors to all their names."""
    by_id = {id(traced.places.tensors[name]): value for name, value in values.items()}
    return {name: by_id[id(tensor)] for name, tensor in traced.places.tensors.items() if id(tensor) in by_id}


def _heads(traced: Traced, removals: Sequence[Removal], path: str) -> list[tuple[int, int]]:
    """Return, of every split into heads of what a module puts out, how many there were and how many remain."""
    gone, found = {removal.root for removal in removals}, []
    ahead = f"{path}." if path else ""
    own = {
        int(root)
        for name, axes in traced.places.axes.items()
        if name.startswith(ahead)
        for axis in axes
        if axis is not None
        for root in np.unique(traced.atoms.roots(axis))
    }
    for factor in traced.splits:
        classes = {int(root) for root in np.unique(traced.atoms.roots(factor))}
        if classes & gone and classes <= own:
            found.append((len(classes), len(classes - gone)))
    return found


def edits_of(model: nn.Module, smaller: Smaller) -> Edits:
    """Return the edits that make a network the smaller one, for what its state dict holds."""
    stored = model.state_dict()
    values = {}
    for name, value in smaller.values.items():
        if name in stored and (value.shape != stored[name].shape or not torch.equal(value, stored[name])):
            values[name] = value
    return Edits(values=values, kept={name: axes for name, axes in smaller.kept.items() if name in stored})
