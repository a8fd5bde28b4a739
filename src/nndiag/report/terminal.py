"""The screen: the story first, then what to do, then the checkpoints."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nndiag.records.report import Report
from nndiag.report.checkpoint import in_full, overview
from nndiag.report.course import Course, course, notable
from nndiag.report.events import Event, events
from nndiag.report.facts import logged_losses, on_what
from nndiag.report.groups import advise
from nndiag.report.look import Look
from nndiag.report.numbers import counted, number
from nndiag.report.picture import legend, picture
from nndiag.report.screen import print_parts
from nndiag.report.trials import together
from nndiag.report.turning_back import turning_back
from nndiag.report.words import advice_list, event_list, heading

_MOST_EVENTS = 6
_MOST_FINDINGS = 8
_MOST_ACTIONS = 6


def render_terminal(report: Report, console: Console, *, verbose: bool, hints: Sequence[str]) -> None:
    """Print a report for people.

    Args:
        report: one diagnosis or more, in training order.
        console: where to; its width, its encoding, and whether it takes colour decide the looks.
        verbose: every checkpoint in full, every layer, every finding.
        hints: sentences to close "What to do" with, e.g. the flag that gets the next level.
    """
    look = Look.of(console)
    print_parts(_parts(report, look, verbose, hints), console, look)


def render_text(report: Report, *, width: int = 80, verbose: bool = False, hints: Sequence[str] = ()) -> str:
    """Return what :func:`render_terminal` prints, without colour: for a file."""
    sheet = io.StringIO()
    console = Console(
        file=sheet,
        width=width,
        color_system=None,
        no_color=True,
        force_terminal=False,
        legacy_windows=False,
        _environ={},
    )
    render_terminal(report, console, verbose=verbose, hints=hints)
    return sheet.getvalue()


def _parts(report: Report, look: Look, verbose: bool, hints: Sequence[str]) -> Iterator[RenderableType]:
    run, happened = course(report), events(report)
    several = len(report.checkpoints) > 1
    yield from _headline(happened[0], look, several)
    if several:
        yield _basis(report, run, look)
        yield Text()
        yield Padding(picture(run, look, verbose=verbose), (0, 0, 0, 2))
        yield Padding(legend(run, look), (0, 0, 0, 2))
        if len(happened) > 1:
            yield from heading("What else happened", look)
            yield from event_list(happened[1:], look, len(happened) if verbose else _MOST_EVENTS - 1)
        yield from _to_do(report, hints, look, verbose)
        full = (
            set(range(len(report.checkpoints))) if verbose else {*notable(run), len(report.checkpoints) - 1}
        )
        yield from heading("Checkpoints", look)
        yield from overview(report, full, look, verbose=verbose)
        for index in sorted(full):
            last = index == max(full)
            most = _MOST_FINDINGS if last else 2
            yield from in_full(
                report.checkpoints[index], look, verbose=verbose, most=most, method=last or verbose
            )
    else:
        yield from in_full(report.checkpoints[0], look, verbose=verbose, most=_MOST_FINDINGS)
        yield from _to_do(report, hints, look, verbose)


def _headline(event: Event, look: Look, several: bool) -> Iterator[RenderableType]:
    """Yield the most important event; what follows from it only for a run, else the findings say it."""
    style = "good headline" if event.kind == "good" else "strong"
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1, no_wrap=True, overflow="crop")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(look.text((look.symbol(event.kind), event.kind)), look.text((event.sentence, style)))
    yield table
    if several and event.hence:
        yield Padding(look.text((f"{look.glyphs.hence} hence {event.hence}", "quiet")), (0, 0, 0, 2))


def _basis(report: Report, run: Course, look: Look) -> Padding:
    """Return the line under the headline: how long the run is, how the loss went, what it rests on."""
    last = report.checkpoints[-1]
    nodes = sum(layer.nodes for layer in last.layers)
    said = [f"{len(run.labels):,} checkpoints"]
    if run.word != "checkpoint":
        said[0] += f", {run.word}s {run.labels[0]}–{run.labels[-1]}"
    if run.losses[0] is not None and run.losses[-1] is not None:
        said.append(f"loss {number(run.losses[0])} {look.glyphs.arrow} {number(run.losses[-1])}")
    said += logged_losses([one.checkpoint.logged for one in report.checkpoints])
    said.append(f"{counted(nodes, 'node')} in {counted(len(last.layers), 'layer')}")
    said.append(on_what(last.probe) if last.probe else "no probe")
    said.append(f"level {last.level}")
    return Padding(look.flow(said, "quiet"), (0, 0, 0, 2))


def _to_do(report: Report, hints: Sequence[str], look: Look, verbose: bool) -> Iterator[RenderableType]:
    advice = advise(report.checkpoints[-1])
    back = turning_back(report)
    if advice or hints or back:
        yield from heading("What to do", look)
        most = len(advice) if verbose else _MOST_ACTIONS
        yield from advice_list(
            advice, hints, look, most, first=back, together=together(report.checkpoints[-1])
        )
