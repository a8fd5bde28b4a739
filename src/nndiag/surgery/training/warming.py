"""Bias warm-up: raising biases until the data, or a node, fire again."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiag.replay.kinds import Slot
from nndiag.surgery.training.readings import UnitReading, read_units
from nndiag.surgery.training.ward import Ward

ABOVE = 1e-2
"""By how much of the standard deviation of its arguments a layer's weakest sample comes to lie above the edge."""
ROUNDING = 1e-6
"""Differences of a node's arguments, beside the largest of them, that are none."""
FIRES = 0.05
"""Share of samples and positions at which a single node fires after its bias was raised."""


def bias_of(ward: Ward, layer: str) -> Slot | None:
    """Return the parameter that shifts the arguments of a layer's activation: a norm's shift, or its own bias."""
    norm = ward.paths[layer].norm if layer in ward.paths else None
    shifts = ward.layers[norm.layer if norm is not None else layer].biases
    return shifts[0] if shifts else None


def warm_layer(ward: Ward, layer: str) -> float | None:
    """Add ``δ = −min_n max_i z_{n,i} + ε`` to every bias of a layer, and return it; ``None`` where there is none.

    Every sample then activates a unit of the layer. ``ε`` is a hundredth of the standard deviation of ``z``.
    """
    slot, reading = bias_of(ward, layer), _read(ward, layer)
    if slot is None or reading is None or reading.activation is None or reading.activation.edge is None:
        return None
    margin = ABOVE * float(reading.z.std(correction=0)) + torch.finfo(torch.float32).eps
    delta = reading.activation.edge - float(reading.covered.min()) + margin
    nodes = torch.arange(ward.layers[layer].nodes)
    return None if delta <= 0 else _raise(ward, slot, nodes, torch.full((len(nodes),), delta))


def warm_nodes(ward: Ward, layer: str, nodes: list[int]) -> float | None:
    """Raise the biases of single nodes until each fires on a twentieth of the probe; return the largest rise."""
    slot, reading = bias_of(ward, layer), _read(ward, layer)
    if slot is None or reading is None or reading.activation is None or reading.activation.edge is None:
        return None
    chosen = torch.tensor(nodes)
    rows = reading.z[chosen].sort(dim=1, descending=True).values
    count = min(rows.shape[1] - 1, max(1, int(FIRES * rows.shape[1])))
    last = rows[:, count - 1 : count]
    # where values repeat, as of inputs that do, all fire that are the last one's equal but for rounding
    lower = rows < last - ROUNDING * rows.abs().amax(dim=1, keepdim=True)
    place = torch.where(lower.any(dim=1), lower.int().argmax(dim=1), count)
    below = rows.gather(1, place[:, None])
    below = torch.where(place[:, None] == count, below, (last + below) / 2)
    return _raise(ward, slot, chosen, reading.activation.edge - below[:, 0])


def _raise(ward: Ward, slot: Slot, nodes: Tensor, rise: Tensor) -> float:
    tensor = ward.tensors()[slot.parameter]
    rows = slot.rows(tensor)[nodes]
    ward.set_rows(slot, nodes, rows + rise[:, None].to(rows))
    return float(rise.max())


def _read(ward: Ward, layer: str) -> UnitReading | None:
    with ward.looking():
        return read_units(ward.model, ward.probe, ward.owners, [layer]).get(layer)
