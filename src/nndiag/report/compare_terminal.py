"""A comparison on the screen: the story and its picture first, then events in words, then what to do, then the
layers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nndiag.records.comparison import Change, Comparison, LayerComparison
from nndiag.report.compare_clock import Clock, clock_of
from nndiag.report.compare_course import compared_caution, compared_course, shown_name
from nndiag.report.compare_events import compared_advice, compared_events
from nndiag.report.course import Course
from nndiag.report.events import Event
from nndiag.report.facts import logged_losses
from nndiag.report.look import Look
from nndiag.report.numbers import counted, number, percent
from nndiag.report.picture import picture
from nndiag.report.screen import print_parts
from nndiag.report.strip import legend as strip_legend
from nndiag.report.words import event_list, heading

_MOST_EVENTS = 8
_MOST_LAYERS = 24
_NAMES = {
    "degenerate_fraction": "degenerate", "effective_rank": "effective rank", "torque_ratio_mean": "mean torque",
    "dead_data_fraction": "dead data", "dormant_fraction": "dormant",
    "stability_margin_max": "stability margin",
}  # fmt: skip
_SHARES = ("degenerate_fraction", "dead_data_fraction", "dormant_fraction")


def render_comparison(comparison: Comparison, console: Console, *, verbose: bool = False) -> None:
    """Print a comparison for people; the console decides width, signs and colour."""
    look = Look.of(console)
    print_parts(_parts(comparison, look, verbose), console, look)


def render_comparison_text(comparison: Comparison) -> str:
    """Return what :func:`render_comparison` prints, without colour: for a file."""
    sheet = io.StringIO()
    console = Console(
        file=sheet,
        width=80,
        color_system=None,
        no_color=True,
        force_terminal=False,
        legacy_windows=False,
        _environ={},
    )
    render_comparison(comparison, console)
    return sheet.getvalue()


def _parts(comparison: Comparison, look: Look, verbose: bool) -> Iterator[RenderableType]:
    run = compared_course(comparison)
    events = compared_events(comparison, run)
    yield _headline(events[0], look)
    yield _basis(comparison, run, look)
    if caution := compared_caution(comparison):
        yield Padding(look.text((caution, "warning")), (0, 0, 0, 2))
    yield Text()
    yield Padding(picture(run, look, verbose=verbose), (0, 0, 0, 2))
    yield Padding(_legend(run, look), (0, 0, 0, 2))
    if len(events) > 1:
        yield from heading("What else happened", look)
        yield from event_list(events[1:], look, len(events) if verbose else _MOST_EVENTS)
    advice = compared_advice(comparison, run)
    if advice:
        yield from heading("What to do", look)
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=len(look.glyphs.arrow), no_wrap=True, overflow="crop")
        table.add_column(ratio=1, overflow="fold")
        for place, one in enumerate(advice):
            table.add_row(
                look.text((look.glyphs.arrow, "act")), look.text((one, "strong" if not place else ""))
            )
        yield Padding(table, (0, 0, 0, 2))
    first, last = shown_name(comparison, 0), shown_name(comparison, -1)
    yield from heading("Layers", look, f"{first} {look.glyphs.arrow} {last}")
    yield from _layers(comparison, clock_of(comparison, run.word), look, verbose)


def _headline(event: Event, look: Look) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1, no_wrap=True, overflow="crop")
    table.add_column(ratio=1, overflow="fold")
    style = "good headline" if event.kind == "good" else "strong"
    table.add_row(look.text((look.symbol(event.kind), event.kind)), look.text((event.sentence, style)))
    return table


def _basis(comparison: Comparison, run: Course, look: Look) -> Padding:
    marks = comparison.checkpoints
    said = [f"{len(marks):,} checkpoints"]
    if run.word != "checkpoint":
        said[0] += f", {run.word}s {run.labels[0]}–{run.labels[-1]}"
    arrow = look.glyphs.arrow
    for word, first, last in (
        ("loss", marks[0].loss, marks[-1].loss),
        ("gradient norm", marks[0].gradient_norm, marks[-1].gradient_norm),
        ("parameter norm", marks[0].parameter_norm, marks[-1].parameter_norm),
    ):
        if first is not None and last is not None:
            said.append(f"{word} {number(first)} {arrow} {number(last)}")
    said += logged_losses([mark.logged for mark in marks])
    said.append(f"{counted(sum(layer.nodes for layer in comparison.layers), 'node')}")
    levels = {mark.level for mark in marks}
    said.append(f"level {marks[-1].level}" if len(levels) == 1 else "different levels")
    return Padding(look.flow(said, "quiet"), (0, 0, 0, 2))


def _legend(run: Course, look: Look) -> Text:
    shown = {letter for layer in run.layers for letter in layer.letters if letter.strip(" .")}
    entries = [("·" if look.glyphs.healthy == "·" else ".", "heat 0", "nothing wrong")]
    entries += [entry for entry in strip_legend(shown) if entry[0]]
    if any(letter.islower() for letter in shown):
        entries.append(("", "", "(small: under half of the layer)"))
    return look.legend(entries)


def _layers(comparison: Comparison, clock: Clock, look: Look, verbose: bool) -> Iterator[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=look.style("quiet"))
    table.add_column(look.text("layer"), no_wrap=True, overflow="crop")
    table.add_column(look.text("verdicts"), overflow="fold")
    table.add_column(look.text("what changed"), overflow="fold")
    table.add_column(look.text("half-life"), no_wrap=True, overflow="crop")
    layers = (
        sorted(comparison.layers, key=lambda layer: -_worth(layer))
        if not verbose
        else list(comparison.layers)
    )
    kept = {id(layer) for layer in (layers if verbose else layers[:_MOST_LAYERS])}
    for layer in comparison.layers:
        if id(layer) in kept:
            table.add_row(*_row(layer, comparison, clock, look))
    yield Padding(table, (0, 0, 0, 2))
    left = len(comparison.layers) - len(kept)
    if left:
        more = f"    {look.glyphs.ellipsis} and {counted(left, 'more layer')} (--verbose shows all)"
        yield look.text((more, "quiet"))


def _worth(layer: LayerComparison) -> int:
    return sum(layer.transitions.values()) * 1000 // layer.nodes


def _row(layer: LayerComparison, comparison: Comparison, clock: Clock, look: Look) -> list[Text]:
    moved = [
        f"{count:,} {pair.replace('->', f' {look.glyphs.arrow} ')}"
        for pair, count in layer.transitions.items()
    ]
    fall = layer.decline
    half = look.glyphs.dash
    if fall is not None and fall.half_life is not None and len(comparison.checkpoints) > 2:
        half = clock.lasting(fall.half_life, fall.half_life_error)
    return [
        look.text((look.clip(layer.name or "(root)", look.width // 4), "name")),
        Text("\n").join(look.text(one) for one in moved or ["unchanged"]),
        _changes(layer, look),
        look.text((half, "quiet")),
    ]


def _changes(layer: LayerComparison, look: Look) -> Text:
    made = Text()
    for word, style in (("worse", "error"), ("better", "good")):
        for name, one in layer.change.items():
            if one.trend == word and name in _NAMES:
                made.append("\n" * bool(made)).append_text(
                    look.text((word, style), f" {_said(name, one, look)}")
                )
    return made if made else look.text((look.glyphs.dash, "quiet"))


def _said(name: str, change: Change, look: Look) -> str:
    write = percent if name in _SHARES else number
    return f"{_NAMES.get(name, name)} {write(change.first)} {look.glyphs.arrow} {write(change.last)}"
