"""Claims about piecewise linear networks that do not hold, and what is said of the points that refute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, Update, measure
from nndiag.measures.certificate import Bounds, certify
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.rules.diagnose import JudgedLayer, Selection, judge
from tests.rules.diagnosing import codes, diagnosed, everything

X = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
XOR = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
ONE, MINUS = torch.ones(1, 1, dtype=torch.float64), -torch.ones(1, 1, dtype=torch.float64)


def unit(weights: list[float], bias: float | None, activation: nn.Module) -> nn.Sequential:
    """Return one unit in float64."""
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=bias is not None), activation).double()
    with torch.no_grad():
        model[0].weight[0] = torch.tensor(weights)
        if bias is not None:
            model[0].bias[0] = bias
    return model


class Abs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def gradient_step(model: nn.Sequential, x: Tensor, y: Tensor, alpha: float) -> None:
    loss = nn.functional.mse_loss(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter -= alpha * grad


def certified(model: nn.Sequential) -> str:
    probe = Probe((X,), XOR, named_loss("mse"))
    bounds = Bounds(signal=2.0, flat=1e-3)
    return str(certify(model, probe, bounds, 0, None, lambda *_: None).kind)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("start", [0.3, -0.7])
def test_1_gradient_descent_on_a_kink_cycles_below_the_threshold_and_is_said_to_flip(
    alpha: float, start: float
) -> None:
    """f = |w|, target −1, β = 2: for every α in (0, 1) the orbit settles on w = ±α/(1 − α)."""
    model = unit([start], None, Abs())
    for _ in range(2000):
        gradient_step(model, ONE, MINUS, alpha)
    assert abs(model[0].weight.item()) == pytest.approx(alpha / (1 - alpha), rel=1e-6)
    facts = OptimizerFacts(name="sgd", lr=alpha)
    (found,) = diagnosed(model, ONE, MINUS, "mse", facts).values()
    assert "ND404" in codes(found, 0)
    assert "ND402" not in everything((found,))  # its linearisation is stable
    assert float(found.measures.per_node["step_residual"][0]) < 1e-5


def test_1_off_the_cycle_the_same_unit_does_not_flip() -> None:
    facts = OptimizerFacts(name="sgd", lr=0.1)
    (found,) = diagnosed(unit([0.8], None, Abs()), ONE, MINUS, "mse", facts).values()
    assert "ND404" not in everything((found,))


@pytest.mark.parametrize(("alpha", "grows"), [(0.9, False), (1.1, True)])
def test_2_divergence_needs_only_the_largest_eigenvalue_above_the_threshold(
    alpha: float, grows: bool
) -> None:
    """H = diag(2, 0.02): 2/λ_min is 100, and yet steps of 1.1 grow."""
    model = unit([0.5, 0.5], None, nn.Identity())
    x = torch.tensor([[math.sqrt(2), 0.0], [0.0, math.sqrt(0.02)]], dtype=torch.float64)
    y = torch.zeros(2, 1, dtype=torch.float64)
    facts = OptimizerFacts(name="sgd", lr=alpha)
    (found,) = diagnosed(model, x, y, "mse", facts).values()
    assert found.measures.per_node["lambda_max"][0] == pytest.approx(2.0)
    assert ("ND402" in codes(found, 0)) == grows
    before = nn.functional.mse_loss(model(x), y).item()
    for _ in range(20):
        gradient_step(model, x, y, alpha)
    assert (nn.functional.mse_loss(model(x), y).item() > before) == grows


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_3_abs_has_strict_minima_with_loss_one_and_they_are_called_minima(bias: float) -> None:
    """With the sum of squares the loss is 1 and the Hessian 8I; with its mean, here, a quarter of both."""
    model = unit([0.0, 0.0], bias, Abs())
    assert (model(X) - XOR).square().sum().item() == pytest.approx(1.0)
    (found,) = diagnosed(model, X, XOR, "mse").values()
    assert found.measures.per_node["lambda_max"][0] == pytest.approx(8 / 4)
    assert found.measures.per_node["lambda_min"][0] == pytest.approx(8 / 4)
    assert certified(model) == "strict_minimum"
    assert found.verdicts[0] != "plateau"


def test_3_gradient_descent_ends_in_both_kinds_of_minima() -> None:
    ends = set()
    for seed in range(12):
        torch.manual_seed(seed)
        model = unit(torch.randn(2).tolist(), float(torch.randn(())), Abs())
        for _ in range(600):
            gradient_step(model, X, XOR, 0.1)
        ends.add(round((model(X) - XOR).square().sum().item(), 3))
    assert ends == {0.0, 1.0}


def test_4_a_critical_point_of_relu_on_xor_need_not_be_a_collapse() -> None:
    model = unit([0.75, -0.75], -0.5, nn.ReLU())
    (found,) = diagnosed(model, X, XOR, "mse").values()
    assert (model(X) - XOR).square().sum().item() == pytest.approx(1.0)
    assert found.measures.per_node["gradient_norm"][0] == pytest.approx(0, abs=1e-12)
    assert found.measures.per_node["lambda_max"][0] == pytest.approx(6 / 4)
    assert "ND201" not in codes(found, 0)
    assert found.verdicts[0] != "plateau"


def test_4_the_collapse_has_loss_two_and_is_called_dead() -> None:
    model = unit([0.1, 0.1], -1.0, nn.ReLU())
    (found,) = diagnosed(model, X, XOR, "mse").values()
    assert (model(X) - XOR).square().sum().item() == pytest.approx(2.0)
    assert "ND201" in codes(found, 0)
    assert "which proves little" in next(f for f in found.by_node[0] if f.code == "ND201").message


def dead(decay: float) -> JudgedLayer:
    model = unit([0.1, 0.1], -1.0, nn.ReLU())
    facts = OptimizerFacts(name="sgd", lr=0.1, weight_decay=decay)
    update = Update(facts, {})
    measured = measure(model, Probe((X,), XOR, named_loss("mse")), Plan(Level.CURVATURE), update)
    return judge(measured, Selection())[0]


def test_5_a_dead_unit_is_a_plateau_and_no_sink() -> None:
    """H = 0, so that every eigenvalue of the update map is one; only weight decay makes it contract."""
    found = dead(0.0)
    ends = found.measures.per_node["update_map_min"], found.measures.per_node["update_map_max"]
    assert np.array(ends).ravel().tolist() == [1.0, 1.0]
    assert found.verdicts == ("plateau",)
    decaying = dead(0.5).measures.per_node
    assert decaying["update_map_max"][0] == pytest.approx(1 - 0.1 * 0.5)
