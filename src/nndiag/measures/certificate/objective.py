"""The probe's loss as a function of one vector: all trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nndiag.measures.hvp import mean_loss
from nndiag.probe.probe import Batch, Probe


def trainable(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that training moves; of all, where the model is frozen as a whole."""
    floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    return tuple(name for name, p in floating.items() if p.requires_grad) or tuple(floating)


class Objective:
    """``L(θ)``, the mean loss over the probe, and its gradient; ``passes`` counts those forward and backward over it.

    To be used on an undisturbed model, whose parameters are all differentiable.

    Args:
        model: the model.
        probe: samples, targets and loss.
        names: the parameters of θ.
    """

    def __init__(self, model: nn.Module, probe: Probe, names: Sequence[str]) -> None:
        self._model, self._probe = model, probe
        named = dict(model.named_parameters())
        self._parameters = [named[name] for name in names]
        self.passes = 0

    @property
    def samples(self) -> int:
        """``N``, the samples of the probe."""
        return len(self._probe)

    def point(self) -> Tensor:
        """Return a copy of ``θ``, ``(P,)``."""
        return _flat([p.detach() for p in self._parameters])

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Put every parameter back bit for bit at the end, also after an error."""
        kept = [p.detach().clone() for p in self._parameters]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(self._parameters, kept, strict=True):
                    parameter.copy_(before)

    def at(self, point: Tensor) -> tuple[float, Tensor]:
        """Set θ to ``point`` and return ``L`` and ``∇L`` there: one pass."""
        with torch.no_grad():
            parts = torch.split(point, [p.numel() for p in self._parameters])
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        self.passes += 1
        return self._sums(self._probe.batches())

    def of_samples(self, samples: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss over some samples, named by their places in the probe, and its gradient."""
        value, gradient = self._sums(self._picked(samples))
        share = len(samples) / self.samples
        return value / share, gradient / share

    def _picked(self, samples: Tensor) -> Iterator[Batch]:
        assert self._probe.targets is not None
        for part in torch.split(samples.to(self._probe.targets.device), self._probe.batch_size):
            yield Batch(tuple(x[part] for x in self._probe.inputs), self._probe.targets[part], 0)

    def _sums(self, batches: Iterator[Batch]) -> tuple[float, Tensor]:
        value, gradient = 0.0, torch.zeros_like(self.point())
        for batch in batches:
            share = mean_loss(self._model, self._probe, batch)
            value += float(share.detach())
            if share.requires_grad:
                parts = torch.autograd.grad(
                    share, self._parameters, allow_unused=True, materialize_grads=True
                )
                gradient += _flat(parts)
        return value, gradient


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
