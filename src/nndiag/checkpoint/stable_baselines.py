"""Archives of Stable-Baselines3: files of torch.save inside a zip.

The entry ``data`` holds pickles of any code; it is never read.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.identify import identify
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.record import SavedOptimizer
from nndiag.checkpoint.source import damaged, size_of, summary
from nndiag.checkpoint.torch_file import read_torch
from nndiag.checkpoint.torch_zip import check_entries
from nndiag.errors import InputError

POLICY = "policy.pth"
"""The entry with the weights."""


def read_stable_baselines(path: Path, file: BinaryIO, permission: Permission = NOTHING) -> Contents:
    """Read the policy of an agent, and the state of its optimisers.

    Args:
        path: the archive's name.
        file: the archive, at its start.
        permission: what the user allowed.

    Raises:
        InputError: it is damaged, or a pickle in it is refused.
    """
    parts = _parts(path, file)
    found = _read(path, parts[POLICY], permission)
    optimizers: list[SavedOptimizer] = []
    for name in sorted(parts.keys() - {POLICY}):
        inside = _read(path, parts[name], permission)
        optimizers += [replace(saved, key=name) for saved in inside.optimizers]
    return replace(found, format="stable-baselines3", optimizers=tuple(optimizers))


def _parts(path: Path, file: BinaryIO) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            check_entries(path, entries, size_of(file))
            names = [
                e.filename for e in entries if e.filename == POLICY or e.filename.endswith("optimizer.pth")
            ]
            return {name: archive.read(name) for name in names}
    except InputError:
        raise
    # zipfile raises half a dozen kinds of exception over damaged bytes.
    except Exception as error:
        raise damaged(path, summary(error)) from error


def _read(path: Path, content: bytes, permission: Permission) -> Contents:
    inside = io.BytesIO(content)
    form = identify(path, inside)
    if form not in ("torch", "torch-legacy"):
        raise damaged(path, "its policy is no file of torch.save")
    return read_torch(path, inside, form, replace(permission, trust=False))
