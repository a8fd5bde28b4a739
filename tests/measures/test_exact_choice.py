"""Which layers can have negative curvature, which nodes are refined, and planted saddles that must be found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cases import dense_blocks, gauss_newton_blocks
from torch import Tensor, nn

from nndiag.measures.curvature import LayerCurvature
from nndiag.measures.exact import ExactSettings, Refinement, refine
from nndiag.measures.exact.bound import BOUND_PRODUCTS, estimated_traces, layer_bound
from nndiag.measures.exact.choose import Signs, choose_nodes
from nndiag.measures.exact.cost import pass_cost
from nndiag.measures.exact.places import places_of
from nndiag.measures.exact.shares import BOUND_COST
from nndiag.measures.hvp import HessianProducts
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.replay.layers import find_layers
from nndiag.replay.state import undisturbed

PLANTED = 17


class Tokens(nn.Module):
    """Units over two positions, averaged before the last layer."""

    def __init__(self, activation: nn.Module, nodes: int) -> None:
        super().__init__()
        self.hidden, self.activation, self.out = nn.Linear(3, nodes), activation, nn.Linear(nodes, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.hidden(x)).mean(dim=1))


def planted(activation: nn.Module, nodes: int = 24) -> tuple[nn.Module, Probe]:
    """Return a network in which one node alone has negative curvature.

    Output 0 listens to that node alone and is wrong by the same amount on every sample; output 1 is right, so that what
    the other nodes have is their Gauss-Newton block.
    """
    torch.manual_seed(0)
    model = Tokens(activation, nodes).double()
    x = torch.randn(40, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        model.hidden.weight[PLANTED] *= 0.3
        model.hidden.bias[PLANTED] = 1.0 if isinstance(activation, nn.Tanh) else 0.0
        model.out.weight[0] = 0.0
        model.out.weight[0, PLANTED] = 0.1
        model.out.weight[1, PLANTED] = 0.0
        # φ'' < 0 for tanh at 1, > 0 for GELU at 0: an error of the other sign makes it negative
        wrong = 2.0 if isinstance(activation, nn.Tanh) else -2.0
        y = model(x) - torch.tensor([wrong, 0.0], dtype=torch.float64)
    return model, Probe((x,), y, named_loss("mse"))


def start(model: nn.Module, samples: Probe) -> dict[str, LayerCurvature]:
    """Return what Gauss-Newton says."""
    found = {}
    for name, blocks in gauss_newton_blocks(model, samples).items():
        values = torch.linalg.eigvalsh(blocks).numpy()
        measures = {"lambda_max": values[:, -1], "lambda_min": values[:, 0], "trace": values.sum(axis=1)}
        found[name] = LayerCurvature(measures, {"lambda_max": np.tile(values[:, -1], (4, 1))}, True, 1)
    return found


def automatic(model: nn.Module, samples: Probe, nodes: int | None = None) -> Refinement:
    """Refine automatically, with as much work as ``nodes`` of the hidden layer take; all where ``None``."""
    layers = find_layers(model)
    found = start(model, samples)
    with undisturbed(model, 0):
        model(*samples.inputs)  # the first run is looked at more closely, and would be counted as dearer
        settings = ExactSettings("auto")
        if nodes is not None:
            products = 2 + BOUND_COST + 2 * nodes  # the outputs, the bound, and nodes at two positions
            settings = ExactSettings("auto", work=(products + 0.5) * pass_cost(model, samples).work)
        return refine(model, samples, layers, found, settings)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh()], ids=["gelu", "tanh"])
@pytest.mark.parametrize("nodes", [2, None])
def test_a_planted_saddle_is_found_where_gauss_newton_sees_none(
    activation: nn.Module, nodes: int | None
) -> None:
    model, samples = planted(activation)
    truth = torch.linalg.eigvalsh(dense_blocks(model, samples)["hidden"])
    assert truth[PLANTED, 0] < -0.3 * truth[PLANTED, -1].abs() < 0
    assert (torch.cat([truth[:PLANTED, 0], truth[PLANTED + 1 :, 0]]) > -1e-12).all()
    alone = start(model, samples)["hidden"].per_node
    assert alone["lambda_min"].min() > -1e-12
    assert np.argmax(alone["lambda_max"]) != PLANTED
    one = automatic(model, samples, nodes).layers["hidden"]
    assert len(one.nodes) == (24 if nodes is None else nodes)
    assert PLANTED in one.nodes
    assert one.curvature is not None
    found = one.curvature.per_node["lambda_min"][list(one.nodes).index(PLANTED)]
    assert found == pytest.approx(float(truth[PLANTED, 0]), rel=1e-9)
    if nodes is not None:
        assert one.bound is not None
        assert not one.bound.excluded
        assert one.bound.smallest - one.bound.missed <= found


def test_what_cannot_be_afforded_is_said() -> None:
    model, samples = planted(nn.Tanh())
    found = automatic(model, samples, -1)
    assert set(found.layers) == {"out"}
    assert found.note is not None
    assert "1 of 2 layers" in found.note


class TestTheBoundOfALayer:
    @pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh()], ids=["gelu", "tanh"])
    @pytest.mark.parametrize("name", ["hidden", "out"])
    def test_it_lies_below_every_node(self, activation: nn.Module, name: str) -> None:
        model, samples = planted(activation)
        layer = next(one for one in find_layers(model) if one.name == name)
        bound, vector = layer_bound(
            HessianProducts(model, samples, layer.names), torch.Generator().manual_seed(0)
        )
        values = torch.linalg.eigvalsh(dense_blocks(model, samples)[name])
        assert bound.smallest - bound.missed <= float(values.min())
        assert bound.largest + bound.missed >= float(values.max())
        if name == "hidden":  # the negative direction points at the node
            places = places_of(layer, HessianProducts(model, samples, layer.names))
            assert int(vector[places].square().sum(dim=1).argmax()) == PLANTED

    def test_a_convex_layer_is_proved_free_of_negative_curvature(self) -> None:
        """The last layer under a convex loss is; its block is larger than the Krylov space."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 4)).double()
        x, y = torch.randn(60, 6, dtype=torch.float64), torch.randint(0, 4, (60,))
        samples = Probe((x,), y, named_loss("cross_entropy"))
        last = find_layers(model)[-1]
        bound, _ = layer_bound(HessianProducts(model, samples, last.names), torch.Generator().manual_seed(0))
        assert bound.products == BOUND_PRODUCTS < last.nodes * last.size
        assert bound.excluded
        assert float(torch.linalg.eigvalsh(dense_blocks(model, samples)[last.name]).min()) > -1e-12

    def test_negative_curvature_is_never_excluded(self) -> None:
        """Over many layers with a known negative eigenvalue."""
        for seed in range(8):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 4)).double()
            x, y = torch.randn(30, 6, dtype=torch.float64), torch.randint(0, 4, (30,))
            samples = Probe((x,), y, named_loss("cross_entropy"))
            first = find_layers(model)[0]
            bound, _ = layer_bound(
                HessianProducts(model, samples, first.names), torch.Generator().manual_seed(0)
            )
            smallest = float(torch.linalg.eigvalsh(dense_blocks(model, samples)[first.name]).min())
            assert smallest < 0
            assert bound.smallest - bound.missed <= smallest
            assert bound.excluded == (bound.smallest - bound.missed >= -0.05 * bound.largest)


