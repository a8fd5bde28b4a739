"""What a plan says of exact blocks and of a certificate is what these cost at most."""

from __future__ import annotations

import math

import pytest
import torch
from tests.measures.test_exact_blocks import OnceOnly
from torch import nn

from nndiag.errors import InputError, ModelError
from nndiag.measures import Plan, Update, forecast
from nndiag.measures.certificate import Bounds, certify
from nndiag.measures.certificate.basin import STEPS
from nndiag.measures.hvp import NoSecondDerivativeError
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.forecast import ProductsForecast
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts

HESSIAN, AUTO = (Plan(Level.CURVATURE, curvature=mode) for mode in ("hessian", "auto"))


def samples(*shape: int, count: int = 40) -> Probe:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return Probe((x,), torch.randint(0, 3, (count,), generator=generator), named_loss("cross_entropy"), 16)


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def planned(net: nn.Module, probe: Probe, plan: Plan) -> ProductsForecast:
    found = forecast(net, probe, plan).exact
    assert found is not None
    return found


def test_a_node_takes_a_product_for_every_position_or_parameter() -> None:
    assert planned(smooth(), samples(6), HESSIAN).products == 8 + 3
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 4, 5), nn.GELU(), nn.Conv1d(4, 5, 1), nn.GELU(), nn.Flatten(), nn.Linear(30, 3)
    ).double()
    found = planned(net, samples(2, 10), HESSIAN)
    # six positions a sample: fewer than the 11 parameters of the first layer, more than the 5 of the second
    assert found.products == 4 * 6 + 5 * 5 + 3
    assert found.passes == 0
    assert found.seconds > 0


def test_auto_spends_no_more_than_it_may() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 2000), nn.Tanh(), nn.Linear(2000, 3)).double()
    assert planned(net, samples(60), AUTO).products == 2003
    many = samples(60, count=2000)
    assert 0 < planned(net, many, AUTO).products < 2003
    assert planned(net, many, HESSIAN).products == 2003


def test_nothing_is_planned_where_nothing_is_made() -> None:
    torch.manual_seed(0)
    straight = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    assert forecast(straight, samples(6), HESSIAN).exact is None
    assert forecast(smooth(), samples(6), Plan(Level.CURVATURE, curvature="ggn")).exact is None
    assert forecast(smooth(), samples(6), Plan(Level.GRADIENTS, curvature="auto")).exact is None
    assert forecast(smooth(), samples(6), HESSIAN).certificate is None


def test_what_a_scan_would_refuse_is_refused() -> None:
    once = OnceOnly().double()
    assert forecast(once, samples(5), AUTO).exact is None
    with pytest.raises(NoSecondDerivativeError):
        forecast(once, samples(5), HESSIAN)
    with pytest.raises(ModelError, match="leave it out"):
        forecast(once, samples(5), AUTO, certificate=True)
    with pytest.raises(InputError, match="targets"):
        forecast(smooth(), Probe(samples(6).inputs, None, named_loss("cross_entropy")), HESSIAN)


@pytest.mark.parametrize("facts", [None, OptimizerFacts("sgd", lr=1e-6), OptimizerFacts("adam", lr=1e-6)])
def test_a_certificate_takes_no_more_than_planned(facts: OptimizerFacts | None) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2, bias=False).double(), torch.randn(30, 4, dtype=torch.float64)
    probe = Probe((x,), x @ net.weight.detach().T, named_loss("mse"))  # a minimum
    found = forecast(net, probe, AUTO, None if facts is None else Update(facts, {}, 1), certificate=True)
    assert found.certificate is not None
    done = certify(net, probe, Bounds(2.0, 1e-3), optimizer=facts)
    assert done.basin is not None
    assert done.products <= found.certificate.products
    assert 1 + done.basin.passes <= found.certificate.passes
    assert math.isclose(done.basin.steps / STEPS, 2 if facts is not None and facts.name == "sgd" else 1)
    assert found.certificate.seconds > 0
