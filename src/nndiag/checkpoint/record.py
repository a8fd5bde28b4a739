"""What a checkpoint file holds, as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One dict of named tensors inside the file.

    ``key`` is the way to it: ``""`` for the top level, ``"state_dict"``, ``"a.b"`` for nested dicts.
    ``tensors`` are dense, on the CPU, in file order, in the dtype they were saved in.
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
    """One checkpoint file, opened.

    ``format`` is ``"safetensors"``, ``"torch"`` or ``"torch-legacy"``; ``sha256`` is of the file's bytes.
    ``step`` and ``epoch`` are ``None`` where neither the file nor its name says them. ``hyper_parameters``
    are Lightning's, plain values only. ``notes`` are sentences for the user about what was left out.
    """

    path: Path
    format: str
    sha256: str
    places: tuple[Place, ...]
    optimizers: tuple[SavedOptimizer, ...] = ()
    step: int | None = None
    epoch: int | None = None
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
