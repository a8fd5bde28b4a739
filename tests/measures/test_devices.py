"""A CUDA device gives the numbers that the CPU gives."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.cases import CASES, Case, build, probe
from torch import nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured, OptimizerFacts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")
ON_DEVICE = [
    case for case in CASES if case.name in ("mlp", "wide_mlp", "cnn", "transposed", "tokens", "twice")
]


def on_cuda(model: nn.Module, samples: Probe) -> tuple[nn.Module, Probe]:
    """Return copies of model and probe on the device."""
    assert samples.targets is not None
    there = replace(
        samples, inputs=tuple(x.to(CUDA) for x in samples.inputs), targets=samples.targets.to(CUDA)
    )
    return copy.deepcopy(model).to(CUDA), there


def agree(here: LayerMeasures, there: LayerMeasures) -> None:
    """Check every number of a layer, each relative to the largest of its kind in the layer."""
    assert here.curvature_kind == there.curvature_kind
    assert here.per_node.keys() == there.per_node.keys()
    for name in here.per_node:
        if name.endswith("_error") or name == "flat_fraction":
            continue  # how a solver fared, and a count of eigenvalues about a threshold, may turn on rounding
        expected, found = here.per_node[name], there.per_node[name]
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        np.testing.assert_allclose(
            found, expected, rtol=1e-6, atol=1e-7 * scale, err_msg=f"{here.name} {name}"
        )


def measured_twice(
    model: nn.Module, samples: Probe, plan: Plan, update: Update | None = None
) -> tuple[Measured, Measured]:
    here = measure(model, samples, plan, update)
    moved, there = on_cuda(model, samples)
    return here, measure(moved, there, plan, update)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("case", ON_DEVICE, ids=lambda case: case.name)
def test_every_measure_is_the_same_on_cuda(case: Case, loss: str) -> None:
    here, there = measured_twice(
        build(case), probe(case, loss, samples=30, batch_size=16), Plan(Level.CURVATURE, tolerance=1e-9)
    )
    assert there.loss == pytest.approx(here.loss, rel=1e-9)
    assert there.gradient_norm == pytest.approx(here.gradient_norm, rel=1e-7)
    for one, two in zip(here.layers, there.layers, strict=True):
        agree(one, two)


@pytest.mark.parametrize("solver", ["lanczos", "power", "dense"])
def test_every_solver_runs_on_cuda(solver: str) -> None:
    case = next(case for case in CASES if case.name == "wide_mlp")
    here, there = measured_twice(
        build(case), probe(case, "cross_entropy", samples=80), Plan(Level.CURVATURE, solver=solver)
    )
    for one, two in zip(here.layers, there.layers, strict=True):
        scale = one.per_node["lambda_max"].max()
        for name in ("lambda_max", "lambda_min", "trace"):
            np.testing.assert_allclose(two.per_node[name], one.per_node[name], rtol=1e-5, atol=1e-6 * scale)


def test_sampled_columns_are_the_same_on_cuda() -> None:
    case = next(case for case in CASES if case.name == "cnn")
    plan = Plan(Level.CURVATURE, noise=0.05, tolerance=1e-9)
    here, there = measured_twice(build(case), probe(case, "cross_entropy", samples=40, batch_size=16), plan)
    for one, two in zip(here.layers, there.layers, strict=True):
        agree(one, two)


def test_the_preconditioned_margin_is_the_same_on_cuda() -> None:
    case = next(case for case in CASES if case.name == "mlp")
    model = build(case)
    facts = OptimizerFacts("adam", 1e-3, betas=(0.9, 0.999), eps=1e-8)
    generator = torch.Generator().manual_seed(2)
    moments = {
        name: torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in model.named_parameters()
    }
    update = Update(facts, moments, step=100)
    here, there = measured_twice(
        model, probe(case, "cross_entropy"), Plan(Level.CURVATURE, tolerance=1e-9), update
    )
    for one, two in zip(here.layers, there.layers, strict=True):
        np.testing.assert_allclose(
            two.per_node["stability_margin"], one.per_node["stability_margin"], rtol=1e-6
        )
