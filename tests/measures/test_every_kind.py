"""Every kind of layer: each node's extremes and trace against Gauss-Newton blocks made entry by entry by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import EVERY_KIND, Case, build, dense_blocks, found_layers, gauss_newton_blocks, probe
from torch import Tensor

from nndiag.measures import Plan, measure
from nndiag.measures.capture import Capture
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures


def assert_equal(layer: LayerMeasures, blocks: Tensor) -> None:
    values = torch.linalg.eigvalsh(blocks).numpy()
    scale = np.abs(values).max(axis=1) + 1e-12
    for name, expected in (
        ("lambda_max", values[:, -1]),
        ("lambda_min", values[:, 0]),
        ("trace", values.sum(axis=1)),
    ):
        found = layer.per_node[name]
        if layer.observed is not None:
            found, expected = found[layer.observed], expected[layer.observed]
            assert np.isnan(layer.per_node[name][~layer.observed]).all()
        error = np.abs(found - expected) / (scale if layer.observed is None else scale[layer.observed])
        assert error.max(initial=0) < 1e-6, (layer.name, name, error.max())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits", "huber"])
@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_extremes_and_trace_equal_the_gauss_newton_block(case: Case, loss: str) -> None:
    model, samples = build(case), probe(case, loss, batch_size=4)
    truth = gauss_newton_blocks(model, samples)
    exact = dense_blocks(model, samples) if case.piecewise_linear else truth
    measured = measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9))
    assert measured.unmeasured == ()
    assert {layer.name for layer in measured.layers} == set(truth)
    for layer in measured.layers:
        assert_equal(layer, truth[layer.name])
        if layer.curvature_kind == "hessian":
            assert_equal(layer, exact[layer.name])


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_the_hessian_is_exact_where_it_is_asked_for(case: Case) -> None:
    model, samples = build(case), probe(case, "cross_entropy", samples=6, batch_size=4)
    # torch has no second derivative of a bag, and none is needed: those networks are piecewise linear
    truth = (gauss_newton_blocks if "bag" in case.name else dense_blocks)(model, samples)
    for layer in measure(model, samples, Plan(Level.CURVATURE, noise=0.0, curvature="hessian")).layers:
        assert layer.curvature_kind == "hessian"
        assert_equal(layer, truth[layer.name])


@pytest.mark.parametrize("way", ["whole", "rows", "implicit"])
@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_each_form_gives_the_same(case: Case, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "cheapest", lambda *_: way)
    monkeypatch.setattr("nndiag.measures.capture.WHOLE_BYTES", 2**40 if way == "whole" else 0)
    monkeypatch.setattr("nndiag.measures.curvature.DENSE_SIZE", 0)
    model, samples = build(case), probe(case, "mse", batch_size=10)
    truth = gauss_newton_blocks(model, samples)
    for layer in measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9)).layers:
        assert_equal(layer, truth[layer.name])


@pytest.mark.parametrize("case", EVERY_KIND, ids=lambda case: case.name)
def test_gradients_equal_autograd(case: Case) -> None:
    model, samples = build(case), probe(case, "cross_entropy", batch_size=4)
    assert samples.loss is not None
    assert samples.targets is not None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers = found_layers(model, samples)
    squares = {layer.name: torch.zeros(layer.nodes, dtype=torch.float64) for layer in layers}
    for n in range(len(samples)):
        loss = samples.loss.per_sample(model(samples.inputs[0][n : n + 1]), samples.targets[n : n + 1]).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        named = {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), grads, strict=True)
        }
        for layer in layers:
            squares[layer.name] += layer.rows(named).square().sum(dim=1)
    for layer in measure(model, samples, Plan(Level.GRADIENTS)).layers:
        spread, mean = layer.per_node["gradient_spread"], layer.per_node["gradient_norm"]
        known = np.ones(layer.nodes, dtype=bool) if layer.observed is None else layer.observed
        expected = squares[layer.name].numpy() / len(samples)
        np.testing.assert_allclose((spread**2 + mean**2)[known], expected[known], rtol=1e-8, atol=1e-14)
