"""Exact products go first to the nodes that the numbers known so far flag."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nndiag.cli import main
from nndiag.measures import Plan, collect, measure
from nndiag.measures.exact import ExactSettings
from nndiag.measures.exact.cost import pass_cost
from nndiag.measures.exact.shares import BOUND_COST
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import Floats, Measured
from nndiag.replay.state import undisturbed
from nndiag.rules.diagnose import Selection, flagged

SATURATED, NODES = 13, 24


class Tokens(nn.Module):
    """Units over two positions, one of which is saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3, NODES), nn.Linear(NODES, 2)
        with torch.no_grad():
            self.hidden.bias[SATURATED] = 50.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)).mean(dim=1))


@pytest.fixture
def affordable(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Probe]:
    """A network and a probe, and means for two of its hidden nodes."""
    torch.manual_seed(0)
    model, x = Tokens().double(), torch.randn(40, 2, 3, dtype=torch.float64)
    samples = Probe((x,), torch.randint(0, 2, (40,)), named_loss("cross_entropy"))
    with undisturbed(model, 0):
        model(x)
        vectors = 2 + BOUND_COST + 2 * 2 + 0.5  # the outputs, the bound, and two nodes at two positions
        work = vectors * pass_cost(model, samples).work
    monkeypatch.setattr(collect, "ExactSettings", partial(ExactSettings, work=work))
    return model, samples


def test_flagged_nodes_are_refined_first(affordable: tuple[nn.Module, Probe]) -> None:
    seen = []

    def preferred(measured: Measured) -> Mapping[str, Floats]:
        seen.append(measured)
        return flagged(measured, Selection())

    plan = Plan(Level.CURVATURE, curvature="auto")
    hidden = measure(*affordable, plan, preferred=preferred).layers[0]
    assert hidden.exact is not None
    assert hidden.exact.sum() == 2
    assert hidden.exact[SATURATED]
    (before,) = seen
    assert before.layers[0].curvature_kind == "ggn"
    assert before.layers[0].per_node["lambda_max"].shape == (NODES,)
    assert np.flatnonzero(flagged(before, Selection())["hidden"]).tolist() == [SATURATED]
    alone = measure(*affordable, plan).layers[0]
    assert alone.exact is not None
    assert not alone.exact[SATURATED]


def test_the_budget_does_not_change_which(affordable: tuple[nn.Module, Probe]) -> None:
    found = [
        measure(*affordable, Plan(Level.CURVATURE, curvature="auto", memory_budget=budget)).layers[0]
        for budget in (None, 100_000, 62_000)
    ]
    masks = [layer.exact for layer in found]
    assert all(mask is not None and mask.sum() == 2 for mask in masks)
    for layer, mask in zip(found, masks, strict=True):
        assert mask is not None
        np.testing.assert_array_equal(mask, masks[0])
        for name in ("lambda_max", "lambda_min", "trace"):
            np.testing.assert_allclose(layer.per_node[name], found[0].per_node[name], rtol=1e-6, atol=1e-9)


def test_a_scan_refines_what_it_flags(
    affordable: tuple[nn.Module, Probe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model, samples = affordable
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from tests.pipeline.test_refining import Tokens as build\n")
    torch.save(model.float().state_dict(), "weights.pt")
    save_file({"x": samples.inputs[0].float(), "y": samples.targets}, "probe.safetensors")
    words = "weights.pt --model net.py:build --data probe.safetensors --all-nodes --format json"
    main(["scan", *words.split()])
    (found,) = json.loads(capfd.readouterr().out)["checkpoints"]
    kinds = {n["index"]: n["curvature_kind"] for n in found["nodes"] if n["layer"] == "hidden"}
    assert kinds[SATURATED] == "hessian"
    assert "ggn" in kinds.values()


def test_nobody_is_asked_where_all_nodes_are_refined() -> None:
    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(40, 2, 3)
    samples = Probe((x,), torch.randint(0, 2, (40,)), named_loss("cross_entropy"))

    def preferred(measured: Measured) -> Mapping[str, Floats]:
        raise AssertionError

    found = measure(model, samples, Plan(Level.CURVATURE, curvature="auto"), preferred=preferred)
    assert [layer.curvature_kind for layer in found.layers] == ["hessian", "hessian"]
