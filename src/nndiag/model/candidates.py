"""Where in a checkpoint a model's weights may lie: a place, and a prefix of the names there."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor


class PlaceLike(Protocol):
    """A mapping of tensors inside a checkpoint, under its dotted key there (``""`` is the top level)."""

    @property
    def key(self) -> str:
        """Return the dotted key."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name, in the order of the file; a value may be read only when it is asked
        for.
        """


@dataclass(frozen=True)
class Names:
    """The names of one place, sorted so that those under a prefix are found without going through all."""

    place: PlaceLike

    @cached_property
    def ordered(self) -> list[str]:
        """The names in alphabetical order."""
        return sorted(self.place.tensors)

    def under(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix`` (``""``, or ending in a dot), without it."""
        if not prefix:
            return self.ordered
        after_dot = chr(ord(".") + 1)
        start, end = bisect_left(self.ordered, prefix), bisect_left(self.ordered, prefix[:-1] + after_dot)
        return [name[len(prefix) :] for name in self.ordered[start:end]]


@dataclass(frozen=True)
class Candidate:
    """A place and prefix under which ``common`` of the model's names are found."""

    names: Names
    prefix: str
    common: int

    @property
    def place(self) -> PlaceLike:
        """The place that the candidate lies in."""
        return self.names.place


def find_candidates(wanted: Iterable[str], places: Sequence[PlaceLike]) -> list[Candidate]:
    """Return every place and prefix under which at least one of the ``wanted`` names is found, in the order
    of the file.
    """
    wanted = frozenset(wanted)
    depths = {name.count(".") for name in wanted}
    found = []
    for place in places:
        names = Names(place)
        counts: Counter[str] = Counter()
        for key in place.tensors:
            dots = key.count(".")
            for depth in depths:
                if depth > dots:
                    continue
                tail = key if depth == dots else key.split(".", dots - depth)[-1]
                if tail in wanted:
                    counts[key[: len(key) - len(tail)]] += 1
        found += [Candidate(names, prefix, common) for prefix, common in counts.items()]
    return found
