"""The activations level: what every unit puts out over the probe, added up batch by batch.

Definitions as in the field: dead (flat for every sample and position), dormancy (Sokar et al. 2023), dead
data (``D = (1/N) Σ_n 1{max_i z_{n,i} ≤ 0}``), effective rank (Roy and Vetterli 2007).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nndiag.measures.weights import first_partners, numbers
from nndiag.records.measured import Floats
from nndiag.replay.kinds import Layer
from nndiag.replay.nonlinearity import Nonlinearity

COVARIANCE_LIMIT = 2048
"""Layers with more units have no effective rank and are not searched for repeated outputs."""

DUPLICATE_CORRELATION = 1e-9
"""Two outputs are one where their correlation is within this of ±1, measured in float64."""

DUPLICATE_SUPPORT = 32
"""Entries at which a unit must be active before its output can be called a repetition."""


ROUNDING = 1e-12
"""Variance, as a share of the squared mean, that equal inputs can show after a sum in single precision."""


@dataclass(frozen=True)
class Reading:
    """Sums over one batch, ``(units,)`` unless said otherwise; ``open`` are the entries where the activation
    is not flat.

    What is counted per sample is ``None`` where the first axis of the units is not the sample.
    """

    activation: Nonlinearity | None
    entries: int
    open_count: Tensor | None
    open_by_fold: Tensor | None  # (folds, units)
    open_anywhere: Tensor | None  # samples (batch,) bool: some unit is open at some position
    highest: Tensor | None  # (batch,) largest pre-activation of any unit
    absolute: Tensor
    total: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    products: Tensor | None  # (units, units) of values minus ``origin``


class ActivationObserver:
    """Sums what it is told of each layer.

    Told by a replay; one batch is ``begin``, a forward pass, ``commit``.
    """

    def __init__(self, folds: int) -> None:
        self._folds = folds
        self._fold_of = torch.zeros(0, dtype=torch.long)
        self._origin: dict[str, Tensor] = {}
        self.sums: dict[str, Sums] = {}
        self.seconds = 0.0

    def begin(self, fold_of: Tensor) -> None:
        """Say which fold each sample of the coming batch belongs to."""
        self._fold_of = fold_of

    def produced(self, layer: Layer, z: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return sum, sum of squares and count of a layer's outputs per unit."""
        begun = time.perf_counter()
        wide = z.double()
        found = wide.sum(dim=(0, 2)), wide.square().sum(dim=(0, 2)), z.shape[0] * z.shape[2]
        self.seconds += time.perf_counter() - begun
        return found

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> Reading:
        """Reduce one batch of a layer's units."""
        begun = time.perf_counter()
        reading = self._reading(layer, activation, z, y)
        self.seconds += time.perf_counter() - begun
        return reading

    def _reading(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> Reading:
        if layer.name not in self._origin:
            self._origin[layer.name] = y.double().mean(dim=(0, 2))
        origin = self._origin[layer.name]
        is_open = None if activation is None or activation.flat is None else ~activation.flat(z)
        by_sample = is_open if z.shape[0] == len(self._fold_of) else None
        return Reading(
            activation=activation,
            entries=y.shape[0] * y.shape[2],
            open_count=None if is_open is None else is_open.sum(dim=(0, 2)).double(),
            open_by_fold=None if by_sample is None else self._by_fold(by_sample),
            open_anywhere=None if by_sample is None else by_sample.flatten(1).any(dim=1),
            highest=None if by_sample is None else z.flatten(1).amax(dim=1),
            absolute=y.abs().double().sum(dim=(0, 2)),
            total=y.double().sum(dim=(0, 2)),
            squares=(y.double() - origin[None, :, None]).square().sum(dim=(0, 2)),
            low=y.amin(dim=(0, 2)).double(),
            high=y.amax(dim=(0, 2)).double(),
            products=_products(y, origin),
        )

    def commit(
        self, layer: Layer, reading: Reading, produced: tuple[Tensor, Tensor, int], is_output: bool
    ) -> None:
        """Add one call's reading to the layer's sums, once it is known to be final."""
        sums = self.sums.setdefault(layer.name, Sums(self._origin[layer.name]))
        sums.readings.append(reading)
        sums.produced.append(produced)
        sums.is_output = is_output
        sums.merge()

    def _by_fold(self, mask: Tensor) -> Tensor:
        per_sample = mask.sum(dim=2).double()
        counts = per_sample.new_zeros(self._folds, mask.shape[1])
        return counts.index_add_(0, self._fold_of.to(mask.device), per_sample)


class Sums:
    """The running sums of one layer; two readings are merged into one as soon as there are two."""

    def __init__(self, origin: Tensor) -> None:
        self.origin = origin
        self.readings: list[Reading] = []
        self.produced: list[tuple[Tensor, Tensor, int]] = []
        self.is_output = False

    def merge(self) -> None:
        """Keep one reading and one triple of sums of outputs."""
        if len(self.readings) == 2:
            self.readings = [_merged(*self.readings)]
            (s1, q1, c1), (s2, q2, c2) = self.produced
            self.produced = [(s1 + s2, q1 + q2, c1 + c2)]

    def measures(self, apart: bool) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, float]]:
        """Return measures per node, per fold and node, and per layer.

        Args:
            apart: whether the rows of the layer's output are known to be the samples; what is counted per
                sample is left out where they are not.
        """
        reading = self.readings[0]
        node = self._moments(reading)
        fold: dict[str, Floats] = {}
        layer: dict[str, float] = {"dormant_fraction": float(np.mean(node["dormancy"] <= 0.025))}
        if reading.open_count is not None:
            node["active_fraction"] = numbers(reading.open_count / reading.entries)
        if apart and reading.open_by_fold is not None:
            fold["open_count"] = numbers(reading.open_by_fold)
        edge = None if reading.activation is None else reading.activation.edge
        if apart and edge is not None and reading.open_anywhere is not None:
            assert reading.highest is not None
            layer["dead_data_fraction"] = float((~reading.open_anywhere).double().mean())
            layer["dead_data_gap"] = float((edge - reading.highest).clamp_min(0).max())
        rank = self._effective_rank(reading)
        if rank is not None:
            layer["effective_rank"] = rank
        return node, fold, layer

    def _moments(self, reading: Reading) -> dict[str, Floats]:
        mean = reading.total / reading.entries
        magnitude = reading.absolute / reading.entries
        shift = mean - self.origin
        variance = (reading.squares / reading.entries - shift * shift).clamp_min(0)
        total, squares, count = self.produced[0]
        spread = _variance(total / count, squares / count)
        average = magnitude.mean()
        dormancy = magnitude / average if bool(average > 0) else torch.zeros_like(magnitude)
        constant = reading.high == reading.low
        found = {
            "output_mean": mean,
            "output_std": torch.where(constant, torch.zeros_like(variance), variance.sqrt()),
            "output_range": reading.high - reading.low,
            "preactivation_std": spread.sqrt(),
            "dormancy": dormancy,
        }
        return {name: numbers(values) for name, values in found.items()}

    def _covariance(self, reading: Reading) -> Tensor | None:
        if reading.products is None:
            return None
        shift = reading.total / reading.entries - self.origin
        return reading.products / reading.entries - torch.outer(shift, shift)

    def _effective_rank(self, reading: Reading) -> float | None:
        """``exp(−Σ p log p)``, ``p`` the singular values of the centred outputs over their sum."""
        covariance = self._covariance(reading)
        if covariance is None or not bool(torch.isfinite(covariance).all()):
            return None
        values = torch.linalg.eigvalsh((covariance + covariance.T) / 2)
        singular = values.clamp_min(1e-14 * float(values[-1].clamp_min(0))).clamp_min(0).sqrt()
        if float(singular[-1]) <= 0:
            return 0.0
        singular = singular[singular > 2e-7 * singular[-1]]
        share = singular / singular.sum()
        return float(torch.exp(-(share * share.log()).sum()))

    def duplicates(self) -> tuple[tuple[int, int], ...]:
        """Return pairs ``(node, earlier node)`` whose outputs are each other's multiples plus a constant."""
        reading = self.readings[0]
        covariance = self._covariance(reading)
        if covariance is None:
            return ()
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        support = torch.full_like(deviation, reading.entries)
        if reading.open_count is not None:
            support = reading.open_count
        usable = (
            (support >= DUPLICATE_SUPPORT) & (deviation > 1e-6 * deviation.max()) & torch.isfinite(deviation)
        )
        index = torch.nonzero(usable).flatten()
        if len(index) < 2:
            return ()
        part = covariance[index][:, index] / torch.outer(deviation[index], deviation[index])
        same = torch.tril(part, diagonal=-1).abs() > 1 - DUPLICATE_CORRELATION
        return first_partners(same.cpu().numpy(), index.cpu().numpy())

    @property
    def activation(self) -> Nonlinearity | None:
        """The nonlinearity that acts on the units in every call, or ``None``."""
        return self.readings[0].activation


