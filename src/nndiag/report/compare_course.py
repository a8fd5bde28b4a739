"""A comparison as the course of a run, as the picture and the sentences want it."""

from __future__ import annotations

import math
from itertools import pairwise

from nndiag.records.comparison import Comparison, LayerComparison
from nndiag.records.document import NOISE
from nndiag.report.course import Course, LayerCourse, base_name
from nndiag.report.strip import MEANINGS

_MARKS = {"source": "S", "collapsed": "C", "saddle": "N", "unknown": "?"}


def compared_course(comparison: Comparison) -> Course:
    """Return the course of a comparison; each layer with a letter a checkpoint for the state that prevails."""
    word, labels = _labels(comparison)
    return Course(
        word=word,
        labels=labels,
        layers=tuple(
            LayerCourse(
                name=layer.name,
                kind=layer.kind,
                nodes=layer.nodes,
                degenerate=layer.degenerate,
                unknown=tuple(None if v is None else v.get("unknown", 0) for v in layer.verdicts),
                letters=tuple(_letter(layer, place) for place in range(len(labels))),
            )
            for layer in comparison.layers
        ),
        losses=_losses(comparison),
        present={},
    )


def _letter(layer: LayerComparison, place: int) -> str:
    """Return the letter of the commonest trouble, a capital where half of the nodes or more are in trouble.

    A dot where none is, a blank where the checkpoint lacks the layer.
    """
    verdicts = layer.verdicts[place]
    if verdicts is None:
        return " "
    dead = layer.dead[place] or 0
    counts = {mark: verdicts.get(verdict, 0) for verdict, mark in _MARKS.items()}  # type: ignore[call-overload]
    counts |= {"D": dead, "P": verdicts.get("plateau", 0) - dead}
    unknown = counts.pop("?")
    bad = sum(counts.values())
    if not bad:
        return "?" if 2 * unknown > layer.nodes else "."
    order = list(MEANINGS)
    worst = max(counts, key=lambda mark: (counts[mark], -order.index(mark)))
    return worst if 2 * bad >= layer.nodes else worst.lower()


def _losses(comparison: Comparison) -> tuple[float | None, ...]:
    taken = any(mark.loss is not None for mark in comparison.checkpoints)
    return tuple(
        math.nan if taken and mark.loss is None and mark.level in ("gradients", "curvature") else mark.loss
        for mark in comparison.checkpoints
    )


def _labels(comparison: Comparison) -> tuple[str, tuple[str, ...]]:
    marks = comparison.checkpoints
    for word, values in (("epoch", [m.epoch for m in marks]), ("step", [m.step for m in marks])):
        known = [value for value in values if value is not None]
        if len(known) == len(marks) and all(a < b for a, b in pairwise(known)):
            return word, tuple(f"{value:,}" for value in known)
    if len(marks) == 2:
        return "checkpoint", ("first", "second")
    return "checkpoint", tuple(str(place) for place in range(1, len(marks) + 1))


def shown_name(comparison: Comparison, place: int) -> str:
    """Return the file name of a checkpoint, with its folder where two have the same."""
    paths = [mark.path for mark in comparison.checkpoints]
    name = base_name(paths[place])
    return name if sum(base_name(path) == name for path in paths) == 1 else base_name_of_two(paths[place])


def compared_caution(comparison: Comparison) -> str:
    """Return the sentence on random probes, and of how many checkpoints where not all; empty where there is none."""
    count, all_ = sum(mark.random_probe for mark in comparison.checkpoints), len(comparison.checkpoints)
    if count in (0, all_):
        return NOISE if count else ""
    return f"at {count:,} of {all_:,} checkpoints {NOISE}"


def base_name_of_two(path: str) -> str:
    """Return the last two parts of a path."""
    return "/".join(base_name(part) for part in path.rstrip("/").split("/")[-2:])
