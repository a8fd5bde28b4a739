"""Losses on class labels: which positions count, with what weight, and along which axis the classes lie.

The probe loss is the mean over all labels that count, ``L = (1/K) Σ_n Σ_t ℓ_{n,t}`` with ``K`` of them in the whole
probe. As a mean over the ``N`` samples that is ``ℓ_n = Σ_t w_{n,t} ℓ_{n,t}`` with ``w_{n,t} = N/K`` where the label
counts and 0 where it is ``IGNORED``: the same for batches of any size, once ``K`` is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.errors import InputError

IGNORED = -100
"""The label that torch's losses leave out."""


@dataclass(frozen=True)
class Labels:
    """How a loss reads class labels.

    ``class_axis`` is 1 as in torch's losses, ``(N, C, …)``, or -1 as language models have it, ``(N, T, V)``. With
    ``shifted``, position ``t`` is to predict label ``t + 1``. ``log_probabilities`` says that the outputs are
    log-probabilities already. ``per_sample_count`` is ``K/N``; ``None`` before it is known, and then a batch is taken
    for the whole probe.
    """

    class_axis: int = 1
    shifted: bool = False
    log_probabilities: bool = False
    per_sample_count: float | None = None

    def over(self, targets: Tensor) -> Labels:
        """Return the same with the labels of the whole probe counted.

        Raises:
            InputError: none of them counts.
        """
        if targets.is_floating_point() or (self.shifted and targets.dim() != 2):
            return self
        counted = int((self._aligned(targets) != IGNORED).sum())
        if counted == 0:
            why = f"no label counts: all are {IGNORED}" if targets.numel() else "no label counts"
            raise InputError("probe", why, "give y labels to predict")
        return replace(self, per_sample_count=counted / len(targets))

    def prepare(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return integer labels as ``(batch, positions…)``, shifted where they are to be, or probabilities as they are.

        Raises:
            InputError: they do not fit the output.
        """
        self._check_output(output)
        if self.log_probabilities and float(output.detach().logsumexp(self.class_axis).abs().max()) > 1e-3:
            raise InputError(
                "--loss nll", "the model's outputs are not log-probabilities", "use --loss cross_entropy"
            )
        if self._takes_probabilities and targets.is_floating_point() and targets.shape == output.shape:
            if bool((targets.sum(dim=1) < 0).any()):
                why = "y holds rows that add up to less than nothing, the loss takes class probabilities"
                raise InputError("probe", why, "give probabilities, or integer labels")
            return targets.to(output)
        if targets.dim() == 2 and targets.shape[1] == 1 and output.dim() == 2:
            targets = targets[:, 0]
        self._check(output, targets)
        return self._aligned(targets.long())

    def weights(self, output: Tensor, targets: Tensor | None) -> Tensor:
        """Return ``w_{n,t}``, ``(batch, positions)`` float64, for prepared targets; without targets all count.

        Raises:
            InputError: the output has no classes.
        """
        self._check_output(output)
        batch, classes = output.shape[0], output.shape[self.class_axis]
        positions = output[0].numel() // classes
        if targets is None or targets.is_floating_point():
            counts = torch.ones(batch, positions, dtype=torch.float64, device=output.device)
            if self.shifted:
                counts[:, -1] = 0
            return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
        counts = (targets.reshape(batch, positions) != IGNORED).double()
        every = self.per_sample_count
        return counts / (max(float(counts.sum()), 1.0) / batch if every is None else every)

    def curvature_weights(self, output: Tensor, targets: Tensor | None) -> Tensor:
        """Return what the curvature ``diag(p) − ppᵀ`` of a position counts, ``w_{n,t} Σ_c y_{n,t,c}``.

        Labels add up to one, and so do probabilities; what does not is taken as torch's losses take it.
        """
        weights = self.weights(output, targets)
        if targets is None or not targets.is_floating_point():
            return weights
        return weights * targets.double().sum(dim=self.class_axis).reshape(weights.shape)

    def per_sample(self, output: Tensor, targets: Tensor) -> Tensor:
        """``ℓ_n = Σ_t w_{n,t} ℓ_{n,t}``, ``(batch,)``."""
        loss = F.nll_loss if self.log_probabilities else F.cross_entropy
        if self.class_axis == -1:
            flat = loss(output.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED)
        elif targets.is_floating_point():
            flat = loss(output, targets, reduction="none")
        else:
            flat = loss(output, targets, reduction="none", ignore_index=IGNORED)
        return (flat.reshape(len(output), -1) * self.weights(output, targets).to(flat)).sum(dim=1)

    @property
    def _takes_probabilities(self) -> bool:
        return self.class_axis == 1 and not self.log_probabilities

    def _aligned(self, labels: Tensor) -> Tensor:
        """Return the label that each position is to predict; the last position of a shifted loss has none."""
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.shifted else labels

    def _check_output(self, output: Tensor) -> None:
        if output.dim() < (3 if self.class_axis == -1 else 2):
            wanted = "a row (positions, tokens) a sample" if self.class_axis == -1 else "one score a class"
            why = f"the model's output has shape {tuple(output.shape)}, not {wanted}"
            raise InputError("probe", why, "choose another --loss")

    def _check(self, output: Tensor, targets: Tensor) -> None:
        batch, classes = output.shape[0], output.shape[self.class_axis]
        wanted = (batch, *(output.shape[2:] if self.class_axis == 1 else output.shape[1:-1]))
        if targets.is_floating_point() or tuple(targets.shape) != wanted:
            shape = tuple(targets.shape)
            why = f"y is {_kind(targets)} of shape {shape}, the loss takes integer labels of shape {wanted}"
            do = f"store labels as integers, one a {'position' if len(wanted) > 1 else 'sample'}"
            if self.class_axis == 1 and output.dim() > 2 and targets.shape == output.shape[:-1]:
                do = "where the classes are along the last axis, use --loss masked_lm, or causal_lm for next tokens"
            raise InputError("probe", why, do)
        counted = targets[targets != IGNORED]
        if not counted.numel():
            return
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= classes:
            bad = high if high >= classes else low
            why = f"label {bad} is out of range for a model with {classes} outputs"
            do = f"give labels from 0 to {classes - 1}" + (
                f", or {IGNORED} to leave one out" if low < 0 else ""
            )
            raise InputError("probe", why, do)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
