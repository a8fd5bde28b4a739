"""How exact the default is: blocks known through random signs, and double precision."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from tests.cases import Case, build, dense_blocks, probe
from torch import nn

from nndiag.measures import Plan, measure
from nndiag.measures.seeds import Seeds
from nndiag.probe.curvature import loss_factor
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured

OUTPUTS, SAMPLES = 300, 10


def reconstructing(samples: int = SAMPLES) -> tuple[nn.Module, Probe]:
    """Return a piecewise linear network in single precision with more columns than there are passes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(OUTPUTS, 2), nn.ReLU(), nn.Linear(2, OUTPUTS))
    x = torch.randn(samples, OUTPUTS)
    return model, Probe((x,), x, named_loss("mse"))


def scanned(
    model: nn.Module, samples: Probe, curvature: Literal["auto", "ggn"] = "auto", **changes
) -> Measured:
    return measure(model, samples, Plan(Level.CURVATURE, curvature=curvature, **changes))


def errors(layer: LayerMeasures, blocks: torch.Tensor) -> dict[str, float]:
    """Return the largest errors, relative to the largest eigenvalue of each block."""
    values = torch.linalg.eigvalsh(blocks).numpy()
    truth = {"lambda_max": values[:, -1], "lambda_min": values[:, 0], "trace": values.sum(axis=1)}
    scale = np.abs(values).max(axis=1) + 1e-9 * np.abs(values).max()
    return {name: float((np.abs(layer.per_node[name] - x) / scale).max()) for name, x in truth.items()}


def test_noisy_blocks_are_not_called_those_of_the_hessian() -> None:
    model, samples = reconstructing()
    found = scanned(model, samples, "ggn")
    assert found.curvature is not None
    assert found.curvature.coverage < 0.01
    assert [layer.curvature_kind for layer in found.layers] == ["ggn", "ggn"]
    (note,) = found.notes
    assert "random signs, with noise of 7.5 % of their trace" in note


def test_they_are_refined_where_that_can_be_afforded() -> None:
    model, samples = reconstructing()
    found = scanned(model, samples)
    assert [layer.curvature_kind for layer in found.layers] == ["hessian", "hessian"]
    assert found.notes == ()
    twin = model.double()
    doubled = Probe((samples.inputs[0].double(),), samples.inputs[0].double(), samples.loss)
    blocks = dense_blocks(twin, doubled)
    for layer in found.layers:
        assert max(errors(layer, blocks[layer.name]).values()) < 1e-3


def test_little_noise_leaves_them_the_hessian_s() -> None:
    """Of so many samples: the noise falls with their root."""
    model, samples = reconstructing(800)
    found = scanned(model, samples, "ggn")
    assert [layer.curvature_kind for layer in found.layers] == ["hessian", "hessian"]
    assert found.notes == ()


@pytest.mark.parametrize("columns", [40, 300])
def test_the_noise_is_that_of_the_sums(columns: int) -> None:
    """Of ``C`` equal columns in ``P`` passes: ``√(2 (1/P − 1/C) / N)``, of the trace."""
    output = torch.randn(SAMPLES, columns)
    factor = loss_factor(named_loss("mse"), output, output)
    seeds = Seeds(factor, 1e-3, torch.Generator().manual_seed(0))
    noise = (seeds.variance / SAMPLES) ** 0.5 / seeds.total
    assert noise == pytest.approx((2 * (1 / 32 - 1 / columns) / SAMPLES) ** 0.5, rel=0.03)


DOUBLE = (
    Case("mlp", lambda: nn.Sequential(nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, 3)), (60,), 3),
    Case("tokens", lambda: nn.Sequential(nn.Linear(60, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)), (3, 60), 3),
    Case("conv", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)), (6, 5, 5), 3),
    Case("smooth", lambda: nn.Sequential(nn.Linear(60, 5), nn.GELU(), nn.Flatten(), nn.Linear(15, 3)), (3, 60), 3),
    Case("many outputs", lambda: nn.Sequential(nn.Linear(50, 6), nn.ReLU(), nn.Linear(6, 200)), (50,), 200),
)  # fmt: skip


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("case", DOUBLE, ids=lambda case: case.name)
def test_double_precision_is_exact(case: Case, loss: str) -> None:
    """With the default plan, also where blocks are iterated on."""
    model, samples = build(case), probe(case, loss, samples=90)
    found, blocks = scanned(model, samples), dense_blocks(model, samples)
    assert found.curvature is not None
    assert found.curvature.converged
    assert found.curvature.kind == "hessian"
    for layer in found.layers:
        assert max(errors(layer, blocks[layer.name]).values()) < 1e-6
