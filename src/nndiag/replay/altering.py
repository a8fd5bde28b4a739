"""A forward pass in which units put out something else than they do: what a network is without them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.replay.kinds import Layer
from nndiag.replay.layers import Owners
from nndiag.replay.separation import Blind
from nndiag.replay.units import Units
from nndiag.replay.watch import Watch


@dataclass(frozen=True)
class Alteration:
    """What the units of a layer put out instead: ``y_i = offset_i + slope_i · y_other(i)`` where ``changed_i``.

    Each ``(units,)``. ``slope`` and ``other`` are ``None`` where every changed unit puts out a constant. ``activated``
    says that what they put out is behind their activation, and not the output of the layer itself.
    """

    changed: Tensor
    offset: Tensor
    slope: Tensor | None
    other: Tensor | None
    activated: bool

    def of(self, tensor: Tensor, units: Units) -> Tensor:
        """Return the tensor with the altered units in it."""
        moved = tensor.movedim(units.axis, 1)
        split = moved.reshape(moved.shape[0], units.count, -1)
        instead = self.offset.to(split)[None, :, None]
        if self.slope is not None and self.other is not None:
            instead = instead + self.slope.to(split)[None, :, None] * split[:, self.other]
        altered = torch.where(self.changed[None, :, None], instead, split)
        return altered.reshape(moved.shape).movedim(1, units.axis)


class Altering(Watch):
    """A mode under which one forward pass is run with units altered.

    Args:
        owners: the layer and slot of every parameter, by the identity of the parameter.
        constants: parameters and buffers.
        alterations: by the name of the layer.

    ``altered`` counts how often each layer was, by its name.
    """

    def __init__(
        self, owners: Owners, constants: Collection[Tensor], alterations: Mapping[str, Alteration]
    ) -> None:
        super().__init__(owners, Blind(), constants)
        self.altered: dict[str, int] = {}
        self._alterations = alterations

    def _made(self, layer: Layer, units: Units | None, tensor: Tensor, *, activated: bool) -> Tensor:
        alteration = self._alterations.get(layer.name)
        if alteration is None or units is None or alteration.activated != activated:
            return tensor
        self.altered[layer.name] = self.altered.get(layer.name, 0) + 1
        return alteration.of(tensor, units)
