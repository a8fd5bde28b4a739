"""What a checkpoint file holds, as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from nndiag.checkpoint.digest import Digest


@dataclass(frozen=True)
class Place:
    """One dict of named tensors inside the checkpoint.

    ``key`` is the way to it: ``""`` for the top level, ``"state_dict"``, ``"a.b"`` for nested dicts.
    ``tensors`` are dense, on the CPU, in file order, in the dtype they were saved in; they may be read only when asked
    for (``checkpoint.lazy``), with an ``InputError`` where that fails.
    """

    key: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class SavedOptimizer:
    """The state of one optimiser, as plain values and tensors.

    ``key`` says where it lies: ``"optimizer"``, ``"optimizer_states.0"``, or the file name of a sibling.
    ``groups`` are the ``param_groups`` without anything that is not a plain value; ``state`` maps a
    parameter's index (or name) to its tensors and numbers.
    """

    key: str
    groups: tuple[Mapping[str, object], ...]
    state: Mapping[int | str, Mapping[str, object]]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, a file or a directory, opened.

    ``format`` is its name in reports, such as ``"safetensors"`` or ``"torch"``. ``step`` and ``epoch`` are ``None``
    where neither the checkpoint nor its name says them. ``hyper_parameters`` are Lightning's, plain values only.
    ``history`` are the rows of a Trainer's log: ``step``, ``loss``, ``learning_rate`` and the like. ``notes`` are
    sentences for the user about what was left out.
    """

    path: Path
    format: str
    places: tuple[Place, ...]
    optimizers: tuple[SavedOptimizer, ...] = ()
    step: int | None = None
    epoch: int | None = None
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    digest: Digest | None = field(default=None, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """The hash of the file's bytes, or over the files of a directory (``Digest``); ``""`` where none was wanted.

        It is computed beside other work since the checkpoint was opened; this waits for it.

        Raises:
            InputError: a file changed since it was opened.
        """
        return "" if self.digest is None else self.digest.hexdigest()
