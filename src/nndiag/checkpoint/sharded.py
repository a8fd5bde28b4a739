"""Weights split over several files, with an index such as ``model.safetensors.index.json``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.confine import confined
from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.inventory import MAX_TENSORS
from nndiag.checkpoint.json_file import read_object
from nndiag.checkpoint.lazy import LazyTensors, specs_of
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.safetensors_file import open_safetensors
from nndiag.checkpoint.source import Watched, damaged, opened
from nndiag.checkpoint.torch_file import read_torch
from nndiag.errors import InputError

_SHOWN = 3


def read_sharded(index: Path, permission: Permission = NOTHING) -> Contents:
    """Open every shard that an index names; tensors are read from them when asked for.

    Args:
        index: the index.
        permission: what the user allowed.

    Raises:
        InputError: a shard is missing or damaged, lies outside of the directory, or does not hold what the index says.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, 'no "weight_map"')
    if len(weight_map) > MAX_TENSORS:
        raise InputError(index, f"names more than {MAX_TENSORS} tensors", "take it from its source again")
    shards_named = [name for name in weight_map.values() if isinstance(name, str)]
    if len(shards_named) < len(weight_map):
        raise damaged(index, "a shard that is no file name")
    files = {name: confined(index, name) for name in dict.fromkeys(shards_named)}
    missing = [name[:100] for name, file in files.items() if not os.path.isfile(file)]  # or it can be none
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            index, f"misses {len(missing)} of its {len(files)} shards ({named})", "copy them beside the index"
        )
    watched = {index.name: Watched(index), **{name: Watched(file) for name, file in files.items()}}
    shards = {name: open_weights(file, permission) for name, file in files.items()}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise damaged(index, f"{shard} does not hold {name[:100]}")
    specs: dict[str, Tensor] = {name: specs_of(shards[shard])[name] for name, shard in weight_map.items()}
    tensors = LazyTensors(specs, lambda name: shards[weight_map[name]][name], _parts(shards, weight_map))
    return Contents("sharded", (Place("", tensors),), files=watched)


def _parts(
    shards: Mapping[str, Mapping[str, Tensor]], weight_map: Mapping[str, str]
) -> Callable[[str, int, Tensor], None] | None:
    """Return what fills in a part of a tensor, where every shard can do that."""
    known = {name: shard.fill_part for name, shard in shards.items() if isinstance(shard, LazyTensors)}
    if any(known.get(name) is None for name in shards):
        return None

    def fill(name: str, first: int, tensor: Tensor) -> None:
        part = known[weight_map[name]]
        assert part is not None
        part(name, first, tensor)

    return fill


def open_weights(path: Path, permission: Permission = NOTHING, lazily: bool = False) -> Mapping[str, Tensor]:
    """Return the tensors at the top level of a file, in either format that weights come in.

    Raises:
        InputError: it is damaged or refused, or holds no such tensors.
    """
    with opened(path) as file:
        form = identify(path, file)
        if form == "safetensors":
            return open_safetensors(path).tensors
        if form in ("torch", "torch-legacy"):
            found = read_torch(path, file, form, permission, lazily)
            if found.places and found.places[0].key == "":
                return found.places[0].tensors
    raise InputError(path, "holds no weights at its top level", "take the checkpoint from its source again")
