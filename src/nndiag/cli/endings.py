"""How a command ends when it fails: one line on stderr, and the exit code of the contract."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

from nndiag.errors import NndiagError, printable

USAGE = 2
COULD_NOT = 3

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")


def as_line(error: BaseException) -> tuple[str, int]:
    """Return an error as ``WHAT: WHY; DO THIS`` and its exit code."""
    if any(_is_memory(cause) for cause in _causes(error)):
        return (
            "out of memory: the scan needs more than there is; "
            "give a smaller --memory-budget or --batch-size, or a --limit",
            COULD_NOT,
        )
    if isinstance(error, NndiagError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
        return _usage(error), USAGE
    if has_no_room(error):
        return "stdout: there is no room for what it is to hold; make some, or write elsewhere", COULD_NOT
    words = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"internal error: {words}; run again with --verbose and report what it shows", COULD_NOT


def has_no_room(error: BaseException) -> bool:
    """Whether a disk is full: what could not be written is not to be tried again at the end."""
    return isinstance(error, OSError) and error.errno in _FULL


def print_error(line: str, code: int) -> int:
    """Print the one line of an error and return the code."""
    print(f"error: {printable(line)}", file=sys.stderr)
    return code


def silence_stdout() -> None:
    """Send what is still to be printed nowhere: its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _usage(error: BaseException) -> str:
    """Return an error of the parser, which knows its message and mostly the command, as one line."""
    words = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    words = words.replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "nndiag"
    return f"{command}: {words[:1].lower()}{words[1:]}; see `{command} --help`"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)
    )
