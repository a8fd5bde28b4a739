"""Archives of Stable-Baselines3: the files of torch.save in them are written anew, every other entry is copied.

The entry ``data`` holds pickles of any code; it is not looked into.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nndiag.checkpoint.source import damaged, summary
from nndiag.checkpoint.stable_baselines import POLICY
from nndiag.surgery.writing.job import Job, torch_edit
from nndiag.surgery.writing.torch_files import write_torch


def write_stable_baselines(job: Job, target: Path) -> None:
    """Write the archive of an agent with its policy and the state of its optimisers edited.

    Raises:
        InputError: the source is damaged.
        OSError: the target cannot be written.
    """
    source = job.source.path
    with source.open("rb") as read, target.open("xb") as file, zipfile.ZipFile(file, "w") as new:
        for entry, content in _entries(source, read):
            planned = job.optimizers_of(entry.filename)
            if entry.filename == POLICY or planned:
                changed = io.BytesIO()
                edit = torch_edit(job, planned, weights=entry.filename == POLICY)
                write_torch(source, io.BytesIO(content), edit, changed)
                content = changed.getvalue()
            new.writestr(entry, content)


def _entries(path: Path, file: BinaryIO) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    """Yield every entry with its content, also those that nobody has read so far."""
    try:
        archive = zipfile.ZipFile(file)
        for entry in archive.infolist():
            yield entry, archive.read(entry)
    except OSError:
        raise
    except Exception as error:  # of half a dozen kinds
        raise damaged(path, summary(error)) from error
