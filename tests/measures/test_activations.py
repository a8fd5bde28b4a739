"""What the observer adds up batch by batch, against the same numbers from all outputs at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures


def first(model: nn.Module, x: Tensor, batch_size: int = 7, folds: int = 4) -> LayerMeasures:
    probe = Probe((x,), None, None, batch_size=batch_size, folds=folds)
    return measure(model, probe, Plan(Level.ACTIVATIONS)).layers[0]


def network(activation: nn.Module, nodes: int = 9) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, nodes), activation, nn.Linear(nodes, 2)).double()


def data(samples: int = 40) -> Tensor:
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_moments_and_shares_equal_those_of_all_outputs_at_once() -> None:
    model, x = network(nn.ReLU()), data()
    found = first(model, x)
    z = model[0](x).detach()
    y = z.relu()
    expected = {
        "output_mean": y.mean(0), "output_std": y.std(0, correction=0), "output_range": y.amax(0) - y.amin(0),
        "preactivation_std": z.std(0, correction=0), "dormancy": y.mean(0) / y.mean(),
        "active_fraction": (z > 0).double().mean(0),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_node[name], values.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
    assert found.per_layer["dormant_fraction"] == float((expected["dormancy"] <= 0.025).double().mean())
    counts = torch.stack([(z[k::4] > 0).sum(0) for k in range(4)])
    np.testing.assert_array_equal(found.per_fold["open_count"], counts.numpy())
    singular = torch.linalg.svdvals(y - y.mean(0))
    share = singular / singular.sum()
    assert found.per_layer["effective_rank"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


@pytest.mark.parametrize(
    ("activation", "edge"), [(nn.ReLU(), 0.0), (nn.Threshold(0.5, 9.0), 0.5), (nn.Hardswish(), -3.0)]
)
def test_dead_data_are_the_samples_below_the_edge_of_every_unit(activation: nn.Module, edge: float) -> None:
    model, x = network(activation, 3), data()
    with torch.no_grad():
        model[0].weight.mul_(3)
        model[0].bias.add_(edge - 1)
    highest = model[0](x).amax(dim=1).detach()
    found = first(model, x).per_layer
    assert 0 < found["dead_data_fraction"] == float((highest <= edge).double().mean()) < 1
    assert found["dead_data_gap"] == pytest.approx(float((edge - highest).max()))


@pytest.mark.parametrize("activation", [nn.Hardtanh(), nn.ReLU6(), nn.Tanh(), nn.LeakyReLU(), nn.Identity()])
def test_other_activations_lose_no_data(activation: nn.Module) -> None:
    assert "dead_data_fraction" not in first(network(activation, 3), data()).per_layer


def test_a_constant_output_far_from_zero_has_no_spread() -> None:
    model = network(nn.ReLU()).float()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = 1234.567
        model[0].bias[4] = 1e4  # far away, and varying
    found = first(model, data().float())
    assert found.per_node["output_std"][3] == 0
    assert found.per_node["preactivation_std"][3] == 0
    z = model[0](data().float()).detach().double()
    np.testing.assert_allclose(found.per_node["output_std"][4], float(z[:, 4].std(correction=0)), rtol=1e-3)


def test_equal_inputs_leave_no_spread_before_the_activation() -> None:
    model = network(nn.ReLU()).float()
    row = data(1).float().expand(40, 5).contiguous()
    assert (first(model, row, batch_size=16).per_node["preactivation_std"] == 0).all()


def test_outputs_that_repeat_another_are_found_with_the_first_that_they_repeat() -> None:
    model = network(nn.Identity())
    with torch.no_grad():
        model[0].weight[4] = 2 * model[0].weight[1]
        model[0].weight[6] = -0.5 * model[0].weight[1]
        model[0].weight[7] = model[0].weight[2] + 1e-3 * model[0].weight[3]
    assert first(model, data()).duplicates["outputs"] == ((4, 1), (6, 1))


def test_units_active_in_few_places_repeat_nothing() -> None:
    model, x = network(nn.ReLU()), data()
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = model[0].weight[1], model[0].bias[1]
    active = int((model[0](x)[:, 1] > 0).sum())
    wanted = ((4, 1),) if active >= 32 else ()
    assert first(model, x).duplicates["outputs"] == wanted == ()
    assert first(model, torch.cat([x] * 3)).duplicates["outputs"] == ((4, 1),)


def test_a_layer_that_is_called_with_two_activations_has_none() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.one(x).relu() + self.one(x + 1).tanh())

    found = first(Two().double(), data())
    assert found.activation is None
    assert "active_fraction" not in found.per_node


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_what_recurrent_units_put_out_are_their_states(kind: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.states, self.last = kind(5, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.states(x)[0].mean(dim=1))

    model = Recurrent().double()
    x = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    states = model.states(x)[0].detach().flatten(0, 1)
    found = first(model, x)
    assert found.per_node["output_mean"] == pytest.approx(states.mean(0).numpy(), rel=1e-9)
    assert found.per_node["output_std"] == pytest.approx(states.std(0, correction=0).numpy(), rel=1e-9)


def test_a_part_that_gets_no_sample_of_a_batch_is_passed_over() -> None:
    class Routed(nn.Module):
        """Two parts, each for some of the samples."""

        def __init__(self, edge: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.edge = edge
            self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            chosen = x[:, 0] < self.edge
            found = x.new_zeros(len(x), 3)
            found[chosen] = torch.relu(self.one(x[chosen]))
            found[~chosen] = torch.relu(self.other(x[~chosen]))
            return found

    x = data(14)
    x[:7, 0], x[7:, 0] = -1.0, 1.0  # the first batch is all for one, the second all for the other
    measured = measure(Routed(0.0).double(), Probe((x,), None, None, batch_size=7), Plan(Level.ACTIVATIONS))
    assert ["output_std" in layer.per_node for layer in measured.layers] == [True, True]
    nobody = measure(Routed(-9.0).double(), Probe((x,), None, None, batch_size=7), Plan(Level.ACTIVATIONS))
    assert ["output_std" in layer.per_node for layer in nobody.layers] == [False, True]
