"""The exception tree: every error that a user can cause, as one line and an exit code.

Nothing here knows the terminal; the CLI prints ``error: {error}`` and exits with ``error.exit_code``.
"""

from __future__ import annotations

import re

_COMMAND = re.compile(r"##(?=\w*\[)")


class NndiagError(Exception):
    """An error that the user can mend, said in one line: WHAT: WHY; DO THIS.

    Args:
        what: the thing that is wrong: a path, an option, a key.
        why: what is wrong with it.
        do: what the user can do about it.
    """

    exit_code = 3

    def __init__(self, what: object, why: str, do: str) -> None:
        super().__init__(what, why, do)
        self.what = str(what)
        self.why = why
        self.do = do

    def __str__(self) -> str:
        return printable(f"{self.what}: {self.why}; {self.do}")


class UsageError(NndiagError):
    """A wrong option, configuration, policy or baseline (exit code 2)."""

    exit_code = 2


class InputError(NndiagError):
    """A checkpoint or probe that is missing, damaged, refused, or does not fit (exit code 3)."""


class ModelError(NndiagError):
    """A model that cannot be built or run, or that the weights do not fit (exit code 3)."""


def printable(text: str) -> str:
    """Return ``text`` as one line that cannot steer a terminal.

    Names inside a checkpoint are an attacker's text: control characters, line breaks and bidirectional
    overrides are shown as escapes, and so is the first sign of what build machines obey anywhere in a line
    (``##[command]``, ``##vso[command]``).
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return _COMMAND.sub(r"\\x23#", shown)
