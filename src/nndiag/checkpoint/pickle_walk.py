"""A walk through a pickle that builds nothing: opcodes in, claims out.

It keeps the stack of the real unpickler with stand-ins on it, knows the opcodes that torch's restricted
unpickler knows, and refuses every other.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import BinaryIO

from nndiag.checkpoint.inventory import Inventory, Thing
from nndiag.checkpoint.refusing import CodeError, NotAllowedError, refusal
from nndiag.checkpoint.source import damaged, summary
from nndiag.errors import InputError

MAX_PICKLE = 256 << 20  # a million tensors fit
MAX_NAME = 1 << 12
SPARE_OBJECTS = 100_000
BYTES_AN_OBJECT = 4
"""An opcode of one byte makes an object of sixty or more; what torch.save writes has more bytes for each."""


def walk_pickle(file: BinaryIO, inventory: Inventory) -> object:
    """Walk through one pickle and add what it claims to ``inventory``.

    Args:
        file: a file at the start of a pickle; it is left behind its end.
        inventory: receives names, storages and tensors.

    Returns:
        A stand-in for the object: numbers, strings, tuples and lists as they are, anything else as a
        ``Thing``.

    Raises:
        InputError: the pickle is damaged, or names or claims something that is not allowed.
    """
    bounded = _Bounded(file)
    start = file.tell()
    walk = _Walk(inventory, SPARE_OBJECTS + (bounded.end - start) // BYTES_AN_OBJECT)
    opcodes = pickletools.genops(bounded)  # type: ignore[arg-type]
    try:
        for opcode, argument, position in opcodes:
            if (position or 0) - start > MAX_PICKLE:
                raise InputError(
                    inventory.path, f"has a pickle of more than {MAX_PICKLE} bytes", "save the weights alone"
                )
            walk.step(opcode.name, argument)
        return walk.stack.pop()
    except InputError:
        raise
    except NotAllowedError as error:
        raise refusal(inventory.path, error.name, opcodes, inventory.permission) from None
    # Damaged bytes end in any exception: an empty stack, a missing memo, a bad length, a bad character.
    except Exception as error:
        raise damaged(inventory.path, f"its pickle breaks off: {summary(error)}") from error


class _Bounded:
    """A file that is asked for no more bytes at once than it has: a length in a pickle may say anything, and
    Python sets as much memory aside before it reads.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tell = file.tell
        at = file.tell()
        self.end = file.seek(0, 2)
        file.seek(at)

    def read(self, count: int) -> bytes:
        """Return that many bytes, or as many as there are."""
        return self.file.read(max(0, min(count, self.end - self.file.tell(), MAX_PICKLE)))

    def readline(self) -> bytes:
        """Return a line, or the beginning of one that is too long for a name."""
        return self.file.readline(MAX_NAME)


class _Walk:
    """The unpickler's stack, marks and memo, holding stand-ins."""

    def __init__(self, inventory: Inventory, objects: int) -> None:
        self.inventory = inventory
        self.left = objects
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        """Do what one opcode does.

        Raises:
            InputError: torch's restricted unpickler does not know the opcode, or the inventory refuses its
                claim.
        """
        if name in _MAKES:
            self.make()
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _TUPLES:
            size = _TUPLES[name]
            self.stack[-size:] = [(*self.stack[-size:],)]
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name != "STOP":
            raise InputError(
                self.inventory.path,
                f"is pickled with the opcode {name}, which is not read",
                "save it again with torch.save and its default pickle_protocol",
            )

    def make(self) -> None:
        """Count an object that the unpickler would make."""
        self.left -= 1
        if self.left < 0:
            raise InputError(
                self.inventory.path, "is refused: its pickle makes more objects than such a file has",
                "save the weights alone",
            )  # fmt: skip

    def pop_mark(self) -> list[object]:
        """Return the values since the last mark and go back to the stack below it."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def proto(self, argument: object) -> None:
        """Refuse the protocols that torch's restricted unpickler does not read."""
        if argument not in (2, 3):
            raise CodeError(
                self.inventory.path,
                f"is pickled with protocol {argument}, which cannot be read without running code",
                "save it again with torch.save and its default pickle_protocol",
            )

    def mark(self, _: object) -> None:
        """Start a new stack above this one."""
        self.marked.append(self.stack)
        self.stack = []

    def group(self, _: object) -> None:
        """Make a tuple of the values since the last mark."""
        items = self.pop_mark()
        self.stack.append((*items,))

    def name(self, argument: object) -> None:
        """Push a global, by name."""
        module, _, name = str(argument).partition(" ")
        self.stack.append(self.inventory.name(module, name))

    def build(self, _: object) -> None:
        """Set the attributes of an OrderedDict (``_metadata``) or of what the user allowed; of nothing else."""
        self.stack.pop()
        if self.stack[-1] not in (Thing.ORDERED, Thing.OBJECT):
            raise damaged(self.inventory.path, "attributes set on something that has none")

    def extend(self, items: list[object]) -> None:
        """Append to the list on top."""
        target = self.stack[-1]
        if target is Thing.OBJECT:
            return
        if not isinstance(target, list):
            raise damaged(self.inventory.path, "a list that is none")
        target.extend(items)

    def reduce(self, _: object) -> None:
        """Call, or rather ask what calling would give."""
        arguments = self.stack.pop()
        self.stack[-1] = self.inventory.call(self.stack[-1], arguments)

    def create(self, _: object) -> None:
        """Make an instance of a class, if the user allowed it."""
        arguments = self.stack.pop()
        if self.inventory.call(self.stack[-1], arguments) is not Thing.OBJECT:
            raise damaged(self.inventory.path, "an instance of what is no class")
        self.stack[-1] = Thing.OBJECT

    def put(self, argument: object) -> None:
        """Remember the value on top."""
        assert isinstance(argument, int)
        self.memo[argument] = self.stack[-1]

    def get(self, argument: object) -> None:
        """Push a remembered value."""
        assert isinstance(argument, int)
        self.stack.append(self.memo[argument])


_CONSTANTS: dict[str, object] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_DICT": Thing.DICT,
    "EMPTY_SET": Thing.VALUE,
}  # fmt: skip
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"})
_MAKES = frozenset({"MARK", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Walk, object], object]] = {
    "PROTO": _Walk.proto,
    "MARK": _Walk.mark,
    "TUPLE": _Walk.group,
    "EMPTY_LIST": lambda walk, _: walk.stack.append([]),
    "APPEND": lambda walk, _: walk.extend([walk.stack.pop()]),
    "APPENDS": lambda walk, _: walk.extend(walk.pop_mark()),
    "SETITEM": lambda walk, _: (walk.stack.pop(), walk.stack.pop()),
    "SETITEMS": lambda walk, _: walk.pop_mark(),
    "GLOBAL": _Walk.name,
    "REDUCE": _Walk.reduce,
    "NEWOBJ": _Walk.create,
    "BUILD": _Walk.build,
    "BINPERSID": lambda walk, _: walk.stack.append(walk.inventory.storage(walk.stack.pop())),
    "BINPUT": _Walk.put,
    "LONG_BINPUT": _Walk.put,
    "BINGET": _Walk.get,
    "LONG_BINGET": _Walk.get,
}
