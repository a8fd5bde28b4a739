"""What a rule is: a code with its documentation, and a small function from numbers to hits.

Rules read records and never the code that measured them. This module imports neither numpy nor pydantic,
so that the catalogue prints at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nndiag.records.level import Level

if TYPE_CHECKING:
    from nndiag.records.measured import LayerMeasures, Mask, Measured

Severity = Literal["error", "warning", "info"]
Subject = Literal["node", "layer", "model"]

OF_RUNS: tuple[str, ...] = tuple(f"ND70{place}" for place in range(1, 9))
"""Codes of the findings along a run, which ``comparing`` makes from the diagnoses of its checkpoints."""


@dataclass(frozen=True)
class Hit:
    """One place where a rule holds: a node's index (``None`` for a layer), what to say, and the numbers that
    show it.

    The message holds no number of the node's own, so that nodes with the same trouble say the same. A hit that
    is not ``sure`` rests on too few samples to be an error; a ``note`` holds, and where it stands it does no harm.
    """

    index: int | None
    message: str
    evidence: Mapping[str, float | int | str | bool | None]
    sure: bool = True
    note: bool = False


@dataclass(frozen=True)
class Scales:
    """What "small" and "large" are measured against in one layer and in the whole model.

    A scale is the median over the nodes for which the measure is positive; it is 0 where there is none.
    """

    layer: Mapping[str, float]
    model: Mapping[str, float]


@dataclass(frozen=True)
class Context:
    """What a rule may know beside the layer: the whole measurement, the thresholds, and the scales of the
    layer.

    ``place`` is the layer's own among ``measured.layers``. For layer rules only, ``degenerate`` counts the layer's
    dead, collapsed and plateau nodes, ``collapsed`` those that are so by their weights alone, and ``shared`` is the
    finding that nearly all of them have, with what to say of them.
    """

    measured: Measured
    thresholds: Mapping[str, float]
    scales: Scales
    place: int = 0
    degenerate: int = 0
    collapsed: int = 0
    shared: tuple[str, str] | None = None

    @property
    def samples(self) -> int:
        """Samples that the numbers rest on."""
        return self.measured.samples or 0

    @property
    def few(self) -> bool:
        """Whether the probe is so small that what it does not show proves little."""
        return self.samples < self.thresholds["few_samples"]

    def threshold(self, name: str) -> float:
        """Return a threshold by name."""
        return self.thresholds[name]

    def learning_rate(self, layer: LayerMeasures) -> float | None:
        """Return the learning rate of a layer: its own, where the optimiser's groups have different ones."""
        facts = self.measured.optimizer
        return layer.per_layer.get("learning_rate") or (None if facts is None else facts.lr)


@dataclass(frozen=True)
class Doc:
    """What ``nndiag explain`` prints, a paragraph each; ``sure`` what is to be said of its certainty beside what holds
    for all findings of its level.
    """

    meaning: str
    measured: str
    why: str
    do: str
    harmless: str
    source: str
    sure: str = ""


LAYER_TO_MEND = "layer_to_mend"
"""Evidence of a finding that follows from another layer: the name of that layer."""

ELSEWHERE = "elsewhere"
"""And what is the matter there, in words."""

CHANNEL = "channel"
"""Whether that layer's channel belongs to this node alone: the two are one unit, and go together."""

Find = Callable[[Any, Context], Iterator[Hit]]
"""Given a layer's measures, of a rule on the model the whole measurement."""


@dataclass(frozen=True)
class Rule:
    """A finding of the catalogue.

    ``thresholds`` names those that it uses. ``needs`` is the level of a code whose hundreds digit is none, and
    ``option`` what must be asked for beside it.
    """

    code: str
    name: str
    on: Subject
    severity: Severity
    summary: str
    doc: Doc
    find: Find = field(repr=False)
    thresholds: tuple[str, ...] = ()
    needs: Level | None = None
    option: str | None = None

    @property
    def level(self) -> Level | None:
        """The level that it needs, from the hundreds digit if not named; ``None`` for codes beyond the levels."""
        digit = int(self.code[2])
        return Level(digit) if digit in Level._value2member_map_ else self.needs


def where(mask: Mask) -> list[int]:
    """Return the indices at which a mask holds."""
    return [int(i) for i in mask.nonzero()[0]]


def count(number: int, noun: str) -> str:
    """Return ``"4,000 samples"``, ``"1 sample"``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}"
