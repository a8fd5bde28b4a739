"""Jacobians of single samples: what taking them leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nndiag.replay import jacobians
from nndiag.replay.jacobians import sample_jacobians
from nndiag.replay.layers import find_layers


class Bare(nn.Module):
    """A parameter that no kind knows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.table).tanh() @ self.table.T


def test_gradients_are_taken_without_the_graph_that_would_differentiate_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, taken = Bare(), []
    vjp = torch.func.vjp

    def watched(*args: Any) -> Any:
        value, pull = vjp(*args)

        def pulled(seed: Tensor) -> Any:
            taken.append(torch.is_grad_enabled())
            return pull(seed)

        return value, pulled

    monkeypatch.setattr(jacobians.torch.func, "vjp", watched)
    x = torch.randn(5, 4, dtype=torch.float64)
    output, seeds = model(x), torch.randn(2, 5, 4, dtype=torch.float64)
    ((part, found),) = sample_jacobians(model, find_layers(model), [x], output, seeds)
    assert taken == [False, False]
    assert part == slice(0, 5)
    for seed, own in zip(seeds, found["table"], strict=True):
        (truth,) = torch.autograd.grad(output, model.table, seed, retain_graph=True)
        torch.testing.assert_close(own.sum(dim=0).reshape(truth.shape), truth)
