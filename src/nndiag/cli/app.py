"""The commands, and what becomes of every way in which they can end."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.main import get_command

from nndiag.cli.catalogue import explain, rules
from nndiag.cli.compare import compare
from nndiag.cli.endings import COULD_NOT, USAGE, as_line, has_no_room, print_error, silence_stdout
from nndiag.cli.gate import gate
from nndiag.cli.heal import heal
from nndiag.cli.help import EXIT_CODES, GroupedCommand
from nndiag.cli.init import init
from nndiag.cli.scan import scan

app = typer.Typer(
    name="nndiag",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Examine saved neural-network checkpoints: which nodes of which layers are dead, collapsed or flat, since
    when, and what to do about it.

    Start with `nndiag scan CHECKPOINT` or `nndiag scan RUN_DIRECTORY`.
    """
    if version:
        from nndiag import __version__

        print(f"nndiag {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(USAGE)


app.command(
    cls=GroupedCommand, short_help="Measure and judge a checkpoint, or a run of them.", epilog=EXIT_CODES
)(scan)
app.command(cls=GroupedCommand)(init)
app.command(cls=GroupedCommand, short_help="How nodes move along a run.", epilog=EXIT_CODES)(compare)
app.command(cls=GroupedCommand, short_help="Pass or fail: a report against a policy.", epilog=EXIT_CODES)(
    gate
)
app.command(
    cls=GroupedCommand, short_help="Revive or take out nodes, and write a new one.", epilog=EXIT_CODES
)(heal)
app.command(cls=GroupedCommand)(explain)
app.command()(rules)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process where not given.

    Returns:
        The exit code of the contract: 0 done, 1 gate failed, 2 usage, 3 the scan could not be completed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _never_unencodable()
    try:
        code = get_command(app).main(args=words, prog_name="nndiag", standalone_mode=False)
        sys.stdout.flush()
        return _interrupted() if code == 130 else int(code or 0)
    except BrokenPipeError:  # whoever read the text has enough
        silence_stdout()
        return 0
    except KeyboardInterrupt:
        return _interrupted()
    except BaseException as error:  # SystemExit too: only foreign code raises it here
        if isinstance(error.__context__, BrokenPipeError):  # the parser turns it into SystemExit
            silence_stdout()
            return 0
        if "--verbose" in words:
            traceback.print_exception(error)
        line, code = as_line(error)
        if has_no_room(error):
            silence_stdout()
        return print_error(line, code)


def _never_unencodable() -> None:
    """Let stdout show an escape where its encoding lacks a sign, rather than fail."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _interrupted() -> int:
    return print_error("interrupted: the work was stopped before it was done; run it again", COULD_NOT)
