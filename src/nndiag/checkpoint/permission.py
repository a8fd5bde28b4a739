"""What the user has allowed beyond the default of running nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nndiag.errors import UsageError


@dataclass(frozen=True)
class Permission:
    """``trust`` lets pickled modules and torch.export archives in; ``names`` are further globals of a pickle.

    A name is dotted, ``"argparse.Namespace"``, and looked up when it is allowed: by the user, never by a file.
    """

    trust: bool = False
    names: frozenset[str] = frozenset()
    objects: tuple[tuple[Callable[..., Any], str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, trust: bool = False, names: Iterable[str] = ()) -> Permission:
        """Look the names up.

        Raises:
            UsageError: a name is none, or is not there.
        """
        wanted = tuple(dict.fromkeys(names))
        return cls(trust, frozenset(wanted), tuple((_found(name), name) for name in wanted))


NOTHING = Permission()
"""The default."""

_DANGEROUS = frozenset(
    "builtins os posix nt subprocess sys shutil socket importlib runpy code pty ctypes pickle _pickle marshal"
    " operator types webbrowser tempfile io codecs timeit pdb bdb cProfile multiprocessing signal".split()
)
_HARMLESS_BUILTINS = frozenset("set frozenset complex slice range object bytes dict list tuple".split())


def is_dangerous(name: str) -> bool:
    """Return whether a global can run commands, open files or import code by itself, and is never data."""
    module, _, last = name.rpartition(".")
    if module == "builtins":
        return last not in _HARMLESS_BUILTINS
    if module.partition(".")[0] == "torch":
        return module != "torch.torch_version"  # the rest allocates what it is told, or loads files
    return module.partition(".")[0] in _DANGEROUS or last.startswith(("load", "exec", "eval", "_load"))


def _found(name: str) -> Callable[..., Any]:
    module, _, last = name.rpartition(".")
    option = f"--allow-global {name}"
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            option, "is not the dotted name of a class or function", "write it as in the refusal, module.Name"
        )
    if is_dangerous(name):
        raise UsageError(
            option, "can run code or open files, and is not data", "load the file where you trust it instead"
        )
    try:
        found = getattr(import_module(module), last)
    # importing runs the module, which may raise anything
    except Exception as error:
        raise UsageError(option, "there is no such name here", "install what it comes from") from error
    if not callable(found):
        raise UsageError(option, "is neither a class nor a function", "name the one in the refusal")
    return found  # type: ignore[no-any-return]
