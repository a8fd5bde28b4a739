"""The tensors in the tree of a torch pickle: found, read, and given new values.

A tensor is a call with a reference to a storage, an offset, sizes and strides. New values of the same shape go into the
bytes of its storage, so that the pickle stays as it is and views of one storage stay views; where another tensor
that does not change has a share in those bytes, or the shape changes, it gets a storage of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nndiag.checkpoint.allowed import REBUILD, TYPED_REBUILD
from nndiag.surgery.writing.inert import Global, Made, Persistent, parts_of

Container = MutableMapping[Any, Any] | list[Any]

_DTYPES = {
    "ByteStorage": torch.uint8, "CharStorage": torch.int8, "BoolStorage": torch.bool, "ShortStorage": torch.int16,
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "IntStorage": torch.int32,
    "FloatStorage": torch.float32, "LongStorage": torch.int64, "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_BARE = frozenset(REBUILD + name for name in ("tensor", "tensor_v2", "tensor_v3"))
_WRAPPED = frozenset(REBUILD + name for name in ("parameter", "parameter_with_state"))


@dataclass(frozen=True, eq=False)
class Slot:
    """A place in the tree that holds a tensor; ``container`` is ``None`` where it cannot be replaced there."""

    container: Container | None
    key: Any
    node: Made

    @cached_property
    def geometry(self) -> Geometry:
        """Where its numbers lie."""
        return geometry_of(self.node)


@dataclass(frozen=True)
class Geometry:
    """Where the numbers of a tensor lie: key of the storage, offset, sizes and strides in numbers."""

    storage: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @cached_property
    def extent(self) -> tuple[int, int]:
        """The first byte, and the one behind the last."""
        if 0 in self.size:
            return 0, 0
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return self.offset * self.dtype.itemsize, (last + 1) * self.dtype.itemsize

    def view(self, content: bytearray) -> Tensor:
        """Return the tensor in the bytes of its storage."""
        numbers = len(content) // self.dtype.itemsize
        if not numbers:
            return torch.empty(self.size, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype, count=numbers).as_strided(
            self.size, self.stride, self.offset
        )


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor in the order of its indices, as they lie in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class TensorTree:
    """A file of torch.save to be changed.

    Args:
        path: its name, for messages.
        root: its tree.
        read: returns the bytes of a storage.
    """

    def __init__(self, path: Path, root: object, read: Callable[[str], bytes]) -> None:
        self.path, self.root, self._read = path, root, read
        self.storages: dict[str, bytearray] = {}
        self.changed = False
        self._new: dict[tuple[int, str], Tensor] = {}
        self._own: dict[tuple[int, torch.dtype], Persistent] = {}

    def tensor(self, node: Made) -> Tensor:
        """Return the values of a tensor as they were."""
        found = geometry_of(node)
        return found.view(bytearray(self._read(found.storage)))

    def put(self, container: Container, key: Any, value: Tensor) -> None:
        """Give a tensor of a container new values; they are cast to its type and written by ``settle``."""
        self._new[id(container), repr(key)] = value

    def mark(self) -> None:
        """Say that something else in the tree was changed, so that it must be written anew."""
        self.changed = True

    def settle(self) -> None:
        """Write new values into the storages, or into new ones."""
        by_storage: defaultdict[str, list[tuple[Slot, Tensor | None]]] = defaultdict(list)
        for slot in tensors_in(self.root):
            new = None if slot.container is None else self._new.get((id(slot.container), repr(slot.key)))
            by_storage[slot.geometry.storage].append((slot, new))
        for slots in list(by_storage.values()):
            for slot, new in slots:
                if new is None:
                    continue
                value = new.detach().cpu().to(slot.geometry.dtype)
                shared = any(_clash(slot, new, other, others) for other, others in slots)
                if shared or value.shape != slot.geometry.size:
                    self._into_own_storage(slot, new, value, set(by_storage))
                else:
                    self._into_place(slot.geometry, value)

    def _into_place(self, where: Geometry, value: Tensor) -> None:
        if where.storage not in self.storages:
            self.storages[where.storage] = bytearray(self._read(where.storage))
        where.view(self.storages[where.storage]).copy_(value)

    def _into_own_storage(self, slot: Slot, given: Tensor, value: Tensor, taken: set[str]) -> None:
        assert slot.container is not None
        values = value.contiguous()
        # what was given to several places as one tensor is one storage again
        whose = id(given), value.dtype
        if whose not in self._own:
            word, kind, _, location, _, *rest = claim_of(slot.node)
            key = next(str(n) for n in count(len(taken)) if str(n) not in taken | self.storages.keys())
            numbers = values.numel() * (values.element_size() if kind.last == "UntypedStorage" else 1)
            self._own[whose] = Persistent((word, kind, key, location, numbers, *rest))
            self.storages[key] = bytearray(bytes_of(values))
        _, arguments = _call(slot.node)
        new = (self._own[whose], 0, tuple(values.shape), tuple(values.stride()), *arguments[4:])
        slot.container[slot.key] = _with_arguments(slot.node, new)
        self.changed = True


def tensors_in(root: object) -> Iterator[Slot]:
    """Yield every tensor of a tree once for every place that it stands in."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for container, key, part in parts_of(value):
            if isinstance(part, Made) and is_tensor(part):
                yield Slot(container, key, part)
            elif isinstance(part, dict | list | tuple | set | frozenset | Made):
                waiting.append(part)


