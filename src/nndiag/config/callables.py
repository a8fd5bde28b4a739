"""Specs that name code, ``path/file.py:callable`` or ``pkg.mod:callable``: read them, import them, run what
they name.

Code is only ever run from here after its owner was decided on (``trust``). What it prints goes to stderr,
because stdout carries the report alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from nndiag.config.suggest import suggest
from nndiag.errors import NndiagError, UsageError


def names_code(spec: str) -> bool:
    """Return whether ``spec`` has the form of a callable rather than of a file name."""
    place, _, attribute = spec.rpartition(":")
    return bool(place) and all(part.isidentifier() for part in attribute.split("."))


def load_callable(spec: str, folder: Path, option: str, failed: type[NndiagError]) -> Callable[..., object]:
    """Import what ``spec`` names and return it.

    A file is imported under a private name of its own, with its folder on ``sys.path`` only meanwhile; a
    module is looked for where Python looks, then in ``folder``.

    Args:
        spec: ``path/file.py:callable`` or ``pkg.mod:callable``; the callable may be dotted.
        folder: what a relative path counts from.
        option: where the spec was given, for messages: ``"--model"``.
        failed: the error to raise when the imported code itself fails.

    Raises:
        UsageError: the spec is malformed, or there is no such file, module or attribute, or it is not
            callable.
    """
    what = f"{option} {spec}"
    if not names_code(spec):
        raise UsageError(what, "does not name a callable", "write path/file.py:callable or pkg.mod:callable")
    place, _, attribute = spec.rpartition(":")
    is_file = place.endswith(".py")
    module = (
        _from_file(folder / place, what, failed) if is_file else _from_module(place, folder, what, failed)
    )
    target: object = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in dir(target) if not name.startswith("_")]
            raise UsageError(what, f'{place} has no "{part}"', suggest(part, public))
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(
            what, f"is of type {type(target).__name__}, which cannot be called", "name a function or a class"
        )
    return target


@contextlib.contextmanager
def running(what: str, failed: type[NndiagError]) -> Iterator[None]:
    """Run the user's code: what it raises becomes one line, what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except NndiagError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(
            what, f"raised {reason(error)}", "correct it; run it in Python for the traceback"
        ) from error


def reason(error: BaseException) -> str:
    """Return an exception as ``ValueError: what it says``, on one line of bounded length."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def _from_file(path: Path, what: str, failed: type[NndiagError]) -> ModuleType:
    if not os.path.isfile(path):  # a name may also be impossible
        raise UsageError(
            what, f"there is no file {path}", "check the path; it counts from where the spec stands"
        )
    path = path.resolve()
    facts = path.stat()
    identity = f"{path}:{facts.st_mtime_ns}:{facts.st_size}"
    name = f"_nndiag_code_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importing(path.parent, first=True), running(what, failed):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(name: str, folder: Path, what: str, failed: type[NndiagError]) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            what, f'"{name}" is no module name', "write path/file.py:callable or pkg.mod:callable"
        )
    try:
        with _importing(folder.resolve(), first=False), running(what, failed):
            return importlib.import_module(name)
    except NndiagError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
            raise UsageError(
                what, f'there is no module "{cause.name}"', "install it, or write path/file.py:callable"
            ) from cause
        raise


@contextlib.contextmanager
def _importing(folder: Path, first: bool) -> Iterator[None]:
    """Put ``folder`` on ``sys.path`` and write no bytecode into it, for the time of an import."""
    entry, wrote = str(folder), sys.dont_write_bytecode
    importlib.invalidate_caches()
    sys.path.insert(0 if first else len(sys.path), entry)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
