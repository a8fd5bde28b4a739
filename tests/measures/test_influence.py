"""Influence: a node's share of the trace of the empirical neural tangent kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import CASES, Case, build, probe

from nndiag.measures import Plan, measure
from nndiag.records.level import Level
from nndiag.replay.layers import find_layers


def true_kernel(case: Case, model: torch.nn.Module, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Return ``E_n Σ_c ‖∂f_{n,c}/∂θ_i‖²`` by one backward pass per sample and output."""
    parameters = dict(model.named_parameters())
    sums = {layer.name: torch.zeros(layer.nodes, dtype=torch.float64) for layer in find_layers(model)}
    for x in inputs:
        for value in model(x[None])[0]:
            grads = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
            named = dict(zip(parameters, grads, strict=True))
            for layer in find_layers(model):
                sums[layer.name] += layer.rows(named).square().sum(dim=1)
    return {name: (total / len(inputs)).numpy() for name, total in sums.items()}


@pytest.mark.parametrize("name", ["mlp", "cnn", "tokens", "twice"])
def test_it_is_exact_on_few_samples(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, samples = build(case), probe(case, "mse", samples=3)
    truth = true_kernel(case, model, samples.inputs[0])
    total = sum(kernel.sum() for kernel in truth.values())
    for layer in measure(model, samples, Plan(Level.GRADIENTS)).layers:
        np.testing.assert_allclose(layer.per_node["tangent_kernel"], truth[layer.name], rtol=1e-9)
        np.testing.assert_allclose(layer.per_node["influence"], truth[layer.name] / total, rtol=1e-9)


def test_it_is_estimated_well_on_many_and_adds_up_to_one() -> None:
    case = CASES[0]
    model, samples = build(case), probe(case, "mse", samples=300)
    truth = true_kernel(case, model, samples.inputs[0])
    layers = measure(model, samples, Plan(Level.GRADIENTS)).layers
    assert sum(layer.per_node["influence"].sum() for layer in layers) == pytest.approx(1)
    for layer in layers:
        found, expected = layer.per_node["tangent_kernel"], truth[layer.name]
        np.testing.assert_array_equal(found == 0, expected == 0)
        alive = expected > 0
        assert np.median(np.abs(found[alive] / expected[alive] - 1)) < 0.15
