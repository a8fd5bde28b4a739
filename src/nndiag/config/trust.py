"""What a scanned directory may bring: data of its own; its code, and links that leave it, only when the user
says so.
"""

from __future__ import annotations

import os
from pathlib import Path

from nndiag.config.record import Origin, RunConfig
from nndiag.errors import InputError


def require_trust(config: RunConfig, key: str, trust: bool) -> Origin:
    """Return where the code that ``key`` names comes from, or refuse to run it.

    Args:
        config: the merged configuration.
        key: a key that names code, such as ``"model.factory"``, ``"probe.data"``, ``"probe.loss"``.
        trust: whether the user gave ``--trust``.

    Raises:
        InputError: the key stands in a file of the scanned directory and ``trust`` is false.
    """
    origin = config.origin(key)
    if origin.owner == "run" and not trust:
        table, _, name = key.partition(".")
        spec = getattr(getattr(config, table), name)
        raise InputError(
            f"{origin.source} [{table}]",
            f'input refused: {name} = "{spec}" is code that the scanned directory brings',
            "read it, then add --trust to let it run",
        )
    return origin


def require_inside(config: RunConfig, key: str, trust: bool) -> None:
    """Refuse a file that ``key`` names inside the scanned directory where a link leads out of it.

    A path that says where it goes, such as ``../probe.npz``, can be read in the configuration; a link hides it.

    Args:
        config: the merged configuration.
        key: a key that names a file, such as ``"probe.data"``.
        trust: whether the user gave ``--trust``.

    Raises:
        InputError: the key stands in a file of the scanned directory, and its link leaves that.
    """
    origin = config.origin(key)
    table, _, name = key.partition(".")
    folder = origin.folder.resolve()
    named = folder / getattr(getattr(config, table), name)
    said = Path(os.path.normpath(named))
    if origin.owner == "run" and not trust and said.is_relative_to(folder):
        real = Path(os.path.realpath(named))
        if not real.is_relative_to(folder):
            raise InputError(
                named,
                "is a link that leaves the run directory",
                "give the file itself as --data, or add --trust",
            )
