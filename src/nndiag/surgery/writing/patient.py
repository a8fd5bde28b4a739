"""A file to write that remembers what the system said, for writers in C++ that do not pass it on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _Patient(io.BufferedWriter):
    """Goes on after an error as if nothing had been: ``torch`` would report a wrong position in its place."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write, or count what is not written."""
        if self.error is None:
            try:
                return super().write(content)
            except OSError as error:
                self.error = error
        return len(memoryview(content).cast("B")) if len(content) else 0


@contextmanager
def patient(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a new file for writing; what went wrong in the block is raised at its end.

    Raises:
        OSError: the system does not let it be written.
    """
    with _Patient(io.FileIO(path, "x")) as file:
        try:
            yield file
        finally:
            if file.error is not None:
                raise file.error
