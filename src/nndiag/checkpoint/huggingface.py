"""Directories of the Hugging Face kind: weights, whole or sharded, beside a ``config.json``; also a Trainer's."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from nndiag.checkpoint import trainer
from nndiag.checkpoint.confine import require_inside
from nndiag.checkpoint.contents import Contents
from nndiag.checkpoint.json_file import read_object
from nndiag.checkpoint.permission import NOTHING, Permission
from nndiag.checkpoint.progress import Progress
from nndiag.checkpoint.record import Place
from nndiag.checkpoint.sharded import open_weights, read_sharded
from nndiag.checkpoint.source import Watched
from nndiag.errors import InputError

WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
"""Names of the weights, the first one that is there counts, as for transformers."""
INDEX = ".index.json"
_ADAPTER = "adapter_config.json"


def weights_in(folder: Path) -> str | None:
    """Return the name of the file that a directory's weights start from, or ``None`` where there is none."""
    return next((name for name in WEIGHTS if (folder / name).is_file()), None)


def is_huggingface(folder: Path) -> bool:
    """Return whether a directory is one checkpoint: weights of a usual name with their configuration or index."""
    name = weights_in(folder)
    beside = ("config.json", _ADAPTER, trainer.STATE)
    return name is not None and (name.endswith(INDEX) or any((folder / other).is_file() for other in beside))


def is_adapter(folder: Path) -> bool:
    """Return whether a directory holds what was trained of a network (LoRA and the like), and not the rest of it."""
    return is_huggingface(folder) and str(weights_in(folder)).startswith("adapter_")


def read_huggingface(folder: Path, permission: Permission = NOTHING, lazily: bool = False) -> Contents:
    """Open the weights of a directory, with what a Trainer left beside them.

    Raises:
        InputError: weights are missing, damaged or refused, or lie outside of the directory.
    """
    name = weights_in(folder)
    if name is None:
        raise InputError(folder, "holds no weights", "give a checkpoint")
    file = folder / name
    require_inside(folder, file)
    if name.endswith(INDEX):
        found = read_sharded(file, permission)
    else:
        watched = Watched(file)
        found = Contents(
            "huggingface", (Place("", open_weights(file, permission, lazily)),), files={name: watched}
        )
    notes = (_adapter_note(folder),) if is_adapter(folder) else ()
    found = replace(found, format="huggingface", notes=notes)
    return _with_trainer(folder, found, permission, lazily) if (folder / trainer.STATE).is_file() else found


def _adapter_note(folder: Path) -> str:
    """Return what is missing from an adapter, and what to do."""
    base: object = None
    with contextlib.suppress(InputError):
        require_inside(folder, folder / _ADAPTER)
        base = read_object(folder / _ADAPTER).get("base_model_name_or_path")
    of = f" of {base[:80]}" if isinstance(base, str) and base else ""
    return (
        f"the directory holds an adapter alone, without the weights{of} that it changes; "
        "for the whole network save model.merge_and_unload() of peft and give that"
    )


def _with_trainer(folder: Path, found: Contents, permission: Permission, lazily: bool) -> Contents:
    require_inside(folder, folder / trainer.STATE)
    said = Progress()
    history: trainer.History = ()
    notes = found.notes
    files = dict(found.files)
    try:
        files[trainer.STATE] = Watched(folder / trainer.STATE)
        said, history = trainer.read_state(folder)
    except InputError as error:
        files.pop(trainer.STATE, None)
        notes = (*notes, f"{trainer.STATE} was not used: {error.why}")
    optimizers, more, refused = trainer.read_optimizer(folder, permission, lazily)
    scheduled, of_scheduler, unusable = trainer.read_scheduler(folder, permission)
    refused += unusable
    if scheduled is not None:
        said = said.or_else(Progress(step=scheduled.step))
        optimizers, disagreeing = trainer.with_rates(optimizers, scheduled)
        refused += disagreeing
    return replace(
        found,
        format="huggingface-trainer",
        said=said,
        history=history,
        optimizers=optimizers,
        files={**files, **more, **of_scheduler},
        notes=notes + refused,
    )
