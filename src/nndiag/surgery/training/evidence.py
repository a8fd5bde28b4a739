"""What is known of single nodes before and after: the gradient that reaches them, and how often they fire."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from nndiag.replay.kinds import Layer
from nndiag.surgery.training.readings import read_units
from nndiag.surgery.training.ward import Ward


@dataclass(frozen=True)
class Evidence:
    """A network as single nodes show it: gradients by parameter, and by layer how often each unit is not flat."""

    gradients: Mapping[str, Tensor]
    active: Mapping[str, Tensor]

    def gradient(self, layer: Layer, node: int | None) -> float | None:
        """Return the norm of the mean loss's gradient in a node's own parameters, in the layer's for ``None``."""
        parts = [
            slot.rows(self.gradients[slot.parameter])
            for slot in layer.slots
            if slot.parameter in self.gradients
        ]
        return _norm([part if node is None else part[node] for part in parts])

    def outgoing(self, ward: Ward, layer: str, node: int) -> float | None:
        """Return the norm of its gradient in the weights that listen to a node."""
        paths = ward.paths.get(layer)
        outlets = () if paths is None else paths.outlets_of(node)
        return _norm(
            [o.outgoing(self.gradients[o.weight], node) for o in outlets if o.weight in self.gradients]
        )

    def firing(self, layer: str, node: int | None) -> float | None:
        """Return the share of samples and positions at which a node is not flat."""
        known = self.active.get(layer)
        return None if known is None or node is None else float(known[node])


def look_closely(ward: Ward, layers: Collection[str], gradients: Mapping[str, Tensor]) -> Evidence:
    """Return what single nodes of some layers show; ``gradients`` come from a replay of the same network."""
    with ward.looking():
        readings = read_units(ward.model, ward.probe, ward.owners, layers) if layers else {}
    return Evidence(gradients, {name: reading.active for name, reading in readings.items()})


def _norm(parts: Collection[Tensor]) -> float | None:
    if not parts:
        return None
    value = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
    return value if math.isfinite(value) else None
