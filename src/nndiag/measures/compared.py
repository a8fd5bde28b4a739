"""Variants of a network beside the network itself: their losses on a probe, and by how much their outputs differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiag.errors import NndiagError
from nndiag.measures.replaying import NonFiniteOutputError
from nndiag.probe.probe import Batch, Probe

ENTRIES = 2**24
"""Numbers that the largest tensor of a layer may take for all variants of a pass together."""
MOST_VARIANTS = 256


@dataclass(frozen=True)
class Tried:
    """What the network does in one variant: its loss, ``None`` without targets, and the largest change of an output,
    ``max |f − f₀| / max |f₀|`` over the probe.
    """

    loss: float | None
    output_change: float


class Compared:
    """The outputs of a network as it is, and what is compared with them.

    Args:
        probe: samples, targets and loss.
        seed: of torch's generators: a model that draws numbers draws the same ones in every variant.
        plain: runs the network as it is on a batch.

    Raises:
        NonFiniteOutputError: there is nothing that could be compared.
    """

    def __init__(self, probe: Probe, seed: int, plain: Callable[[Batch], Tensor]) -> None:
        self._probe, self._seed = probe, seed
        self._plain = [plain(batch) for batch in self.batches()]
        self._scale = max(float(one.abs().max()) for one in self._plain) or 1.0
        if not math.isfinite(self._scale):
            raise NonFiniteOutputError(
                "model", "its outputs on the probe are not finite", "look at its weights first"
            )
        before = [
            self._losses(one[None], batch) for one, batch in zip(self._plain, self.batches(), strict=True)
        ]
        self.loss = self._mean(before, 0)

    def batches(self) -> Iterator[Batch]:
        """Yield the probe."""
        torch.default_generator.manual_seed(self._seed)
        return self._probe.batches()

    def tried(self, variants: int, outputs_of: Callable[[Batch], Tensor]) -> list[Tried]:
        """Return what some variants do.

        Args:
            variants: how many.
            outputs_of: runs all of them on a batch: ``(variants, batch, ...)``.
        """
        change = torch.zeros(variants, dtype=torch.float64)
        losses = []
        for batch, before in zip(self.batches(), self._plain, strict=True):
            outputs = outputs_of(batch)
            difference = (outputs - before).abs().flatten(1).amax(dim=1).double().cpu()
            change = torch.maximum(change, difference.nan_to_num(nan=float("inf")))
            losses.append(self._losses(outputs, batch))
        return [Tried(self._mean(losses, v), float(change[v]) / self._scale) for v in range(variants)]

    def _losses(self, outputs: Tensor, batch: Batch) -> Tensor | None:
        """Return the sum of the losses of a batch's samples, ``(variants,)``."""
        loss = self._probe.loss
        if loss is None or batch.targets is None:
            return None
        sums = []
        for output in outputs:
            targets = loss.prepare(output, batch.targets)
            sums.append(loss.per_sample(output, targets).double().sum())
        return torch.stack(sums).cpu()

    def _mean(self, losses: Sequence[Tensor | None], variant: int) -> float | None:
        known = [float(one[variant]) for one in losses if one is not None]
        return sum(known) / len(self._probe) if known else None


def at_once(run: Callable[[], Tensor]) -> Tensor | None:
    """Return what all variants do in one pass of ``torch.vmap``; ``None`` where the model's code, or what torch can do
    with it, does not allow it.
    """
    state = torch.get_rng_state()
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError, NndiagError):
        torch.set_rng_state(state)
        return None
