"""The picture along a run: a row a layer, a column a checkpoint, the shade the share of degenerate nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from nndiag.report.course import Course, LayerCourse
from nndiag.report.look import INDENT, Look
from nndiag.report.numbers import NOT_FINITE, number
from nndiag.report.selection import Fold, folded
from nndiag.report.strip import LETTER_STYLES

_GAP = 2
_MOST_LAYERS = 24
_WIDEST_CELL = 6


@dataclass(frozen=True)
class Grid:
    """Which checkpoints are drawn, and how many cells wide each is, its gap included."""

    columns: tuple[int, ...]
    cell: int

    @property
    def fill(self) -> int:
        """Width of the mark in a cell: the gap is the last cell, where there is room for one."""
        return max(1, self.cell - 1)


def picture(run: Course, look: Look, *, verbose: bool) -> Table:
    """Return the picture; columns are thinned evenly, first and last kept, where they do not fit."""
    names = [look.clip(layer.name or "(root)", look.width // 4) for layer in run.layers]
    rows = folded(len(names), _worth_a_row(run, verbose), _not_healthy(run))
    shown = [row for row in rows if isinstance(row, int)]
    label_width = max([cell_len(names[row]) for row in shown] + [cell_len(run.word), 4])
    tails = {row: _tail(run, run.layers[row], look) for row in shown}
    tail_width = max([tail.cell_len for tail in tails.values()] + [10])
    grid = _grid(len(run.labels), look.width - INDENT - label_width - tail_width - 2 * _GAP)

    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(width=label_width, no_wrap=True, overflow="crop")
    table.add_column(width=grid.cell * len(grid.columns), no_wrap=True, overflow="crop")
    table.add_column(no_wrap=True, overflow="crop")
    table.add_row(look.text((run.word, "quiet")), _ruler(run, grid, look), look.text(("at the end", "quiet")))
    for row in rows:
        if isinstance(row, Fold):
            table.add_row(
                look.text((look.glyphs.ellipsis, "quiet")), look.text((row.say("layer"), "quiet")), ""
            )
        else:
            name = Text(names[row], look.style("name"))
            table.add_row(name, _cells(run.layers[row], grid, look), tails[row])
    if any(loss is not None for loss in run.losses):
        table.add_row(look.text(("loss", "quiet")), _losses(run, grid, look), _last_loss(run, look))
    return table


def legend(run: Course, look: Look) -> Text:
    """Return the line that says what the shades mean."""
    glyphs = look.glyphs
    entries = [(glyphs.shades[step], f"heat {step}", words) for step, words in enumerate(glyphs.legend)]
    entries.append(("", "", "of the layer's nodes degenerate"))
    if any(count for layer in run.layers for count in layer.unknown):
        entries.append(("?", "quiet", "not judged"))
    if any(loss is not None and math.isnan(loss) for loss in run.losses):
        entries.append(("!", "error", NOT_FINITE))
    return look.legend(entries)


def thinned(count: int, room: int) -> tuple[int, ...]:
    """Return at most ``room`` (at least 2) of ``count`` indices, evenly spread, first and last among them."""
    room = max(room, 2)
    if count <= room:
        return tuple(range(count))
    return tuple(round(place * (count - 1) / (room - 1)) for place in range(room))


def _worth_a_row(run: Course, verbose: bool) -> set[int]:
    """Return the layers to draw: all if they are few, else the worst of those that are ever degenerate."""
    every = range(len(run.layers))
    if verbose or len(run.layers) <= _MOST_LAYERS:
        return set(every)
    bad = sorted(
        (index for index in every if run.layers[index].worst > 0), key=lambda i: -run.layers[i].worst
    )
    return set(bad[:_MOST_LAYERS])


def _not_healthy(run: Course) -> set[int]:
    return {i for i, layer in enumerate(run.layers) if layer.worst > 0 or any(layer.unknown)}


def _grid(count: int, room: int) -> Grid:
    columns = thinned(count, room)
    return Grid(columns, max(1, min(_WIDEST_CELL, room // len(columns))))


def _ruler(run: Course, grid: Grid, look: Look) -> Text:
    """Return the labels of the checkpoints, as many as fit beside each other, the last one always."""
    line = [" "] * (grid.cell * len(grid.columns))
    last = run.labels[grid.columns[-1]]
    end = (len(grid.columns) - 1) * grid.cell + max(0, (grid.fill - len(last)) // 2)
    end = max(0, min(end, len(line) - len(last)))
    line[end : end + len(last)] = last[: len(line) - end]
    free = 0
    for place, column in enumerate(grid.columns[:-1]):
        label, start = run.labels[column], place * grid.cell
        start += max(0, (grid.fill - len(label)) // 2)
        if start >= free and start + len(label) < end:
            line[start : start + len(label)] = label
            free = start + (max(len(label) + 2, 8) if grid.cell < 3 else len(label) + 1)
    return look.text(("".join(line), "quiet"))


def _cells(layer: LayerCourse, grid: Grid, look: Look) -> Text:
    made = look.text()
    for column in grid.columns:
        count, unknown = layer.degenerate[column], layer.unknown[column]
        if count is None:
            mark, style = " ", ""
        elif not count and 2 * (unknown or 0) > layer.nodes:
            mark, style = "?", "quiet"
        else:
            step = _step(count / max(layer.nodes, 1))
            mark, style = look.glyphs.shades[step], f"heat {step}"
        if layer.letters and (letter := layer.letters[column]).strip(" ."):
            mark, style = letter, "quiet" if letter == "?" else LETTER_STYLES[letter.upper()]
        solid = mark in look.glyphs.shades[1:] or (layer.letters and mark.isalpha())
        filled = mark * grid.fill if solid else mark.center(grid.fill)
        made.append(filled.ljust(grid.cell), look.style(style))
    return made


def _step(share: float) -> int:
    """Return 0 for none, 1 for up to a quarter, … 4 for more than three quarters."""
    return 0 if share <= 0 else min(4, max(1, math.ceil(4 * share)))


def _tail(run: Course, layer: LayerCourse, look: Look) -> Text:
    now = layer.degenerate[-1]
    made = look.text(f"{look.glyphs.dash if now is None else format(now, ',')}/{layer.nodes:,}")
    if layer.whole_since is not None:
        made.append_text(look.text(("  since " + run.at(layer.whole_since), "error")))
    elif layer.since is not None:
        made.append_text(look.text(("  half since " + run.at(layer.since), "error")))
    return made


def _losses(run: Course, grid: Grid, look: Look) -> Text:
    """Return the loss as numbers where there is room for them, else as a curve."""
    values = [run.losses[column] for column in grid.columns]
    if grid.cell >= 5:
        shown = ["-" if value is None else "!" if math.isnan(value) else _short(value) for value in values]
        if all(len(words) < grid.cell for words in shown):
            return look.text("".join(words.center(grid.fill).ljust(grid.cell) for words in shown))
    return look.text(("".join((mark * grid.fill).ljust(grid.cell) for mark in _curve(values, look)), "curve"))


def _short(value: float) -> str:
    shown = number(value)
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if len(shown) > 5 else shown


def _curve(values: Sequence[float | None], look: Look) -> list[str]:
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    signs = look.glyphs.curve

    def sign(value: float | None) -> str:
        if value is None:
            return " "
        if math.isnan(value):
            return "!"
        return signs[round((len(signs) - 1) * ((value - low) / (high - low)))] if high > low else signs[0]

    return [sign(value) for value in values]


def _last_loss(run: Course, look: Look) -> Text:
    last = run.losses[-1]
    if last is not None and math.isnan(last):
        return look.text((NOT_FINITE, "error"))
    return look.text(number(last))
