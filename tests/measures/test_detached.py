"""Nodes that no gradient leads to: those that nothing listens to, and those whose output is used all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.rules.diagnosing import blobs, codes, diagnosed, finding, trained
from torch import Tensor, nn

from nndiag.records.report import Finding
from nndiag.remedies import action_for

X, Y = blobs()


class Detaching(nn.Module):
    """The trained network, with some units of its first layer detached."""

    def __init__(self, units: list[int]) -> None:
        super().__init__()
        self.net = trained()
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        h = self.net[1](self.net[0](x))
        keep = torch.ones(h.shape[1])
        keep[self.units] = 0
        return self.net[4](self.net[3](self.net[2](h * keep + (h * (1 - keep)).detach())))


def alive(count: int) -> list[int]:
    found = diagnosed(trained(), X, Y)["0"]
    return [i for i in range(24) if not found.by_node.get(i)][:count]


@pytest.mark.parametrize("count", [1, 5])
def test_a_detached_unit_is_used(count: int) -> None:
    units = alive(count)
    found = diagnosed(Detaching(units), X, Y)["net.0"]
    for unit in units:
        one = finding(found, unit, "ND301")
        assert one.cause is None
        assert one.evidence["detached"] is True
        assert "ND304" not in codes(found, unit)
        findings: tuple[Finding, ...] = found.by_node[unit]
        for goal in ("train", "deploy"):
            assert action_for(findings, goal, is_output=False).kind == "none"


def test_the_effect_is_what_a_plain_comparison_gives() -> None:
    (unit,) = alive(1)
    model = Detaching([unit])
    effect = diagnosed(model, X, Y)["net.0"].measures.per_node["forward_effect"]
    first, mean = X, model.net[1](model.net[0](X))[:, unit].mean().item()
    changes = []
    full = model(first).detach()
    for bias in (0.0, mean):
        other = Detaching([unit])
        with torch.no_grad():
            other.net[0].weight[unit] = 0
            other.net[0].bias[unit] = bias
        changes.append(((other(first) - full).abs().max() / full.square().mean().sqrt()).item())
    assert effect[unit] == pytest.approx(max(changes), rel=1e-4)
    assert np.isnan(np.delete(effect, unit)).all()


def test_what_nothing_listens_to_has_no_effect() -> None:
    model = trained()
    (unit,) = alive(1)
    with torch.no_grad():
        model[2].weight[:, unit] = 0
    found = diagnosed(model, X, Y)["0"]
    assert found.measures.per_node["forward_effect"][unit] == 0
    assert finding(found, unit, "ND304").cause is None


def test_units_that_wait_behind_others_that_are_off_are_not_called_without_influence() -> None:
    model = trained()
    (unit,) = alive(1)
    with torch.no_grad():
        high = model[0](X)[:, unit].max().item()
        model[2].weight[:, unit] = 0
        model[2].weight[3] = 0
        model[2].weight[3, unit] = -1.0  # off while the unit fires, on where its mean is subtracted
        model[2].bias[3] = 1e-3 * high
        quiet = X[model[0](X)[:, unit] > 0.1 * high]
    found = diagnosed(model, quiet, Y[: len(quiet)])["0"]
    effect = found.measures.per_node.get("forward_effect")
    assert effect is not None
    assert effect[unit] > 0
    assert "ND304" not in codes(found, unit)
