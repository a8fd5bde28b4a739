"""The strip: where along the unit axis of a layer the bad nodes are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.text import Text

from nndiag.records.report import LayerDiagnosis, NodeDiagnosis, Verdict
from nndiag.report.look import Look

MEANINGS: Mapping[str, str] = {
    "X": "not finite",
    "S": "source",
    "C": "collapsed",
    "D": "dead",
    "P": "plateau",
    "N": "negative curvature",
    "W": "other warning",
    "?": "not judged",
}
"""What the letters mean, the gravest first."""

LETTER_STYLES: Mapping[str, str] = {
    "X": "error", "S": "error", "C": "error", "D": "error", "P": "warning", "N": "warning",
    "W": "warning", "?": "quiet",
}  # fmt: skip
_LETTERS: Mapping[Verdict, str] = {
    "collapsed": "C",
    "plateau": "P",
    "source": "S",
    "saddle": "N",
    "unknown": "?",
}


def letter(node: NodeDiagnosis) -> str:
    """Return the letter of a node, empty where nothing is wrong with it."""
    codes = {finding.code for finding in node.findings}
    if "ND101" in codes:
        return "X"
    if "ND201" in codes and node.verdict in ("plateau", "unknown"):
        return "D"
    if node.verdict == "healthy" or (node.verdict == "unknown" and codes):
        return "W" if any(finding.severity != "info" for finding in node.findings) else ""
    return _LETTERS[node.verdict]


def marks(layer: LayerDiagnosis, nodes: Sequence[NodeDiagnosis], width: int) -> str:
    """Return one mark a cell: the gravest letter among its nodes, small where under half of them have it.

    A node that is not listed has no finding: it is unjudged where no node of the layer is healthy, else fine.
    """
    cells = min(width, layer.nodes)
    blank = "?" if layer.verdicts.get("unknown") and not layer.verdicts.get("healthy") else ""
    listed = {node.index: letter(node) for node in nodes}
    found: list[Counter[str]] = [Counter() for _ in range(cells)]
    for index, mark in listed.items():
        if 0 <= index < layer.nodes:
            found[index * cells // layer.nodes][mark] += 1
    made = ""
    edges = [math.ceil(cell * layer.nodes / cells) for cell in range(cells + 1)]
    for counts, start, end in zip(found, edges, edges[1:], strict=False):
        size = end - start
        counts[blank] += size - counts.total()
        gravest = next((mark for mark in MEANINGS if counts[mark]), "")
        made += (gravest if 2 * counts[gravest] >= size else gravest.lower()) or "."
    return made


def strip(layer: LayerDiagnosis, nodes: Sequence[NodeDiagnosis], width: int, look: Look) -> Text:
    """Return the marks of a layer in colour."""
    made = look.text()
    for mark in marks(layer, nodes, width):
        if mark == ".":
            made.append(look.glyphs.healthy, look.style("heat 0"))
        else:
            made.append(mark, look.style(LETTER_STYLES[mark.upper()]))
    return made


def legend(shown: set[str]) -> list[tuple[str, str, str]]:
    """Return the marks that were shown, with their styles and meanings."""
    entries = [
        (mark, LETTER_STYLES[mark], meaning)
        for mark, meaning in MEANINGS.items()
        if {mark, mark.lower()} & shown
    ]
    if any(mark.islower() for mark in shown):
        entries.append(("", "", "(small: under half of the cell)"))
    return entries
