"""Nodes that are started anew already: they fire, and what listens to them is as good as zero still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nndiag.surgery.training.outlets import Outlet
from nndiag.surgery.training.reinitialising import WHISPER, fresh_weights, staying
from nndiag.surgery.training.ward import Ward

LOUD = 10 * WHISPER
"""Size of a weight that listens, relative to all fresh ones that would, from which on it does."""


def hushed(ward: Ward, layers: Iterable[str]) -> Mapping[str, Tensor]:
    """Return which nodes of some layers the network hears no louder than nodes that were just started anew.

    A node is one of them if no weight listens to it but those of such nodes: nodes that were started anew together hear
    each other as any. So are the queries and keys of a head whose values are.

    Args:
        ward: the network.
        layers: names of layers; those of which it is not known who listens have none.

    Returns:
        By the name of a layer, a mask of its nodes.
    """
    loud = _loudness(ward, layers)
    quiet = {name: torch.ones(ward.layers[name].nodes, dtype=torch.bool) for name in loud}
    changed = True
    while changed:
        changed = False
        for name, outlets in loud.items():
            for outlet, table in outlets.items():
                rows = staying(ward, outlet, quiet.get(outlet.layer))
                still = quiet[name] & ~table[rows].any(dim=0)
                for shared in ward.paths[name].shared:
                    still[list(shared.units)] &= still[list(shared.behind)].all()
                changed |= not torch.equal(still, quiet[name])
                quiet[name] = still
    return quiet


def _loudness(ward: Ward, layers: Iterable[str]) -> dict[str, dict[Outlet, Tensor]]:
    """Return, for layers and those that listen to them, which rows of a weight hear which units."""
    tensors, drawn = ward.tensors(), dict[str, Tensor]()
    found: dict[str, dict[Outlet, Tensor]] = {}
    waiting = list(layers)
    while waiting:
        name = waiting.pop()
        paths = ward.paths.get(name)
        if name in found or paths is None or not paths.closable:
            continue
        found[name] = {}
        for outlet in paths.outlets:
            if outlet.weight not in drawn:
                drawn[outlet.weight] = fresh_weights(ward, outlet.layer)[outlet.weight]
            heard = _table(ward, name, outlet, tensors[outlet.weight])
            usual = _table(ward, name, outlet, drawn[outlet.weight]).norm(dim=0)
            found[name][outlet] = ~(heard <= LOUD * usual)
            waiting.append(outlet.layer)
    return found


def _table(ward: Ward, name: str, outlet: Outlet, weight: Tensor) -> Tensor:
    """Return the norm with which every row of a weight hears every unit, ``(rows, units)``, 0 where it does not."""
    rows, paths, weight = len(staying(ward, outlet, None)), ward.paths[name], weight.float()
    units = [unit for unit in range(ward.layers[name].nodes) if paths.closes(unit)]
    table = torch.zeros(rows, ward.layers[name].nodes)
    if outlet.groups == 1:
        first = outlet.start + units[0] * outlet.inner  # units that are shut lie side by side
        entries = outlet.entries(weight)[:, first : first + len(units) * outlet.inner]
        table[:, units] = entries.reshape(rows, len(units), -1).norm(dim=2).cpu()
        return table
    for unit in units:
        table[outlet.heard_by(weight, unit), unit] = (
            outlet.outgoing(weight, unit).flatten(1).norm(dim=1).cpu()
        )
    return table