def test_signs_estimate_every_trace_at_once() -> None:
    model, samples = planted(nn.Tanh())
    layer = find_layers(model)[0]
    products = HessianProducts(model, samples, layer.names)
    places, generator = places_of(layer, products), torch.Generator().manual_seed(0)
    draws = torch.stack([estimated_traces(products, places, generator) for _ in range(200)])
    truth = dense_blocks(model, samples)["hidden"].diagonal(dim1=1, dim2=2).sum(dim=1)
    error = draws.std(dim=0) / 200**0.5
    assert ((draws.mean(dim=0) - truth).abs() <= 5 * error + 1e-12).all()


class TestChoosing:
    generator = torch.Generator()

    def choose(self, count: int, nodes: int = 20, **given) -> list[int]:
        curvature = given.pop("curvature", np.arange(nodes, dtype=float))
        signs = given.pop("signs", None)
        self.generator.manual_seed(0)
        lists = [given.pop(name, None) for name in ("margin", "priority")]
        return choose_nodes(count, curvature, *lists, signs, self.generator).tolist()

    def test_extremes_come_before_the_sample(self) -> None:
        assert 19 in self.choose(1)
        assert {17, 18, 19, 0} <= set(self.choose(8))

    def test_wishes_and_margins_come_first(self) -> None:
        wish, margin = np.zeros(20), np.zeros(20)
        wish[4], margin[7], margin[8] = 1.0, 0.9, 0.4
        assert self.choose(2, priority=wish, margin=margin) == [4, 7]
        assert 8 not in self.choose(3, priority=wish, margin=margin)

    def test_signs_of_negative_curvature_count(self) -> None:
        share, residual = np.zeros(20), np.zeros(20)
        share[3], residual[5] = 1.0, -2.0
        assert self.choose(3, signs=Signs(share, residual)) == [3, 5, 19]

    def test_never_more_than_asked_for_nor_than_there_are(self) -> None:
        for count in (1, 5, 20, 50):
            assert len(self.choose(count)) == min(count, 20)
