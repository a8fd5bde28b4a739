"""``nndiag init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nndiag.errors import InputError


def init(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, or a checkpoint.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Write it anew where there is one already.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open checkpoints that are code, such as .pt2. Off by default.")
    ] = False,
) -> None:
    """Write an nndiag.toml for a directory from what is found in it.

    Format, layers, widths and optimiser come from the weights; what could not be known stands there as a comment.
    """
    from nndiag.pipeline.initialising import draft
    from nndiag.report.files import write_whole

    made = draft(run, force, trust)
    try:
        write_whole(made.path, made.text)
    except OSError as error:
        why = f"cannot be written ({error.strerror or type(error).__name__})"
        raise InputError(made.path, why, "make the directory writable") from error
    print(f"wrote {made.path}; look through it, then run {made.command}")
    print()
    print(made.text, end="")