def is_tensor(value: object) -> bool:
    """Return whether a value of the tree is a dense tensor or a parameter."""
    return isinstance(value, Made) and _call(value)[0] in _BARE


def claim_of(node: Made) -> tuple[Any, ...]:
    """Return what a tensor says of its storage: ``"storage"``, its class, key, device and count of numbers."""
    storage = _call(node)[1][0]
    assert isinstance(storage, Persistent)
    assert isinstance(storage.claim, tuple)
    return storage.claim


def geometry_of(node: Made) -> Geometry:
    """Return where the numbers of a tensor lie."""
    _, (_, offset, size, stride, *rest) = _call(node)
    claim = claim_of(node)
    dtype = _DTYPES.get(claim[1].last)
    if dtype is None:
        kind = rest[2]
        assert isinstance(kind, Global)
        dtype = getattr(torch, kind.last)
    if isinstance(size, Made):  # torch.Size of them
        (size,) = size.arguments  # type: ignore[misc]
    return Geometry(claim[2], dtype, offset, tuple(size), tuple(stride))


def _call(node: Made) -> tuple[str, tuple[Any, ...]]:
    """Return the call that makes a tensor, without what is wrapped around it."""
    arguments: Any = node.arguments
    if node.name in _WRAPPED and isinstance(arguments[0], Made):
        return _call(arguments[0])
    if node.name == TYPED_REBUILD and isinstance(arguments[0], Global):
        return arguments[0].name, arguments[2]
    return node.name, arguments


def _with_arguments(node: Made, new: tuple[Any, ...]) -> Made:
    """Return a tensor like another one with the call's arguments replaced."""
    arguments: Any = node.arguments
    if node.name in _WRAPPED:
        arguments = (_with_arguments(arguments[0], new), *arguments[1:])
    elif node.name == TYPED_REBUILD:
        arguments = (*arguments[:2], new, *arguments[3:])
    else:
        arguments = new
    made = Made(node.opcode, node.function, arguments)
    made.states = list(node.states)
    return made


def _clash(slot: Slot, value: Tensor, other: Slot, others: Tensor | None) -> bool:
    """Whether a new value in the bytes of its tensor would change another that stays or becomes something else."""
    if slot is other or not _overlap(slot.geometry, other.geometry):
        return False
    same = slot.geometry == other.geometry
    return others is None or not same or not torch.equal(value, others)


def _overlap(one: Geometry, other: Geometry) -> bool:
    (a, b), (c, d) = one.extent, other.extent
    return a < d and c < b
