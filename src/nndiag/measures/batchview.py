"""One batch as a layer saw it: inputs of its nodes, and gradients at its outputs, over all calls of the
layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.replay.jacobian import input_columns
from nndiag.replay.kinds import Layer
from nndiag.replay.kinds.base import Use
from nndiag.replay.passes import Forward


@dataclass(frozen=True)
class LayerUse:
    """The calls of one layer in one forward pass; positions of several calls stand side by side.

    ``places`` are the indices of its calls, ``uses`` the calls themselves.
    """

    layer: Layer
    places: tuple[int, ...]
    uses: tuple[Use, ...]
    positions: int

    def columns(self) -> Tensor:
        """Return the inputs of the nodes, ``(batch, groups, size, positions)``."""
        return columns_of(self.layer, self.uses)

    def gather(self, gradients: Sequence[Tensor]) -> Tensor:
        """Pick the layer's own gradients, ``(batch, nodes, positions)``, from those of all calls."""
        own = [gradients[place] for place in self.places]
        return own[0] if len(own) == 1 else torch.cat(own, dim=2)


def columns_of(layer: Layer, uses: Sequence[Use]) -> Tensor:
    """Return the inputs of a layer's nodes over several calls, ``(batch, groups, size, positions)``."""
    parts = [input_columns(layer, use) for use in uses]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def layer_uses(seen: Forward, leave_out: Collection[str]) -> list[LayerUse]:
    """Return the layers called in a forward pass, in order of their first call, without those named."""
    places: dict[str, list[int]] = {}
    for place, call in enumerate(seen.calls):
        if call.layer.name not in leave_out:
            places.setdefault(call.layer.name, []).append(place)
    found = []
    for indices in places.values():
        calls = [seen.calls[i] for i in indices]
        positions = sum(call.positions for call in calls)
        found.append(LayerUse(calls[0].layer, tuple(indices), tuple(c.use for c in calls), positions))
    return found
