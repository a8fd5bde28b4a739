"""Other weights in the same checkpoint that look like those that changed: a running average, a target network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.record import Checkpoint
from nndiag.model.fit import Fit
from nndiag.surgery.writing.changes import Changes, place_of


def copies(source: Checkpoint, fit: Fit, changes: Changes) -> Iterator[str]:
    """Yield a sentence for every other set of weights with the same names and shapes; none of them is edited.

    They do not follow into fewer units: a unit that does nothing in one network may carry the function of its copy.
    """
    before = specs_of(place_of(source, fit).tensors)
    changed = {name.removeprefix(fit.prefix): before[name] for name in changes.weights if name in before}
    for place in source.places:
        prefixes = dict.fromkeys(_prefixes(specs_of(place.tensors), changed))
        for prefix in prefixes:
            if (place.key, prefix) != (fit.place, fit.prefix):
                where = f"{place.key}: {prefix}" if place.key and prefix else place.key or prefix
                yield f'"{where.rstrip(".")}" holds other weights of the same names, which {_left(changes)}'


def _left(changes: Changes) -> str:
    if not changes.shrank:
        return "were left as they were"
    return (
        "keep their sizes: code that builds both networks alike does not load this file; "
        "load the smaller weights by themselves, or copy them over the others"
    )


def _prefixes(held: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Iterator[str]:
    for entry, tensor in held.items():
        parts = entry.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in changed and changed[name].shape == tensor.shape:
                yield entry[: len(entry) - len(name)]
