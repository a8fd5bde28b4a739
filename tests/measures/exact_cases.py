"""Smooth networks on which exact blocks are checked, and Gauss-Newton numbers to start from."""

from __future__ import annotations

import numpy as np
import torch
from tests.cases import Case
from torch import Tensor, nn

from nndiag.measures.curvature import LayerCurvature
from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer


def gelu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3))


def tanh_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))


def smooth_tokens() -> nn.Module:
    """Linear layers over several positions."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    )


def smooth_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Softplus(),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


class Attention(nn.Module):
    """One head of attention over four positions, written by hand, with a residual and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.value, self.norm, self.out = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def mix(self, x: Tensor) -> Tensor:
        return torch.softmax(self.query(x) @ self.key(x).mT / 2, dim=-1) @ self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x + self.mix(x)).mean(dim=1))


class FusedAttention(Attention):
    """The same with torch's own attention, whose usual kernel has no second derivative."""

    def mix(self, x: Tensor) -> Tensor:
        heads = (part(x)[:, None] for part in (self.query, self.key, self.value))
        return nn.functional.scaled_dot_product_attention(*heads)[:, 0]


class Recurrent(nn.Module):
    """The last state of an LSTM over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Transformer(nn.Module):
    """A layer of torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, activation="gelu", batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(dim=1))


SMOOTH = (
    Case("gelu_mlp", gelu_mlp, (5,), 3, piecewise_linear=False),
    Case("tanh_mlp", tanh_mlp, (5,), 3, piecewise_linear=False),
    Case("smooth_tokens", smooth_tokens, (3, 4), 3, piecewise_linear=False),
    Case("smooth_cnn", smooth_cnn, (2, 5, 5), 3, piecewise_linear=False),
    Case("attention", Attention, (4, 4), 3, piecewise_linear=False),
    Case("fused_attention", FusedAttention, (4, 4), 3, piecewise_linear=False),
    Case("lstm", Recurrent, (4, 3), 3, piecewise_linear=False),
    Case("transformer", Transformer, (3, 4), 3, piecewise_linear=False),
)


def start(layers: tuple[Layer, ...], probe: Probe) -> dict[str, LayerCurvature]:
    """Return numbers that stand for those of Gauss-Newton blocks: the same for all nodes."""
    return {
        layer.name: LayerCurvature(
            {"lambda_max": np.ones(layer.nodes), "trace": np.zeros(layer.nodes)},
            {"lambda_max": np.ones((probe.fold_count, layer.nodes))},
            True,
            1,
        )
        for layer in layers
    }
