"""What the whole network puts out: collapsed, blind to a class, in a wrong corner, certain and wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.report import Finding
from nndiag.rules.diagnose import JudgedLayer, Selection, judge, judge_model

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 4


class Answers(nn.Module):
    """Puts out what it was given, whatever the input; a weight lets gradients pass."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(output.shape[1], output.shape[1], bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(output.shape[1]))
        self.register_buffer("output", output)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.output[x[:, 0].long()])


def said(
    output: Tensor, y: Tensor | None = Y, loss: str | None = "cross_entropy", **more: Any
) -> dict[str, Finding]:
    """Return the findings on a network with these outputs, by code; input n holds the place of its row."""
    places = torch.arange(len(output)).float()[:, None]
    probe = Probe((places,), y, None if loss is None else named_loss(loss), **more)
    measured = measure(Answers(output), probe, Plan(Level.ACTIVATIONS))
    return {finding.code: finding for finding in judge_model(measured, Selection())}


def sure_of(classes: Tensor, logit: float, count: int = 4) -> Tensor:
    return logit * nn.functional.one_hot(classes, count).float()


def test_a_network_that_answers_well_has_none() -> None:
    assert said(sure_of(Y, 3.0)) == {}
    assert said(sure_of(Y, 30.0)) == {}  # certain, and right


@pytest.mark.parametrize("batch_size", [7, 256])
def test_one_answer_for_all(batch_size: int) -> None:
    found = said(sure_of(torch.zeros_like(Y), 2.0), batch_size=batch_size)
    assert found["ND501"].severity == "error"
    assert (found["ND502"].cause, found["ND502"].evidence["classes"]) == ("ND501", 3)


def test_nearly_one_answer_is_none() -> None:
    a_little = 0.02 * torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    assert "ND501" not in said(a_little)
    assert "ND501" in said(a_little / 100)


def test_a_regression_is_measured_by_its_targets() -> None:
    y = torch.linspace(-5, 5, 200)[:, None]
    assert "ND501" not in said(0.1 * y + 7, y, "mse")
    assert "ND501" in said(0.5e-3 * y + 7, y, "mse")


def test_without_a_loss_outputs_are_measured_by_themselves() -> None:
    assert "ND501" in said(torch.full((200, 2), 4.0), None, None)
    assert "ND501" not in said(torch.full((200, 2), 4.0) + torch.randn(200, 2), None, None)


def test_inputs_that_are_all_the_same_prove_nothing() -> None:
    probe = Probe((torch.zeros(50, 1),), None, None)
    measured = measure(Answers(torch.ones(1, 2)), probe, Plan(Level.ACTIVATIONS))
    assert judge_model(measured, Selection()) == ()


def test_few_samples_make_no_error() -> None:
    output = sure_of(torch.zeros(8, dtype=torch.long), 2.0)
    assert said(output, Y[:8])["ND501"].severity == "warning"


def test_a_class_is_left_out() -> None:
    chosen = torch.where(Y == 2, 3, Y)
    (only,) = (one for one in said(sure_of(chosen, 3.0)).values() if one.code == "ND502")
    assert only.evidence["first_class"] == 2
    assert only.evidence["classes"] == 1


def test_classes_that_the_probe_lacks_are_not_observed() -> None:
    assert "ND502" not in said(sure_of(Y % 3, 3.0), Y % 3)


