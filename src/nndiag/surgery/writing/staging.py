"""A new file or directory that appears whole or not at all, and never in the place of anything that is there.

It is written into a hidden folder beside its place, flushed to the disk, and moved. Whoever kills the program leaves at
most that folder and files that belong beside the target and came before it; the next run with the same target removes
both.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nndiag.errors import InputError, UsageError


def check_destination(source: Path, destination: Path) -> None:
    """Refuse a target that is, holds, or lies in something that is already there; remove what killed runs left of it.

    Args:
        source: the checkpoint that is read.
        destination: where a new one is to be.

    Raises:
        UsageError: there is something already, the source itself perhaps, no folder to put it in, or it would lie
            inside the checkpoint.
        InputError: the folder may not be written to.
    """
    what, folder = f"--out {destination}", destination.absolute().parent
    try:
        os.lstat(destination)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(what, f"is not a possible name ({why.lower()})", "choose another") from error
    else:
        if _is_same(source, destination):
            raise UsageError(what, "is the checkpoint itself, which is never overwritten", "name a new one")
        raise UsageError(what, "is there already, and nothing is overwritten", "name a new one, or remove it")
    if not folder.is_dir():
        raise UsageError(what, f"there is no folder {folder}", "make it first, or choose another")
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise UsageError(what, "lies inside the checkpoint that is read", "choose a place outside of it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(destination, "cannot be written: permission denied", "choose another place")
    try:
        _remove_leftovers(destination)
    except OSError as error:
        raise _unwritable(destination, error) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield a hidden folder; what is in it at the end moves beside ``destination``, the entry of that name last.

    Where the block raises, nothing moves and the folder is gone.

    Args:
        destination: the target, checked before.

    Raises:
        InputError: the system does not let it be written; also in place of an ``OSError`` of the block, which is about
            the file that it names.
        UsageError: the target, or what belongs beside it, has come into being meanwhile.
    """
    parent, lock = destination.absolute().parent, None
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=parent))
        lock = _locked(folder)
        yield folder
        names = sorted(os.listdir(folder), key=lambda name: (name == destination.name, name))
        for name in names:
            _refuse_existing(parent / name)
        _flush(folder)
        try:
            for name in names:
                _move(folder / name, parent / name)
        except BaseException:  # also where the user stops it in between
            if _never_arrived(folder / destination.name):
                _take_back(folder, parent)
            raise
        _flush_entry(parent)
    except OSError as error:
        if folder is not None and _is_of_another(folder, error):
            raise _unreadable(error) from error
        raise _unwritable(destination, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _prefix(destination: Path) -> str:
    """Return how hidden folders of a target begin; a hash, since the name may be as long as names can be."""
    name = hashlib.sha256(os.fsencode(destination.name)).hexdigest()[:12]
    return f".nndiag-{name}-"


def _remove_leftovers(destination: Path) -> None:
    """Remove hidden folders of runs that were killed, those that nobody holds a lock on, and what they had moved."""
    parent, prefix = destination.absolute().parent, _prefix(destination)
    for entry in list(os.scandir(parent)):
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            lock = _locked(Path(entry.path))
            if lock is not None:
                if _never_arrived(Path(entry.path, destination.name)):
                    _take_back(Path(entry.path), parent)
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(lock)


def _never_arrived(made: Path) -> bool:
    """Whether what lies in a hidden folder was not moved to its place: it would be gone, or have a second name."""
    return made.is_dir() or (made.is_file() and made.stat().st_nlink == 1)


def _take_back(folder: Path, parent: Path) -> None:
    """Remove the files that were moved beside a target that never arrived."""
    for name in os.listdir(folder):
        if _is_same(folder / name, parent / name):
            os.unlink(parent / name)


def _locked(folder: Path) -> int | None:
    """Return a descriptor that holds a lock on a folder, or ``None`` where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _flush(folder: Path) -> None:
    """Have everything in a folder on the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _flush_entry(Path(root, name))
        _flush_entry(Path(root))


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(made: Path, target: Path) -> None:
    """Move without ever replacing: linking a file cannot, nor can renaming to a directory with something in it.

    The link in the hidden folder stays until all is moved: it tells the next run what a killed one had moved.
    """
    if not made.is_dir():
        try:
            os.link(made, target)
        except FileExistsError:
            _refuse_existing(target)
        except OSError:  # a file system without links
            _refuse_existing(target)
        else:
            return
    os.rename(made, target)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError(
            f"--out {target}", "is there already, and nothing is overwritten", "name a new one, or remove it"
        )


def _is_same(source: Path, destination: Path) -> bool:
    try:
        return os.path.samefile(source, destination)
    except OSError:
        return False


def _is_of_another(folder: Path, error: OSError) -> bool:
    """Whether an error names a file that was read: a copy to a full disk names what was copied, too."""
    if error.errno in _FULL or not isinstance(error.filename, str):
        return False
    named = Path(error.filename).absolute()
    return named != folder.parent and not named.is_relative_to(folder)


def _unreadable(error: OSError) -> InputError:
    return InputError(error.filename, f"cannot be read: {_why(error)}", "check the file, and heal again")


def _unwritable(destination: Path, error: OSError) -> InputError:
    do = "free some space, or choose another place" if error.errno in _FULL else "choose another place"
    return InputError(destination, f"cannot be written: {_why(error)}", do)


def _why(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
