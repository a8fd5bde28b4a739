"""Networks in ``.pt2`` archives: every number as for the network itself, and what cannot be replayed is said."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.errors import ModelError
from nndiag.measures import Plan, measure
from nndiag.model.exported import load_exported
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level

COUNT = 7


class Tokens(nn.Module):
    """An embedding, layer normalisation, a smooth activation and a raw scale."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 6, padding_idx=0), nn.LayerNorm(6)
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3, bias=False)
        self.scale = nn.Parameter(torch.rand(3) + 0.5)
        self.register_buffer("shift", torch.rand(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.inner(self.norm(self.table(x).mean(1) + self.shift)))) * self.scale


class Attention(nn.Module):
    """Attention by hand, and RMS normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(6, 18), nn.RMSNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        return self.head(((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, stride=2), nn.ReLU(),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(180, 3),
    )  # fmt: skip


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


CASES = {
    "plain": (plain, torch.Size([5])),
    "images": (images, torch.Size([2, 10, 10])),
    "tokens": (Tokens, None),
    "attention": (Attention, torch.Size([4, 6])),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network with running statistics of its own, and inputs."""
    torch.manual_seed(0)
    build, shape = CASES[name]
    model = build()
    x = torch.randint(0, 11, (COUNT, 5)) if shape is None else torch.randn(COUNT, *shape)
    with torch.no_grad():
        model(x)
    return model, x


def archive(model: nn.Module, x: Tensor, path: Path, *, free: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_every_number_is_that_of_the_network(name: str, mode: str, tmp_path: Path) -> None:
    model, x = made(name)
    loaded = load_exported(archive(model.train(mode == "train"), x, tmp_path / "net.pt2"))
    model.eval()
    assert torch.allclose(loaded(x), model(x), atol=1e-6)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    probe = Probe((x,), torch.arange(COUNT) % 3, named_loss("cross_entropy"))
    plan = Plan(Level.CURVATURE, "dense", noise=0.0)
    found, expected = measure(loaded, probe, plan), measure(model, probe, plan)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.unmeasured == expected.unmeasured == ()
    by_name = {layer.name: layer for layer in found.layers}
    assert {(n, one.kind) for n, one in by_name.items()} == {(one.name, one.kind) for one in expected.layers}
    for layer in expected.layers:
        other = by_name[layer.name]
        assert (other.activation, other.nodes, other.fan_in) == (layer.activation, layer.nodes, layer.fan_in)
        for measure_, values in layer.per_node.items():
            assert other.per_node[measure_] == pytest.approx(values, rel=1e-3, abs=1e-5, nan_ok=True), (
                measure_
            )


class Last(nn.Module):
    """A recurrent layer, of which the last state counts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


class Mean(nn.Module):
    """Layers of torch's transformers, of which the mean counts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        given = (x, x, x) if isinstance(self.inner, nn.MultiheadAttention) else (x,)
        found = self.inner(*given)
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


FUSED = {
    "lstm": lambda: Last(nn.LSTM(4, 5, batch_first=True)),
    "lstm of two layers": lambda: Last(nn.LSTM(4, 5, num_layers=2, batch_first=True)),
    "gru": lambda: Last(nn.GRU(4, 5, batch_first=True)),
    "rnn": lambda: Last(nn.RNN(4, 5, batch_first=True)),
    "attention": lambda: Mean(nn.MultiheadAttention(4, 2, batch_first=True)),
    "encoder": lambda: Mean(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_are_measured_parameter_by_parameter(name: str, tmp_path: Path) -> None:
    """The program does not say that their parameters belong together: a node of theirs is a row of one of them."""
    torch.manual_seed(0)
    model, x = FUSED[name]().eval(), torch.randn(COUNT, 6, 4)
    loaded = load_exported(archive(model, x, tmp_path / "net.pt2"))
    assert torch.allclose(loaded(x), model(x), atol=1e-5)
    probe = Probe((x,), torch.arange(COUNT) % 3, named_loss("cross_entropy"))
    plan = Plan(Level.CURVATURE, "dense", noise=0.0)
    found, expected = measure(loaded, probe, plan), measure(model, probe, plan)
    assert found.unmeasured == expected.unmeasured == ()
    traces = [sum(layer.per_node["trace"].sum() for layer in of.layers) for of in (found, expected)]
    assert traces[0] == pytest.approx(traces[1], rel=1e-4)
    parameters = [sum(layer.parameters for layer in of.layers) for of in (found, expected)]
    assert parameters[0] == parameters[1] == sum(parameter.numel() for parameter in model.parameters())
    heads = [of.layers[-1].per_node["lambda_max"] for of in (found, expected)]
    assert heads[0] == pytest.approx(heads[1], rel=1e-3)


def test_a_batch_of_one_size_is_refused(tmp_path: Path) -> None:
    model, x = made("plain")
    path = archive(model, x, tmp_path / "net.pt2", free=False)
    with pytest.raises(ModelError, match="takes batches of 7 alone; export it with a free batch"):
        load_exported(path)


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    model, x = made("plain")
    path = archive(model, x, tmp_path / "net.pt2")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelError, match="cannot load the program in it"):
        load_exported(path)