def layers_of(y: Tensor, bias: float = 0.0) -> tuple[JudgedLayer, ...]:
    """Return what is said of the layers of a network with four classes, the last one's output at zero weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
    with torch.no_grad():
        model[2].bias[3] = bias
    measured = measure(model, Probe((X,), y, named_loss("cross_entropy")), Plan(Level.CURVATURE))
    return judge(measured, Selection())


def test_an_output_of_a_class_that_the_probe_lacks_is_not_observed_and_not_dead() -> None:
    absent, there = layers_of(Y % 3, bias=-100.0)[1], layers_of(Y, bias=-100.0)[1]
    assert (absent.verdicts[3], there.verdicts[3]) == ("unknown", "plateau")
    assert "unknown" not in absent.verdicts[:3]
    assert absent.measures.per_node["class_samples"].tolist() == [100, 50, 50, 0]
    assert absent.measures.per_layer["absent_classes"] == 1
    severities = {f.code: f.severity for f in there.by_node[3]}
    assert severities["ND201"] == "warning"
    for finding in absent.by_node[3]:
        assert finding.severity == "info"
        assert "not observed: the probe has no sample of its class" in finding.message


def test_an_output_that_the_probe_lacks_is_not_observed_though_it_is_well() -> None:
    assert layers_of(Y % 3)[1].verdicts[3] == "unknown"
    assert layers_of(Y)[1].verdicts[3] == "healthy"


def test_what_the_weights_say_of_such_an_output_is_said() -> None:
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight[2:] = 0
    measured = measure(model, Probe((X,), Y % 3, named_loss("cross_entropy")), Plan(Level.CURVATURE))
    (one,) = judge(measured, Selection())
    assert one.verdicts[2:] == ("collapsed", "collapsed")


def test_without_labels_nobody_knows_which_classes_are_absent() -> None:
    measured = measure(nn.Linear(3, 4), Probe((X,), None, named_loss("cross_entropy")), Plan(Level.CURVATURE))
    assert "class_samples" not in measured.layers[0].per_node
    assert "unknown" not in judge(measured, Selection())[0].verdicts


def test_a_class_of_few_samples_proves_little() -> None:
    y = torch.where(torch.arange(200) < 9, 3, torch.arange(200) % 3)
    assert "ND502" not in said(sure_of(torch.arange(200) % 3, 3.0), y)
    y[9] = 3
    assert "ND502" in said(sure_of(torch.arange(200) % 3, 3.0), y)


def test_a_wrong_corner_and_its_escape_time() -> None:
    inside = torch.arange(200) < 40
    found = said(sure_of(torch.where(inside, (Y + 1) % 4, Y), 12.0))["ND503"]
    p = float(torch.softmax(torch.tensor([12.0, 0, 0, 0]), 0)[1])
    assert found.evidence["samples_in_well"] == 40
    assert found.evidence["escape_steps"] == pytest.approx(0.5 / p, rel=1e-5)
    assert "ND503" not in said(sure_of(torch.where(torch.arange(200) < 20, (Y + 1) % 4, Y), 12.0))
    assert "ND503" not in said(sure_of((Y + 1) % 4, 5.0))


def test_certain_and_wrong() -> None:
    wrong = torch.where(torch.arange(200) < 60, (Y + 1) % 4, Y)
    found = said(sure_of(wrong, 20.0))["ND504"]
    assert (found.severity, found.evidence["wrong"]) == ("warning", pytest.approx(0.3))
    assert "ND504" not in said(sure_of(wrong, 2.0))


def test_certain_without_targets_is_a_note() -> None:
    found = said(sure_of(Y, 20.0), None)
    assert found["ND504"].severity == "info"


def test_outputs_that_are_not_finite_are_left_out() -> None:
    output = sure_of(Y, 3.0)
    output[5, 1] = torch.nan
    assert said(output, batch_size=200) == {}


def of_layers(model: nn.Module, selection: Selection | None = None) -> dict[str, Finding]:
    measured = measure(model, Probe((X,), Y, named_loss("cross_entropy")), Plan(Level.CURVATURE))
    return {finding.code: finding for finding in judge_model(measured, selection or Selection())}


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [
        nn.Linear(3, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    ]
    return nn.Sequential(*parts)


@pytest.mark.parametrize("select", [(), ("ND5",)])
def test_a_dead_layer_is_the_cause_of_one_answer_for_all(select: tuple[str, ...]) -> None:
    model = deep()
    with torch.no_grad():
        model[2].bias.fill_(-100)
    found = of_layers(model, Selection(select=select))["ND501"]
    assert (found.cause, found.evidence["layer_to_mend"]) == ("ND250", "2")
    assert found.message.endswith("whatever the input: layer 2 is dead")


def test_collapsed_weights_are_the_cause_and_the_first_such_layer_is_named() -> None:
    model = deep()
    with torch.no_grad():
        for place in (2, 4):
            model[place].weight *= 1e-5
    found = of_layers(model)["ND501"]
    assert (found.cause, found.evidence["layer_to_mend"]) == ("ND252", "2")
    assert found.message.endswith("layer 2 has collapsed")


def test_weights_that_exploded_are_the_cause_of_wrong_corners() -> None:
    model = deep()
    with torch.no_grad():
        model[2].weight[3] *= 1e5
        model[2].bias[3] = 1e6
    found = of_layers(model)
    assert (found["ND501"].cause, found["ND501"].evidence["layer_to_mend"]) == ("ND103", "2")
    assert found["ND501"].message.endswith(
        "whatever the input: layer 2 has 1 node whose weights have exploded"
    )
    assert {found[code].cause for code in ("ND502", "ND503", "ND504")} == {"ND501"}
    assert "never leaves it" in found["ND503"].message
    with torch.no_grad():
        model[2].bias[3] = 0.0  # it is silent on some samples, and the answers differ
    found = of_layers(model)
    assert "ND501" not in found
    assert (found["ND503"].cause, found["ND503"].evidence["layer_to_mend"]) == ("ND103", "2")
    assert "layer 2 has 1 node whose weights have exploded" in found["ND503"].message


def test_a_layer_that_is_well_is_no_cause() -> None:
    found = said(sure_of(torch.zeros_like(Y), 2.0))["ND501"]
    assert (found.cause, "layer_to_mend" in found.evidence) == (None, False)
    model = deep()
    with torch.no_grad():
        model[2].bias[:7] = -100  # one unit of eight is left
    assert "ND501" not in of_layers(model)
