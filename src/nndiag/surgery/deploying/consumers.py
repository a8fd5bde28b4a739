"""What reads units: the sums over them, such as a matrix product or a convolution, and the values that they see there.

A unit may go where every sum that reads it does not notice: it is zero on the whole probe, its weights there are
zero, or it is one constant that a bias can take over. All of that is observed where the values are read, so that
whatever lies between a unit and its reader (activations, norms, pooling, padding, a residual stream) is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nndiag.surgery.deploying.labels import Axis


@dataclass(frozen=True)
class Taker:
    """The parameter or buffer that takes over a constant ``c`` with weights ``w``: ``values += sign · c · w``."""

    name: str
    sign: int = 1


@dataclass(eq=False)
class Consumer:
    """A sum over the places of one axis.

    ``axis`` holds the atoms of the ``K`` places. ``low`` and ``high`` are the extremes of what was read at each,
    ``(K,)`` float64. ``weight`` is what it is multiplied with, ``(K, ...)``, where that is constant, ``outputs`` the
    axis of ``weight`` that a bias runs along; ``weight_size`` the largest magnitude of it at each place, over all
    passes. ``parameter`` names the parameter that the weight is a view of, and the axis of it that is summed over.
    ``borders`` says that places outside the input are read as zeros; ``scale`` is the largest magnitude of a result.
    ``taker`` is what can take over a constant; ``clash`` says that different biases meet the same weights.
    """

    axis: Axis
    low: Tensor
    high: Tensor
    weight: Tensor | None
    weight_size: Tensor
    outputs: int | None
    parameter: tuple[str, int] | None
    borders: bool
    scale: float
    taker: Taker | None = None
    operation: str = ""
    clash: bool = False

    def see(self, low: Tensor, high: Tensor, weight_size: Tensor, scale: float) -> None:
        """Take note of another pass."""
        self.low = torch.minimum(self.low, low)
        self.high = torch.maximum(self.high, high)
        self.weight_size = torch.maximum(self.weight_size, weight_size)
        self.scale = max(self.scale, scale)

    def meet(self, taker: Taker) -> None:
        """Take note of what is added to its results; of two different biases neither can take a constant."""
        if self.taker is None and not self.clash:
            self.taker = taker
        elif self.taker != taker:
            self.taker, self.clash = None, True

    @property
    def eps(self) -> float:
        """The last digit of its numbers, relative to them."""
        return 0.0 if self.weight is None else torch.finfo(self.weight.dtype).eps

    @property
    def name(self) -> str:
        """What reads, for a sentence."""
        return self.parameter[0].rpartition(".")[0] or self.parameter[0] if self.parameter else self.operation

    def columns(self, places: Tensor) -> Tensor:
        """Return the weights at some places summed over all but the outputs of the function, ``(places, outputs)``."""
        assert self.weight is not None
        assert self.outputs is not None
        chosen = self.weight.detach()[places].double()
        others = [a for a in range(1, chosen.dim()) if a != self.outputs]
        return chosen.sum(dim=others) if others else chosen


@dataclass
class Pair:
    """Two units that one consumer reads, at corresponding places: sums for ``x_j ≈ s x_i + c``."""

    places: Tensor
    others: Tensor
    count: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))
    residual: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add what one pass read, ``(rows, K)``."""
        xj, xi = x[:, self.places].double(), x[:, self.others].double()
        made = torch.stack([v.sum(dim=0) for v in (xj, xi, xj * xi, xi * xi)])
        self.sums = made if not self.count else self.sums + made
        self.count += len(x)

    def line(self) -> tuple[Tensor, Tensor]:
        """Return ``s`` and ``c`` by least squares: ``s`` is ±1, and ``c`` zero, where they are so to rounding."""
        mean_j, mean_i, product, square = self.sums / self.count
        spread = square - mean_i**2
        slope = torch.where(spread > 1e-24 * square, (product - mean_j * mean_i) / spread, 0.0)
        for whole in (1.0, -1.0):
            slope = torch.where((slope - whole).abs() < 2e-6, whole, slope)
        offset = mean_j - slope * mean_i
        return slope, torch.where(offset.abs() <= 2e-6 * square.sqrt(), 0.0, offset)

    def compare(self, x: Tensor) -> None:
        """Take note of how far one pass is off the line."""
        slope, offset = self.line()
        off = (x[:, self.places].double() - slope * x[:, self.others].double() - offset).abs().amax(dim=0)
        self.residual = off if self.residual is None else torch.maximum(self.residual, off)


class Consumers:
    """All sums of a network over removable places, by where they stand in a pass.

    A sum that uses the same weight and the same taker again, as in a loop, is the same one.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[object, ...], Consumer] = {}
        self.pairs: Mapping[tuple[object, ...], Sequence[Pair]] = {}
        self.comparing = False

    def read(
        self, key: tuple[object, ...], axis: Axis, x: Tensor, weight: Tensor, constant: bool, scale: float,
        **facts: object,
    ) -> Consumer:  # fmt: skip
        """Take note of one sum.

        Args:
            key: which sum it is, the same in every pass.
            axis: atoms of the places summed over.
            x: what is read, ``(..., K)``.
            weight: what it is multiplied with, ``(K, ...)``.
            constant: whether that is the same for every sample.
            scale: the largest magnitude of a result.
            facts: the other fields of a ``Consumer``.
        """
        rows = x.reshape(-1, x.shape[-1])
        low, high = rows.amin(dim=0).double(), rows.amax(dim=0).double()
        known = self.found.get(key)
        if known is not None and constant:
            known.see(low, high, known.weight_size, scale)
        else:
            size = weight.detach().abs().reshape(weight.shape[0], -1).amax(dim=1).double()
            if known is None:
                kept = weight if constant else None
                known = Consumer(axis, low, high, kept, size, scale=scale, **facts)  # type: ignore[arg-type]
                self.found[key] = known
            else:
                known.see(low, high, size, scale)
        for pair in self.pairs.get(key, ()):
            if self.comparing:
                pair.compare(rows)
            else:
                pair.add(rows)
        return known
