"""Parts of a page on a console: as they are on a terminal, else as plain lines without blanks at their ends."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.text import Text

from nndiag.report.look import Look


def print_parts(parts: Iterable[RenderableType], console: Console, look: Look) -> None:
    """Print the parts one below the other."""
    if look.styled:
        _print(parts, console, look)
        return
    with console.capture() as captured:
        _print(parts, console, look)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True, highlight=False)


def _print(parts: Iterable[RenderableType], console: Console, look: Look) -> None:
    for part in parts:
        console.print(part, highlight=False, markup=False, emoji=False, width=look.width)
