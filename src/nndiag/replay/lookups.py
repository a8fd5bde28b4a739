"""Which rows of a table a torch function takes, where no kind knows the function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    every = torch.arange(len(table), device=table.device) if table.dim() else None
    if every is None:
        return None
    if name in _EMBEDDINGS:
        ids = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and not v.is_floating_point())
        return next(ids, None)
    if name == "__getitem__" and args[0] is table:
        index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        return every[index] if isinstance(index, int | slice | list | Tensor) else None
    if name == "index_select" and args[0] is table and args[1] in (0, -table.dim()):
        return every[args[2]]
    return None
