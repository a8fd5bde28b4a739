"""The three forms of a layer's blocks give the same numbers, and sampling the lesser columns is right in the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import CASES, Case, build, dense_blocks, probe

from nndiag.measures import Plan, measure
from nndiag.measures.capture import Capture
from nndiag.records.level import Level

WITH_POSITIONS = [case for case in CASES if case.name not in ("mlp", "mlp_without_bias", "wide_mlp")]


@pytest.mark.parametrize("way", ["whole", "rows", "implicit"])
@pytest.mark.parametrize("case", WITH_POSITIONS, ids=lambda case: case.name)
def test_each_form_equals_the_autograd_hessian(case: Case, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "cheapest", lambda *_: way)
    monkeypatch.setattr("nndiag.measures.curvature.DENSE_SIZE", 0)
    model, samples = build(case), probe(case, "mse", batch_size=4)
    truth = dense_blocks(model, samples)
    for layer in measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9)).layers:
        values = torch.linalg.eigvalsh(truth[layer.name]).numpy()
        scale = np.abs(values).max(axis=1) + 1e-12
        assert (np.abs(layer.per_node["lambda_max"] - values[:, -1]) / scale).max() < 1e-6, layer.name
        assert (np.abs(layer.per_node["lambda_min"] - values[:, 0]) / scale).max() < 1e-6, layer.name
        assert (np.abs(layer.per_node["trace"] - values.sum(axis=1)) / scale).max() < 1e-6, layer.name


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_sampling_moves_the_largest_eigenvalue_little(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, samples = build(case), probe(case, "cross_entropy", samples=200, batch_size=64)
    exact = measure(model, samples, Plan(Level.CURVATURE, noise=0.0))
    assert exact.curvature is not None
    assert exact.curvature.coverage == pytest.approx(1)
    off: dict[tuple[str, str], list[float]] = {}
    for seed in range(5):
        sampled = measure(model, samples, Plan(Level.CURVATURE, noise=0.1, coverage=0.0, seed=seed))
        assert sampled.curvature is not None
        assert sampled.curvature.coverage < 1
        for one, two in zip(exact.layers, sampled.layers, strict=True):
            for what in ("lambda_max", "trace"):
                truth = one.per_node[what]
                error = np.abs(two.per_node[what] - truth)[truth > 0] / truth[truth > 0]
                off.setdefault((one.name, what), []).append(float(np.median(error)))
    assert all(0 < np.median(errors) < 0.3 for errors in off.values()), off
