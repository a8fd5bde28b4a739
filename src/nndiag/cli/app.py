"""The commands, and what becomes of every way in which they can end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.main import get_command

from nndiag.cli.catalogue import explain, rules
from nndiag.cli.scan import scan
from nndiag.errors import NndiagError, printable

COULD_NOT = 3
USAGE = 2

app = typer.Typer(
    name="nndiag",
    help="Examine saved neural-network checkpoints: the health and curvature of every node.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Examine saved neural-network checkpoints: the health and curvature of every node."""
    if version:
        from nndiag import __version__

        print(f"nndiag {__version__}")
        raise typer.Exit


app.command()(scan)
app.command()(explain)
app.command()(rules)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process where not given.

    Returns:
        The exit code of the contract: 0 done, 1 gate failed, 2 usage, 3 the scan could not be completed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = get_command(app).main(args=words, prog_name="nndiag", standalone_mode=False)
        sys.stdout.flush()
        return _interrupted() if code == 130 else int(code or 0)
    except BrokenPipeError:  # whoever read the report has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _interrupted()
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        if "--verbose" in words:
            traceback.print_exception(error)
        return _said(error)


def _said(error: BaseException) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, NndiagError):
        return _line(str(error), error.exit_code)
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
        words = error.format_message().rstrip(".")
        return _line(f"{words[:1].lower()}{words[1:]}: wrong usage; see `nndiag --help`", USAGE)
    if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
        return _line(
            "out of memory: the scan needs more than there is; use a smaller --limit or --batch-size",
            COULD_NOT,
        )
    name = type(error).__name__
    return _line(
        f"internal error: {name}: {error}; run again with --verbose and report what it shows", COULD_NOT
    )


def _interrupted() -> int:
    return _line("interrupted: nothing was written; run the command again", COULD_NOT)


def _line(text: str, code: int) -> int:
    print(f"error: {printable(text)}", file=sys.stderr)
    return code
