"""Archives of torch.export (``.pt2``): the program in them is code, so that they are opened with ``--trust`` alone.

The weights are plain bytes that a JSON file describes, and are read as such: nothing runs here. Who builds the model
asks ``is_pt2`` and loads the program with ``torch.export.load``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.lazy import LazyTensors, spec
from nndiag.checkpoint.permission import Permission
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.source import Watched, damaged, opened, size_of, summary
from nndiag.checkpoint.torch_zip import check_entries
from nndiag.errors import InputError

_CONFIG = "data/weights/model_weights_config.json"
# torch._export.serde.schema.ScalarType
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def is_pt2(path: Path) -> bool:
    """Return whether a path is a torch.export archive.

    Raises:
        InputError: it cannot be read, or is in no known format.
    """
    if path.is_dir():
        return False
    with opened(path) as file:
        return identify(path, file) == "pt2"


def read_pt2(path: Path, file: BinaryIO, permission: Permission) -> Contents:
    """Read the weights of an exported program.

    Args:
        path: the archive's name.
        file: the archive, at its start.
        permission: what the user allowed.

    Raises:
        InputError: it is not trusted, damaged, or written by a torch before 2.9, which kept weights as pickles.
    """
    if not permission.trust:
        raise InputError(
            path, "is a torch.export archive (.pt2), which is code",
            "give --trust if it is yours, or save model.state_dict() with torch.save and give that",
        )  # fmt: skip
    watched = Watched(path)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            check_entries(path, entries, size_of(file))
            top = entries[0].filename.partition("/")[0]
            known = {entry.filename.removeprefix(f"{top}/"): entry for entry in entries}
            if _CONFIG not in known:
                raise InputError(
                    path,
                    "keeps its weights in an older form of torch.export",
                    "export it again with a newer torch",
                )
            described = json.loads(archive.read(known[_CONFIG]))["config"]
        file.seek(0)
        reader = torch._C.PyTorchFileReader(file)
        specs, places = {}, {}
        for name, entry in described.items():
            specs[name] = _spec(entry)
            record = f"data/weights/{entry['path_name']}"
            if known[record].file_size < specs[name].numel() * specs[name].element_size():
                raise damaged(path, f"{name} is shorter than its shape says")
            places[name] = reader.get_record_offset(record)  # type: ignore[attr-defined]
    except InputError:
        raise
    # the JSON may be anything, and so may the zip directory
    except Exception as error:
        raise damaged(path, summary(error)) from error
    return Contents("pt2", (Place("", _tensors(watched, specs, places)),), files={"": watched})


def _spec(entry: Mapping[str, object]) -> Tensor:
    """Return what the JSON says of a tensor; those that are views into others are not what export writes."""
    meta = entry["tensor_meta"]
    assert isinstance(meta, dict)
    shape = tuple(int(size["as_int"]) for size in meta["sizes"])
    found = spec(_DTYPES[meta["dtype"]], shape)
    if entry["use_pickle"] or meta["storage_offset"]["as_int"]:
        raise ValueError("a weight that is not plain bytes")
    strides = tuple(int(step["as_int"]) for step in meta["strides"])
    if found.numel() and any(
        n > 1 and a != b for n, a, b in zip(shape, strides, found.stride(), strict=True)
    ):
        raise ValueError("a weight that is not contiguous")
    return found


def _tensors(file: Watched, specs: Mapping[str, Tensor], places: Mapping[str, int]) -> LazyTensors:
    return LazyTensors(
        specs, lambda name: file.tensor(places[name], specs[name].dtype, tuple(specs[name].shape))
    )
