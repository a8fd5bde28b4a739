"""By what units are replaced: the mean of what they put out over a probe, or another unit's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nndiag.replay.altering import Alteration
from nndiag.replay.kinds import Layer
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import Forward


@dataclass(frozen=True)
class Replacement:
    """A unit that puts out its mean over the probe; or the nearest multiple of another unit, plus a constant,
    where ``by`` is the index of one.
    """

    layer: str
    index: int
    by: int | None = None


@dataclass
class _Sums:
    """Over the probe, of the wanted units of a layer and of those that are to stand for them, ``(units,)`` float64."""

    activated: bool
    count: int = 0
    total: Tensor | None = None
    other_total: Tensor | None = None
    products: Tensor | None = None
    other_squares: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None


@dataclass(frozen=True)
class Replaced:
    """By what the units of a layer are replaced."""

    full: Alteration
    constant: Tensor

    def of(self, indices: Sequence[int]) -> Alteration:
        """Return the alteration of some units alone."""
        changed = torch.zeros_like(self.full.changed)
        changed[list(indices)] = True
        return replace(self.full, changed=changed)


class Moments:
    """An observer that adds up what replacements need: means, and the line through the outputs of two units.

    ``sizes`` are entries of the output of each layer in a batch, ``calls`` how often a layer is called in a pass.
    """

    def __init__(self, wanted: Sequence[Replacement]) -> None:
        self.sizes: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._partner = {
            name: {one.index: one.by for one in wanted if one.layer == name and one.by is not None}
            for name in {one.layer for one in wanted}
        }
        self._sums: dict[str, _Sums] = {}

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Nothing: what counts is what the units put out."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Sum up the outputs of a layer that is wanted."""
        if layer.name not in self._partner:
            return None
        wide = y.double()
        found = _Sums(activation is not None, y.shape[0] * y.shape[2])
        found.total = wide.sum(dim=(0, 2))
        found.low, found.high = wide.amin(dim=(0, 2)), wide.amax(dim=(0, 2))
        if self._partner[layer.name]:
            other = wide[:, self._others(layer.name, y.shape[1], y.device)]
            found.products = (wide * other).sum(dim=(0, 2))
            found.other_squares = other.square().sum(dim=(0, 2))
            found.other_total = other.sum(dim=(0, 2))
        return found

    def take(self, seen: Forward) -> None:
        """Add up what a forward pass showed, once it is final."""
        calls: dict[str, int] = {}
        for call in seen.calls:
            name = call.layer.name
            calls[name] = calls.get(name, 0) + 1
            self.sizes[name] = max(self.sizes.get(name, 0), call.shape.numel())
            if isinstance(call.reading, _Sums) and call.use is not None:
                before = self._sums.get(name)
                self._sums[name] = call.reading if before is None else _added(before, call.reading)
        self.calls |= calls

    def alterations(self) -> dict[str, Replaced]:
        """Return by what units are replaced, of the layers whose units were seen."""
        return {name: self._layer(name, sums) for name, sums in self._sums.items()}

    def _layer(self, name: str, sums: _Sums) -> Replaced:
        assert sums.total is not None
        assert sums.low is not None
        assert sums.high is not None
        offset = sums.total / sums.count
        constant = sums.low == sums.high
        offset = torch.where(constant, sums.low, offset)
        slope = other = None
        partners = self._partner[name]
        if partners and sums.products is not None:
            assert sums.other_squares is not None
            assert sums.other_total is not None
            mean = sums.other_total / sums.count
            spread = sums.other_squares / sums.count - mean.square()
            together = sums.products / sums.count - mean * offset
            slope = torch.where(spread > 0, together / spread.clamp_min(1e-300), 0)
            paired = torch.zeros_like(constant)
            paired[list(partners)] = True
            slope = torch.where(paired & ~constant, slope, 0)
            offset = offset - slope * mean
            other = self._others(name, len(offset), offset.device)
        changed = torch.ones_like(constant)
        return Replaced(Alteration(changed, offset, slope, other, sums.activated), constant)

    def _others(self, name: str, units: int, device: torch.device) -> Tensor:
        partners = self._partner[name]
        return torch.tensor([partners.get(i, i) for i in range(units)], device=device)


def _added(one: _Sums, two: _Sums) -> _Sums:
    join: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"low": torch.minimum, "high": torch.maximum}
    found = _Sums(one.activated and two.activated, one.count + two.count)
    for name in ("total", "other_total", "products", "other_squares", "low", "high"):
        a, b = getattr(one, name), getattr(two, name)
        setattr(found, name, None if a is None or b is None else join.get(name, torch.add)(a, b))
    return found
