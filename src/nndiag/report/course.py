"""The course of a run: what each checkpoint is called, and how every layer and the loss went."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nndiag.errors import printable
from nndiag.records.report import DEGENERATE, Diagnosis, LayerDiagnosis, Report
from nndiag.report.groups import findings_of


@dataclass(frozen=True)
class LayerCourse:
    """Degenerate and unjudged nodes of one layer per checkpoint; None where a checkpoint lacks the layer.

    ``letters`` say what prevails in each checkpoint, where the picture is to show that and not only how much.
    """

    name: str
    kind: str
    nodes: int
    degenerate: tuple[int | None, ...]
    unknown: tuple[int | None, ...]
    letters: tuple[str, ...] = ()

    @property
    def since(self) -> int | None:
        """The checkpoint from which on more than half of the nodes are degenerate; None: not at the end."""
        return trailing([2 * (count or 0) > self.nodes for count in self.degenerate])

    @property
    def whole_since(self) -> int | None:
        """The checkpoint from which on all nodes are degenerate; None: not all of them at the end."""
        return trailing([count == self.nodes for count in self.degenerate])

    @property
    def worst(self) -> float:
        """The largest share of degenerate nodes in any checkpoint."""
        return max((count or 0) for count in self.degenerate) / max(self.nodes, 1)


@dataclass(frozen=True)
class Course:
    """A run, checkpoint by checkpoint. ``word`` is what its ``labels`` count: epoch, step or checkpoint.

    ``losses`` are None where none was taken, NaN where it is not finite. ``present`` counts the findings per
    checkpoint for every ``(code, layer)``.
    """

    word: str
    labels: tuple[str, ...]
    layers: tuple[LayerCourse, ...]
    losses: tuple[float | None, ...]
    present: dict[tuple[str, str | None], tuple[int, ...]]

    def at(self, index: int) -> str:
        """Return the name of a checkpoint in a sentence, e.g. ``"epoch 3"``."""
        return f"{self.word} {self.labels[index]}"


def course(report: Report) -> Course:
    """Return the course of the checkpoints of a report."""
    word, labels = _labels(report.checkpoints)
    return Course(
        word=word,
        labels=labels,
        layers=_layers(report.checkpoints),
        losses=tuple(loss_of(diagnosis) for diagnosis in report.checkpoints),
        present=_present(report.checkpoints),
    )


def loss_of(diagnosis: Diagnosis) -> float | None:
    """Return the probe loss; NaN where one was taken and is not finite, None where none was taken."""
    loss = diagnosis.model.loss
    if loss is not None:
        return loss if math.isfinite(loss) else math.nan
    taken = diagnosis.level in ("gradients", "curvature") and diagnosis.probe is not None
    asked = diagnosis.probe is not None and diagnosis.probe.has_targets and diagnosis.probe.loss is not None
    return math.nan if taken and asked else None


def degenerate_nodes(layer: LayerDiagnosis) -> int:
    """Return how many nodes of a layer are collapsed or on a plateau."""
    return sum(layer.verdicts.get(verdict, 0) for verdict in DEGENERATE)


def trailing(holds: Sequence[bool]) -> int | None:
    """Return the index from which on all hold, to the end; None where the last does not."""
    start = len(holds)
    while start and holds[start - 1]:
        start -= 1
    return start if start < len(holds) else None


def base_name(path: str) -> str:
    """Return the last part of a path, fit to be shown."""
    return printable(path.rstrip("/").rsplit("/", 1)[-1] or path)


def notable(run: Course, most: int = 2) -> tuple[int, ...]:
    """Return the inner checkpoints at which a layer changed by a third of its nodes, the ``most`` largest."""
    sizes: list[tuple[float, int]] = []
    for index in range(1, len(run.labels) - 1):
        steps = [
            abs((layer.degenerate[index] or 0) - (layer.degenerate[index - 1] or 0)) / max(layer.nodes, 1)
            for layer in run.layers
        ]
        sizes.append((max(steps, default=0.0), index))
    largest = sorted((-size, index) for size, index in sizes if size >= 1 / 3)[:most]
    return tuple(sorted(index for _, index in largest))


def _labels(checkpoints: Sequence[Diagnosis]) -> tuple[str, tuple[str, ...]]:
    facts = [diagnosis.checkpoint for diagnosis in checkpoints]
    for word, values in (("epoch", [one.epoch for one in facts]), ("step", [one.step for one in facts])):
        known = [value for value in values if value is not None]
        if len(known) == len(set(known)) == len(facts):
            return word, tuple(f"{value:,}" for value in known)
    return "checkpoint", tuple(str(place) for place in range(1, len(facts) + 1))


def _layers(checkpoints: Sequence[Diagnosis]) -> tuple[LayerCourse, ...]:
    """Return the layers in the order of the last checkpoint, then those that only earlier ones have."""
    tables = [{layer.name: layer for layer in diagnosis.layers} for diagnosis in checkpoints]
    known: dict[str, LayerDiagnosis] = {}
    for table in reversed(tables):
        for name, layer in table.items():
            known.setdefault(name, layer)
    return tuple(
        LayerCourse(
            name=name,
            kind=layer.kind,
            nodes=layer.nodes,
            degenerate=tuple(degenerate_nodes(t[name]) if name in t else None for t in tables),
            unknown=tuple(t[name].verdicts.get("unknown", 0) if name in t else None for t in tables),
        )
        for name, layer in known.items()
    )


def _present(checkpoints: Sequence[Diagnosis]) -> dict[tuple[str, str | None], tuple[int, ...]]:
    counts = [Counter((f.code, layer) for f, layer, _ in findings_of(diagnosis)) for diagnosis in checkpoints]
    keys = dict.fromkeys(key for count in counts for key in count)
    return {key: tuple(count[key] for count in counts) for key in keys}
