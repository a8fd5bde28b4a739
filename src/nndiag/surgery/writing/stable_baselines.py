"""Archives of Stable-Baselines3: the files of torch.save in them are written anew, every other entry is copied.

The entry ``data`` holds pickles of any code; it is not looked into.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

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
    with zipfile.ZipFile(source) as old, target.open("xb") as file, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            planned = job.optimizers_of(entry.filename)
            if entry.filename == POLICY or planned:
                changed = io.BytesIO()
                edit = torch_edit(job, planned, weights=entry.filename == POLICY)
                write_torch(source, io.BytesIO(content), edit, changed)
                content = changed.getvalue()
            new.writestr(entry, content)
