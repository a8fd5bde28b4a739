"""The probe: inputs, targets and loss, cut into batches and folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.probe.loss import Loss

SAMPLES, MOST_SAMPLES = 256, 1024
"""Samples of a batch, and the most of them."""
ENTRIES = 2**20
"""Up to so many entries of its inputs a batch may have more: small passes cost little but their overhead."""


@dataclass(frozen=True)
class Batch:
    """A run of consecutive samples; ``start`` is the place of the first in the probe."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    start: int

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    def split(self, size: int) -> Iterator[Batch]:
        """Yield it in parts of at most so many samples."""
        for begin in range(0, len(self), size):
            part = slice(begin, begin + size)
            targets = None if self.targets is None else self.targets[part]
            yield Batch(tuple(x[part] for x in self.inputs), targets, self.start + begin)


@dataclass(frozen=True)
class Probe:
    """Samples to examine a model on.

    Sample ``n`` belongs to fold ``n mod folds``, whatever the batch size. ``loss`` is ``None`` where none was named:
    then nothing that needs one is measured. ``batch_size`` 0 chooses one: ``SAMPLES``, or more of small ones.
    ``random`` says that the inputs are noise and no data.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    loss: Loss | None
    batch_size: int = 0
    folds: int = 4
    sha256: str | None = None
    random: bool = False

    def __post_init__(self) -> None:
        """Choose a batch size, and let the loss count the labels of the whole probe, which no single batch shows."""
        object.__setattr__(self, "batch_size", self.batch_size or _batch_size(self.inputs))
        if self.loss is not None and self.targets is not None:
            object.__setattr__(self, "loss", self.loss.over(self.targets))

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    @property
    def has_targets(self) -> bool:
        """Whether there are targets."""
        return self.targets is not None

    @property
    def fold_count(self) -> int:
        """Folds that hold at least one sample."""
        return max(1, min(self.folds, len(self)))

    def batches(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        for start in range(0, len(self), self.batch_size):
            part = slice(start, start + self.batch_size)
            targets = None if self.targets is None else self.targets[part]
            yield Batch(tuple(x[part] for x in self.inputs), targets, start)

    def fold_of(self, batch: Batch) -> Tensor:
        """Return the fold of every sample of a batch, ``(batch,)``."""
        places = torch.arange(batch.start, batch.start + len(batch), device=batch.inputs[0].device)
        return places % self.fold_count

    @property
    def fold_sizes(self) -> Tensor:
        """Return how many samples each fold holds, ``(folds,)`` float64."""
        return torch.bincount(torch.arange(len(self)) % self.fold_count).double()


def _batch_size(inputs: tuple[Tensor, ...]) -> int:
    """Choose a batch size. Of tokens little can be said: each may become a vector, and an output for every word."""
    if not all(x.is_floating_point() for x in inputs):
        return SAMPLES
    entries = sum(x[:1].numel() for x in inputs)
    return min(MOST_SAMPLES, max(SAMPLES, ENTRIES // max(1, entries)))


def cast_inputs(inputs: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Bring inputs to the model's precision: floating and 8-bit ones become ``dtype``, labels and tokens stay
    integers."""
    small = (torch.uint8, torch.int8)
    return tuple(
        x.to(device, dtype) if x.is_floating_point() or x.dtype in small else x.to(device) for x in inputs
    )
