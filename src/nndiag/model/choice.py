"""The options that choose among several weights in one checkpoint, and what to say when they are needed or
wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nndiag.errors import UsageError
from nndiag.model.candidates import Candidate, PlaceLike

SHOWN = 5


def named_place(key: str, prefix: str) -> str:
    """Return ``"state_dict" under prefix "model."``."""
    place = f'"{key}"' if key else "the top level"
    return f'{place} under prefix "{prefix}"' if prefix else place


def narrow_places(places: Sequence[PlaceLike], weights_key: str | None) -> tuple[Sequence[PlaceLike], str]:
    """Return the places that ``--weights-key`` leaves, and the prefix inside them where it is a path into a
    place.

    Raises:
        UsageError: there is no such place.
    """
    if weights_key is None:
        return places, ""
    exact = [place for place in places if place.key == weights_key]
    below = [place for place in places if place.key.startswith(f"{weights_key.rstrip('.')}.")]
    if exact or below:
        return exact or below, ""
    for place in sorted(places, key=lambda place: -len(place.key)):
        start = f"{place.key}." if place.key else ""
        inside = weights_key.removeprefix(start).rstrip(".") + "."
        if weights_key.startswith(start) and any(name.startswith(inside) for name in place.tensors):
            return [place], inside
    keys = [f'"{place.key}"' for place in places if place.key]
    do = f"take one of {_listed(keys)}, or leave it out" if keys else "leave it out: there is one place alone"
    raise UsageError(f"--weights-key {weights_key}", "the checkpoint has no such place", do)


def with_prefix(
    inside: str, strip_prefix: str | None, places: Sequence[PlaceLike], found: Sequence[Candidate]
) -> str | None:
    """Return the prefix that the options ask for, ending in a dot, or ``None`` where any is welcome.

    Raises:
        UsageError: no entry lies under it.
    """
    if strip_prefix is None:
        return inside or None
    prefix = inside + (f"{strip_prefix.rstrip('.')}." if strip_prefix else "")
    if any(name.startswith(prefix) for place in places for name in place.tensors):
        return prefix
    known = {
        candidate.prefix.removeprefix(inside): None for candidate in sorted(found, key=lambda it: -it.common)
    }
    if not known:
        known = {
            f"{name.partition('.')[0]}.": None for place in places for name in place.tensors if "." in name
        }
    named = [f'"{prefix}"' for prefix in known]
    raise UsageError(
        f"--strip-prefix {strip_prefix}",
        "no entry of the checkpoint has this prefix",
        f"the prefixes there are: {_listed(named)}" if named else "leave it out",
    )


def ambiguous(fitting: Sequence[Candidate]) -> UsageError:
    """Return the error for weights that fit in several ways: it names them, and the option that chooses."""
    first = fitting[0]
    if all(candidate.place.key == first.place.key for candidate in fitting):
        option, words = "--strip-prefix", [candidate.prefix for candidate in fitting]
        shown = [f'prefix "{candidate.prefix}"' for candidate in fitting]
    else:
        option, words = "--weights-key", list({candidate.place.key: None for candidate in fitting})
        shown = [named_place(candidate.place.key, candidate.prefix) for candidate in fitting]
    choices = [f"{option} {shlex.quote(word)}" for word in words[:2]]
    return UsageError(
        "weights",
        f"{len(fitting)} sets of them fit the model: {_listed(shown)}",
        f"choose with {' or '.join(choices)}",
    )


def _listed(words: Sequence[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")
