"""Findings and advice in words, each with a hanging indent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nndiag.report.events import Event
from nndiag.report.groups import Advice, Group
from nndiag.report.look import Look
from nndiag.report.numbers import counted, ranges
from nndiag.report.phrases import called, hence, imperative
from nndiag.report.trials import tried


def heading(words: str, look: Look, detail: str = "") -> Iterator[RenderableType]:
    """Yield a heading with air above it."""
    yield Text()
    yield look.text(("  " + words, "strong"), (f"  {detail}" if detail else "", "quiet"))


def event_list(events: Sequence[Event], look: Look, most: int) -> Iterator[RenderableType]:
    """Yield the events as one list, then how many were left out."""
    table = _hanging(1)
    for event in events[:most]:
        said = look.text(event.sentence)
        if event.hence:
            said.append_text(_hence(event.hence, look))
        table.add_row(look.text((look.symbol(event.kind), event.kind)), said)
    yield _inset(table)
    yield from _left_out(len(events) - most, "event", look)


def finding_list(groups: Sequence[Group], look: Look, most: int) -> Iterator[RenderableType]:
    """Yield the groups, causes with their consequences, then how many were left out."""
    table = _hanging(9)
    for group in groups[:most]:
        severity = ("error", "warning", "info")[group.gravity]
        table.add_row(look.text((f"{look.symbol(severity)} {severity}", severity)), _said(group, look))
    yield _inset(table)
    yield from _left_out(len(groups) - most, "finding", look)


def advice_list(
    advice: Sequence[Advice],
    hints: Sequence[str],
    look: Look,
    most: int,
    *,
    first: str | None = None,
    together: str | None = None,
) -> Iterator[RenderableType]:
    """Yield what to do first, where there is such a thing, then about nodes and what all of that does together, then
    the hints of the caller.
    """
    table = _hanging(len(look.glyphs.arrow))
    if first is not None:
        table.add_row(look.text((look.glyphs.arrow, "act")), look.text((first, "strong")))
    for one in advice[:most]:
        table.add_row(look.text((look.glyphs.arrow, "act")), _advised(one, look))
    if together is not None:
        table.add_row("", look.text((together, "quiet")))
    for hint in hints:
        table.add_row(look.text((look.glyphs.arrow, "act")), look.text(hint))
    yield _inset(table)
    yield from _left_out(len(advice) - most, "action", look)


def which(nodes: Sequence[int], total: int) -> str:
    """Return which nodes of a layer are meant: all of them, or their numbers."""
    if len(nodes) == total:
        return "its only node" if total == 1 else f"all {total:,} nodes"
    of = f"{len(nodes):,} of {counted(total, 'node')}"
    return f"{of} ({ranges(nodes)})"


def reason(advice: Advice) -> str:
    """Return why; where nodes have several reasons, the two most common with their counts."""
    if len(advice.reasons) == 1:
        return advice.reasons[0][0]
    said = "; ".join(f"{count:,} {words}" for words, count in advice.reasons[:2])
    rest = sum(count for _, count in advice.reasons[2:])
    return said + (f"; {rest:,} for other reasons" if rest else "")


def _said(group: Group, look: Look) -> Text:
    where = "the model" if group.layer is None else called(group.layer)
    if group.nodes:
        where += ": " + which(group.nodes, group.layer_nodes)
    if group.unsteady:
        where += f", {group.unsteady:,} of them unsteady"
    made = look.text((f"{group.code} {group.name}", "strong"), ", " + where)
    if group.message:
        example = "" if group.uniform or not group.nodes else "for example: "
        made.append("\n").append_text(look.text(f"{example}{group.message}"))
    if group.cause is not None:
        made.append("\n").append_text(look.text((f"follows from {group.cause}", "quiet")))
    if after := hence(group):
        made.append_text(_hence(after, look))
    return made


def _hence(words: str, look: Look) -> Text:
    return Text("\n").append_text(look.text((f"{look.glyphs.hence} hence {words}", "quiet")))


def _advised(advice: Advice, look: Look) -> Text:
    count = len(advice.nodes)
    who = counted(count, "node") if advice.layer_nodes > count or count == 1 else f"all {count:,} nodes"
    made = look.text((f"{imperative(advice.kind)} {who}", "strong"), f" of {called(advice.layer)}")
    if why := reason(advice):
        made.append_text(look.text(f": {why}"))
    if shown := tried(advice):
        made.append_text(look.text((f" ({shown})", "quiet")))
    return made


def _left_out(count: int, noun: str, look: Look) -> Iterator[RenderableType]:
    if count > 0:
        more = f"    {look.glyphs.ellipsis} and {counted(count, 'more ' + noun)} (--verbose shows all)"
        yield look.text((more, "quiet"))


def _hanging(first: int) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=first, no_wrap=True, overflow="crop")
    table.add_column(ratio=1, overflow="fold")
    return table


def _inset(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2))
