"""Every eigenvalue of every node against the dense float64 autograd Hessian."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tests.cases import CASES, LOSSES, Case, build, dense_blocks, probe
from torch import nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import custom_loss, named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level


def _log_softmax(model: nn.Module, loss: str) -> nn.Module:
    return (
        nn.Sequential(*model, nn.LogSoftmax(dim=1))
        if loss == "nll" and isinstance(model, nn.Sequential)
        else model
    )


PAIRS = [
    (case, loss)
    for case in CASES
    for loss in LOSSES
    if "conv" not in case.name or loss in ("cross_entropy", "mse")
]


@pytest.mark.parametrize(("case", "loss"), PAIRS, ids=lambda one: getattr(one, "name", one))
def test_extremes_and_trace_equal_the_autograd_hessian(case: Case, loss: str) -> None:
    model = _log_softmax(build(case), loss)
    if loss == "nll" and not isinstance(model, nn.Sequential):
        pytest.skip("no log-probabilities come out of this model")
    samples = probe(case, loss)
    truth = dense_blocks(model, samples)
    measured = measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-9))
    for layer in measured.layers:
        values = torch.linalg.eigvalsh(truth[layer.name]).numpy()
        scale = np.abs(values).max(axis=1) + 1e-12
        for name, expected in (
            ("lambda_max", values[:, -1]),
            ("lambda_min", values[:, 0]),
            ("trace", values.sum(axis=1)),
        ):
            error = np.abs(layer.per_node[name] - expected) / scale
            assert error.max() < 1e-6, (layer.name, name)
        assert layer.curvature_kind == ("ggn" if layer.name == "shared" else "hessian")


@functools.cache
def true_eigenvalues(name: str, loss: str, samples: int) -> dict[str, np.ndarray]:
    case = next(c for c in CASES if c.name == name)
    blocks = dense_blocks(build(case), probe(case, loss, samples=samples))
    return {layer: torch.linalg.eigvalsh(stack).numpy() for layer, stack in blocks.items()}


@pytest.mark.parametrize("solver", ["lanczos", "power", "dense"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("name", ["wide_mlp", "cnn"])
def test_solvers_in_single_precision(name: str, loss: str, solver: str) -> None:
    case = next(c for c in CASES if c.name == name)
    model = build(case)
    truth = true_eigenvalues(name, loss, 80)
    single = probe(case, loss, samples=80, dtype=torch.float32)
    measured = measure(model.float(), single, Plan(Level.CURVATURE, solver=solver))
    for layer in measured.layers:
        values = truth[layer.name]
        scale = values[:, -1] + 1e-12
        for measure_name, column in (("lambda_max", -1), ("lambda_min", 0)):
            allowed = 1e-3 * scale
            if solver == "power":
                allowed = allowed + layer.per_node[f"{measure_name}_error"]
            assert (np.abs(layer.per_node[measure_name] - values[:, column]) <= allowed).all(), layer.name
        np.testing.assert_allclose(layer.per_node["trace"], values.sum(axis=1), rtol=1e-3, atol=1e-9)


def test_curvature_needs_no_targets() -> None:
    case = CASES[0]
    model = build(case)
    with_targets = probe(case, "cross_entropy")
    without = Probe(with_targets.inputs, None, named_loss("cross_entropy"))
    one = measure(model, with_targets, Plan(Level.CURVATURE))
    two = measure(model, without, Plan(Level.CURVATURE))
    for first, second in zip(one.layers, two.layers, strict=True):
        np.testing.assert_array_equal(first.per_node["lambda_max"], second.per_node["lambda_max"])
        np.testing.assert_array_equal(first.per_node["tangent_kernel"], second.per_node["tangent_kernel"])
        assert "gradient_norm" not in second.per_node
        assert "torque_ratio_mean" not in second.per_layer
    assert two.loss is None
    assert two.gradient_norm is None


def test_a_smooth_network_is_not_called_exact() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    measured = measure(model, probe(CASES[0], "mse"), Plan(Level.CURVATURE))
    assert {layer.curvature_kind for layer in measured.layers} == {"ggn"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_batches_of_nine_and_one_change_nothing(case: Case) -> None:
    model = build(case)
    whole = measure(model, probe(case, "cross_entropy", batch_size=10), Plan(Level.CURVATURE))
    split = measure(model, probe(case, "cross_entropy", batch_size=9), Plan(Level.CURVATURE))
    assert split.loss == pytest.approx(whole.loss, rel=1e-12)
    assert split.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-12)
    for one, two in zip(whole.layers, split.layers, strict=True):
        assert one.per_node.keys() == two.per_node.keys()
        for name, values in one.per_node.items():
            of_the_end = name.startswith("lambda_min") or name.endswith("_error")
            like = one.per_node["lambda_max"] if of_the_end else values
            scale = np.abs(like[np.isfinite(like)]).max(initial=1e-9)
            np.testing.assert_allclose(two.per_node[name], values, rtol=1e-6, atol=1e-7 * scale, err_msg=name)
        assert one.per_layer == pytest.approx(two.per_layer, rel=1e-9)


@pytest.mark.parametrize(("sign", "kind"), [(1.0, "hessian"), (-1.0, "ggn")])
def test_a_callable_loss_is_exact_unless_it_is_not_convex(sign: float, kind: str) -> None:
    loss = custom_loss("own", lambda f, y: sign * nn.functional.cross_entropy(f, y, reduction="none"))
    given = probe(CASES[0], "cross_entropy", samples=40, dtype=torch.float32)
    measured = measure(
        build(CASES[0]).float(), Probe(given.inputs, given.targets, loss), Plan(Level.CURVATURE)
    )
    assert {layer.curvature_kind for layer in measured.layers} == {kind}
    assert measured.curvature is not None
    assert measured.curvature.negative == pytest.approx(0.0 if sign > 0 else 1.0, abs=1e-6)
    assert any("not convex: 1e+02 % of its curvature" in note for note in measured.notes) == (sign < 0)


def test_curvature_beyond_the_range_of_single_precision_is_not_a_number_and_no_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e11)
    samples = Probe((torch.randn(50, 20),), torch.randn(50, 5), named_loss("mse"))
    measured = measure(model, samples, Plan(Level.CURVATURE))
    assert not measured.curvature.converged
    assert any(np.isnan(layer.per_node["lambda_max"]).any() for layer in measured.layers)


def test_flat_directions_of_small_layers_that_start_from_what_is_shared() -> None:
    """Blocks of fewer parameters than Lanczos makes products, of which few are made where the start is good."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 5))
    samples = Probe((x,), torch.arange(400) % 5, named_loss("cross_entropy"), 400)
    by = {
        solver: measure(model, samples, Plan(Level.CURVATURE, solver=solver, tolerance=2e-2))
        .layers[0]
        .per_node
        for solver in ("lanczos", "dense")
    }
    off = np.abs(by["lanczos"]["flat_fraction"] - by["dense"]["flat_fraction"])
    assert np.median(off) < 0.05
    assert "sigma_min" in by["dense"]
    assert "sigma_min" not in by["lanczos"]  # only all eigenvalues tell
