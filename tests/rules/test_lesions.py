"""Planted lesions in small trained networks: the node that has one is found, with its cause, and no other node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.rules.diagnose import JudgedLayer, Selection, judge
from tests.rules.diagnosing import blobs, codes, diagnosed, everything, finding, mlp, trained

X, Y = blobs()
NODE = 5


def warned(found: dict[str, JudgedLayer]) -> set[tuple[str, int, str]]:
    """Return layer, node and code of everything graver than a note."""
    return {
        (name, node, one.code)
        for name, layer in found.items()
        for node, findings in layer.by_node.items()
        for one in findings
        if one.severity != "info"
    }


Plant = Callable[[nn.Sequential], None]


def bias(model: nn.Sequential) -> None:
    model[2].bias[NODE] = -100


def incoming_zero(model: nn.Sequential) -> None:
    model[2].weight[NODE] = 0
    model[2].bias[NODE] = 0.3


def incoming_tiny(model: nn.Sequential) -> None:
    model[2].weight[NODE] *= 1e-6
    model[2].bias[NODE] = 0.3


def outgoing_zero(model: nn.Sequential) -> None:
    model[4].weight[:, NODE] = 0


def saturated(model: nn.Sequential) -> None:
    model[2].bias[NODE] = 100


def switching(model: nn.Sequential) -> None:
    model[2].weight[NODE] *= 1e5


def duplicated(model: nn.Sequential) -> None:
    model[2].weight[NODE] = model[2].weight[NODE - 2]
    model[2].bias[NODE] = model[2].bias[NODE - 2]


def turned(model: nn.Sequential) -> None:
    model[2].weight[NODE] = -model[2].weight[NODE - 2]
    model[2].bias[NODE] = -model[2].bias[NODE - 2]


def exploded(model: nn.Sequential) -> None:
    model[2].weight[NODE] *= 1e4


def not_a_number(model: nn.Sequential) -> None:
    model[2].weight[NODE, 0] = torch.nan


LESIONS: dict[str, tuple[type[nn.Module], Plant, str, str]] = {
    "bias −100": (nn.ReLU, bias, "ND201", "plateau"),
    "incoming weights zero": (nn.ReLU, incoming_zero, "ND102", "collapsed"),
    "incoming weights tiny": (nn.ReLU, incoming_tiny, "ND102", "collapsed"),
    "outgoing weights zero": (nn.ReLU, outgoing_zero, "ND304", "plateau"),
    "tanh at one end": (nn.Tanh, saturated, "ND202", "plateau"),
    "tanh at both ends": (nn.Tanh, switching, "ND103", "plateau"),
    "duplicated": (nn.ReLU, duplicated, "ND104", "healthy"),
    "duplicated with the sign turned": (nn.Tanh, turned, "ND104", "healthy"),
    "exploded": (nn.ReLU, exploded, "ND103", "healthy"),
}


def planted(activation: type[nn.Module], plant: Plant) -> nn.Sequential:
    model = trained(activation)
    with torch.no_grad():
        plant(model)
    return model


@pytest.mark.parametrize("lesion", LESIONS)
def test_the_lesion_is_found_where_it_is_and_nowhere_else(lesion: str) -> None:
    activation, plant, code, verdict = LESIONS[lesion]
    before = warned(diagnosed(trained(activation), X, Y))
    found = diagnosed(planted(activation, plant), X, Y)
    roots = {f.code for f in found["2"].by_node[NODE] if f.cause is None and f.severity != "info"}
    assert code in roots
    assert found["2"].verdicts[NODE] == verdict
    others = {one for one in warned(found) if one[:2] != ("2", NODE)}
    allowed = {
        one for one in others if lesion.startswith("exploded") and one[2] in ("ND204", "ND203", "ND302")
    }
    assert others - before <= allowed


def test_a_dead_unit_explains_everything_else_that_it_shows() -> None:
    found = diagnosed(planted(nn.ReLU, bias), X, Y)["2"]
    assert {f.code: f.cause for f in found.by_node[NODE]} == {
        "ND201": None, "ND203": "ND201", "ND204": "ND201", "ND301": "ND201", "ND401": "ND201",
    }  # fmt: skip


def test_a_switch_is_told_from_a_stuck_unit() -> None:
    stuck = finding(diagnosed(planted(nn.Tanh, saturated), X, Y)["2"], NODE, "ND202")
    switch = finding(diagnosed(planted(nn.Tanh, switching), X, Y)["2"], NODE, "ND202")
    assert (stuck.evidence["switches"], switch.evidence["switches"]) == (False, True)


def test_mirrored_relu_units_are_known_as_such() -> None:
    found = diagnosed(planted(nn.ReLU, turned), X, Y)["2"]
    assert finding(found, NODE, "ND104").evidence["mirrored"]
    assert "ND206" not in codes(found, NODE)


def test_weights_that_are_not_finite_are_no_crash() -> None:
    from nndiag.measures.record import weights_only
    from nndiag.replay.layers import find_layers
    from nndiag.rules.diagnose import Selection, judge

    model = planted(nn.ReLU, not_a_number)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = judge(weights_only(find_layers(model), parameters), Selection())
    assert everything(found) == {"ND101"}
    assert codes(found[1], NODE) == ["ND101"]
    assert found[1].verdicts[NODE] == "unknown"


def test_a_rare_unit_is_alive() -> None:
    x, y = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 4
    model = trained()
    with torch.no_grad():
        z = (model[2](model[1](model[0](x))) - model[2].bias)[:, NODE]
        high = z.sort(descending=True).values
        model[2].bias[NODE] = -(high[1] + high[2]) / 2  # fires on two of 400 samples
    found = diagnosed(model, x, y)["2"]
    assert found.measures.per_node["active_fraction"][NODE] == pytest.approx(0.005)
    assert "ND201" not in codes(found, NODE)
    assert found.verdicts[NODE] == "healthy"
    assert not found.steady[NODE]


def test_a_learning_rate_above_a_nodes_own_threshold() -> None:
    still = diagnosed(trained(), X, Y)["2"].measures.per_node["lambda_max"]
    sharpest = int(still.argmax())
    for rate, there in ((2.05 / still[sharpest], True), (1.95 / still[sharpest], False)):
        found = diagnosed(trained(), X, Y, facts=OptimizerFacts(name="sgd", lr=float(rate)))["2"]
        assert ("ND402" in codes(found, sharpest)) == there
        assert (found.verdicts[sharpest] == "source") == there


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_a_network_at_its_start_is_healthy(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = diagnosed(mlp(activation), X, Y)
    assert warned(found) == set()
    assert all(set(one.verdicts) == {"healthy"} and not one.findings for one in found.values())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("factor", [3.0, 30.0, 300.0])
def test_a_converged_network_is_healthy_though_its_loss_is_saturated(
    activation: type[nn.Module], factor: float
) -> None:
    model = trained(activation)
    with torch.no_grad():
        keep = torch.nn.functional.cross_entropy(model(X), Y, reduction="none") < 0.2
        model[4].weight.mul_(factor)
        model[4].bias.mul_(factor)
        x, y = X[keep], Y[keep]
        loss = float(nn.functional.cross_entropy(model(x), y))
    assert loss < 2e-3
    facts = OptimizerFacts(name="sgd", lr=1e-3, horizon=100.0)
    before = {one for one in warned(diagnosed(trained(activation), x, y)) if one[2] in ("ND201", "ND202")}
    found = diagnosed(model, x, y, facts=facts)
    sick = {(layer, node) for layer, node, _ in before}
    for name, one in found.items():
        wrong = {n for n, word in enumerate(one.verdicts) if word != "healthy" and (name, n) not in sick}
        assert wrong == set(), name
        assert one.findings == ()


def test_one_sample_condemns_nothing() -> None:
    found = diagnosed(trained(), X[:1], Y[:1])
    severities = {f.severity for one in found.values() for f in one.findings}
    assert "error" not in severities
    assert all("rule out" in finding(one, n, "ND201").message
               for one in found.values() for n in one.by_node if "ND201" in codes(one, n))  # fmt: skip


def test_a_wholly_dead_layer() -> None:
    model = trained()
    with torch.no_grad():
        model[2].bias.fill_(-100)
    found = diagnosed(model, X, Y)
    assert finding(found["2"], None, "ND252").severity == "error"
    assert finding(found["2"], None, "ND252").cause is None
    assert all(word == "plateau" for word in found["2"].verdicts)
    alive = [n for n in range(24) if "ND201" not in codes(found["0"], n)]
    assert alive
    assert all(finding(found["0"], n, "ND304").message.endswith("layer 2 after it is dead") for n in alive)
    assert finding(found["0"], None, "ND252").cause == "ND250"
    assert all(
        finding(found["4"], n, "ND203").message.endswith("layer 2 before it is dead") for n in range(4)
    )


def test_a_layer_of_zeros() -> None:
    model = trained()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    found = diagnosed(model, X, Y)
    assert set(found["2"].verdicts) == {"collapsed"}
    assert all("layer 2 after it has collapsed" in finding(found["0"], n, "ND304").message
               for n in range(24) if "ND201" not in codes(found["0"], n))  # fmt: skip
    assert all("layer 2 before it has collapsed" in finding(found["4"], n, "ND203").message for n in range(4))


def test_a_whole_network_that_shrank() -> None:
    model = trained()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-4)
    found = diagnosed(model, X, Y)
    for one in found.values():
        assert set(one.verdicts) == {"collapsed"}
        assert finding(one, None, "ND252").severity == "error"


@pytest.mark.parametrize("nodes", [1, 2])
def test_narrow_layers_are_not_sick_for_being_narrow(nodes: int) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, nodes), nn.ReLU(), nn.Linear(nodes, 4))
    found = diagnosed(model, X, Y)
    assert warned(found) == set()
    assert all(one.findings == () for one in found.values())


def test_a_toy_of_one_input_and_one_output_is_healthy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.linspace(-2, 2, 64)[:, None]
    found = diagnosed(model, x, torch.sin(x), loss="mse")
    assert warned(found) == set()
    assert all(one.findings == () for one in found.values())


def said(found: dict[str, JudgedLayer]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    return {
        name: [(word, tuple(codes(one, n))) for n, word in enumerate(one.verdicts)]
        for name, one in found.items()
    }


def sick() -> nn.Sequential:
    model = trained().double()
    with torch.no_grad():
        for plant in (bias, outgoing_zero):
            plant(model)
        model[0].bias[2] = -100
        model[0].weight[3] = 0
        model[0].weight[4] *= 1e4
        model[2].weight[8], model[2].bias[8] = model[2].weight[7], model[2].bias[7]
        model[4].weight[:, 9] = 0
    return model


WIDE, LABELS = X.double(), Y


@pytest.mark.parametrize("power", [-24, -11, -3, 5, 16])
def test_rescaling_two_layers_changes_nothing(power: int) -> None:
    model = sick()
    before = said(diagnosed(model, WIDE, LABELS))
    with torch.no_grad():
        model[0].weight.mul_(2.0**power)
        model[0].bias.mul_(2.0**power)
        model[2].weight.mul_(2.0**-power)
    assert said(diagnosed(model, WIDE, LABELS)) == before
    assert len({word for layer in before.values() for word, _ in layer}) >= 3


def test_permuting_nodes_permutes_the_verdicts() -> None:
    model = sick()
    before = said(diagnosed(model, WIDE, LABELS))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter.copy_(parameter[order].clone())
        model[2].weight.copy_(model[2].weight[:, order].clone())
    after = said(diagnosed(model, WIDE, LABELS))
    assert after["0"] == [before["0"][int(i)] for i in order]
    assert (after["2"], after["4"]) == (before["2"], before["4"])


def test_twice_the_probe_is_the_same_probe() -> None:
    model = sick()
    before = said(diagnosed(model, WIDE, LABELS))
    assert said(diagnosed(model, torch.cat([WIDE, WIDE]), torch.cat([LABELS, LABELS]))) == before


@pytest.mark.parametrize("batch_size", [17, 80, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    def judged(size: int) -> dict[str, JudgedLayer]:
        probe = Probe((WIDE,), LABELS, named_loss("cross_entropy"), batch_size=size)
        measured = measure(sick(), probe, Plan(Level.CURVATURE))
        return {one.measures.name: one for one in judge(measured, Selection())}

    assert said(judged(batch_size)) == said(judged(240))


class Branches(nn.Module):
    """A residual block: what is dead inside it cuts nothing off."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x).relu()
        return self.head(stem + self.outer(self.inner(stem).relu()))


def test_a_dead_layer_in_a_residual_branch_is_no_excuse_for_the_stem() -> None:
    torch.manual_seed(0)
    model = Branches()
    with torch.no_grad():
        model.inner.bias.fill_(-100)
    found = diagnosed(model, X, Y)
    assert all("ND304" not in codes(found["stem"], n) for n in range(10))
    assert set(found["stem"].verdicts) == {"healthy"}
    assert set(found["inner"].verdicts) == {"plateau"}
    assert all(
        "layer inner before it is dead" in finding(found["outer"], n, "ND203").message for n in range(10)
    )
    assert np.isfinite(found["head"].measures.per_node["lambda_max"]).all()
