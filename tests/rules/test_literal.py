"""The literal profile against the eigenvalues of dense blocks, and what it says of healthy nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.rules.diagnose import Selection, judge
from tests.rules.diagnosing import blobs, judged, layer, trained

LITERAL = Selection(profile="literal")


def dense_blocks(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> dict[tuple[str, int], np.ndarray]:
    """Eigenvalues of every node's block by automatic differentiation in float64."""
    model = model.double()
    found = {}
    for name, module in model.named_children():
        if not isinstance(module, nn.Linear):
            continue
        for i in range(module.out_features):

            def loss(
                theta: torch.Tensor, i: int = i, name: str = name, one: nn.Linear = module
            ) -> torch.Tensor:
                w, b = one.weight.detach().clone(), one.bias.detach().clone()
                w = torch.cat([w[:i], theta[None, :-1], w[i + 1 :]])
                b = torch.cat([b[:i], theta[-1:], b[i + 1 :]])
                changed = {f"{name}.weight": w, f"{name}.bias": b}
                out = torch.func.functional_call(model, changed, (x.double(),))
                return nn.functional.cross_entropy(out, y)

            theta = torch.cat([module.weight[i], module.bias[i : i + 1]]).detach()
            hessian = torch.autograd.functional.hessian(loss, theta)
            found[name, i] = torch.linalg.eigvalsh(hessian).numpy()
    return found


@pytest.mark.parametrize("alpha", [0.01, 30.0])
def test_the_rule_is_the_sources(alpha: float) -> None:
    x, y = blobs(80)
    model = trained()
    facts = OptimizerFacts(name="sgd", lr=alpha)
    plan = Plan(Level.CURVATURE, solver="dense", noise=0.0, curvature="hessian")
    measured = measure(
        model.double(), Probe((x.double(),), y, named_loss("cross_entropy")), plan, Update(facts, {})
    )
    told = {
        (one.measures.name, i): word
        for one in judge(measured, LITERAL)
        for i, word in enumerate(one.verdicts)
    }
    for node, eigenvalues in dense_blocks(model, x, y).items():
        factors = np.abs(1 - alpha * eigenvalues)
        sigma = np.abs(eigenvalues).min()
        if abs(sigma - 1e-4) < 1e-9:
            continue
        degenerate = sigma < 1e-4 or bool(((factors >= 0.99) & (factors <= 1.01)).any())
        wanted = "plateau" if degenerate else "source" if (factors > 1).any() else "healthy"
        assert told[node] == wanted, node


def test_a_sink_at_nothing_has_collapsed() -> None:
    small = layer(parameter_norm=1e-5)
    small.per_node["sigma_min"] = np.ones(small.nodes)  # type: ignore[index]
    small.per_node["unit_circle_distance"] = np.full(small.nodes, 0.2)  # type: ignore[index]
    facts = OptimizerFacts(name="sgd", lr=0.1)
    (one,) = judged(small, optimizer=facts, selection=LITERAL)
    assert set(one.verdicts) == {"collapsed"}


def test_without_all_eigenvalues_nothing_is_said() -> None:
    (one,) = judged(layer(), selection=LITERAL)
    assert one.by_node == {}
