"""Which rows of a table a torch function takes, where no kind knows the function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taken:
    """Which rows were taken, in the shape of the ids; ``fixed`` says that the data had no part in that."""

    rows: Tensor
    fixed: bool

    def times(self, samples: int) -> int:
        """Return for how many of the samples of a batch each of these stands: for all, where it was taken once."""
        return samples if self.fixed and not (self.rows.dim() > 1 and len(self.rows) == samples) else 1


_EMBEDDINGS = frozenset({"embedding", "embedding_bag"})


def rows_taken(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], table: Tensor) -> Tensor | None:
    """Return the rows that a function takes, once each time; ``None`` where it is no lookup along the first axis.

    The rows of ``padding_idx`` are taken to be looked up as well.

    Args:
        name: of the function.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        table: one of the arguments.
    """
    given = (*args, *kwargs.values())
    if name in _EMBEDDINGS:
        return next(_ids(given), None)
    if not table.dim() or given[0] is not table:
        return None
    index = None
    if name == "__getitem__":
        index = given[1][0] if isinstance(given[1], tuple) and given[1] else given[1]
    elif name == "index_select" and _axis(given) in (0, -table.dim()):
        index = next(_ids(given), None)
    taken = isinstance(index, int | slice | list | Tensor)
    return torch.arange(len(table), device=table.device)[index] if taken else None


def _axis(given: Sequence[Any]) -> int | None:
    return next((value for value in given if isinstance(value, int)), None)


def _ids(given: Sequence[Any]) -> Iterator[Tensor]:
    return (value for value in given if isinstance(value, Tensor) and not value.is_floating_point())
