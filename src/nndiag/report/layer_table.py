"""The table of one checkpoint: a row a layer, where its bad nodes are, and the measures that explain them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nndiag.records.report import Diagnosis, LayerDiagnosis, NodeDiagnosis
from nndiag.report.columns import EXPLAINED, GAP, Layout, count_lines, kind, lay_out, measure
from nndiag.report.look import INDENT, Look
from nndiag.report.numbers import NOT_FINITE
from nndiag.report.selection import Fold, folded
from nndiag.report.strip import legend, marks, strip

_FEW = 24
_MOST = 40


def layer_table(diagnosis: Diagnosis, look: Look, *, verbose: bool) -> Iterator[RenderableType]:
    """Yield the table and the legend of its strips."""
    nodes: dict[str, list[NodeDiagnosis]] = defaultdict(list)
    for node in diagnosis.nodes:
        nodes[node.layer].append(node)
    left_out = {one.name for one in diagnosis.unmeasured}
    rows = _rows(diagnosis.layers, nodes, left_out, verbose)
    layers = [diagnosis.layers[row] for row in rows if isinstance(row, int)]
    if not layers:
        yield from _all_folded(rows, look)
        return
    names = {layer.name: look.clip(layer.name or "(root)", look.width * 3 // 10) for layer in layers}
    folds = {row.first: f"{look.glyphs.ellipsis} {row.say('layer')}" for row in rows if isinstance(row, Fold)}
    layout = lay_out(
        layers, look, max(cell_len(name) for name in ("layer", *names.values(), *folds.values()))
    )
    table = _table(layout, look)
    for row in rows:
        if isinstance(row, Fold):
            table.add_row(look.text((folds[row.first], "quiet")))
            continue
        layer = diagnosis.layers[row]
        name = Text(names[layer.name], look.style("name"))
        table.add_row(name, *_cells(layer, nodes[layer.name], layout, look))
    yield Padding(table, (0, 0, 0, INDENT))
    entries = legend({mark for layer in layers for mark in marks(layer, nodes[layer.name], layout.strip)})
    if any(measure(layer, key, write) == "!" for layer in layers for key, _, write in layout.measures):
        entries.append(("!", "error", NOT_FINITE))
    if entries:
        yield Padding(look.legend(entries), (0, 0, 0, INDENT))
    if explained := [EXPLAINED[key] for key, _, _ in layout.measures]:
        yield Padding(look.flow(explained, "quiet"), (0, 0, 0, INDENT))


def _table(layout: Layout, look: Look) -> Table:
    """Return the table with its headings and no rows."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style=look.style("quiet"))
    titles = ("where the bad nodes are", "where they are", "where")
    where = next(words for words in titles if len(words) <= layout.strip)
    for words, width in (("layer", None), ("kind", None), ("nodes", None), (where, layout.strip),
                         ("verdicts", layout.verdicts)):  # fmt: skip
        justify: Literal["left", "right"] = "right" if words == "nodes" else "left"
        table.add_column(look.text(words), justify=justify, width=width, no_wrap=True, overflow="crop")
    for _, heading, _ in layout.measures:
        title = Text("\n").join(look.text(line) for line in heading.split("\n"))
        table.add_column(title, justify="right", no_wrap=True, overflow="crop")
    return table


def _cells(
    layer: LayerDiagnosis, nodes: Sequence[NodeDiagnosis], layout: Layout, look: Look
) -> Iterator[Text]:
    """Yield what stands behind the name of a layer."""
    yield look.text((kind(layer, look), "quiet"))
    yield look.text(f"{layer.nodes:,}")
    yield strip(layer, nodes, layout.strip, look)
    lines = count_lines(layer, layout.verdicts)
    yield Text("\n").join(Text(" ").join(look.text(part) for part in line) for line in lines)
    for key, _, write in layout.measures:
        yield look.text(measure(layer, key, write))


def _all_folded(rows: Sequence[int | Fold], look: Look) -> Iterator[RenderableType]:
    for row in rows:
        if isinstance(row, Fold):
            said = f"{look.glyphs.ellipsis} {row.say('layer')} without findings (--verbose lists them)"
            yield Padding(look.text((said, "quiet")), (0, 0, 0, INDENT))


def _rows(
    layers: Sequence[LayerDiagnosis],
    nodes: Mapping[str, list[NodeDiagnosis]],
    left_out: Collection[str],
    verbose: bool,
) -> list[int | Fold]:
    """Return the rows to show: all of a small network, else those with findings, the worst 40 of them.

    Layers that were left out of the measurement have a row too: they are not healthy, only not looked at.
    """
    every = range(len(layers))
    if verbose or len(layers) <= _FEW:
        return list(every)
    weight = {index: _trouble(layers[index], nodes.get(layers[index].name, [])) for index in every}
    bad = sorted((index for index in every if weight[index] > 0), key=lambda index: -weight[index])
    unjudged = {
        index for index in every if layers[index].verdicts.get("unknown", 0) > layers[index].unobserved
    }
    shown = {index for index in unjudged if layers[index].name in left_out}
    return folded(len(layers), {*bad[:_MOST], *shown}, {*bad, *unjudged})


def _trouble(layer: LayerDiagnosis, nodes: Sequence[NodeDiagnosis]) -> float:
    """Return how much is wrong with a layer; 0 for nothing."""
    findings = [*layer.findings, *(finding for node in nodes for finding in node.findings)]
    severities = {finding.severity for finding in findings} - {"info"}
    judged_bad = sum(
        layer.verdicts.get(verdict, 0) for verdict in ("collapsed", "plateau", "source", "saddle")
    )
    return bool(severities) + 2.0 * ("error" in severities) + judged_bad / max(layer.nodes, 1)
