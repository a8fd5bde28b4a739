"""The terminal: consoles, notes and the progress bar on stderr.

stdout carries the report alone.
"""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nndiag.errors import printable


class Screen:
    """A listener that shows notes and progress on stderr; the bar only on a terminal."""

    def __init__(self, *, quiet: bool, no_progress: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._shown = not (quiet or no_progress) and self._console.is_terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Screen:
        """Start the bar, where there is to be one."""
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
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def note(self, sentence: str) -> None:
        """Print a sentence on stderr."""
        if not self._quiet:
            self._console.print(Text(f"note: {printable(sentence)}"), soft_wrap=True)

    def progress(self, checkpoint: int, checkpoints: int, what: str, done: int, total: int) -> None:
        """Move the bar.

        Replaying and solving count half of a checkpoint each.
        """
        if self._bar is None or self._task is None:
            return
        half = 0.5 if what.startswith("curvature") else 0.0
        within = half + 0.5 * done / max(total, 1)
        where = f"checkpoint {min(checkpoint + 1, checkpoints)} of {checkpoints}: " if checkpoints > 1 else ""
        self._bar.update(
            self._task,
            description=printable(where + what).replace("[", "\\["),
            completed=min(checkpoint + within, checkpoints),
            total=float(checkpoints),
        )


def report_console() -> Console:
    """Return the console of the report: 80 columns wide where there is no terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    import os

    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else 80
    return Console(highlight=False, width=width)
