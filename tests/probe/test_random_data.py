"""Inputs drawn at random: their shapes, their seed, and that nothing found on them is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nndiag
from nndiag.errors import UsageError
from nndiag.probe.data import load_data
from nndiag.probe.takes import Takes
from nndiag.report import FORMATS

TEXT = Takes(vocabulary=30, longest=16, loss="causal_lm")


def test_shapes_and_seeds() -> None:
    data = load_data("random:3x8x8", Path(), 5)
    assert tuple(data.inputs[0].shape) == (5, 3, 8, 8)
    assert (data.targets, data.random, data.names) == (None, True, ())
    assert load_data("random:3x8x8", Path(), 5).sha256 == data.sha256
    assert load_data("random:3x8x8", Path(), 5, seed=1).sha256 != data.sha256
    assert load_data("random:4", Path()).samples == 64


def test_tokens_of_a_language_model_are_its_labels() -> None:
    data = load_data("random:tokens:16", Path(), 8, takes=TEXT)
    assert data.inputs[0].dtype == torch.int64
    assert int(data.inputs[0].min()) >= 0
    assert int(data.inputs[0].max()) < 30
    assert data.targets is not None
    assert torch.equal(data.targets, data.inputs[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("random:", "is no shape"),
        ("random:3x", "is no shape"),
        ("random:-3", "is no shape"),
        ("random:tokens:x", "is no shape"),
        ("random:0", "are none"),
        ("random:999999999x999999999", "too many numbers"),
        ("random:tokens:17", "the model takes 16 tokens"),
    ],
)
def test_what_is_no_shape_is_said(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_data(spec, Path(), takes=TEXT)


def test_a_model_without_a_vocabulary_gets_no_tokens() -> None:
    with pytest.raises(UsageError, match="does not say how many tokens"):
        load_data("random:tokens:4", Path())


def test_nothing_found_on_noise_is_an_error_and_every_report_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias.fill_(-100)
    save_file(dict(net.state_dict()), tmp_path / "net.safetensors")
    (tmp_path / "nndiag.toml").write_text(
        '[model]\nsequential = [["Linear", 4, 8], ["ReLU"], ["Linear", 8, 3]]\n'
    )
    severities = {}
    for data in ("random:4", "probe.safetensors"):
        save_file({"x": torch.randn(64, 4)}, tmp_path / "probe.safetensors")
        where = data if data.startswith("random") else str(tmp_path / data)
        report = nndiag.scan(
            tmp_path / "net.safetensors", nndiag.ScanSettings(data=where, loss="cross_entropy")
        ).report
        (found,) = report.checkpoints
        severities[data] = {f.severity for layer in found.layers for f in layer.findings if f.code == "ND252"}
        if data == "random:4":
            assert found.probe is not None
            assert found.probe.random
            assert '"random": true' in FORMATS["json"](report)
            assert "of random numbers" in FORMATS["markdown"](report)
            assert "on random inputs" in FORMATS["json"](report)
    assert severities == {"random:4": {"warning"}, "probe.safetensors": {"error"}}
