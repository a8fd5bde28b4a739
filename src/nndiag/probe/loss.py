"""The losses: one value per sample, and the curvature of that value in the network's output.

Every loss is a mean over samples, and over the outputs of one sample where it has several (``mse``,
``bce_with_logits``), as torch's ``reduction="mean"`` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nndiag.errors import InputError, UsageError

PerSample = Callable[[Tensor, Tensor], Tensor]
Prepare = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss by name.

    ``per_sample(output, targets)`` returns ``(batch,)``. ``prepare(output, targets)`` returns the targets
    in the form that
    ``per_sample`` takes, or raises. ``form`` says how the curvature in the output is had: ``"softmax"``,
    ``"identity"``,
    ``"sigmoid"`` in closed form without targets, ``"autograd"`` from ``per_sample`` with them.
    """

    name: str
    per_sample: PerSample
    prepare: Prepare
    form: str

    @property
    def curvature_needs_targets(self) -> bool:
        """Whether the curvature cannot be had from a probe without targets."""
        return self.form == "autograd"

    @property
    def is_cross_entropy(self) -> bool:
        """Whether adding a constant to all logits of a sample changes nothing."""
        return self.form == "softmax"


def named_loss(name: str) -> Loss:
    """Return the loss of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in LOSSES:
        known = ", ".join(LOSSES)
        raise UsageError(f"--loss {name}", "there is no such loss", f"use {known}, or file.py:callable")
    return LOSSES[name]


def custom_loss(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return a loss from the user's callable ``(output, targets) → (batch,)``.

    Raises (when called):
        InputError: it raised, or did not give one value a sample.
    """

    def per_sample(output: Tensor, targets: Tensor) -> Tensor:
        try:
            values = function(output, targets)
        except Exception as error:  # the user's code may raise anything
            why = f"it raised {type(error).__name__}: {error}"
            raise InputError(f"--loss {name}", why, "make it take (output, targets)") from error
        if not isinstance(values, Tensor) or values.shape != output.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            why = f"it returned {got} for {output.shape[0]} samples"
            raise InputError(f"--loss {name}", why, "return one loss per sample (no mean, no sum)")
        return values

    return Loss(name, per_sample, lambda _, targets: targets, "autograd")


def _cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest(F.cross_entropy(output, targets, reduction="none"))


def _nll(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest(F.nll_loss(output, targets, reduction="none"))


def _mse(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest((output - targets).square())


def _bce(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest(F.binary_cross_entropy_with_logits(output, targets, reduction="none"))


def _mean_over_rest(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values


def _labels(output: Tensor, targets: Tensor) -> Tensor:
    """Return class labels as int64, or probabilities as they are."""
    if targets.is_floating_point() and targets.shape == output.shape:
        return targets.to(output)
    if output.dim() < 2:
        why = f"the model's output has shape {tuple(output.shape)}, not one score a class"
        raise InputError("probe", why, "choose another --loss")
    if targets.dim() == 2 and targets.shape[1] == 1 and output.dim() == 2:
        targets = targets[:, 0]
    wanted = (output.shape[0], *output.shape[2:])
    if targets.is_floating_point() or tuple(targets.shape) != wanted:
        shape = tuple(targets.shape)
        why = f"y is {_kind(targets)} of shape {shape}, the loss takes integer labels of shape {wanted}"
        raise InputError("probe", why, "store labels as integers, one a sample")
    low, high, classes = int(targets.min()), int(targets.max()), output.shape[1]
    if low < 0 or high >= classes:
        bad = high if high >= classes else low
        why = f"label {bad} is out of range for a model with {classes} outputs"
        raise InputError("probe", why, f"give labels from 0 to {classes - 1}")
    return targets.long()


def _log_probabilities(output: Tensor, targets: Tensor) -> Tensor:
    if output.dim() >= 2 and float(output.detach().logsumexp(dim=1).abs().max()) > 1e-3:
        raise InputError(
            "--loss nll", "the model's outputs are not log-probabilities", "use --loss cross_entropy"
        )
    return _labels(output, targets)


def _like_output(output: Tensor, targets: Tensor) -> Tensor:
    """Return targets of the output's own shape: broadcasting (N,) against (N, 1) would compare all pairs."""
    if targets.numel() != output.numel() or targets.shape[0] != output.shape[0]:
        why = f"y has shape {tuple(targets.shape)} and the model's output {tuple(output.shape)}"
        raise InputError("probe", why, "give y one value per output")
    return targets.reshape(output.shape).to(output)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


LOSSES = {
    "cross_entropy": Loss("cross_entropy", _cross_entropy, _labels, "softmax"),
    "mse": Loss("mse", _mse, _like_output, "identity"),
    "nll": Loss("nll", _nll, _log_probabilities, "softmax"),
    "bce_with_logits": Loss("bce_with_logits", _bce, _like_output, "sigmoid"),
}
