"""A layer whose weight is used a second time in another way: its blocks would be wrong, so there are none."""

from __future__ import annotations

import torch
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


def test_the_layer_is_named_as_not_measured_and_the_others_are() -> None:
    torch.manual_seed(0)
    model = Tied()
    probe = Probe((torch.randn(20, 6),), torch.randn(20, 6), named_loss("mse"))
    found = measure(model, probe, Plan(Level.CURVATURE))
    encoder, scale = found.layers
    assert "lambda_max" not in encoder.per_node
    assert "active_fraction" in encoder.per_node
    assert "gradient_norm" in encoder.per_node  # autograd adds up every use
    assert "lambda_max" in scale.per_node
    assert "also used outside" in dict(found.unmeasured)["encoder"]


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
