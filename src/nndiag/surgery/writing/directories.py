"""What lies in a checkpoint's directory beside the weights: copied, and never opened."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from nndiag.checkpoint.confine import is_inside
from nndiag.checkpoint.directory import is_checkpoint_directory
from nndiag.surgery.writing.job import Job

_STALE = re.compile(
    r"(pytorch_model|model|diffusion_pytorch_model|adapter_model|tf_model|flax_model|rust_model|consolidated).*"
    r"\.(safetensors|bin|pth|h5|msgpack|ot|onnx|gguf|index\.json)"
    r"|__\d+_\d+\.distcp"
)
_NAMED = 5


def copy_surroundings(job: Job, target: Path, written: Callable[[str], bool]) -> None:
    """Copy the files of a directory that are not written anew, and write those that are given.

    Other forms of the old weights are left out, and so are links that leave the directory, hidden folders, and other
    checkpoints in it.

    Args:
        job: the source, the files that are given, and who is told what was left out.
        target: the new directory.
        written: whether a file of this name was written or must not be copied.

    Raises:
        OSError: a file cannot be copied.
    """
    folder, left_out = job.source.path, []
    for entry in sorted(folder.iterdir()):
        if entry.name in job.surroundings or written(entry.name):
            continue
        stale = entry.is_file() and _STALE.fullmatch(entry.name) is not None
        if stale or not is_inside(folder, entry) or (entry.is_dir() and is_checkpoint_directory(entry)):
            left_out.append(entry.name)
        elif entry.is_file():
            shutil.copyfile(entry, target / entry.name)
        elif entry.is_dir() and not entry.name.startswith("."):
            _copy_folder(folder, entry, target / entry.name)
    for name, content in job.surroundings.items():
        (target / name).write_bytes(content)
    if left_out:
        named = ", ".join(left_out[:_NAMED]) + (", …" if len(left_out) > _NAMED else "")
        job.notes.append(
            f"not copied, since it holds the old weights, is another checkpoint or leads elsewhere: {named}"
        )


def _copy_folder(root: Path, source: Path, target: Path) -> None:
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if not is_inside(root, entry):
            continue
        if entry.is_file():
            shutil.copyfile(entry, target / entry.name)
        elif entry.is_dir() and not entry.is_symlink():
            _copy_folder(root, entry, target / entry.name)
