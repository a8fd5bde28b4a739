"""Draw docs/scan.svg: the first screen of ``nndiag scan sample_checkpoints/dying_mlp``, 80 columns wide.

Run as ``.venv/bin/python docs/picture.py`` from anywhere.
"""

from __future__ import annotations

import html
import io
import re
import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

import nndiag
from nndiag.report import render_terminal

ROOT = Path(__file__).resolve().parent.parent
RUN = "sample_checkpoints/dying_mlp"
PICTURE = ROOT / "docs" / "scan.svg"
WIDTH = 80
_TEXT = re.compile(
    r'(?P<before><text [^>]*?) x="(?P<x>[^"]*)"(?P<y> y="[^"]*") textLength="(?P<length>[^"]*)"(?P<after>[^>]*>)'
    r"(?P<words>[^<]*)</text>"
)
LAST_PART = "Checkpoints"
"""The first screen ends before this heading."""


def screen() -> str:
    """Return what the command prints on a terminal with colours, as text with escape codes."""
    outcome = nndiag.scan(ROOT / RUN)
    sheet = io.StringIO()
    console = Console(
        file=sheet, width=WIDTH, force_terminal=True, color_system="256", highlight=False, _environ={}
    )
    render_terminal(outcome.report, console, verbose=False, hints=outcome.hints)
    return sheet.getvalue()


def first_part(text: str) -> Text:
    """Return the screen up to the list of checkpoints."""
    lines = list(Text.from_ansi(text).split(allow_blank=True))
    end = next(i for i, line in enumerate(lines) if line.plain.strip() == LAST_PART)
    return Text("\n").join(lines[:end])


def draw() -> str:
    """Return the picture. It refers to no font but what the reader has."""
    console = Console(
        file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, highlight=False, _environ={}
    )
    console.print(Text.assemble(("$ ", "dim"), (f"nndiag scan {RUN}", "bold")))
    console.print(first_part(screen()), end="")
    frame = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace(
        "Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
    )
    svg = console.export_svg(title="nndiag", code_format=frame, unique_id="nndiag")
    return "\n".join(line.rstrip() for line in _TEXT.sub(_without_padding, svg).splitlines()) + "\n"


def _without_padding(found: re.Match[str]) -> str:
    """Return a text element without the blanks around its words: some viewers drop them, and shift the rest."""
    padded = html.unescape(found["words"])
    words = padded.strip()
    cell = float(found["length"]) / len(padded)
    start = float(found["x"]) + cell * (len(padded) - len(padded.lstrip()))
    if not words:
        return ""
    shown = html.escape(words).replace(" ", "&#160;").replace("\N{NO-BREAK SPACE}", "&#160;")
    place = f'{found["before"]} x="{start:.1f}"{found["y"]}'
    return f'{place} textLength="{cell * len(words):.1f}"{found["after"]}{shown}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}", file=sys.stderr)
