"""The optimiser's own map against the matrix of its linearised step, formed densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import CASES, build, dense_blocks, probe

from nndiag.measures import Plan, Update, measure
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts

LR, DECAY = 0.05, 0.2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("solver", ["lanczos", "dense", "power"])
def test_its_ends_are_those_of_the_step(name: str, decay: float | None, solver: str) -> None:
    case = next(c for c in CASES if c.name == "wide_mlp")
    model, samples = build(case), probe(case, "mse", samples=80)
    facts = OptimizerFacts(name, LR, betas=(0.9, 0.999), eps=1e-3, weight_decay=decay)
    moments = {n: torch.rand_like(p) for n, p in model.named_parameters()} if facts.is_adam else {}
    found = measure(
        model, samples, Plan(Level.CURVATURE, solver, tolerance=1e-8), Update(facts, moments, 100)
    )
    truth = dense_blocks(model, samples)
    correction = 1 - 0.999**100
    for layer in found.layers:
        names = [f"{layer.name}.weight", f"{layer.name}.bias"]
        for i, block in enumerate(truth[layer.name]):
            p = torch.ones(len(block), dtype=torch.float64)
            if facts.is_adam:
                second = torch.cat([moments[n].reshape(layer.nodes, -1)[i] for n in names])
                p = (second / correction).sqrt() + 1e-3
            w = (decay or 0.0) * torch.eye(len(block), dtype=torch.float64)
            inside, outside = (w, 0 * w) if name == "adam" else (0 * w, w)
            seen = torch.diag(p.rsqrt()) @ (block + inside) @ torch.diag(p.rsqrt())
            ends = torch.linalg.eigvalsh(torch.eye(len(block)) - LR * (seen + outside))
            close = {"rel": 2e-2, "abs": 2e-2} if solver == "power" else {"rel": 1e-6, "abs": 1e-6}
            assert layer.per_node["update_map_min"][i] == pytest.approx(float(ends[0]), **close)
            assert layer.per_node["update_map_max"][i] == pytest.approx(float(ends[-1]), **close)
            margin = (1 - float(ends[0])) / LR / facts.stability_threshold
            assert layer.per_node["stability_margin"][i] == pytest.approx(margin, **close)


def test_adam_without_its_moments_says_nothing() -> None:
    model, samples = build(CASES[0]), probe(CASES[0], "mse")
    found = measure(model, samples, Plan(Level.CURVATURE), Update(OptimizerFacts("adam", LR), {}))
    assert not any("stability_margin" in layer.per_node for layer in found.layers)


def test_thresholds_of_momentum_and_adam() -> None:
    assert OptimizerFacts("sgd", 0.1, momentum=0.9).stability_threshold == pytest.approx(38)
    assert OptimizerFacts("adam", 0.1, betas=(0.9, 0.999)).stability_threshold == pytest.approx(380)
    assert OptimizerFacts("sgd", 0.1).stability_threshold == pytest.approx(20)
    assert np.isclose(OptimizerFacts("adamw", 0.1, weight_decay=0.3).added_decay, 0.3)
