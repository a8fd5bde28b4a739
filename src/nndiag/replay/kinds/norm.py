"""The affine part of a normalisation: a node is a channel with its scale γ and shift β, its input the normalised value.

The statistics are the function's own, taken by calling it without scale and shift.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay.kinds.base import Layer, Share, Use
from nndiag.replay.kinds.columns import ColumnKind, columns_apart
from nndiag.replay.units import Units


class Normalisation(ColumnKind):
    """``z[n, i, t] = γ_i x̂[n, i, t] + β_i``."""

    elementwise = True

    def fits(self, use: Use, output: Tensor) -> bool:
        """Where every node has one scale."""
        return use.weight.width == 1

    @abstractmethod
    def normalised(self, use: Use) -> Tensor:
        """Return ``x̂``, shaped like the output."""

    def units(self, output: Tensor, layer: Layer) -> Units | None:
        """The units are those of the layer before, which follow through the normalisation."""
        return None

    def columns(self, use: Use) -> Tensor:
        """Return one input a channel."""
        return self.spread(use, self.normalised(use)).unsqueeze(2)

    def inputs(self, share: Share) -> Tensor:
        """Return ``x̂``, ``(batch, nodes, 1, positions)``: the ones of a shift need not be written out.

        Or what becomes it by ``statistics``.
        """
        return self.joined(share)

    def statistics(self, share: Share, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the inputs, ``(nodes,)`` each: those of what is normalised."""
        nodes = inputs.shape[1]
        return inputs.new_zeros(nodes), inputs.new_ones(nodes)

    def jacobian(self, share: Share, inputs: Tensor, g: Tensor, start: int, stop: int) -> Tensor:
        """``Σ_t g x̂`` and ``Σ_t g``."""
        mean, variance = (one[start:stop] for one in self.statistics(share, inputs))
        cotangents, own = g[:, start:stop].flatten(2), inputs[:, start:stop].flatten(2)
        both = _products_and_sums(cotangents, own, mean, variance)
        return torch.stack(both[: 1 if share.uses[0].bias is None else 2], dim=2)

    def squared_norms(self, share: Share, inputs: Tensor, g: Tensor) -> Tensor:
        """Jacobians have one or two entries."""
        return self.jacobian(share, inputs, g, 0, g.shape[1]).square_().sum(dim=2)

    def operate(self, use: Use, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``γ x̂ + β``."""
        scaled = self.spread(use, self.normalised(use)) * weight.reshape(1, -1, 1)
        return scaled if bias is None else scaled + bias.reshape(1, -1, 1)

    def parameter_gradient(self, use: Use, cotangents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``Σ r x̂`` and ``Σ r``."""
        weight = (cotangents * self.spread(use, self.normalised(use))).sum(dim=(0, 2))
        bias = None if use.bias is None else cotangents.sum(dim=(0, 2)).reshape(use.bias.shape)
        return weight.reshape(use.weight.shape), bias

    def count(self, use: Use) -> tuple[int, int]:
        """Channels follow the rows."""
        return use.input.shape[0], math.prod(use.input.shape[2:])


def _products_and_sums(g: Tensor, x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``Σ_t g (x − μ)/σ`` and ``Σ_t g`` of tensors ``(batch, nodes, positions)``, ``μ`` and ``σ²`` by node.

    These are the gradients at scale and shift of a batch normalisation that has a channel for every sample and node,
    and on a CPU its kernel reads everything once.
    """
    if g.device.type != "cpu" or not (g.numel() and g.is_contiguous() and x.is_contiguous()):
        return torch.linalg.vecdot(g, x - mean[:, None]) * torch.rsqrt(variance), g.sum(dim=2)
    flat = (1, -1, g.shape[2])
    mean, variance = mean.repeat(len(g)), variance.repeat(len(g))
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        g.view(flat), x.view(flat), None, mean, variance, None, None, False, 0.0, [False, True, True]
    )
    return products.view(g.shape[:2]), sums.view(g.shape[:2])


class BatchNorm(Normalisation):
    """By the running statistics: in eval mode, where samples do not see each other."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "batch_norm": (
            "input",
            "running_mean",
            "running_var",
            "weight",
            "bias",
            "training",
            "momentum",
            "eps",
        )
    }

    def fits(self, use: Use, output: Tensor) -> bool:
        """In eval mode."""
        return super().fits(use, output) and not use.option("training", False)

    def inputs(self, share: Share) -> Tensor:
        """Return the input itself where there is one call: what normalises it is a number a node."""
        if len(share.uses) > 1:
            return super().inputs(share)
        (use,) = share.uses
        return columns_apart(use, self.spread(use, use.input).unsqueeze(2))

    def statistics(self, share: Share, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running ones."""
        if len(share.uses) > 1:
            return super().statistics(share, inputs)
        (use,) = share.uses
        return use.inputs["running_mean"], use.inputs["running_var"] + use.option("eps", 1e-5)

    def normalised(self, use: Use) -> Tensor:
        """``(x − μ)/√(σ² + ε)``."""
        eps = use.option("eps", 1e-5)
        return F.batch_norm(use.input, use.inputs["running_mean"], use.inputs["running_var"], eps=eps)


class GroupNorm(Normalisation):
    """By the statistics of a sample's groups of channels."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "group_norm": ("input", "num_groups", "weight", "bias", "eps")
    }

    def normalised(self, use: Use) -> Tensor:
        """Normalise every group."""
        return F.group_norm(use.input, use.option("num_groups", 1), eps=use.option("eps", 1e-5))


class InstanceNorm(Normalisation):
    """By the statistics of a sample's channel, or by running ones."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "instance_norm": (
            "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps",
        )
    }  # fmt: skip

    def normalised(self, use: Use) -> Tensor:
        """Normalise every channel."""
        own = use.option("use_input_stats", True)
        mean, variance = (None if own else use.inputs.get(f"running_{name}") for name in ("mean", "var"))
        return F.instance_norm(use.input, mean, variance, use_input_stats=own, eps=use.option("eps", 1e-5))


class LayerNorm(Normalisation):
    """By the statistics of a position's features, which are the last axes."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps")
    }

    def normalised(self, use: Use) -> Tensor:
        """Normalise the features of every position."""
        return F.layer_norm(use.input, use.option("normalized_shape", ()), eps=use.option("eps", 1e-5))

    def leading(self, use: Use, output_shape: Sequence[int]) -> Sequence[int]:
        """Everything before the features."""
        return output_shape[: len(output_shape) - len(use.weight.shape)]

    def spread(self, use: Use, output: Tensor) -> Tensor:
        """One position a row."""
        return output.reshape(-1, math.prod(use.weight.shape), 1)

    def count(self, use: Use) -> tuple[int, int]:
        """One position a row."""
        return math.prod(self.leading(use, use.input.shape)), 1


class RMSNorm(LayerNorm):
    """By the root of the mean square of a position's features."""

    functions: ClassVar[Mapping[str, Sequence[str]]] = {
        "rms_norm": ("input", "normalized_shape", "weight", "eps")
    }

    def normalised(self, use: Use) -> Tensor:
        """Scale the features of every position."""
        found: Tensor = torch.rms_norm(
            use.input, use.option("normalized_shape", ()), None, use.option("eps", None)
        )
        return found
