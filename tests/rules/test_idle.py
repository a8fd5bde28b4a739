"""Nodes of a network that answers the same on all samples: none is a measure for the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured
from nndiag.records.predictions import Predictions
from nndiag.rules.diagnose import JudgedLayer, Selection, judge
from tests.rules.diagnosing import blobs, codes, diagnosed, finding, layer, trained

NODES = 16


def judged(one: LayerMeasures, spread: float, scale: float = 1.0, vary: bool = True) -> JudgedLayer:
    found = Predictions(spread, scale, vary)
    measured = Measured(Level.CURVATURE, (one,), 400, 4, True, predictions=found)
    return judge(measured, Selection())[0]


def moving(share: float, **more: object) -> LayerMeasures:
    """Return a layer of 16 nodes each of which moves the outputs by a share of 1e-3/√16."""
    kernel = (share * 1e-3 / 4) ** 2
    return layer(nodes=NODES, parameter_norm=1.0, tangent_kernel=kernel, lambda_max=kernel / 10, **more)


def test_nodes_that_hardly_move_one_answer_are_flat() -> None:
    found = judged(moving(0.9), spread=0.9e-3)
    assert set(found.verdicts) == {"plateau"}
    seen = finding(found, 3, "ND401")
    assert seen.evidence["outputs_moved"] == pytest.approx(0.9e-3 / 4)
    assert "the outputs are the same on all samples" in seen.message
    whole = finding(found, None, "ND252")
    assert (whole.severity, whole.evidence["shared_cause"]) == ("error", "ND401")


@pytest.mark.parametrize(
    ("share", "answers"),
    [
        (1.1, {"spread": 0.9e-3}),
        (0.9, {"spread": 1.1e-3}),  # a branch may start small where the network answers
        (0.9, {"spread": 0.9e-3, "vary": False}),
        (0.9, {"spread": 0.4e-3, "scale": 0.5}),
    ],
)
def test_and_no_others(share: float, answers: dict[str, float]) -> None:
    assert set(judged(moving(share), **answers).verdicts) == {"healthy"}  # type: ignore[arg-type]


def test_an_output_of_the_network_is_none_of_them() -> None:
    assert set(judged(moving(0.9, is_output=True), spread=0.9e-3).verdicts) == {"healthy"}


def test_a_network_that_shrank_is_flat_before_its_weights_count_as_collapsed() -> None:
    model = trained()
    x, y = blobs()
    with torch.no_grad():
        for place in (0, 2, 4):
            model[place].weight *= 0.01
            model[place].bias *= 0.01
    found = diagnosed(model, x, y)
    for name in ("0", "2"):
        assert "ND102" not in {code for node in found[name].by_node for code in codes(found[name], node)}
        assert np.mean([word == "plateau" for word in found[name].verdicts]) > 0.5
        assert "ND252" in codes(found[name], None)
    assert set(found["4"].verdicts) == {"healthy"}


def test_a_small_branch_of_a_network_that_answers_is_well() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.up, self.down = trained(), nn.Linear(12, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) + 1e-6 * self.down(self.up(x).relu())

    torch.manual_seed(1)
    found = diagnosed(Branch().eval(), *blobs())
    for name in ("up", "down"):
        assert "plateau" not in found[name].verdicts
