"""One checkpoint on the screen: a line, or in full."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from nndiag.records.report import Diagnosis, Report
from nndiag.report.certificate import certificate_line
from nndiag.report.course import base_name, degenerate_nodes, loss_of
from nndiag.report.facts import method_line, numbers_line, place, unmeasured_line, unused_line
from nndiag.report.groups import gather, tally
from nndiag.report.layer_table import layer_table
from nndiag.report.look import Look
from nndiag.report.numbers import counted, number
from nndiag.report.selection import Fold, folded
from nndiag.report.words import finding_list, heading

_MANY = 12


def overview(
    report: Report, detailed: Collection[int], look: Look, *, verbose: bool
) -> Iterator[RenderableType]:
    """Yield one line a checkpoint; of a long run the first, the last and those shown in full."""
    count = len(report.checkpoints)
    wanted = range(count) if verbose or count <= _MANY else {0, count - 1, *detailed}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style=look.style("quiet"))
    table.add_column(look.text("checkpoint"), overflow="ellipsis", no_wrap=True)
    table.add_column(look.text("place"), no_wrap=True, overflow="crop")
    for name in ("loss", "gradient", "degenerate", "errors", "warnings"):
        table.add_column(look.text(name), justify="right", no_wrap=True, overflow="crop")
    for row in folded(count, wanted):
        if isinstance(row, Fold):
            left = f"{look.glyphs.ellipsis} {counted(row.count, 'checkpoint')}"
            table.add_row(look.text((left, "quiet")))
        else:
            table.add_row(*_line(report.checkpoints[row], look))
    yield Padding(table, (0, 0, 0, 2))


def in_full(
    diagnosis: Diagnosis, look: Look, *, verbose: bool, most: int, method: bool = True
) -> Iterator[RenderableType]:
    """Yield the header (with ``method`` also how it was measured), the layers and ``most`` findings."""
    yield Text()
    yield _title(diagnosis, look)
    yield _facts(numbers_line(diagnosis), look, "")
    if method:
        yield _facts(method_line(diagnosis), look, "quiet")
    if diagnosis.model.certificate is not None:
        yield _facts(certificate_line(diagnosis), look, "")
    yield Text()
    yield from layer_table(diagnosis, look, verbose=verbose)
    for words, style in ((unused_line(diagnosis), "quiet"), (unmeasured_line(diagnosis), "warning")):
        if words:
            yield Padding(look.text((words, style)), (0, 0, 0, 2))
    groups = gather(diagnosis)
    shown = [group for group in groups if verbose or group.gravity < 2]
    if shown:
        yield from heading("Findings", look, _totals(diagnosis, look))
        yield from finding_list(shown, look, len(shown) if verbose else most)
    elif tally(diagnosis):
        yield look.text(("  " + _totals(diagnosis, look), "quiet"))


def _totals(diagnosis: Diagnosis, look: Look) -> str:
    """Return how many findings of each severity there are, those included that are only counted."""
    found = tally(diagnosis)
    said = [counted(found[severity], severity) for severity in ("error", "warning") if found[severity]]
    if found["info"]:
        said.append(f"{counted(found['info'], 'note')} (--verbose)")
    return f" {look.glyphs.dot} ".join(said)


def _title(diagnosis: Diagnosis, look: Look) -> Rule:
    where = place(diagnosis)
    size = counted(diagnosis.checkpoint.parameters, "parameter")
    after = f"  {where} {look.glyphs.dot} {size}" if where else f"  {size}"
    name = look.clip(base_name(diagnosis.checkpoint.path), max(look.width - len(after) - 6, 12))
    title = look.text((name, "strong"))
    title.append_text(look.text((after, "quiet")))
    return Rule(title, characters=look.glyphs.rule, style=look.style("quiet") or "none", align="left")


def _facts(phrases: Iterable[str], look: Look, style: str) -> Padding:
    return Padding(look.flow(phrases, style), (0, 0, 0, 2))


def _line(diagnosis: Diagnosis, look: Look) -> list[Text]:
    nodes = sum(layer.nodes for layer in diagnosis.layers)
    bad = sum(degenerate_nodes(layer) for layer in diagnosis.layers)
    found = tally(diagnosis)
    style = "error" if 2 * bad > nodes else "warning" if bad else "good"
    return [
        look.text(look.clip(base_name(diagnosis.checkpoint.path), max(look.width - 59, 12))),
        look.text((place(diagnosis).partition(", ")[0], "quiet")),
        look.text(number(loss_of(diagnosis))),
        look.text(number(diagnosis.model.gradient_norm)),
        look.text((f"{bad:,}/{nodes:,}", style)),
        look.text((f"{found['error']:,}", "error" if found["error"] else "quiet")),
        look.text((f"{found['warning']:,}", "warning" if found["warning"] else "quiet")),
    ]
