"""A pickle as a tree of what it says, changed in places and written down again: nothing that it names is looked up.

``torch.load`` builds objects, some of which it cannot build without running code, and forgets where a tensor was saved
from and which others it shares its storage with. Here a name stays a name, a call stays a call, and what is written is
what was read but for what was changed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import IO, Any, ClassVar

from nndiag.checkpoint.source import damaged, summary


class Made:
    """An object that a pickle makes: what it calls with which arguments, and what it then puts into the result."""

    def __init__(self, opcode: bytes, function: object, arguments: object) -> None:
        self.opcode, self.function, self.arguments = opcode, function, arguments
        self.listed: list[object] = []
        self.added: list[object] = []
        self.pairs: dict[object, object] = {}
        self.states: list[object] = []

    def __call__(self, *arguments: object) -> Made:
        """Return the call, which is not made."""
        return Made(pickle.REDUCE, self, arguments)

    def append(self, item: object) -> None:
        """Put an item into what is a list."""
        self.listed.append(item)

    def extend(self, items: Iterable[object]) -> None:
        """Put items into what is a list."""
        self.listed.extend(items)

    def add(self, item: object) -> None:
        """Put an item into what is a set."""
        self.added.append(item)

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs[key] = value

    def __setstate__(self, state: object) -> None:
        self.states.append(state)

    @property
    def name(self) -> str:
        """The dotted name of what it calls; empty where that has none."""
        return self.function.name if isinstance(self.function, Global) else ""


class Global:
    """A name in a pickle."""

    def __init__(self, module: str, last: str) -> None:
        self.module, self.last = module, last

    @property
    def name(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.last}"

    def __call__(self, *arguments: object) -> Made:
        """Return the call, which is not made."""
        return Made(pickle.REDUCE, self, arguments)


class Persistent:
    """A reference to what lies outside of the pickle: a storage."""

    def __init__(self, claim: object) -> None:
        self.claim = claim


def read_pickle(path: Path, file: IO[bytes]) -> tuple[object, int]:
    """Read one pickle, and leave the file behind its end.

    Args:
        path: the file's name, for messages.
        file: the file, at the start of a pickle that was checked, or that the user trusts.

    Returns:
        The tree, and the protocol that it was written in.

    Raises:
        InputError: it is damaged, or uses what torch.save never did.
    """
    reader = _Reader(file)
    try:
        return reader.load(), reader.protocol
    # damaged bytes end in any exception
    except Exception as error:
        raise damaged(path, f"its pickle: {summary(error)}") from error


def write_pickle(tree: object, protocol: int) -> bytes:
    """Return a tree as a pickle."""
    stream = io.BytesIO()
    _Writer(stream, max(protocol, _LEAST)).dump(tree)
    return stream.getvalue()


def mapping_of(value: object) -> MutableMapping[Any, Any] | None:
    """Return the entries of a dict, or of an object that is filled like one, to read and to change."""
    if isinstance(value, dict):
        return value
    return value.pairs if isinstance(value, Made) and (value.pairs or value.name in _DICTS) else None


def parts_of(value: object) -> Iterator[tuple[MutableMapping[Any, Any] | list[Any] | None, Any, object]]:
    """Yield what a value consists of: where it can be replaced, the container and the key or index with it."""
    if isinstance(value, dict):
        yield from ((value, key, part) for key, part in value.items())
    elif isinstance(value, list):
        yield from ((value, index, part) for index, part in enumerate(value))
    elif isinstance(value, tuple | set | frozenset):
        yield from ((None, None, part) for part in value)
    elif isinstance(value, Made):
        yield None, None, value.arguments
        for inside in (value.listed, value.added, value.pairs, value.states):
            yield from parts_of(inside)


_LEAST = 2  # what torch.save writes
_DICTS = frozenset({"collections.OrderedDict", "collections.defaultdict", "builtins.dict"})


# the ones written in Python: those in C cannot be told what to do with single opcodes
_UNPICKLER: Any = pickle._Unpickler  # type: ignore[attr-defined, unused-ignore]
_PICKLER: Any = pickle._Pickler  # type: ignore[attr-defined, unused-ignore]


class _Reader(_UNPICKLER):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = {
        code: step
        for code, step in _UNPICKLER.dispatch.items()
        if bytes([code])
        not in (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.protocol = 0
        self._globals: dict[tuple[str, str], Global] = {}

    def find_class(self, module: str, name: str) -> Global:
        return self._globals.setdefault((module, name), Global(module, name))

    def persistent_load(self, claim: object) -> Persistent:
        return Persistent(claim)

    def load_proto(self) -> None:
        super().load_proto()
        self.protocol = self.proto

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = Made(pickle.NEWOBJ, self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        arguments = (self.stack[-2], self.stack[-1])
        del self.stack[-2:]
        self.stack[-1] = Made(pickle.NEWOBJ_EX, self.stack[-1], arguments)

    dispatch[pickle.PROTO[0]] = load_proto
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex


class _Writer(_PICKLER):  # type: ignore[misc]
    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Persistent):
            self.save(obj.claim)
            self.write(pickle.BINPERSID)
        elif not isinstance(obj, Made | Global):
            super().save(obj, save_persistent_id)
        elif id(obj) in self.memo:
            self.write(self.get(self.memo[id(obj)][0]))
        elif isinstance(obj, Global):
            self._save_name(obj)
        else:
            self._save_made(obj)

    def _save_name(self, name: Global) -> None:
        if self.proto >= 4:
            self.save(name.module)
            self.save(name.last)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{name.module}\n{name.last}\n".encode())
        self.memoize(name)

    def _save_made(self, made: Made) -> None:
        self.save(made.function)
        if made.opcode == pickle.NEWOBJ_EX:
            for part in made.arguments:  # type: ignore[attr-defined]
                self.save(part)
        else:
            self.save(made.arguments)
        self.write(made.opcode)
        self.memoize(made)
        if made.listed:
            self._batch_appends(iter(made.listed))
        if made.added:
            self.write(pickle.MARK)
            for item in made.added:
                self.save(item)
            self.write(pickle.ADDITEMS)
        if made.pairs:
            self._batch_setitems(iter(made.pairs.items()))
        for state in made.states:
            self.save(state)
            self.write(pickle.BUILD)
