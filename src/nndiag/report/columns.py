"""The columns beside the strip: kinds, verdicts and measures as words, and how much room each gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from nndiag.records.report import VERDICTS, LayerDiagnosis
from nndiag.report.look import INDENT, Look
from nndiag.report.numbers import number, whole_percent
from nndiag.report.phrases import kind_name

GAP = 2
WIDEST_STRIP = 64
_WIDE = 100
_WORTH = 16
_FOLD_WIDTH = 24
_STYLES: Mapping[str, str] = {
    "healthy": "good", "collapsed": "error", "plateau": "error", "source": "error", "saddle": "warning",
    "unknown": "quiet",
}  # fmt: skip
_SHORT: Mapping[str, str] = {
    "BatchNorm": "BNorm", "LayerNorm": "LNorm", "GroupNorm": "GNorm", "InstanceNorm": "INorm",
    "ConvTranspose": "ConvT", "EmbeddingBag": "EmbBag", "Embedding": "Embed", "Parameter": "Param", "Attention": "Attn",
}  # fmt: skip
MEASURES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("dead_data_fraction", "dead\ndata", whole_percent),
    ("effective_rank", "eff.\nrank", number),
    ("torque_ratio_p10", "torque\np10", number),
    ("lambda_max_median", "λmax\nmedian", number),
    ("dormant_fraction", "dor-\nmant", whole_percent),
    ("weight_norm_median", "weight\nmedian", number),
)
"""Layer measures that explain a verdict, the most telling first: name, heading, how it is written."""

EXPLAINED: Mapping[str, str] = {
    "dead_data_fraction": "dead data: samples that fire no unit",
    "effective_rank": "eff. rank: dimensions that the outputs span",
    "torque_ratio_p10": "torque: part of the gradient that turns a node",
    "lambda_max_median": "λmax: steepest curvature of a node",
    "dormant_fraction": "dormant: nearly silent units",
    "weight_norm_median": "weight: norm of a node's weights",
}
"""What the measures are, for those who see them for the first time."""

Measure = tuple[str, str, Callable[[float | None], str]]


@dataclass(frozen=True)
class Layout:
    """Room for one table: cells of the strip, width of the verdicts, and the measures that fit beside them."""

    strip: int
    verdicts: int
    measures: tuple[Measure, ...]


def lay_out(layers: Sequence[LayerDiagnosis], look: Look, names: int) -> Layout:
    """Return the layout of the table; verdicts take more lines where that makes room for the rest.

    Args:
        layers: the rows.
        look: the console.
        names: width of the widest layer name.
    """
    kinds = max([cell_len(kind(layer, look)) for layer in layers] + [4])
    nodes = max([len(f"{layer.nodes:,}") for layer in layers] + [5])
    room = look.width - INDENT - names - kinds - nodes - 4 * GAP
    offers = [_offer(layers, look, room, line) for line in (24, 18, 16)]
    most = max(len(offer.measures) for offer in offers)
    good = (offer for offer in offers if offer.strip >= _WORTH and len(offer.measures) >= min(most, 2))
    return next(good, offers[-1])


def _offer(layers: Sequence[LayerDiagnosis], look: Look, room: int, line: int) -> Layout:
    """Return the layout with verdicts in lines of at most ``line`` letters."""
    parts = [said for layer in layers for said in count_lines(layer, line)]
    verdicts = max([sum(len(words) + 1 for words, _ in part) - 1 for part in parts] + [8])
    room -= verdicts
    least, most = (20, 4) if look.width >= _WIDE else (12, 3)
    chosen: list[Measure] = []
    for entry in sorted(MEASURES, key=lambda one: _rare(one[0], layers)):
        key, heading, write = entry
        if not any(key in layer.measures for layer in layers):
            continue
        written = [cell_len(measure(layer, key, write)) for layer in layers]
        width = max(written + [len(words) for words in heading.split("\n")]) + GAP
        if len(chosen) < most and room - width >= least:
            chosen.append(entry)
            room -= width
    largest = max([layer.nodes for layer in layers] + [_FOLD_WIDTH])
    cells = min(room, WIDEST_STRIP, largest)
    return Layout(cells // 8 * 8 if cells >= 16 else max(cells, 8), verdicts, tuple(chosen))


def _rare(key: str, layers: Sequence[LayerDiagnosis]) -> bool:
    """Whether so few rows have a measure that any other tells more."""
    return 5 * sum(key in layer.measures for layer in layers) < len(layers)


def kind(layer: LayerDiagnosis, look: Look) -> str:
    """Return the kind; where there is little room, short for the longest names."""
    words = kind_name(layer.kind)
    if look.width < _WIDE:
        for long, short in _SHORT.items():
            words = words.replace(long, short)
    return look.clip(words, 12)


def count_lines(layer: LayerDiagnosis, most: int) -> list[list[tuple[str, str]]]:
    """Return the verdicts that occur with their counts and styles, in lines of at most ``most`` letters."""
    lines: list[list[tuple[str, str]]] = [[]]
    for verdict in VERDICTS:
        count = layer.verdicts.get(verdict, 0)
        unused = layer.unobserved if verdict == "unknown" else 0
        said = [(count - unused, "ok" if verdict == "healthy" else verdict), (unused, unseen(layer))]
        for words in (f"{number_of:,} {word}" for number_of, word in said if number_of > 0):
            if sum(len(other) + 1 for other, _ in lines[-1]) + len(words) > most and lines[-1]:
                lines.append([])
            lines[-1].append((words, _STYLES[verdict]))
    return lines


def unseen(layer: LayerDiagnosis) -> str:
    """Return what nodes are that the probe says nothing of: rows it never used, or outputs of classes it lacks."""
    return "not observed" if layer.measures.get("absent_classes") else "unused"


def measure(layer: LayerDiagnosis, key: str, write: Callable[[float | None], str]) -> str:
    """Return a measure as words: a dash where it was not taken, "!" where it is not finite."""
    if key not in layer.measures:
        return number(None)
    value = layer.measures[key]
    return "!" if value is None or not math.isfinite(value) else write(value)
