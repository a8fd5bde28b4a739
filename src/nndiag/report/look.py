"""What the terminal can show: glyphs, colours, and words made safe for it.

Whatever is written to a screen is written through a :class:`Look`, so that names taken from a checkpoint can
neither steer the terminal nor act as markup, and a terminal without colour or Unicode still gets every fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from nndiag.errors import printable

STYLES: Mapping[str, str] = {
    "strong": "bold",
    "quiet": "dim",
    "error": "bold red",
    "warning": "yellow",
    "info": "cyan",
    "good": "green",
    "good headline": "bold green",
    "name": "cyan",
    "act": "bold cyan",
    "heat 0": "green dim",
    "heat 1": "yellow",
    "heat 2": "dark_orange",
    "heat 3": "orange_red1",
    "heat 4": "red",
    "curve": "blue",
}

INDENT = 2
"""Cells before everything that stands under a headline."""


@dataclass(frozen=True)
class Glyphs:
    """The signs of one character set; ``shades`` go from none over quarter steps to over three quarters."""

    error: str
    warning: str
    info: str
    good: str
    shades: str
    curve: str
    healthy: str
    dot: str
    dash: str
    arrow: str
    hence: str
    ellipsis: str
    rule: str
    legend: tuple[str, str, str, str, str]


UNICODE = Glyphs(
    error="✗", warning="▲", info="•", good="✓", shades="·░▒▓█", curve="▁▂▃▄▅▆▇█", healthy="·", dot="·",
    dash="–", arrow="→", hence="↳", ellipsis="…", rule="─", legend=("none", "up to ¼", "½", "¾", "more"),
)  # fmt: skip
ASCII = Glyphs(
    error="X", warning="!", info="i", good="*", shades=".-+*#", curve="01234567", healthy=".", dot="|",
    dash="-", arrow="->", hence="`-", ellipsis="..", rule="-",
    legend=("none", "up to 1/4", "1/2", "3/4", "more"),
)  # fmt: skip

_SPELLED = str.maketrans(
    {
        "λ": "lambda", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "θ": "theta",
        "ρ": "rho", "τ": "tau", "φ": "phi", "π": "pi", "σ": "sigma",
        "∂": "d", "∇": "grad ", "√": "sqrt ", "‖": "||", "²": "^2", "≤": "<=", "≥": ">=", "≈": "~", "±": "+-",
        "×": "x", "·": "|", "–": "-", "—": "-", "−": "-",
        "…": "..", "→": "->", "½": "1/2", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How to show things on one console: its width, its signs, and whether it takes colours and weights."""

    width: int
    glyphs: Glyphs
    styled: bool

    @classmethod
    def of(cls, console: Console) -> Look:
        """Return the look for ``console``: plain under ``NO_COLOR``, ASCII unless it takes Unicode."""
        ascii_only = console.options.ascii_only
        return cls(
            width=max(console.width, 40),
            glyphs=ASCII if ascii_only else UNICODE,
            styled=not console.no_color and console.color_system is not None,
        )

    def words(self, text: object) -> str:
        """Return ``text`` as one line that the console can show and that cannot steer it.

        A name may come to stand where a line begins: there ``::`` is a command to some build machines.
        """
        shown = printable(str(text)).replace("::", ":\\x3a")
        if self.glyphs is ASCII:
            shown = shown.translate(_SPELLED).encode("ascii", "backslashreplace").decode("ascii")
        return shown

    def style(self, name: str) -> str:
        """Return the rich style of that name, or none where the console takes none."""
        return STYLES[name] if name and self.styled else ""

    def text(self, *parts: str | tuple[str, str]) -> Text:
        """Return words, each plain or with the name of a style, as one line of rich text without markup."""
        made = Text()
        for part in parts:
            words, style = (part, "") if isinstance(part, str) else part
            made.append(self.words(words), self.style(style))
        return made

    def clip(self, text: object, width: int) -> str:
        """Return ``text`` cut to ``width`` cells; the end is kept, since it says more of a dotted path."""
        shown = self.words(text)
        if cell_len(shown) <= width:
            return shown
        mark = self.glyphs.ellipsis
        room = max(width - cell_len(mark), 0)
        tail = shown[len(shown) - room :] if room else ""
        while cell_len(tail) > room:
            tail = tail[1:]
        return set_cell_size(mark + tail, width).rstrip()

    def flow(self, phrases: Iterable[str], style: str = "") -> Text:
        """Return phrases parted by dots, broken into lines between phrases only."""
        return self._join((self.text((phrase, style)) for phrase in phrases), f" {self.glyphs.dot} ", style)

    def legend(self, entries: Iterable[tuple[str, str, str]]) -> Text:
        """Return marks with their styles and meanings, broken into lines between entries only."""
        parts = (
            self.text((mark, style), (f" {meaning}" if mark else meaning, "quiet"))
            for mark, style, meaning in entries
        )
        return self._join(parts, "  ", "")

    def _join(self, parts: Iterable[Text], between: str, style: str) -> Text:
        made, used = Text(), 0
        for part in parts:
            if used and used + cell_len(between) + part.cell_len > self.width - INDENT:
                made.append("\n")
                used = 0
            elif used:
                made.append(between, self.style(style))
                used += cell_len(between)
            made.append_text(part)
            used += part.cell_len
        return made

    def symbol(self, severity: str) -> str:
        """Return the sign of a severity (or of ``"good"``)."""
        return str(getattr(self.glyphs, severity))
