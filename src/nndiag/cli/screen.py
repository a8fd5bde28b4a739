"""The terminal: notes and the progress bar on stderr, the console of the report on stdout.

stdout carries the report alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from types import TracebackType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nndiag.errors import printable


class Screen:
    """A listener that shows notes and progress on stderr; the bar only on a terminal.

    While it is entered, whatever foreign code prints goes to stderr, and Python's warnings become notes.
    """

    def __init__(self, *, quiet: bool, no_progress: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        # FORCE_COLOR makes rich take a file for a terminal: colours are welcome there, a moving bar is not.
        moving = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._shown = moving and not (quiet or no_progress)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._doing = ""
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Screen:
        """Start the bar, where there is to be one."""
        self._held.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._held.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, kind, *_: self.note(f"{kind.__name__}: {message}")
        if self._shown:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=1.0)
            self._held.enter_context(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and give stdout back."""
        self._held.close()

    def note(self, sentence: str) -> None:
        """Print a sentence on stderr, on one line."""
        if not self._quiet:
            line = printable(" ".join(f"note: {sentence}".split()))
            self._console.print(Text(line), soft_wrap=True)

    def progress(self, what: str, share: float) -> None:
        """Move the bar, and draw it at once where something new begins: that may be what takes long."""
        if self._bar is not None and self._task is not None:
            new, self._doing = what != self._doing, what
            self._bar.update(self._task, description=escape(printable(what)), completed=share, refresh=new)


class ReportConsole(Console):
    """A console that lets the caller know when its reader has gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Pass the error on; rich would end the program."""
        raise BrokenPipeError


def report_console() -> Console:
    """Return the console of the report: 80 columns wide where there is no terminal."""
    if sys.stdout.isatty():
        return ReportConsole(highlight=False)
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and 0 < int(given) <= 1000 else 80
    return ReportConsole(highlight=False, width=width)
