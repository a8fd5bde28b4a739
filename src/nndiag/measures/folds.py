"""Which fold of the probe each row of a pass is in."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class FoldRows:
    """The folds of the rows of one pass, and the rows of each fold, which are found once for all layers.

    Args:
        of_row: fold of every row, ``(rows,)``.
    """

    def __init__(self, of_row: Tensor) -> None:
        self.of_row = of_row

    def __len__(self) -> int:
        return len(self.of_row)

    @cached_property
    def rows(self) -> dict[int, slice | Tensor]:
        """The rows of each fold that has any: a slice, which copies nothing, where they are evenly spaced."""
        order = torch.argsort(self.of_row, stable=True)
        found, counts = torch.unique_consecutive(self.of_row[order], return_counts=True)
        parts = torch.split(order, counts.tolist())
        return {fold: _regular(own) for fold, own in zip(found.tolist(), parts, strict=True)}


def _regular(rows: Tensor) -> slice | Tensor:
    """Return rising places as a slice where they are evenly spaced."""
    first, last = int(rows[0]), int(rows[-1])
    step = max(1, (last - first) // max(1, len(rows) - 1))
    even = torch.arange(first, first + step * len(rows), step, device=rows.device)
    return slice(first, last + 1, step) if torch.equal(even, rows) else rows