def _products(y: Tensor, origin: Tensor) -> Tensor | None:
    if y.shape[1] > COVARIANCE_LIMIT:
        return None
    flat = y.double().movedim(1, 2).reshape(-1, y.shape[1]) - origin
    return flat.T @ flat


def _variance(mean: Tensor, square: Tensor) -> Tensor:
    """Return ``E z² − (E z)²``, exactly zero where it is the rounding of single precision alone."""
    variance = (square - mean * mean).clamp_min(0)
    return torch.where(variance <= ROUNDING * mean * mean, torch.zeros_like(variance), variance)


def _merged(one: Reading, two: Reading) -> Reading:
    """Add two readings; two different activations on one layer's units are none."""
    same = (
        one.activation is not None
        and two.activation is not None
        and one.activation.name == two.activation.name
    )
    return Reading(
        activation=one.activation if same else None,
        entries=one.entries + two.entries,
        open_count=_both(one.open_count, two.open_count, torch.add) if same else None,
        open_by_fold=_both(one.open_by_fold, two.open_by_fold, torch.add) if same else None,
        open_anywhere=_both(one.open_anywhere, two.open_anywhere, _joined) if same else None,
        highest=_both(one.highest, two.highest, _joined) if same else None,
        absolute=one.absolute + two.absolute,
        total=one.total + two.total,
        squares=one.squares + two.squares,
        low=torch.minimum(one.low, two.low),
        high=torch.maximum(one.high, two.high),
        products=_both(one.products, two.products, torch.add),
    )


def _joined(one: Tensor, two: Tensor) -> Tensor:
    return torch.cat([one, two])


def _both(one: Tensor | None, two: Tensor | None, join) -> Tensor | None:  # type: ignore[no-untyped-def]
    return None if one is None or two is None else join(one, two)
