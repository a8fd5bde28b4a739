"""Diagnoses of finished checkpoints, kept: a scan of a run that grew, or was stopped, measures only what is new.

An entry is a file named by a digest of all that the diagnosis depends on: the bytes of the checkpoint, of the
optimiser's file beside it and of the probe; the model's structure and code; settings, thresholds and optimiser; the
versions of nndiag and torch. Entries are written beside their place and renamed, so that one is whole or not there,
whoever else writes; one that is damaged is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

import nndiag
from nndiag.checkpoint import Checkpoint
from nndiag.checkpoint.optimizers import sibling_of
from nndiag.config.callables import names_code
from nndiag.errors import UsageError
from nndiag.pipeline.inputs import Inputs
from nndiag.pipeline.settings import USER_CACHE, ScanSettings
from nndiag.records.report import Diagnosis

_NOT_OF_A_DIAGNOSIS = ("every", "last", "trust", "cache")
"""Settings that choose checkpoints or allow things, and change no diagnosis."""

_TABLES = ("model", "checkpoints", "probe", "optimizer", "actions", "rules")

_PART = ".part"
_STALE = 3600.0
"""Seconds after which an unfinished entry is one that nobody will finish."""

Notes = Sequence[tuple[str | None, str]]
"""Sentences that were said while a checkpoint was measured, with its name where they are about it alone."""


def default_folder() -> Path:
    """Return the cache in the user's own folder for such things."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nndiag"


@dataclass(frozen=True)
class Cache:
    """Entries in ``folder``; ``basis`` is the digest of everything but the checkpoint."""

    folder: Path
    basis: str

    def load(self, checkpoint: Checkpoint) -> tuple[Diagnosis, Notes] | None:
        """Return what was kept of a checkpoint, as if it had just been measured; ``None`` where there is nothing
        whole.
        """
        try:
            content = json.loads(self._place(checkpoint).read_text(encoding="utf-8"))
            if content["digest"] != _digest(content["entry"]):
                return None
            entry = json.loads(content["entry"])
            kept = Diagnosis.model_validate(entry["diagnosis"])
            notes = [(name, str(sentence)) for name, sentence in entry["notes"]]
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None
        facts = kept.checkpoint.model_copy(update={"path": str(checkpoint.path)})
        return kept.model_copy(update={"checkpoint": facts}), notes

    def store(self, checkpoint: Checkpoint, found: Diagnosis, notes: Notes) -> None:
        """Keep a diagnosis; where that cannot be done, it is not."""
        entry = json.dumps({"diagnosis": json.loads(found.model_dump_json()), "notes": list(notes)})
        place = self._place(checkpoint)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=place.parent, prefix=".", suffix=_PART)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    json.dump({"digest": _digest(entry), "entry": entry}, stream)
                Path(name).replace(place)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def _place(self, checkpoint: Checkpoint) -> Path:
        sibling = sibling_of(checkpoint.path)
        beside = _file_digest(sibling) if sibling.is_file() else ""
        groups = [
            (one.key, one.groups) for one in checkpoint.optimizers
        ]  # a directory may hold them elsewhere
        read = [checkpoint.path.name, checkpoint.step, checkpoint.epoch, groups]
        key = _digest(json.dumps([self.basis, checkpoint.sha256, beside, read], default=str))
        return self.folder / key[:2] / f"{key}.json"


def open_cache(inputs: Inputs, settings: ScanSettings, more: Mapping[str, object]) -> Cache | None:
    """Return the cache of a scan; ``None`` where none was asked for.

    Args:
        inputs: what the scan works on.
        settings: as it was asked for; ``cache`` names the folder.
        more: what else a diagnosis depends on, as JSON can hold it.

    Raises:
        UsageError: the folder cannot be made or written to.
    """
    own = settings.cache == USER_CACHE
    if settings.cache is None or (own and len(inputs.files) < 2):
        return None
    folder = default_folder() if own else Path(settings.cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(f"*/.*{_PART}"):
            if time.time() - part.stat().st_mtime > _STALE:
                part.unlink(missing_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable and own:
        return None
    if not usable:
        raise UsageError(f"--cache {folder}", "cannot be written to", "name another folder, or --cache off")
    asked = {name: value for name, value in asdict(settings).items() if name not in _NOT_OF_A_DIAGNOSIS}
    basis = {
        "nndiag": [nndiag.__version__, _own_code()],
        "torch": torch.__version__,
        "settings": {**asked, "several": len(inputs.files) > 1},
        "config": {table: getattr(inputs.config, table).model_dump(mode="json") for table in _TABLES},
        "model": None if inputs.model is None else _of_model(inputs.model),
        "probe": _of_probe(inputs),
        "code": [_spec_digest(spec, folder) for spec, folder in _specs(inputs, settings)],
        **more,
    }
    return Cache(folder, _digest(json.dumps(basis, sort_keys=True, default=str)))


def _of_model(model: nn.Module) -> list[object]:
    """Return the structure of a model, and digests of the files that its modules' classes come from."""
    shapes = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    names = {type(module).__module__ for module in model.modules()}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    own = sorted(
        (name, _file_digest(Path(file))) for name, file in files.items() if file and _is_foreign(name)
    )
    return [repr(model), shapes, own]


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] != "torch"


def _of_probe(inputs: Inputs) -> object:
    probe = inputs.probe
    if probe is None:
        return None
    loss = probe.loss.name if probe.loss else None
    return [probe.sha256, len(probe), probe.batch_size, probe.fold_count, loss, probe.has_targets]


def _specs(inputs: Inputs, settings: ScanSettings) -> Iterator[tuple[str, Path]]:
    """Yield the specs that name code of the user's, with the folders that they count from."""
    config, here = inputs.config, Path.cwd()
    for given, key, kept in (
        (settings.model, "model.factory", config.model.factory), (settings.loss, "probe.loss", config.probe.loss),
    ):  # fmt: skip
        if given is not None:
            yield given, here
        elif kept is not None:
            yield kept, config.origin(key).folder


def _spec_digest(spec: str, folder: Path) -> str:
    """Return a digest of the file that a spec names, else of the spec."""
    place = spec.rpartition(":")[0]
    if not names_code(spec):
        return spec
    if place.endswith(".py"):
        return f"{spec} {_file_digest(folder / place)}"
    file = getattr(sys.modules.get(place), "__file__", None)
    return f"{spec} {_file_digest(Path(file)) if file else ''}"


@cache
def _own_code() -> str:
    """Return a digest of nndiag's own code: an installed version changes while it is worked on."""
    root = Path(nndiag.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
