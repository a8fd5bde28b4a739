"""Networks and probes that are degenerate but can be examined: findings, not failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL, network, samples


def saved(work: Path, state: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, work / "net.safetensors")


def scanned(cli: Cli, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = cli("scan", "net.safetensors", *words, "--format", "json").document()
    return found["checkpoints"][0]


def codes(found: dict[str, Any], layer: str, index: int) -> set[str]:
    return {
        finding["code"]
        for node in found["nodes"]
        if (node["layer"], node["index"]) == (layer, index)
        for finding in node["findings"]
    }


@pytest.mark.parametrize("words", [(), WITH_MODEL, FULL])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_finding(
    cli: Cli, work: Path, words: tuple[str, ...], value: float
) -> None:
    state = network().state_dict()
    state["0.weight"][3, 1] = value
    saved(work, state)
    found = scanned(cli, *words)
    assert found["level"] == "weights"
    layer = found["layers"][0]["name"]
    assert "ND101" in codes(found, layer, 3)
    assert not any("ND101" in codes(found, layer, i) for i in (0, 1, 2, 4))
    assert cli("scan", "net.safetensors", *words, "--fail-on", "error").code == 1


def test_a_run_with_weights_that_are_not_finite_says_so_once(cli: Cli, work: Path) -> None:
    for epoch in range(20, 26):
        state = network().state_dict()
        state["0.weight"][0, 0] = float("nan")
        save_file(dict(state), work / "run" / f"epoch_{epoch}.safetensors")
    ended = cli("scan", "run", *FULL)
    assert ended.code == 0
    assert ended.err.count("not finite") == 1
    assert "epoch_20.safetensors, epoch_21.safetensors, epoch_22.safetensors and 3 more: " in ended.err


def test_outputs_that_overflow(cli: Cli, work: Path) -> None:
    state = network().state_dict()
    state["0.weight"].fill_(1e30)
    state["2.weight"].fill_(1e30)
    saved(work, state)
    save_file(samples() | {"x": torch.ones(10, 4)}, work / "probe.safetensors")
    ended = cli("scan", "net.safetensors", *FULL, "--format", "json")
    found = ended.document()["checkpoints"][0]
    assert found["level"] == "activations"
    assert found["model"]["loss"] is None
    assert "not finite" in ended.err
    assert cli("scan", "net.safetensors", *FULL).code == 0


def test_one_sample(cli: Cli, work: Path) -> None:
    save_file(samples(1), work / "probe.safetensors")
    found = scanned(cli, *FULL)
    assert found["probe"]["samples"] == 1
    assert found["probe"]["folds"] == 1
    assert found["level"] == "curvature"


@pytest.mark.parametrize("width", [1, 8])
def test_all_zero(cli: Cli, work: Path, width: int) -> None:
    state = {name: torch.zeros_like(t) for name, t in network(width).state_dict().items()}
    saved(work, state)
    found = scanned(cli, *FULL, "--model-arg", f"width={width}")
    assert found["layers"][0]["verdicts"]["collapsed"] == width
    assert cli("scan", "net.safetensors", *FULL, "--model-arg", f"width={width}").code == 0


def test_layer_of_one_node(cli: Cli, work: Path) -> None:
    saved(work, network(width=1).state_dict())
    found = scanned(cli, *FULL, "--model-arg", "width=1", "--all-nodes")
    assert [node["index"] for node in found["nodes"] if node["layer"] == "0"] == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("words", [(), FULL])
def test_other_types_of_weights(cli: Cli, work: Path, dtype: torch.dtype, words: tuple[str, ...]) -> None:
    saved(work, {name: tensor.to(dtype) for name, tensor in network().state_dict().items()})
    found = scanned(cli, *words, "--all-nodes")
    weights = network().state_dict()["0.weight"]
    norms = [node["measures"]["weight_norm"] for node in found["nodes"][:8]]
    assert norms == pytest.approx(weights.norm(dim=1).tolist(), rel=1e-2)


def test_float64(cli: Cli) -> None:
    double = scanned(cli, *FULL, "--dtype", "float64", "--all-nodes", "--threads", "1")
    single = scanned(cli, *FULL, "--all-nodes")
    assert double["model"]["loss"] == pytest.approx(single["model"]["loss"], rel=1e-5)
    for one, other in zip(double["nodes"], single["nodes"], strict=True):
        assert one["measures"]["trace"] == pytest.approx(other["measures"]["trace"], rel=1e-3, abs=1e-6)
        assert one["measures"]["trace"] != other["measures"]["trace"] or one["measures"]["trace"] == 0


def test_probe_without_targets(cli: Cli, work: Path) -> None:
    save_file({"x": samples()["x"]}, work / "probe.safetensors")
    found = scanned(cli, *FULL, "--all-nodes")
    assert found["model"]["loss"] is None
    assert found["probe"]["has_targets"] is False
    measures = found["nodes"][0]["measures"]
    assert {"active_fraction", "influence", "lambda_max"} <= measures.keys()
    assert "torque_ratio" not in measures


def test_loss_of_ones_own(cli: Cli) -> None:
    own = scanned(cli, *FULL[:4], "--loss", "models.py:per_sample")
    assert own["model"]["loss"] == pytest.approx(scanned(cli, *FULL)["model"]["loss"], rel=1e-6)
