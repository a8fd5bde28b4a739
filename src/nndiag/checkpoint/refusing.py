"""The refusal of a pickle that names what is not allowed, told by what the rest of it names; nothing is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from nndiag.checkpoint.allowed import ALLOWED, UNSUPPORTED
from nndiag.checkpoint.deepspeed import MODULE, zero_refusal
from nndiag.checkpoint.permission import Permission, is_dangerous, is_known_data
from nndiag.errors import InputError

_OPCODES = 1_000_000  # about a second
_OFFERED = 8
# what nn.Module.__init__ sets, so that every pickled module has it, whatever its class
_MODULE_STATE = frozenset({"_parameters", "_buffers", "_modules", "_forward_hooks"})
_OF_MODULES = ("torch.nn.", "torch._C._nn.")
_LOAD = "load it where you trust it and save model.state_dict() instead"


class CodeError(InputError):
    """A file that cannot be read without running code that it names."""


class NotAllowedError(Exception):
    """A pickle names or calls this global, and may not.

    Args:
        name: the dotted name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Opcode(Protocol):
    @property
    def name(self) -> str: ...


def full_name(module: str, name: str) -> str:
    """Return the dotted name of a global, as Python 3 calls it."""
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def refusal(
    path: Path, name: str, rest: Iterable[tuple[_Opcode, object, object]], permission: Permission
) -> InputError:
    """Return the one line for a pickle that was refused over a name.

    It names what is worst in the whole pickle, and offers a flag for well-known data alone: what a hostile file
    calls harmless is not repeated to the user.

    Args:
        path: the file's name.
        name: the global at which the walk stopped.
        rest: the opcodes behind it.
        permission: what the user allowed already.
    """
    names: list[str] = []
    strings: set[object] = set()
    for kind, argument in _readable(rest):
        if kind == "GLOBAL":
            module, _, last = str(argument).partition(" ")
            names.append(full_name(module, last))
        elif kind == "BINUNICODE" and argument in _MODULE_STATE:
            strings.add(argument)
    known = ALLOWED | UNSUPPORTED.keys() | permission.names
    asked = [name, *(other for other in dict.fromkeys(names) if other not in known and other != name)]
    hostile = [other for other in asked if is_dangerous(other) and not other.startswith(_OF_MODULES)]
    if not hostile and any(other.startswith(MODULE) for other in asked):
        return zero_refusal(path)
    is_module = strings >= _MODULE_STATE or any(other.startswith("torch.nn.modules.") for other in asked)
    if hostile:
        return _code(path, hostile[0], f"{_LOAD}, or ask its author for safetensors")
    if is_module or name.startswith("torch.nn."):
        holds = "it holds a pickled module, and " if is_module else ""
        return _code(path, name, f"{_LOAD}, or give --trust", holds)
    unknown = [other for other in asked if not is_known_data(other)]
    if unknown:
        return _code(path, unknown[0], f"{_LOAD}, or ask its author for safetensors")
    flags = " ".join(f"--allow-global {other}" for other in asked[:_OFFERED])
    return _code(path, name, f"{_LOAD}; it is known as plain data, so that {flags} admits it")


def _code(path: Path, name: str, do: str, holds: str = "") -> CodeError:
    why = f"is refused: {holds}its pickle names {name}, which would have to run as code"
    return CodeError(path, why, do)


def _readable(rest: Iterable[tuple[_Opcode, object, object]]) -> Iterator[tuple[str, object]]:
    """Yield names and arguments of opcodes up to the end, or to where the pickle is damaged."""
    try:
        for opcode, argument, _ in islice(rest, _OPCODES):
            yield opcode.name, argument
    # as in the walk, damaged bytes end in any exception; the refusal stands without them
    except Exception:
        return
