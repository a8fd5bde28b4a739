"""The three forms of a layer's blocks give the same numbers, and sampling the lesser columns is right in the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import CASES, Case, build, dense_blocks, probe
from torch import Tensor

from nndiag.measures import Plan, measure
from nndiag.measures.capture import Capture
from nndiag.measures.rows import Rows, choose_rows
from nndiag.records.level import Level

WITH_POSITIONS = [case for case in CASES if case.name not in ("mlp", "mlp_without_bias", "wide_mlp")]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "implicit"])
@pytest.mark.parametrize("case", WITH_POSITIONS, ids=lambda case: case.name)
def test_either_form_equals_the_autograd_hessian(
    case: Case, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Capture, "_prefer_whole", lambda *_: whole)
    monkeypatch.setattr("nndiag.measures.curvature.DENSE_SIZE", 0)
    model, samples = build(case), probe(case, "mse", batch_size=4)
    truth = dense_blocks(model, samples)
    for layer in measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9)).layers:
        values = torch.linalg.eigvalsh(truth[layer.name]).numpy()
        scale = np.abs(values).max(axis=1) + 1e-12
        assert (np.abs(layer.per_node["lambda_max"] - values[:, -1]) / scale).max() < 1e-6, layer.name
        assert (np.abs(layer.per_node["lambda_min"] - values[:, 0]) / scale).max() < 1e-6, layer.name
        assert (np.abs(layer.per_node["trace"] - values.sum(axis=1)) / scale).max() < 1e-6, layer.name


def curvature_of(rows: Rows, batch: int) -> Tensor:
    """Return the matrix of every sample that the passes amount to, ``(batch, outputs, outputs)``."""
    found = sum(seed[:, :, None] * seed[:, None, :] for seed in rows.whole)
    assert isinstance(found, Tensor)
    picked = rows.picked[:, :, None] * rows.picked[:, None, :]
    return found.index_add(0, rows.samples, picked)


def some_columns(confident: float) -> Tensor:
    """Return columns with a falling spectrum, heavier in some samples than in others."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(40, 6, 6, generator=generator, dtype=torch.float64)).Q
    falling = torch.logspace(0, -2, 6, dtype=torch.float64)
    heavy = torch.rand(40, generator=generator, dtype=torch.float64) ** confident
    return (directions * falling * heavy[:, None, None]).movedim(2, 0)


def test_without_noise_every_column_is_exact() -> None:
    columns = some_columns(1.0)
    rows = choose_rows(columns, 0.0, torch.Generator())
    assert rows.exact == 1
    truth = torch.einsum("cni,cnj->nij", columns, columns)
    torch.testing.assert_close(curvature_of(rows, 40), truth)


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
def test_what_is_sampled_is_right_in_the_mean_and_as_small_as_promised(noise: float) -> None:
    columns = some_columns(4.0)
    truth = torch.einsum("cni,cnj->nij", columns, columns).mean(dim=0)
    draws = []
    for seed in range(400):
        rows = choose_rows(columns, noise, torch.Generator().manual_seed(seed))
        draws.append(curvature_of(rows, 40).mean(dim=0))
        assert rows.exact <= 1
    stack = torch.stack(draws)
    trace = float(truth.diagonal().sum())
    deviation = float((stack - truth).square().sum(dim=(1, 2)).mean()) ** 0.5
    assert deviation <= noise * trace
    assert float((stack.mean(dim=0) - truth).norm()) <= 4 * noise * trace / 400**0.5


def test_confident_samples_cost_few_passes() -> None:
    rows = choose_rows(some_columns(12.0), 1e-2, torch.Generator().manual_seed(0))
    assert len(rows.whole) == 2
    assert 0 < len(rows.samples) < 40


def test_no_curvature_at_all_is_one_pass_of_zeros() -> None:
    rows = choose_rows(torch.zeros(3, 5, 2), 1e-3, torch.Generator())
    assert rows.exact == 1
    assert len(rows.whole) == 1
    assert not rows.whole[0].any()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_sampling_moves_the_largest_eigenvalue_little(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model, samples = build(case), probe(case, "cross_entropy", samples=200, batch_size=64)
    exact = measure(model, samples, Plan(Level.CURVATURE, noise=0.0))
    sampled = measure(model, samples, Plan(Level.CURVATURE, noise=3e-2))
    assert exact.curvature is not None
    assert sampled.curvature is not None
    assert exact.curvature.coverage == pytest.approx(1)
    assert sampled.curvature.coverage < 1
    for one, two in zip(exact.layers, sampled.layers, strict=True):
        for what in ("lambda_max", "trace"):
            truth = one.per_node[what]
            off = np.abs(two.per_node[what] - truth)[truth > 0] / truth[truth > 0]
            assert np.median(off) < 0.05, what
