"""The losses: one value per sample, and the curvature of that value in the network's output.

Every loss is a mean over samples, and over the outputs of one sample where it has several (``mse``,
``bce_with_logits``), as torch's ``reduction="mean"`` has it; losses on labels are a mean over the labels that count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nndiag.errors import InputError, UsageError
from nndiag.probe.labels import Labels

PerSample = Callable[[Tensor, Tensor], Tensor]
Prepare = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss by name.

    ``per_sample(output, targets)`` returns ``(batch,)``. ``prepare(output, targets)`` returns the targets
    in the form that
    ``per_sample`` takes, or raises. ``form`` says how the curvature in the output is had: ``"softmax"``,
    ``"identity"``,
    ``"sigmoid"`` in closed form without targets, ``"autograd"`` from ``per_sample`` with them. ``labels`` says how a
    softmax reads its targets.
    """

    name: str
    per_sample: PerSample
    prepare: Prepare
    form: str
    labels: Labels | None = None

    def over(self, targets: Tensor) -> Loss:
        """Return the same loss for a probe with these targets: it knows how many labels of the whole probe count.

        Raises:
            InputError: none does.
        """
        return self if self.labels is None else _on_labels(self.name, self.labels.over(targets))

    @property
    def curvature_needs_targets(self) -> bool:
        """Whether the curvature cannot be had from a probe without targets."""
        return self.form == "autograd"

    @property
    def class_axis(self) -> int | None:
        """The axis of the output along which a constant may be added without changing anything; ``None``: none."""
        return None if self.labels is None else self.labels.class_axis


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


def _on_labels(name: str, labels: Labels) -> Loss:
    return Loss(name, labels.per_sample, labels.prepare, "softmax", labels)


def _mse(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest((output - targets).square())


def _bce(output: Tensor, targets: Tensor) -> Tensor:
    return _mean_over_rest(F.binary_cross_entropy_with_logits(output, targets, reduction="none"))


def _mean_over_rest(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values


def _like_output(output: Tensor, targets: Tensor) -> Tensor:
    """Return targets of the output's own shape: broadcasting (N,) against (N, 1) would compare all pairs."""
    if targets.numel() != output.numel() or targets.shape[0] != output.shape[0]:
        why = f"y has shape {tuple(targets.shape)} and the model's output {tuple(output.shape)}"
        raise InputError("probe", why, "give y one value per output")
    return targets.reshape(output.shape).to(output)


LOSSES = {
    "cross_entropy": _on_labels("cross_entropy", Labels()),
    "mse": Loss("mse", _mse, _like_output, "identity"),
    "nll": _on_labels("nll", Labels(log_probabilities=True)),
    "bce_with_logits": Loss("bce_with_logits", _bce, _like_output, "sigmoid"),
    "causal_lm": _on_labels("causal_lm", Labels(class_axis=-1, shifted=True)),
    "masked_lm": _on_labels("masked_lm", Labels(class_axis=-1)),
}
