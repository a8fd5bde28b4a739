"""Archives of torch.export (``.pt2``): the weights are records of plain bytes, the program stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.lazy import specs_of
from nndiag.errors import InputError
from nndiag.surgery.writing.archives import Archive
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.patient import patient
from nndiag.surgery.writing.tensor_tree import bytes_of

_FOLDER = "data/weights/"
_CONFIG = _FOLDER + "model_weights_config.json"


def write_exported(job: Job, target: Path) -> None:
    """Write an exported program with other weights of the same shapes; nothing of it is run.

    Raises:
        InputError: a shape changed, which the program does not allow, or one record holds a weight that changed and
            one that did not.
        OSError: the target cannot be written.
    """
    path, changes = job.source.path, job.changes
    specs = specs_of(job.source.places[0].tensors)
    if changes.shrank or any(value.shape != specs[name].shape for name, value in changes.weights.items()):
        raise InputError(
            path, "is an exported program, whose shapes are fixed, so that it cannot be made smaller",
            "heal the checkpoint that it was exported from, and export that",
        )  # fmt: skip
    with path.open("rb") as file:
        archive = Archive(path, file)
        described = json.loads(archive.read(_CONFIG))["config"]
        records: dict[str, Tensor] = {}
        for name, entry in described.items():
            record = _FOLDER + entry["path_name"]
            if name in changes.weights:
                records[record] = changes.weights[name]
        held = {_FOLDER + e["path_name"] for name, e in described.items() if name not in changes.weights}
        if held & records.keys():
            raise InputError(
                path, "keeps a weight that changed and one that did not in the same bytes",
                "heal the checkpoint that it was exported from, and export that",
            )  # fmt: skip
        with patient(target) as out:
            archive.write(out, {record: bytes(bytes_of(value)) for record, value in records.items()})
