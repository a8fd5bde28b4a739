"""The proof of a treatment: the probe replayed before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nndiag.probe.probe import Probe
from nndiag.replay.passes import main_output
from nndiag.replay.state import undisturbed

TOLERANCE = 1e-6
"""Change of the outputs, relative to their scale, up to which a function counts as unchanged."""


@dataclass(frozen=True)
class Replayed:
    """What a network does on the probe.

    ``outputs`` are all of them, on the CPU, samples first. ``loss`` is the mean over the samples, ``None`` without
    targets or a loss. ``gradients`` are those of the mean loss (without one: of the mean square of the outputs), by the
    names of the parameters.
    """

    outputs: Tensor
    loss: float | None
    gradients: Mapping[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether every output is finite."""
        return bool(self.outputs.isfinite().all())


def replay(model: nn.Module, probe: Probe, seed: int, gradients: bool = True) -> Replayed:
    """Run a network over the probe, in eval mode, and leave it as it was.

    Args:
        model: the network.
        probe: the samples, the targets and the loss.
        seed: of whatever is random in the network.
        gradients: whether they are wanted.
    """
    outputs: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    loss = 0.0
    judged = probe.loss is not None and probe.has_targets
    with undisturbed(model, seed), torch.set_grad_enabled(gradients):
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for batch in probe.batches():
            output = main_output(model(*batch.inputs))
            outputs.append(output.detach().cpu())
            if judged and probe.loss is not None and batch.targets is not None:
                targets = probe.loss.prepare(output, batch.targets)
                values = probe.loss.per_sample(output, targets)
            else:
                values = output.reshape(len(output), -1).square().mean(dim=1)
            loss += float(values.detach().double().sum())
            if not gradients or not values.requires_grad:
                continue
            found = torch.autograd.grad(
                values.sum() / len(probe), list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] = sums[name] + gradient if name in sums else gradient
    return Replayed(torch.cat(outputs), loss / len(probe) if judged else None, sums)


def output_change(before: Replayed, after: Replayed) -> float | None:
    """Return ``max |f' − f| / max |f|`` over samples and outputs; ``None`` where a network was not finite.

    Networks whose outputs are all zero are compared absolutely.
    """
    if not (before.finite and after.finite) or before.outputs.shape != after.outputs.shape:
        return None
    one, other = before.outputs.double(), after.outputs.double()
    scale = float(one.abs().max())
    return float((other - one).abs().max()) / (scale or 1.0)
