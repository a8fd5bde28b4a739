"""What an observer of a training step takes while the values exist: few sums, each in few passes over them.

A training step waits for it, so nothing is put together, converted or fetched from the device here: that is done in
:func:`sums_of`, when somebody asks what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.measures.activations import Reading, Sums
from nndiag.monitor.scratch import Scratch
from nndiag.replay.kinds import Layer
from nndiag.replay.nonlinearity import Nonlinearity

_NOT_NEGATIVE = frozenset(["relu", "relu6", "sigmoid", "softplus"])


@dataclass(frozen=True)
class Moments:
    """``Σ (v − origin)`` and ``Σ (v − origin)²`` of a unit's values, each ``(units,)``, and how many there are."""

    origin: Tensor
    shift: Tensor
    squares: Tensor
    count: int

    def around(self, origin: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum and sum of squares about another origin, which is float64 on the CPU."""
        apart = _double(self.origin) - origin
        shift, squares = _double(self.shift), _double(self.squares)
        squares = squares.masked_fill(squares.isinf(), torch.nan)  # beyond single precision: not known
        return shift + self.count * apart, squares + apart * (2 * shift + self.count * apart)


@dataclass(frozen=True)
class QuickReading:
    """Sums over the units of one call, ``(units,)`` unless said otherwise.

    ``flat`` counts entries where the activation is flat. Where samples are apart it is ``(folds, units)``, ``dealt``
    says how many entries of a unit each fold has, and ``highest``, ``(batch,)``, is the largest argument of any unit.
    """

    activation: Nonlinearity | None
    moments: Moments
    absolute: Tensor | None  # None: of values that are not negative
    low: Tensor
    high: Tensor
    flat: Tensor | None = None
    dealt: tuple[int, ...] = ()
    highest: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """One call of a layer."""

    layer: Layer
    produced: Moments
    reading: QuickReading
    is_output: bool


class QuickObserver:
    """Sums up one batch; units are not compared with each other.

    Args:
        folds: into which the samples are dealt in turn.
        samples: how many there are.
    """

    def __init__(self, folds: int, samples: int) -> None:
        self._folds, self._samples = folds, samples
        self._scratch = Scratch()
        self._fold_of: Tensor | None = None
        self._last: tuple[Tensor, int, Moments] | None = None

    def produced(self, layer: Layer, z: Tensor) -> Moments:
        """Return the moments of a layer's outputs."""
        found = _moments(_wide(z), self._scratch)
        self._last = None if z.is_inference() else (z, z._version, found)  # inference counts no changes
        return found

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> QuickReading:
        """Reduce what a layer's units put out."""
        values = _wide(y)
        never_negative = activation is not None and activation.name in _NOT_NEGATIVE
        flat, dealt, highest = self._flat(activation, _wide(z))
        return QuickReading(
            activation=activation,
            moments=(self._known(y) if activation is None else None) or _moments(values, self._scratch),
            absolute=None if never_negative else values.abs().sum(dim=(0, 2)),
            low=values.amin(dim=(0, 2)),
            high=values.amax(dim=(0, 2)),
            flat=flat,
            dealt=dealt,
            highest=highest,
        )

    def _known(self, y: Tensor) -> Moments | None:
        """Return the moments taken last, where they are of the same entries of the same memory, unchanged."""
        if self._last is None or y.is_inference():
            return None
        z, version, found = self._last
        same = (y.data_ptr(), y.shape, y.stride(), y._version) == (z.data_ptr(), z.shape, z.stride(), version)
        return found if same else None

    def _flat(
        self, activation: Nonlinearity | None, z: Tensor
    ) -> tuple[Tensor | None, tuple[int, ...], Tensor | None]:
        """Return ``flat``, ``dealt`` and ``highest`` of a reading."""
        if activation is None or activation.flat is None:
            return None, (), None
        flat, rest = _flat(activation, z, self._scratch), z.shape[2]
        if z.shape[0] != self._samples:
            return flat.sum(dim=(0, 2)), (), None
        by_sample = flat[:, :, 0] if rest == 1 else flat.sum(dim=2)  # (batch, units)
        if self._fold_of is None or self._fold_of.device != z.device:
            self._fold_of = torch.arange(self._samples, device=z.device) % self._folds
        return (
            by_sample.new_zeros(self._folds, z.shape[1]).index_add_(0, self._fold_of, by_sample),
            tuple(len(range(fold, self._samples, self._folds)) * rest for fold in range(self._folds)),
            None if activation.edge is None else z.amax(dim=(1, 2)),
        )


def sums_of(seen: Iterable[Seen]) -> dict[str, Sums]:
    """Return what an observer of a scan would have of these calls, by layer."""
    found: dict[str, Sums] = {}
    for one in seen:
        sums = found.setdefault(one.layer.name, Sums(_double(one.reading.moments.origin)))
        sums.readings.append(_reading(one.reading, sums.origin))
        sums.produced.append((*one.produced.around(torch.zeros(())), one.produced.count))
        sums.is_output = one.is_output
        sums.merge()
    return found


def _reading(taken: QuickReading, origin: Tensor) -> Reading:
    shift, squares = taken.moments.around(origin)
    total = shift + origin * taken.moments.count
    opened = None
    if taken.flat is not None:
        entries = torch.tensor(taken.dealt or (taken.moments.count,), dtype=torch.float64)
        opened = entries[:, None] - _double(taken.flat).reshape(len(entries), -1)
    edge = None if taken.activation is None else taken.activation.edge
    highest = None if taken.highest is None else taken.highest.cpu()
    return Reading(
        activation=taken.activation,
        entries=taken.moments.count,
        open_count=None if opened is None else opened.sum(dim=0),
        open_by_fold=opened if taken.dealt else None,
        open_anywhere=None if highest is None or edge is None else ~(highest <= edge),
        highest=highest,
        absolute=total if taken.absolute is None else _double(taken.absolute),
        total=total,
        squares=squares,
        low=_double(taken.low),
        high=_double(taken.high),
        products=None,
    )


def _moments(values: Tensor, scratch: Scratch) -> Moments:
    """Return the moments of ``(batch, units, rest)`` about the first value of every unit.

    A square and a sum take a seventh of the time of torch's norm over the outer axes.
    """
    count = values.shape[0] * values.shape[2]
    if values.shape[2] == 1:  # in fewer steps: on small layers these are what takes time
        values = values[:, :, 0]
        origin = values[0].clone()
        about, axes = origin, [0]
    else:
        origin = values[0, :, 0].clone()
        about, axes = origin[None, :, None], [0, 2]
    shifted = torch.sub(values, about, out=scratch.like(values))
    shift = shifted.sum(dim=axes)
    return Moments(origin, shift, shifted.square_().sum(dim=axes), count)


def _flat(activation: Nonlinearity, z: Tensor, scratch: Scratch) -> Tensor:
    """Return 1 where an activation is flat and 0 elsewhere; of the type of ``z``: sums of truth values are slow."""
    assert activation.flat is not None
    if activation.edge is None:
        return activation.flat(z).to(z.dtype)
    return torch.le(z, activation.edge, out=scratch.like(z))


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _double(values: Tensor) -> Tensor:
    return values.cpu().double()
