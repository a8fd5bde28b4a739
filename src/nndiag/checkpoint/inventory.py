"""What a torch pickle claims, added up from its opcodes before anything is built.

``torch.load(weights_only=True)`` keeps code out, but takes sizes on trust: a tensor may claim more than its
storage holds, a storage more than its record (under mmap that reads beyond it), and a few bytes may ask for
terabytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeGuard

from nndiag.checkpoint.allowed import (
    ALLOWED,
    CALLS,
    DTYPES,
    REBUILD,
    STORAGES,
    TENSOR_CLASSES,
    TYPED_REBUILD,
    UNSUPPORTED,
)
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.refusing import NotAllowedError, full_name
from nndiag.checkpoint.source import damaged
from nndiag.errors import InputError

MAX_TENSORS = 1_000_000
_ADVICE = {
    "sparse": "save dense tensors (tensor.to_dense())",
    "quantised": "give the checkpoint before it was quantised, or save tensor.dequantize()",
    "values": "save it from where the model has its weights in memory",
}
"""What to do about tensors that cannot be examined, by a word for what they are."""
MAX_REUSE = 8  # tensors may share storages (tied weights, views), but not without end
FREE_BYTES = 64 << 20


class Thing(Enum):
    """A value of which only the kind matters."""

    DICT = "dict"
    ORDERED = "OrderedDict"
    TENSOR = "tensor"
    VALUE = "value"
    OBJECT = "an instance of a class that the user allowed"


@dataclass(frozen=True)
class Global:
    """A name in the pickle, not looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """What the pickle says of a storage: its key in the file, bytes per element, bytes in all."""

    key: str
    item: int
    nbytes: int


@dataclass
class Inventory:
    """The claims of one file, added up while its pickle is walked through."""

    path: Path
    permission: Permission = NOTHING
    storages: dict[str, Storage] = field(default_factory=dict)
    tensors: int = 0
    claimed: int = 0

    def name(self, module: str, name: str) -> Global:
        """Return the global of this name.

        Raises:
            NotAllowedError: it is not allowed.
            InputError: it stands for a tensor that is not examined.
        """
        full = full_name(module, name)
        if full in UNSUPPORTED:
            raise unsupported(self.path, UNSUPPORTED[full])
        if full not in ALLOWED and full not in self.permission.names:
            raise NotAllowedError(full)
        return Global(full)

    def storage(self, claim: object) -> Storage:
        """Return the storage that a persistent id describes.

        Raises:
            InputError: torch.save writes no such description.
        """
        if not isinstance(claim, tuple) or len(claim) not in (5, 6) or claim[0] != "storage":
            raise damaged(self.path, "a storage without a description")
        _, kind, key, _, count = claim[:5]
        if not (
            isinstance(kind, Global) and kind.name in STORAGES and isinstance(key, str) and _is_count(count)
        ):
            raise damaged(self.path, "a storage with an impossible description")
        if claim[5:] not in ((), (None,)):
            raise InputError(
                self.path, "uses the storage views of torch before 0.4", "save it again with a newer torch"
            )
        item = STORAGES[kind.name]
        storage = Storage(key, item, item * count)
        if self.storages.setdefault(key, storage) != storage:
            raise damaged(self.path, f"two descriptions of storage {key}")
        return storage

    def call(self, func: object, args: object) -> object:
        """Return what calling ``func`` would give, without calling it.

        Raises:
            NotAllowedError: it may not be called.
            InputError: it claims what cannot be.
        """
        if not isinstance(func, Global) or not isinstance(args, tuple):
            raise damaged(self.path, "a call of what is no function")
        name = func.name
        if name in self.permission.names:
            return Thing.OBJECT
        if name not in CALLS:
            raise NotAllowedError(name)
        if name.startswith(REBUILD):
            return self._rebuild(name.removeprefix(REBUILD), args)
        if name == TYPED_REBUILD:
            inner, kind, inner_args = args[:3]
            if not isinstance(kind, Global) or kind.name not in TENSOR_CLASSES:
                raise self._impossible()
            return self.call(inner, inner_args)
        if name == "builtins.bytearray" and args and args[0] is not Thing.VALUE:
            raise self._impossible()  # a number here would be a size to allocate
        if name == "_codecs.encode" and args[1:] not in (("latin1",), ("latin-1",)):
            raise self._impossible()  # protocol 2 writes bytes with these; other codecs do other work
        if name == "torch.Size" and args:
            return args[0]
        return Thing.ORDERED if name == "collections.OrderedDict" else Thing.VALUE

    def check_totals(self) -> None:
        """Refuse a file whose tensors together claim far more than its storages hold.

        Raises:
            InputError: they do.
        """
        held = sum(storage.nbytes for storage in self.storages.values())
        if self.claimed > MAX_REUSE * held + FREE_BYTES:
            raise InputError(
                self.path,
                f"is refused: its tensors claim {self.claimed} bytes where its storages hold {held}",
                "save contiguous copies of the tensors",
            )

    def _rebuild(self, name: str, args: tuple[object, ...]) -> Thing:
        if name in ("parameter", "parameter_with_state"):
            if args[0] is not Thing.TENSOR:
                raise self._impossible()
            return Thing.TENSOR
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, Storage):
            raise self._impossible()
        item = storage.item
        if name == "tensor_v3":
            dtype = args[6]
            if not isinstance(dtype, Global) or dtype.name not in DTYPES:
                raise self._impossible()
            item = DTYPES[dtype.name]
        if not (_is_count(offset) and _are_counts(size) and _are_counts(stride) and len(size) == len(stride)):
            raise damaged(self.path, "a tensor with an impossible shape")
        self._claim(storage, item, offset, tuple(zip(size, stride, strict=True)))
        return Thing.TENSOR

    def _claim(self, storage: Storage, item: int, offset: int, axes: tuple[tuple[int, int], ...]) -> None:
        elements, end = 1, offset + 1
        for extent, step in axes:
            elements *= extent
            end += (extent - 1) * step
        if elements and end * item > storage.nbytes:
            raise InputError(
                self.path,
                f"is refused: a tensor claims {end * item} bytes of a storage that holds {storage.nbytes}",
                "it is damaged or forged; take it from its source again",
            )
        self.tensors += 1
        self.claimed += elements * item
        if self.tensors > MAX_TENSORS:
            raise InputError(self.path, f"holds more than {MAX_TENSORS} tensors", "save the weights alone")

    def _impossible(self) -> InputError:
        return damaged(self.path, "a call with impossible arguments")


def unsupported(path: Path, what: str) -> InputError:
    """Return the error for a tensor that is not dense, on the CPU and made of plain numbers."""
    advice = next((do for word, do in _ADVICE.items() if word in what), "save dense CPU tensors")
    return InputError(path, f"holds {what}", advice)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 62


def _are_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_is_count, values))
