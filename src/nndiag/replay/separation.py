"""Checking that samples do not see each other: what every per-sample formula rests on.

A layer whose first axis is not the sample (sequence-first transformers, flattened batches), or a model
that mixes its batch (batch statistics in eval mode), would give wrong curvature without any error. Two
small backward passes find both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nndiag.replay.kinds.base import Layer
from nndiag.replay.nonlinearity import Nonlinearity
from nndiag.replay.passes import forward


class Blind:
    """An observer that looks at nothing."""

    def produced(self, layer: Layer, z: Tensor) -> object:
        """Nothing."""

    def put_out(self, layer: Layer, activation: Nonlinearity | None, z: Tensor, y: Tensor) -> object:
        """Nothing."""


def mixed_layers(
    model: nn.Module, inputs: Sequence[Tensor], layers: Mapping[int, Layer], generator: torch.Generator
) -> dict[str, str]:
    """Return the layers in which samples are not apart along the first axis, each with the reason.

    The output of the first sample alone is sent back, then that of the last alone; whatever reaches another
    row of a layer's output came across.

    Args:
        model: the model, in eval mode.
        inputs: probe inputs; the first three samples are used.
        layers: the layer of every weight, by the identity of the parameter.
        generator: source of the seeds of the backward passes.
    """
    few = [x[:3] for x in inputs]
    count = few[0].shape[0]
    seen = forward(model, few, layers, Blind())
    reasons: dict[str, str] = {}
    for call in seen.calls:
        if call.shape[0] != count:
            reasons[call.layer.name] = f"its output has {call.shape[0]} rows for {count} samples"
    for row in (0, count - 1):
        seed = torch.zeros_like(seen.output)
        seed[row] = torch.randn(seed[row].shape, generator=generator).to(seed)
        others = torch.arange(count) != row
        for call, g in zip(seen.calls, seen.gradients(seed), strict=True):
            if call.layer.name not in reasons and bool((g[others.to(g.device)] != 0).any()):
                reasons[call.layer.name] = "samples of a batch influence each other there"
    return reasons
