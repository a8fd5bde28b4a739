"""Checkpoints of a run that trainers write twice: ``last.ckpt`` or ``best.pt`` beside the numbered one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.opening import glance
from nndiag.checkpoint.progress import UNKNOWN, Progress
from nndiag.errors import InputError

Found = tuple[Path, Progress]


def find_copies(found: Sequence[Found]) -> Iterator[tuple[Path, Path]]:
    """Yield each checkpoint that holds the weights of another one of the same step, and that other one.

    A copy has no number in its name, or says neither step nor epoch and may be of any. Weights that stay the same from
    one step to the next are no copies.

    Args:
        found: the checkpoints, each with where in training it says that it was written.
    """
    numbered = [one for one in found if _has_number(one[0]) and one[1] != UNKNOWN]
    for file, progress in found:
        if _has_number(file) and progress != UNKNOWN:
            continue
        same = (other for other, known in numbered if progress in (UNKNOWN, known))
        original = next((other for other in same if _have_equal_weights(file, other)), None)
        if original is not None:
            yield file, original


def _has_number(file: Path) -> bool:
    return any(letter.isdecimal() for letter in file.name if letter.isascii())


def _have_equal_weights(one: Path, other: Path) -> bool:
    """Return whether two checkpoints hold the same tensors, as far as both can be read; one tensor in memory each."""
    try:
        places, others = glance(one).places, glance(other).places
        if [place.key for place in places] != [place.key for place in others]:
            return False
        pairs = [(place.tensors, others[index].tensors) for index, place in enumerate(places)]
        described = [[_described(tensors) for tensors in pair] for pair in pairs]
        if any(first != second for first, second in described):
            return False
        return all(torch.equal(first[name], second[name]) for first, second in pairs for name in first)
    except InputError:
        return False


def _described(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (one.shape, one.dtype) for name, one in specs_of(tensors).items()}
