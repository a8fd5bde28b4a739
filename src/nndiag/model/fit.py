"""Find where a model's weights lie in a checkpoint, and load them. Names and shapes must fit exactly; nothing
is guessed.

The names in a file are someone else's text: they are escaped in whatever is said about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nndiag.checkpoint.lazy import renamed
from nndiag.config.callables import reason
from nndiag.errors import ModelError, printable
from nndiag.model.candidates import Candidate, Names, PlaceLike, find_candidates
from nndiag.model.choice import ambiguous, named_place, narrow_places, with_prefix
from nndiag.model.mismatch import find_mismatch
from nndiag.model.wanted import Wanted, wanted_of


@dataclass(frozen=True)
class Fit:
    """The weights of a model, by its own names.

    ``place`` and ``prefix`` say where they lie; ``left_out`` counts the other entries of that place. ``note``
    says in a sentence what was taken, and is empty where nothing had to be chosen. ``entries`` are all names
    of the place, in the order of the file: an optimiser that trained several networks together counts through
    them.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    place: str
    prefix: str
    left_out: int
    note: str
    entries: tuple[str, ...] = field(default=(), repr=False)


def fit(
    model: nn.Module,
    places: Sequence[PlaceLike],
    weights_key: str | None = None,
    strip_prefix: str | None = None,
) -> Fit:
    """Return the one set of weights in a checkpoint that fits ``model``.

    A place fits under a prefix where the entries under it are exactly the model's, name by name and shape by
    shape. Of a tensor that has several names in the model, one is enough. Entries outside the prefix are left out, and
    those that the model's own library declares unused.

    Args:
        model: the network.
        places: the mappings of tensors that the checkpoint holds.
        weights_key: the key of the place to take, or a dotted path into one.
        strip_prefix: the prefix to take off the names, with or without its last dot.

    Raises:
        UsageError: several places or prefixes fit, or an option names what is not there.
        ModelError: nothing fits; the nearest candidate is described.
    """
    wanted = wanted_of(model)
    if not wanted.tensors:
        raise ModelError("model", "has no parameters", "give a network that has weights")
    if not any(place.tensors for place in places):
        raise ModelError("weights", "the checkpoint holds no tensors", "give another checkpoint")
    chosen, inside = narrow_places([_with_names_of_today(place, wanted) for place in places], weights_key)
    found = find_candidates(wanted.tensors, chosen)
    prefix = with_prefix(inside, strip_prefix, chosen, found)
    if prefix is not None:
        found = [candidate for candidate in found if candidate.prefix == prefix]
    fitting = [
        candidate
        for candidate in found
        if candidate.common >= wanted.indispensable and not find_mismatch(wanted, candidate).count
    ]
    if len(fitting) > 1:
        raise ambiguous(fitting)
    if not fitting:
        raise _misfit(wanted, chosen, found, prefix)
    return _taken(wanted, fitting[0], several=len(places) > 1)


def load(model: nn.Module, fit: Fit) -> None:
    """Copy the weights into ``model`` in place, cast to its own types; values that are not finite are copied
    like others.

    Raises:
        ModelError: the model refuses an entry.
    """
    what = f"weights from {named_place(fit.place, fit.prefix)}"
    try:
        report = model.load_state_dict(fit.tensors, strict=False)
    except RuntimeError as error:
        raise ModelError(what, f"they cannot be loaded ({reason(error)})", "check the model") from error
    skipped = [name for name in (*report.unexpected_keys, *report.missing_keys) if name in fit.tensors]
    if skipped:
        raise ModelError(what, f"the model does not take {skipped[0]}", "check its hooks on loading")


@dataclass(frozen=True)
class _Renamed:
    """A place under other names."""

    key: str
    tensors: Mapping[str, Tensor]


def _with_names_of_today(place: PlaceLike, wanted: Wanted) -> PlaceLike:
    """Return a place with the names that the model's own library has given up put right."""
    today = dict(zip(wanted.today(place.tensors), place.tensors, strict=True))
    if all(new == old for new, old in today.items()) or len(today) < len(place.tensors):
        return place
    return _Renamed(place.key, renamed(place.tensors, today))


def _taken(wanted: Wanted, candidate: Candidate, several: bool) -> Fit:
    place, prefix = candidate.place, candidate.prefix
    tensors = {
        name: place.tensors[prefix + name] for name in wanted.tensors if prefix + name in place.tensors
    }
    left_out = len(place.tensors) - len(tensors)
    _refuse_unlike_twins(wanted, tensors, place, prefix)
    note = ""
    if place.key or prefix or left_out or several:
        note = f"weights taken from {named_place(place.key, prefix)} ({len(tensors)} tensors)"
    if left_out:
        note += f"; {left_out} other {'entry' if left_out == 1 else 'entries'} left out"
    return Fit(tensors, place.key, prefix, left_out, printable(note), tuple(place.tensors))


def _refuse_unlike_twins(
    wanted: Wanted, tensors: Mapping[str, Tensor], place: PlaceLike, prefix: str
) -> None:
    """Refuse a file with different values for one tensor of the model that has two names there."""
    for name, others in wanted.twins.items():
        for other in others:
            if name < other and name in tensors and other in tensors:
                one, two = tensors[name], tensors[other].to(tensors[name].dtype)
                if not torch.equal(one, two) and not torch.equal(one.nan_to_num(), two.nan_to_num()):
                    why = f"{name} and {other} differ, and are one tensor in the model"
                    do = "give the model that was trained, with the two untied"
                    raise ModelError(f"weights from {named_place(place.key, prefix)}", why, do)


def _misfit(
    wanted: Wanted, places: Sequence[PlaceLike], found: Sequence[Candidate], prefix: str | None
) -> ModelError:
    """Return the error for the candidate with most names in common; among equals, the one with the fewest
    misfits.
    """
    if found:
        most = max(candidate.common for candidate in found)
        nearest = [candidate for candidate in found if candidate.common == most][:8]
    else:
        largest = max(places, key=lambda place: len(place.tensors))
        nearest = [Candidate(Names(largest), prefix or "", 0)]
    mismatches = [(find_mismatch(wanted, candidate), candidate) for candidate in nearest]
    mismatch, candidate = min(mismatches, key=lambda pair: pair[0].count)
    return ModelError(
        f"weights from {named_place(candidate.place.key, candidate.prefix)}",
        f"they do not fit the model: {mismatch}",
        mismatch.advice,
    )
