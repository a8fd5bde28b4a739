"""Named tensors of which shapes and types are known at once, and values read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """A mapping of names to tensors that holds none of them.

    Args:
        specs: for every name a tensor of the right shape and type, in file order; on the device ``meta`` where the
            values are elsewhere.
        read: returns the tensor of a name, on the CPU.
        fill_part: puts numbers of it from a place on, in their order in memory, into a contiguous tensor of its type;
            where there is a cheap way to do that.
    """

    def __init__(
        self,
        specs: Mapping[str, Tensor],
        read: Callable[[str], Tensor],
        fill_part: Callable[[str, int, Tensor], None] | None = None,
    ) -> None:
        self.specs = specs
        self.fill_part = fill_part
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __repr__(self) -> str:
        return f"LazyTensors({len(self)} tensors)"


def specs_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors of the same shapes and types, without reading any."""
    return tensors.specs if isinstance(tensors, LazyTensors) else tensors


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> LazyTensors:
    """Return some of the tensors under other names, read as late as before.

    Args:
        tensors: the tensors.
        names: the new names, each with the old one.
    """
    specs = specs_of(tensors)
    fill = tensors.fill_part if isinstance(tensors, LazyTensors) else None
    return LazyTensors(
        {new: specs[old] for new, old in names.items()},
        lambda new: tensors[names[new]],
        None if fill is None else lambda new, first, tensor: fill(names[new], first, tensor),
    )


def spec(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor without values."""
    return torch.empty(shape, dtype=dtype, device="meta")
