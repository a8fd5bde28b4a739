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
    """``weights`` maps names of the place in the file to new tensors of the file's own types; ``added`` are those
    among them that the file does not hold yet, each with the entry that it comes after. ``dropped`` are names of the
    place that go. ``parameters`` are by the model's names, those that its ``named_parameters`` yields; so are ``gone``,
    which are no more, and ``fresh``, which are new, each with the parameter that it comes after.
    """

    place: str
    entries: tuple[str, ...]
    weights: Mapping[str, Tensor]
    added: Mapping[str, str]
    dropped: frozenset[str]
    parameters: Mapping[str, ParameterChange]
    gone: frozenset[str]
    fresh: Mapping[str, str]

    @property
    def shrank(self) -> bool:
        """Whether any shape changed or any entry came or went, so that whatever is kept by shape must follow."""
        changed = any(change.shrank for change in self.parameters.values())
        return changed or bool(self.dropped or self.added or self.gone)

    def within(self, names: Collection[str]) -> Changes:
        """Return what changes in one file of several, which holds these entries at its top level."""
        weights = {name: value for name, value in self.weights.items() if self.added.get(name, name) in names}
        added = {name: after for name, after in self.added.items() if name in weights}
        return replace(
            self, place="", entries=tuple(names), weights=weights, added=added,
            dropped=self.dropped & frozenset(names),
        )  # fmt: skip


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

    Of a tensor that has several names in the model, an edit under one of them changes it under all.

    Args:
        model: the network with the shapes of the file.
        source: the file.
        fit: where in it the weights of the model lie.
        edits: what changed, by the model's names.

    Raises:
        ModelError: something changed that the file has no place for.
    """
    place = place_of(source, fit)
    # the same entries under today's names, which are those of the model
    held = dict(zip(fit.entries, place.tensors, strict=True))
    specs, wanted = specs_of(place.tensors), wanted_of(model)
    weights: dict[str, Tensor] = {}
    added: dict[str, str] = {}
    fresh: dict[str, str] = {}
    buffers = {name for name, _ in model.named_buffers()}
    for name, given in edits.values.items():
        value = given.detach().cpu().contiguous()  # one tensor under all of its names
        same = [other for other in (name, *sorted(wanted.twins.get(name, ()))) if fit.prefix + other in held]
        for other in same:
            entry = held[fit.prefix + other]
            weights.setdefault(entry, value.to(specs[entry].dtype))
        if not same:
            neighbour = _neighbour(name, fit, held)
            entry, after = fit.prefix + name, held[fit.prefix + neighbour]
            weights[entry], added[entry] = value.to(specs[after].dtype), after
            if name not in buffers:
                fresh[name] = neighbour
    gone = frozenset(edits.dropped)
    living = {other for name, names in wanted.twins.items() if name not in gone for other in names}
    dropped = frozenset(held[fit.prefix + name] for name in gone - living if fit.prefix + name in held)
    return Changes(
        place.key, tuple(place.tensors), weights, added, dropped, _parameters(model, edits, wanted.twins),
        gone - living, fresh,
    )  # fmt: skip


def _neighbour(name: str, fit: Fit, held: Mapping[str, str]) -> str:
    """Return the name beside which a new one belongs: the weight of the layer that got a bias."""
    owner = name.rpartition(".")[0]
    start = f"{owner}." if owner else ""
    inside = [entry.removeprefix(fit.prefix) for entry in held if entry.startswith(fit.prefix + start)]
    if not inside:
        raise ModelError(name, "changed, and the checkpoint has no place for it", "check the model")
    return f"{start}weight" if f"{start}weight" in inside else inside[-1]


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
