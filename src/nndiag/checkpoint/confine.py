"""Names in index files and links in directories: none may lead out of the checkpoint's directory."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from nndiag.errors import InputError


def root_of(folder: Path) -> Path:
    """Return the directory that everything of a checkpoint's directory must lie in.

    That is the directory itself. A snapshot in the cache of the Hugging Face hub consists of links into the
    ``blobs`` of its own repository, ``models--NAME/snapshots/REVISION/… → models--NAME/blobs/…``, so that there it is
    the repository's folder.
    """
    real = folder.resolve()
    for snapshot in (real, *real.parents[:2]):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and re.fullmatch(r"models--[^/]+", repository.name):
            return repository
    return real


def confined(index: Path, name: str) -> Path:
    """Return the file that a name inside a checkpoint means.

    Args:
        index: the file that names it, which lies in the checkpoint's directory.
        name: what it says.

    Raises:
        InputError: it is no relative name, or leads out of the directory, by itself or through a link.
    """
    if not name or "\0" in name:
        raise InputError(index, "names something that is no file", _AGAIN)
    leaves = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    if leaves or ".." in re.split(r"[/\\]", name):
        raise InputError(
            index, f"is refused: it names {name[:100]}, which lies outside of its directory", _AGAIN
        )
    file = index.parent / name
    require_inside(index.parent, file)
    return file


def require_inside(folder: Path, file: Path) -> None:
    """Refuse a file of a directory that is a link to somewhere else.

    Raises:
        InputError: it is.
    """
    if not is_inside(folder, file):
        raise InputError(
            file, "is a link that leaves its directory", "put the file itself there, or give it as PATH"
        )


def is_inside(folder: Path, file: Path) -> bool:
    """Return whether a file of a directory, links followed, lies in it."""
    try:
        return file.resolve().is_relative_to(root_of(folder))
    except (OSError, RuntimeError, ValueError):  # links in a circle; a name that no file can have
        return False


_AGAIN = "take the checkpoint from its source again"
