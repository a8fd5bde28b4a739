"""Torque, spread, signal and reach against gradients of single samples taken one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nndiag.measures import Plan, measure
from nndiag.measures.gradients import mean_gradient_measures, torque_of_layer
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level


def test_against_single_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(11, 5, dtype=torch.float64), torch.arange(11) % 3
    found = measure(model, Probe((x,), y, named_loss("cross_entropy"), batch_size=4), Plan(Level.GRADIENTS))
    for name, module in (("0", model[0]), ("2", model[2])):
        layer = next(one for one in found.layers if one.name == name)
        rows = []
        for n in range(11):
            model.zero_grad()
            nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
            rows.append(torch.cat([module.weight.grad, module.bias.grad[:, None]], dim=1).clone())
        single = torch.stack(rows)
        mean = single.mean(0)
        spread = ((single - mean) ** 2).sum(2).mean(0).sqrt()
        node = layer.per_node
        np.testing.assert_allclose(node["gradient_norm"], mean.norm(dim=1).numpy(), rtol=1e-9)
        np.testing.assert_allclose(node["gradient_spread"], spread.numpy(), rtol=1e-7)
        np.testing.assert_allclose(node["gradient_signal"], (mean.norm(dim=1) / spread).numpy(), rtol=1e-7)
        at_units = single[:, :, -1]  # the bias's gradient is the unit's own
        np.testing.assert_allclose(
            node["gradient_reach"], at_units.square().mean(0).sqrt().numpy(), rtol=1e-9
        )
        w, g = module.weight.detach(), mean[:, :-1]
        across = g - (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
        np.testing.assert_allclose(
            node["torque_ratio"], (across.norm(dim=1) / g.norm(dim=1)).numpy(), rtol=1e-9
        )


@pytest.mark.parametrize(("across", "ratio"), [(0.0, 0.0), (3.0, 0.6), (1e9, 1.0)])
def test_torque_is_the_share_of_the_gradient_across_the_weights(across: float, ratio: float) -> None:
    rows = torch.tensor([[2.0, 0.0, 5.0]])
    gradient = torch.tensor([[4.0, across, 7.0]])
    found = mean_gradient_measures(rows, gradient, weights=2)
    assert found["torque_ratio"][0] == pytest.approx(ratio)


def test_torque_without_weights_and_without_gradient() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    gradient = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    torque = mean_gradient_measures(rows, gradient, weights=2)["torque_ratio"]
    assert torque[0] == 1
    assert np.isnan(torque[1])
    assert torque_of_layer(torque) == {"torque_ratio_mean": 1.0, "torque_ratio_p10": 1.0}
    assert torque_of_layer(torque[1:]) == {}
