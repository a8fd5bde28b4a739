"""Batch normalisation by running statistics, as the scale and shift that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WORTH = 2**18
"""Entries of an input from which on it is worth the few small operations more."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``F.batch_norm`` does, whose arguments these are, with gradients that cost less on a CPU.

    In eval mode it is ``α x + β`` with ``α = γ/√(σ² + ε)`` and ``β = b − μ α``, and torch computes it so on a CPU. The
    gradient at ``x`` is that at the output times ``α``: one multiplication. Torch's own also sums over the batch, for
    the gradients at ``γ`` and ``b``, whether they are asked for or not, and takes three to four times as long.
    """
    given = (running_mean, running_var, weight, bias)
    if training or not _scales(input, given):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    assert running_mean is not None
    assert running_var is not None
    alpha = torch.rsqrt(running_var + eps)
    alpha = alpha if weight is None else weight * alpha
    beta = -running_mean * alpha if bias is None else bias - running_mean * alpha
    shape = (-1, *[1] * (input.dim() - 2))
    return (input * alpha.reshape(shape)).add_(beta.reshape(shape))


def _scales(x: Tensor, given: Sequence[Tensor | None]) -> bool:
    """Whether gradients are taken on a CPU, of a large input with one number of its own type a channel in all else."""
    if not (torch.is_grad_enabled() and type(x) is Tensor and x.dim() > 1 and x.numel() >= WORTH):
        return False
    tensors = [x, *(t for t in given if t is not None)]
    if x.device.type != "cpu" or x.layout != torch.strided or x.dtype not in (torch.float32, torch.float64):
        return False
    if (
        given[0] is None
        or given[1] is None
        or any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))
    ):
        return False
    return all(t.shape == (x.shape[1],) and t.dtype == x.dtype for t in tensors[1:])
