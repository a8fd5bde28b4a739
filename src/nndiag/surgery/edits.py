"""What surgery changed in a network: the hand-over from those who change it to those who write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """New parameters and buffers of a model, under the model's own names, and what became of their old entries.

    ``values`` maps a name to the complete new tensor, perhaps of a new shape; names that did not change are absent.
    ``kept`` says, for names whose shape shrank, which old indices remain along each axis (``None``: all), so that
    whatever is stored beside an entry, such as an optimiser's moments, can follow it. ``reset`` marks, in the new
    shape, the entries whose optimiser state starts afresh.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    reset: Mapping[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)

    def then(self, later: Edits) -> Edits:
        """Return this and what was done to its result afterwards as one."""
        kept = {
            name: _chained(self.kept.get(name, ()), later.kept.get(name, ()))
            for name in {**self.kept, **later.kept}
        }
        reset = {name: _cut(mask, later.kept.get(name, ())) for name, mask in self.reset.items()}
        for name, mask in later.reset.items():
            reset[name] = reset[name] | mask if name in reset else mask
        return Edits({**self.values, **later.values}, kept, reset)


Indices = tuple[Tensor | None, ...]


def _chained(first: Indices, second: Indices) -> Indices:
    """Return which of the oldest indices remain along each axis."""
    return tuple(
        one if other is None else other if one is None else one[other]
        for one, other in zip_longest(first, second)
    )


def _cut(mask: Tensor, kept: Indices) -> Tensor:
    for axis, indices in enumerate(kept):
        if indices is not None:
            mask = mask.index_select(axis, indices)
    return mask
