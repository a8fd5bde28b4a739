"""Find where a model's weights lie in a checkpoint, and load them. Names and shapes must fit exactly; nothing
is guessed.

The names in a file are someone else's text: they are escaped in whatever is said about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from nndiag.config.callables import reason
from nndiag.errors import ModelError, printable
from nndiag.model.candidates import Candidate, Names, PlaceLike, find_candidates
from nndiag.model.choice import ambiguous, named_place, narrow_places, with_prefix
from nndiag.model.mismatch import find_mismatch


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
    shape. Entries outside the prefix are left out.

    Args:
        model: the network.
        places: the mappings of tensors that the checkpoint holds.
        weights_key: the key of the place to take, or a dotted path into one.
        strip_prefix: the prefix to take off the names, with or without its last dot.

    Raises:
        UsageError: several places or prefixes fit, or an option names what is not there.
        ModelError: nothing fits; the nearest candidate is described.
    """
    wanted = _state(model)
    if not wanted:
        raise ModelError("model", "has no parameters", "give a network that has weights")
    if not any(place.tensors for place in places):
        raise ModelError("weights", "the checkpoint holds no tensors", "give another checkpoint")
    chosen, inside = narrow_places(places, weights_key)
    found = find_candidates(wanted, chosen)
    prefix = with_prefix(inside, strip_prefix, chosen, found)
    if prefix is not None:
        found = [candidate for candidate in found if candidate.prefix == prefix]
    fitting = [
        candidate
        for candidate in found
        if candidate.common == len(wanted)
        and len(candidate.names.under(candidate.prefix)) == len(wanted)
        and not find_mismatch(wanted, candidate).count
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


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's named tensors, parameters as parameters; extra state that is no tensor left out."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _taken(wanted: Mapping[str, Tensor], candidate: Candidate, several: bool) -> Fit:
    place, prefix = candidate.place, candidate.prefix
    left_out = len(place.tensors) - len(wanted)
    note = ""
    if place.key or prefix or left_out or several:
        note = f"weights taken from {named_place(place.key, prefix)} ({len(wanted)} tensors)"
    if left_out:
        note += f"; {left_out} other {'entry' if left_out == 1 else 'entries'} left out"
    tensors = {name: place.tensors[prefix + name] for name in wanted}
    return Fit(tensors, place.key, prefix, left_out, printable(note), tuple(place.tensors))


def _misfit(
    wanted: Mapping[str, Tensor], places: Sequence[PlaceLike], found: Sequence[Candidate], prefix: str | None
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
        "give the model that was trained, or say where its weights lie with --weights-key and --strip-prefix",
    )
