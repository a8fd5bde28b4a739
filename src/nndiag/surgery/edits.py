"""What surgery changed in a network: the hand-over from those who change it to those who write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """New parameters and buffers of a model, under the model's own names, and what became of their old entries.

    ``values`` maps a name to the complete new tensor, perhaps of a new shape; names that did not change are absent.
    ``kept`` says, for names whose shape shrank, which old indices remain along each axis (``None``: all), so that
    whatever is stored beside an entry, such as an optimiser's moments, can follow it. ``reset`` marks, in the new
    shape, the entries whose optimiser state starts afresh. ``dropped`` names what is gone with its module.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    reset: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.values or self.dropped)
