"""Healing twice is healing once, in networks of every make with many things wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.pipeline import HealSettings, ScanSettings, heal

MODELS = """
import torch
from torch import nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(5, 10, 2, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 4)
    )


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 4),
    )


lstm, transformer = Recurrent, Attentive
"""
WOUNDS = {
    "mlp": ("1.weight", "1.bias", "3.weight", "5.weight"),
    "cnn": ("1.weight", "1.bias", "4.weight", "7.weight"),
    "lstm": ("rnn.weight_ih_l0", "rnn.bias_ih_l0", "rnn.weight_ih_l1", "head.weight"),
    "transformer": ("encoder.layers.0.linear1.weight", "encoder.layers.0.linear1.bias",
                    "encoder.layers.1.self_attn.in_proj_weight", "encoder.layers.1.self_attn.out_proj.weight"),
}  # fmt: skip


def probe() -> tuple[Tensor, Tensor]:
    x = torch.randn(96, 6, 5, generator=torch.Generator().manual_seed(3))
    return x, (x[:, :, 0].sum(dim=1) > 0).long() + 2 * (x[:, -1, 1] > 0).long()


def wounded(name: str, folder: Path) -> Path:
    """Train a network a little, and wound it: dead, collapsed, repeated, weak and unheard units."""
    (folder / "models.py").write_text(MODELS)
    torch.manual_seed(1)
    space: dict[str, object] = {}
    exec(MODELS, space)
    model: nn.Module = space[name]()  # type: ignore[operator]
    x, y = probe()
    torch.save({"x": x, "y": y}, folder / "probe.pt")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    incoming, bias, second, outgoing = (model.get_parameter(one) for one in WOUNDS[name])
    with torch.no_grad():
        incoming[:2] = 0.0
        bias[:2] = 0.0
        bias[2] = -50.0
        incoming[3] *= 1e-3
        incoming[5], bias[5] = incoming[4], bias[4]
        second[1] = 0.0
        second[-3:] *= 1e-4
        outgoing[:, :2] = 0.0
        outgoing[:, 3] *= 1e-5
    file = folder / f"{name}.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, file)
    return file


@pytest.mark.parametrize("name", WOUNDS)
def test_a_second_healing_finds_nothing_to_do(name: str, tmp_path: Path) -> None:
    file = wounded(name, tmp_path)
    scan = ScanSettings(
        model=f"{tmp_path / 'models.py'}:{name}", data=str(tmp_path / "probe.pt"), loss="cross_entropy",
        curvature="ggn",
    )  # fmt: skip
    settings = HealSettings("train", scan)
    once, twice = tmp_path / "once.pt", tmp_path / "twice.pt"
    started = {(one.layer, one.index) for one in heal(file, once, settings).actions}
    assert started
    found = heal(once, twice, settings)
    assert not found.actions
    assert twice.read_bytes() == once.read_bytes()
    rates = {(one.layer, node) for one in found.suggestions if one.code == "ND401" for node in one.nodes}
    assert not rates & started
