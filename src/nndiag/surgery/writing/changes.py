"""Edits of a model, said in the names and types of the file that its weights came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.record import Checkpoint, Place
from nndiag.errors import ModelError
from nndiag.model.fit import Fit
from nndiag.model.wanted import wanted_of
from nndiag.surgery.edits import Edits

Kept = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class ParameterChange:
    """What became of the entries of one parameter, for what an optimiser keeps beside each of them.

    ``before`` is the old shape, ``value`` the new tensor. ``kept`` are the old indices that remain along each axis
    (``None``: all), ``None`` as a whole where the new shape does not come from the old one by taking indices away.
    ``reset`` marks entries, in the new shape, that start afresh.
    """

    before: torch.Size
    value: Tensor
    kept: Kept | None
    reset: Tensor

    @property
    def shrank(self) -> bool:
        """Whether the shape changed."""
        return self.value.shape != self.before


@dataclass(frozen=True)
class Changes:
    """``weights`` maps names of the place in the file, which holds ``entries``, to new tensors of the file's own types.
    ``parameters`` are by the model's names, those that its ``named_parameters`` yields.
    """

    place: str
    entries: tuple[str, ...]
    weights: Mapping[str, Tensor]
    parameters: Mapping[str, ParameterChange]

    @property
    def shrank(self) -> bool:
        """Whether any shape changed, so that whatever is kept by shape must follow."""
        return any(change.shrank for change in self.parameters.values())

    def within(self, names: Collection[str]) -> Changes:
        """Return what changes in one file of several, which holds these entries at its top level."""
        weights = {name: value for name, value in self.weights.items() if name in names}
        return replace(self, place="", entries=tuple(names), weights=weights)


def place_of(source: Checkpoint, fit: Fit) -> Place:
    """Return the place of a checkpoint that a model's weights came from."""
    return next(
        place for place in source.places if place.key == fit.place and len(place.tensors) == len(fit.entries)
    )


def place_with(source: Checkpoint, key: str, names: Collection[str]) -> Place:
    """Return the place of a checkpoint at a key that holds these names.

    Raises:
        LookupError: there is none.
    """
    for place in source.places:
        if place.key == key and place.tensors.keys() >= set(names):
            return place
    raise LookupError(key)


def changes_of(model: nn.Module, source: Checkpoint, fit: Fit, edits: Edits) -> Changes:
    """Return what edits of a model change in the file.

    Of a tensor that has several names in the model, an edit under one of them changes it under all. A buffer that the
    file does not hold is one that the model makes itself.

    Args:
        model: the network with the shapes of the file.
        source: the file.
        fit: where in it the weights of the model lie.
        edits: what changed, by the model's names.

    Raises:
        ModelError: a parameter changed that the file has no place for.
    """
    place = place_of(source, fit)
    # the same entries under today's names, which are those of the model
    held = dict(zip(fit.entries, place.tensors, strict=True))
    specs, wanted = specs_of(place.tensors), wanted_of(model)
    weights: dict[str, Tensor] = {}
    buffers = {name for name, _ in model.named_buffers()}
    for name, given in edits.values.items():
        value = given.detach().cpu().contiguous()  # one tensor under all of its names
        same = [other for other in (name, *sorted(wanted.twins.get(name, ()))) if fit.prefix + other in held]
        for other in same:
            entry = held[fit.prefix + other]
            weights.setdefault(entry, value.to(specs[entry].dtype))
        if not same and name not in buffers:
            raise ModelError(name, "changed, and the checkpoint has no place for it", "check the model")
    return Changes(place.key, tuple(place.tensors), weights, _parameters(model, edits, wanted.twins))


def _parameters(
    model: nn.Module, edits: Edits, twins: Mapping[str, frozenset[str]]
) -> Mapping[str, ParameterChange]:
    found = {}
    for name, parameter in model.named_parameters():
        names = [name, *sorted(twins.get(name, ()))]
        resets = [edits.reset[other] for other in names if other in edits.reset]
        value = next((edits.values[other] for other in names if other in edits.values), None)
        if value is None and not resets:
            continue
        new = parameter.detach() if value is None else value.detach()
        reset = torch.zeros(new.shape, dtype=torch.bool)
        for mask in resets:
            reset |= mask.to(device="cpu", dtype=torch.bool)
        kept = next((edits.kept[other] for other in names if other in edits.kept), None)
        found[name] = ParameterChange(parameter.shape, new, _checked(parameter.shape, new.shape, kept), reset)
    return found


def _checked(before: torch.Size, after: torch.Size, kept: Kept | None) -> Kept | None:
    """Return the indices that remain, where they lead from the old shape to the new one."""
    if kept is None:
        return (None,) * len(before) if before == after else None
    lengths = [size if index is None else len(index) for size, index in zip(before, kept, strict=False)]
    return kept if len(kept) == len(before) and lengths == list(after) else None
