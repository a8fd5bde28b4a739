"""Functions that can be differentiated twice in place of those that cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.measures import Plan, measure
from nndiag.measures.twice import TwiceDifferentiable
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level

IDS = torch.tensor([3, 1, 1, 0, 4, 2, 3, 3, 0])
BAGS: list[dict[str, Any]] = [
    {"input": IDS.reshape(3, 3)},
    {"input": IDS, "offsets": torch.tensor([0, 2, 2, 7])},
    {"input": IDS, "offsets": torch.tensor([0, 2, 2, 7, 9]), "include_last_offset": True},
    {"input": IDS, "offsets": torch.tensor([0, 4]), "padding_idx": 3},
    {"input": IDS.reshape(3, 3), "padding_idx": -2},
]


def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("bags", BAGS)
def test_bags_are_those_of_torch(bags: dict[str, Any], mode: str) -> None:
    weight = table()
    expected = F.embedding_bag(weight=weight, mode=mode, **bags)
    with TwiceDifferentiable():
        found = F.embedding_bag(weight=weight, mode=mode, **bags)
    torch.testing.assert_close(found, expected)
    seed = torch.ones_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, weight, seed), torch.autograd.grad(expected, weight, seed)
    )


def test_bags_with_weights_are_those_of_torch() -> None:
    weight, weights = table(), torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
    given: dict[str, Any] = {"mode": "sum", "per_sample_weights": weights}
    with TwiceDifferentiable():
        found = F.embedding_bag(IDS.reshape(3, 3), weight, **given)
    torch.testing.assert_close(found, F.embedding_bag(IDS.reshape(3, 3), weight, **given))


def test_bags_in_front_of_something_smooth_have_exact_blocks() -> None:
    torch.manual_seed(0)
    bag, last = nn.EmbeddingBag(12, 4, mode="sum").double(), nn.Linear(4, 2).double()
    model = nn.Sequential(bag, nn.Tanh(), last).eval()
    x, y = torch.randint(0, 12, (15, 3)), torch.randn(15, 2, dtype=torch.float64)
    measured = measure(model, Probe((x,), y, named_loss("mse")), Plan(Level.CURVATURE, curvature="hessian"))
    layer = measured.layers[0]
    assert layer.curvature_kind == "hessian"

    def loss(weight: Tensor) -> Tensor:
        rows = weight[x].sum(dim=1)
        return F.mse_loss(last(rows.tanh()), y)

    whole = torch.autograd.functional.hessian(loss, bag.weight.detach())
    values = torch.stack([torch.linalg.eigvalsh(whole[i, :, i]) for i in range(12)])
    for name, expected in (("lambda_max", values[:, -1]), ("lambda_min", values[:, 0])):
        found = torch.as_tensor(layer.per_node[name])
        seen = ~found.isnan()
        torch.testing.assert_close(found[seen], expected[seen], rtol=1e-6, atol=1e-12)
        assert seen.any()
