"""Attention heads as nodes: a head's rows of the projections taken together, in every way that attention is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import Conv1D, gauss_newton_blocks
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.replay.layers import find_layers

WIDTH, HEADS = 6, 3


class Attention(nn.Module):
    """By hand, with projections apart or together; keys and values may have fewer heads."""

    def __init__(self, joint: nn.Module | None, key_heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = HEADS, key_heads
        if joint is not None:
            self.c_attn = joint
        else:
            own = WIDTH // HEADS * key_heads
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, n) for n in (WIDTH, own, own))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "c_attn"):
            q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        parts = [t.unflatten(2, (-1, WIDTH // HEADS)).transpose(1, 2) for t in (q, k, v)]
        parts[1:] = [t.repeat_interleave(HEADS // t.shape[1], dim=1) for t in parts[1:]]
        mixed = F.scaled_dot_product_attention(*parts)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class OfTorch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


WAYS = {
    "apart": (lambda: Attention(None), {"0.q_proj": 3, "0.k_proj": 3, "0.v_proj": 3}),
    "fewer keys": (lambda: Attention(None, 1), {"0.q_proj": 3, "0.k_proj": 1, "0.v_proj": 1}),
    "together": (lambda: Attention(nn.Linear(WIDTH, 3 * WIDTH)), {"0.c_attn": 3}),
    "together, transposed": (lambda: Attention(Conv1D(3 * WIDTH, WIDTH)), {"0.c_attn": 3}),
    "of torch": (OfTorch, {"0.attention": 3}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_head_is_a_node(way: str) -> None:
    torch.manual_seed(0)
    build, heads = WAYS[way]
    model = nn.Sequential(build(), nn.Flatten(), nn.Linear(4 * WIDTH, 3)).double()
    x = torch.randn(7, 4, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = Probe((x,), torch.arange(7) % 3, named_loss("cross_entropy"))
    truth = gauss_newton_blocks(model, samples, find_layers(model, "head"))
    found = measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9, granularity="head"))
    assert {one.name: one.nodes for one in found.layers if one.name in heads} == heads
    assert sum(one.parameters for one in found.layers) == sum(p.numel() for p in model.parameters())
    for one in found.layers:
        values = torch.linalg.eigvalsh(truth[one.name]).numpy()
        np.testing.assert_allclose(one.per_node["lambda_max"], values[:, -1], rtol=1e-6)
        np.testing.assert_allclose(one.per_node["trace"], values.sum(axis=1), rtol=1e-6)
