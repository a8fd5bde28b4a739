"""What is read of single layers from replays: their units' arguments, and what arrives at the weights after them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import Owners
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import forward
from nndiag.surgery.training.following import Following

MOST_VALUES = 2**22
"""Arguments of a layer that are kept; of more, every k-th position is."""


@dataclass
class UnitReading:
    """The arguments of the units of one layer over the probe, ``(nodes, samples · positions)``.

    ``raw`` is what the layer puts out, ``z`` what its activation takes, behind a normalisation where there is one.
    ``covered`` is ``max_i z_{n,i}`` over units and positions, one a sample.
    """

    activation: Nonlinearity | None = None
    raw: Tensor = field(default_factory=lambda: torch.empty(0))
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    covered: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def active(self) -> Tensor:
        """The share of samples and positions at which a unit is not on a flat side, ``(nodes,)``."""
        if self.activation is None or self.activation.flat is None:
            return torch.ones(self.z.shape[0])
        return (~self.activation.flat(self.z)).double().mean(dim=1)


class _Units:
    """Keeps the arguments of the units of some layers."""

    def __init__(self, wanted: Collection[str], rows: int) -> None:
        self._wanted = wanted
        self._rows = rows
        self._raw: dict[str, list[Tensor]] = {}
        self._z: dict[str, list[Tensor]] = {}
        self._covered: dict[str, list[Tensor]] = {}
        self._activations: dict[str, Nonlinearity | None] = {}

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Keep what a layer puts out."""
        if layer.name in self._wanted:
            self._raw.setdefault(layer.name, []).append(self._thinned(z))
        return None

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Keep what its activation takes."""
        if layer.name in self._wanted:
            self._z.setdefault(layer.name, []).append(self._thinned(z))
            self._covered.setdefault(layer.name, []).append(z.flatten(1).amax(dim=1).float().cpu())
            self._activations[layer.name] = activation
        return None

    def _thinned(self, z: Tensor) -> Tensor:
        kept = max(1, MOST_VALUES // max(1, self._rows * z.shape[1]))
        step = max(1, math.ceil(z.shape[2] / kept))
        return z.detach()[:, :, ::step].transpose(0, 1).flatten(1).float().cpu()

    def readings(self) -> dict[str, UnitReading]:
        """Return what was kept."""
        return {
            name: UnitReading(
                self._activations[name],
                torch.cat(self._raw[name], dim=1),
                torch.cat(self._z[name], dim=1),
                torch.cat(self._covered[name]),
            )
            for name in self._z
            if name in self._raw
        }


def read_units(
    model: nn.Module, probe: Probe, owners: Owners, wanted: Collection[str]
) -> dict[str, UnitReading]:
    """Return the arguments of the units of some layers over the probe; the model is in eval mode."""
    units = _Units(frozenset(wanted), len(probe))
    with torch.no_grad():
        for batch in probe.batches():
            forward(model, batch.inputs, owners, units)
    return units.readings()


@dataclass
class Arrival:
    """What arrives at a weight over the probe, per entry of its inputs: mean, variance, least and largest value."""

    mean: Tensor
    variance: Tensor
    least: Tensor
    largest: Tensor


class _Arrivals:
    """Keeps sums and extremes of what arrives at some weights, and products of pairs of entries."""

    def __init__(self, wanted: Collection[str], pairs: Mapping[str, Tensor]) -> None:
        self._wanted = wanted
        self._pairs = pairs
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        self._products: dict[str, Tensor] = {}

    def arrived(self, weight: str, entries: Tensor) -> None:
        """Add some rows."""
        if weight not in self._wanted:
            return
        rows = entries.double()
        least, largest = rows.amin(dim=0), rows.amax(dim=0)
        if weight in self._sums:
            self._sums[weight] += rows.sum(dim=0)
            self._squares[weight] += rows.square().sum(dim=0)
            self._counts[weight] += len(rows)
            before = self._ends[weight]
            self._ends[weight] = (torch.minimum(before[0], least), torch.maximum(before[1], largest))
        else:
            self._sums[weight], self._counts[weight] = rows.sum(dim=0), len(rows)
            self._squares[weight] = rows.square().sum(dim=0)
            self._ends[weight] = (least, largest)
        if weight in self._pairs:
            one, other = rows[:, self._pairs[weight][:, 0]], rows[:, self._pairs[weight][:, 1]]
            products = torch.stack([(one * other).sum(dim=0), other.square().sum(dim=0)])
            self._products[weight] = self._products.get(weight, 0) + products

    def arrivals(self) -> dict[str, Arrival]:
        """Return what arrived."""
        found = {}
        for name, total in self._sums.items():
            mean = total / self._counts[name]
            variance = (self._squares[name] / self._counts[name] - mean.square()).clamp_min(0)
            found[name] = Arrival(mean.cpu(), variance.cpu(), *(end.cpu() for end in self._ends[name]))
        return found

    def slopes(self) -> dict[str, Tensor]:
        """Return, per pair of entries, the slope of the first on the second by least squares with a constant."""
        found = {}
        for name, products in self._products.items():
            count, pairs = self._counts[name], self._pairs[name]
            means = self._sums[name] / count
            one, other = means[pairs[:, 0]], means[pairs[:, 1]]
            covariance = products[0] / count - one * other
            variance = products[1] / count - other.square()
            found[name] = torch.where(variance > 0, covariance / variance, 0.0).cpu()
        return found


def read_arrivals(
    model: nn.Module,
    probe: Probe,
    owners: Owners,
    wanted: Collection[str],
    pairs: Mapping[str, Tensor],
) -> tuple[dict[str, Arrival], dict[str, Tensor]]:
    """Return what arrives at some weights over the probe, and the slopes of pairs of entries ``(pairs, 2)``.

    Args:
        model: in eval mode.
        probe: the samples.
        owners: the layer and slot of every parameter.
        wanted: names of weights.
        pairs: by the name of a weight, entries and the entries that they repeat.
    """
    arrivals = _Arrivals(frozenset(wanted), pairs)
    constants = tuple(chain(model.parameters(), model.buffers()))
    with torch.no_grad():
        for batch in probe.batches():
            with Following(owners, constants, arrivals):
                model(*batch.inputs)
    return arrivals.arrivals(), arrivals.slopes()
