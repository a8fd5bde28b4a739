"""What lies in a run directory or beside a checkpoint, looked at without being asked: the weights, a ``config.json``,
data, an optimiser. Nothing is measured and no code runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nndiag.checkpoint import Checkpoint, Permission, find_checkpoints
from nndiag.checkpoint.lazy import specs_of
from nndiag.checkpoint.opening import glance
from nndiag.checkpoint.permission import NOTHING
from nndiag.checkpoint.safetensors_file import open_safetensors
from nndiag.config.toml_file import RUN_FILE
from nndiag.errors import InputError
from nndiag.model.chain import Chain, find_chains
from nndiag.model.hf import loss_of
from nndiag.model.hf_config import HfConfig, find_config, read_config
from nndiag.model.optimizer_facts import facts_of
from nndiag.probe.npz import read_npz
from nndiag.probe.tokens import TOKENIZER
from nndiag.records.measured import OptimizerFacts

_DATA = re.compile(r"probe|valid|val|test|dev|data|eval|held", re.IGNORECASE)
_ARRAYS, _TABLES, _TEXT = (".npz", ".safetensors"), (".parquet", ".jsonl", ".arrow"), (".txt",)
MOST_FILES = 10_000


@dataclass(frozen=True)
class Survey:
    """The checkpoints under a path, the last of them glanced at, and what lies beside it."""

    path: Path
    files: tuple[Path, ...]
    checkpoint: Checkpoint

    @property
    def folder(self) -> Path:
        """The directory that an ``nndiag.toml`` belongs in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def has_program(self) -> bool:
        """Whether the checkpoint is an exported program, which is model and weights in one."""
        return self.checkpoint.format == "pt2"

    @cached_property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of linear layers that the weights suggest; none where the checkpoint brings its own model."""
        if self.has_program:
            return ()
        return tuple(chain for place in self.checkpoint.places for chain in find_chains(place))

    @cached_property
    def hugging_face(self) -> HfConfig | None:
        """The ``config.json`` of a Hugging Face model, where it is usable."""
        file = find_config(self.files[-1])
        try:
            return None if file is None else read_config(file)
        except InputError:
            return None

    @property
    def hugging_face_loss(self) -> str | None:
        """The loss that such a model is trained with."""
        return None if self.hugging_face is None else loss_of(self.hugging_face)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be given as data."""
        last = self.files[-1]
        return ((last if last.is_dir() else last.parent) / TOKENIZER).is_file()

    @cached_property
    def data(self) -> Path | None:
        """A file beside the checkpoints that is called as data are, of the kind that such a model mostly takes."""
        taken = {file.resolve() for file in self.files}
        kinds: tuple[str, ...] = _ARRAYS + _TABLES if self.hugging_face is None else _TABLES + _ARRAYS
        kinds += _TEXT if self.hugging_face is not None and self.has_tokenizer else ()
        for folder in dict.fromkeys((self.folder, self.folder.absolute().parent)):
            named = [
                file for file in _entries(folder) if _DATA.search(file.stem) and file.suffix.lower() in kinds
            ]
            there = [
                file
                for file in named
                if file.is_file() and file.resolve() not in taken and self._may_take(file)
            ]
            if there:
                return min(there, key=lambda file: kinds.index(file.suffix.lower()))
        return None

    def _may_take(self, file: Path) -> bool:
        """Return whether a file of arrays calls its inputs as such a model does: by name, or ``x``; tables may."""
        try:
            if file.suffix.lower() == ".npz":
                names = set(read_npz(file))
            elif file.suffix.lower() == ".safetensors":
                names = set(open_safetensors(file).tensors)
            else:
                return True
        except InputError:
            return False
        return bool(names) and bool(names & {"x", "x0"}) == (self.hugging_face is None)

    @cached_property
    def optimizer(self) -> OptimizerFacts | None:
        """What the saved optimiser says, where there is one."""
        saved = self.checkpoint.optimizers
        if not saved:
            return None
        states: list[Mapping[str, object]] = list(saved[0].state.values())
        return facts_of(saved[0].groups, states)[0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of the first place, by name."""
        return {name: tuple(t.shape) for name, t in specs_of(self.checkpoint.places[0].tensors).items()}


def survey(path: Path, permission: Permission = NOTHING) -> Survey:
    """Look at a run directory, or at a checkpoint.

    Args:
        path: the directory or the checkpoint.
        permission: what the user allowed.

    Raises:
        InputError: there is no checkpoint, or the last one cannot be read.
    """
    files = find_checkpoints(path, exclude=called_probe(path))
    return Survey(path, files, glance(files[-1], permission))


def shown(path: Path) -> str:
    """Return a path as a shell takes it, from the working directory where it lies in there."""
    absolute, here = path.absolute(), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else path))


def called_probe(path: Path) -> list[Path]:
    """Return the files of a directory that are called a probe, which are no checkpoints."""
    if not path.is_dir():
        return []
    return [
        file for file in _entries(path) if file.stem.lower().startswith("probe") and file.name != RUN_FILE
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:MOST_FILES]
    except OSError:
        return []
