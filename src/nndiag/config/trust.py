"""Whose code may run: the user's own, and a scanned directory's only when the user says so."""

from __future__ import annotations

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
