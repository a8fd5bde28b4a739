"""The next step against this one: κ of quadratics, of every optimiser's map, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, OptimizerFacts

X = torch.tensor([[1.0]], dtype=torch.float64)
Y = torch.tensor([[0.0]], dtype=torch.float64)


def line(weight: float = 1.0) -> nn.Sequential:
    """One weight, loss w², curvature 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(weight)
    return model


def measured(
    facts: OptimizerFacts | None, model: nn.Module | None = None, moments: float | None = None
) -> LayerMeasures:
    model = line() if model is None else model
    held = {} if moments is None else {"0.weight": torch.full((1, 1), moments, dtype=torch.float64)}
    update = None if facts is None else Update(facts, held)
    before = [p.detach().clone() for p in model.parameters()]
    found = measure(model, Probe((X,), Y, named_loss("mse")), Plan(Level.CURVATURE), update).layers[0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return found


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9, 1.0, 1.2])
def test_on_a_quadratic_it_is_the_eigenvalue_of_the_map(lr: float) -> None:
    node = measured(OptimizerFacts(name="sgd", lr=lr)).per_node
    assert node["step_return"][0] == pytest.approx(1 - 2 * lr, abs=1e-9)
    assert node["step_residual"][0] == pytest.approx(abs(2 - 2 * lr), abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_flips_at_its_own_threshold(momentum: float) -> None:
    facts = OptimizerFacts(name="sgd", lr=1 + momentum, momentum=momentum)
    node = measured(facts).per_node
    assert node["stability_margin"][0] == pytest.approx(1.0)
    assert node["step_residual"][0] == pytest.approx(0, abs=1e-9)


def test_adam_flips_at_its_own_threshold() -> None:
    facts = OptimizerFacts(name="adam", lr=19.0 * 0.25, betas=(0.9, 0.999), eps=1e-12)
    node = measured(facts, moments=0.0625).per_node
    assert node["stability_margin"][0] == pytest.approx(1.0, rel=1e-6)
    assert node["step_residual"][0] == pytest.approx(0, abs=1e-6)


def test_decay_adds_to_the_curvature() -> None:
    facts = OptimizerFacts(name="sgd", lr=0.5, weight_decay=0.2)
    assert measured(facts).per_node["step_return"][0] == pytest.approx(1 - 0.5 * 2.2)


def test_a_node_that_does_not_move_has_none() -> None:
    assert np.isnan(measured(OptimizerFacts(name="sgd", lr=0.1), line(0.0)).per_node["step_return"]).all()


@pytest.mark.parametrize("facts", [None, OptimizerFacts(name="sgd"), OptimizerFacts(name="adam", lr=0.1)])
def test_without_a_rule_nothing_is_taken(facts: OptimizerFacts | None) -> None:
    assert "step_return" not in measured(facts).per_node
