"""Writing a text into a file: whole, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from nndiag.errors import InputError


def write_text(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        why = f"cannot be written ({error.strerror or type(error).__name__})"
        raise InputError(path, why, "choose another file") from error


def write_whole(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed.

    Links are followed; what is no regular file, such as ``/dev/stderr``, is written to and not replaced.
    """
    content = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(content)
        return
    path = path.resolve()
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
