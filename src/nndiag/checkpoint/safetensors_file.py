"""safetensors files: the library checks header and bounds; nothing in them is code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from nndiag.checkpoint.inventory import MAX_TENSORS
from nndiag.checkpoint.source import damaged, summary
from nndiag.errors import InputError


def load_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Map the tensors of a safetensors file.

    Args:
        path: the file.

    Returns:
        The tensors by name, and the ``__metadata__`` of the header.

    Raises:
        InputError: it is damaged, or holds too many tensors.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Older releases know no file order; sorted names are then the order.
            names = list(file.offset_keys() if hasattr(file, "offset_keys") else file.keys())
            if len(names) > MAX_TENSORS:
                raise InputError(path, f"holds more than {MAX_TENSORS} tensors", "save the weights alone")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except InputError:
        raise
    # Besides its own error, the library lets torch's and the system's through.
    except Exception as error:
        raise damaged(path, summary(error)) from error
