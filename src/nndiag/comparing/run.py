"""A run as arrays: checkpoints along the first axis, the nodes of a layer along the second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nndiag.records.report import LoggedLosses

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

STATES = {
    "h": "healthy", "c": "collapsed", "p": "plateau", "d": "plateau", "s": "source", "n": "saddle", "u": "unknown",
    "x": "unknown",
}  # fmt: skip
"""Letters of ``every_node.states`` and the verdicts that they stand for."""

_VERDICTS = {ord(letter): verdict for letter, verdict in STATES.items()}

ABSENT = ord(" ")
"""The state of a node in a checkpoint that lacks its layer."""

_DEGENERATE = np.frombuffer(b"cpd", np.uint8)


@dataclass(frozen=True)
class Mark:
    """One checkpoint: its file, its place in training, and what was measured of the whole model."""

    path: str
    step: int | None
    epoch: int | None
    loss: float | None
    gradient_norm: float | None
    sha256: str
    level: str
    lr: float | None = None
    random_probe: bool = False
    logged: LoggedLosses | None = None


@dataclass(frozen=True)
class LayerRun:
    """One layer along a run.

    ``states`` has letters ``(checkpoints, nodes)``. ``norms`` (of weights and bias), ``weights`` (norms of the
    weights), ``biases`` and ``curvatures`` (λ_max) are ``(checkpoints, nodes)``, NaN where a number was not taken or
    is not finite. ``directions`` is ``(checkpoints, nodes, k)`` or ``None``. ``measures`` are the layer's own,
    ``(checkpoints,)``. ``unsteady`` nodes have a verdict at the last checkpoint that does not hold in every fold of the
    probe. The units of an ``is_output`` layer are the network's outputs.
    """

    name: str
    kind: str
    nodes: int
    fan_in: int
    states: Bytes
    norms: Floats
    weights: Floats
    biases: Floats
    curvatures: Floats
    directions: NDArray[np.float32] | None
    measures: Mapping[str, Floats] = field(default_factory=dict)
    unsteady: frozenset[int] = frozenset()
    is_output: bool = False

    @cached_property
    def degenerate(self) -> Mask:
        """Which nodes are collapsed or on a plateau, ``(checkpoints, nodes)``."""
        found: Mask = np.isin(self.states, _DEGENERATE)
        return found

    @cached_property
    def present(self) -> Mask:
        """Which checkpoints have the layer, ``(checkpoints,)``."""
        found: Mask = self.states[:, 0] != ABSENT
        return found

    def verdicts(self, node: int) -> list[str | None]:
        """Return the verdict of a node at every checkpoint."""
        return [_VERDICTS.get(letter) for letter in self.states[:, node].tolist()]

    def last_verdict(self, node: int) -> str | None:
        """Return the verdict of a node at the last checkpoint."""
        return _VERDICTS.get(int(self.states[-1, node]))


@dataclass(frozen=True)
class Run:
    """Checkpoints in training order, and the layers that any of them has.

    ``clock`` says what ``times`` count: ``"step"``, ``"epoch"``, or ``"checkpoint"`` where neither is known.
    """

    marks: tuple[Mark, ...]
    layers: tuple[LayerRun, ...]
    clock: str
    times: Floats

    @property
    def span(self) -> float:
        """The length of the run, in units of its clock."""
        return float(self.times[-1] - self.times[0])

    @cached_property
    def losses(self) -> Floats:
        """The loss at every checkpoint, NaN where it was not taken."""
        return np.array([np.nan if mark.loss is None else mark.loss for mark in self.marks])

    @cached_property
    def parameter_norms(self) -> Floats:
        """``√Σ_i ‖θ_i‖²`` over all nodes of all layers, NaN where a layer is missing."""
        squares = [np.square(layer.norms).sum(axis=1) for layer in self.layers]
        total: Floats = np.sqrt(np.sum(squares, axis=0)) if squares else np.full(len(self.marks), np.nan)
        return total

    def when(self, share: float) -> float:
        """Return the time at a share of the run, 0 its beginning and 1 its end."""
        return float(self.times[0]) + share * self.span


def clock_of(marks: tuple[Mark, ...]) -> tuple[str, Floats]:
    """Return what tells the time of checkpoints: steps where all have them and they grow, else epochs, else places."""
    for word, values in (("step", [m.step for m in marks]), ("epoch", [m.epoch for m in marks])):
        known = [value for value in values if value is not None]
        if len(known) == len(marks) and all(a < b for a, b in pairwise(known)):
            return word, np.array(known, dtype=float)
    return "checkpoint", np.arange(len(marks), dtype=float)


def at(values: Floats, times: Floats, time: float) -> Floats:
    """Return ``values`` ``(checkpoints, …)`` at a time, by linear interpolation between its neighbours."""
    after = int(np.clip(np.searchsorted(times, time), 1, len(times) - 1)) if len(times) > 1 else 0
    if not after:
        start: Floats = values[0]
        return start
    before = after - 1
    share = (time - times[before]) / (times[after] - times[before])
    if share <= 0 or share >= 1:  # no sum with a number that may not be finite
        whole: Floats = values[before if share <= 0 else after]
        return whole
    found: Floats = (1 - share) * values[before] + share * values[after]
    return found


def mean_between(values: Floats, times: Floats, start: float, end: float) -> float:
    """Return the mean over time of the line through ``values`` ``(checkpoints,)`` from ``start`` to ``end``."""
    inside = (times > start) & (times < end)
    t = np.concatenate([[start], times[inside], [end]])
    v = np.concatenate([[at(values, times, start)], values[inside], [at(values, times, end)]])
    return float(np.trapezoid(v, t) / (end - start)) if end > start else float(v[-1])
