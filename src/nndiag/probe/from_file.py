"""Arrays from probe files, by format. A probe passes the same checks as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.plain import named_entries, plain_tensor
from nndiag.checkpoint.safetensors_file import load_safetensors
from nndiag.checkpoint.source import opened
from nndiag.checkpoint.torch_legacy import load_legacy
from nndiag.checkpoint.torch_zip import load_zip
from nndiag.errors import InputError
from nndiag.probe.npz import read_npz


def read_saved(path: Path) -> Mapping[str, object]:
    """Return the tensors of a ``.safetensors`` file, or of a dict that ``torch.save`` wrote.

    Raises:
        InputError: the file is missing, damaged or refused, or holds no dict.
    """
    try:
        with opened(path) as file:
            form = identify(path, file)
            if form == "safetensors":
                return load_safetensors(path)[0]
            content = load_zip(path, file) if form == "torch" else load_legacy(path, file)
            found = {name: _plain(path, name, value) for name, value in named_entries(content)}
    except InputError as error:
        raise InputError(path, error.why, "save the probe again") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(path, f"holds an object of type {kind}, not a dict", 'save {"x": x, "y": y}')
    return found


def _plain(path: Path, name: str, value: object) -> object:
    return plain_tensor(path, name, value) if isinstance(value, Tensor) else value


READERS: Mapping[str, Callable[[Path], Mapping[str, object]]] = {
    ".safetensors": read_saved,
    ".npz": read_npz,
    ".pt": read_saved,
}
"""The formats, by the ending of the file's name."""
