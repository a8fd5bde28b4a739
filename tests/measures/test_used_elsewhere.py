"""A layer whose weight is used a second time in another way: its blocks count both uses."""

from __future__ import annotations

import numpy as np
import torch
from tests.cases import gauss_newton_blocks
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.scale = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.encoder(x).relu() @ self.encoder.weight)


def test_a_second_use_counts() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    probe = Probe((torch.randn(20, 6).double(),), torch.randn(20, 6).double(), named_loss("mse"))
    truth = gauss_newton_blocks(model, probe)
    found = measure(model, probe, Plan(Level.CURVATURE))
    assert found.unmeasured == ()
    for layer in found.layers:
        largest = torch.linalg.eigvalsh(truth[layer.name])[:, -1].numpy()
        np.testing.assert_allclose(layer.per_node["lambda_max"], largest, rtol=1e-3)
    assert "active_fraction" in found.layers[0].per_node


def test_reading_a_weight_without_using_it_is_no_use() -> None:
    class Reader(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert self.weight.data.dtype == x.dtype
            return super().forward(x.to(self.weight.dtype))

    model = nn.Sequential(Reader(6, 4), nn.ReLU(), nn.Linear(4, 2))
    probe = Probe((torch.randn(20, 6),), torch.randn(20, 2), named_loss("mse"))
    found = measure(model, probe, Plan(Level.CURVATURE))
    assert found.unmeasured == ()
    assert all("lambda_max" in layer.per_node for layer in found.layers)
