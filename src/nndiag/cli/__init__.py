"""The command line: parse, call, print, exit code.

The only room that knows typer. Importing it must stay cheap: what needs torch, numpy or pydantic is
imported inside the commands.
"""

from nndiag.cli.app import main

__all__ = ["main"]
