"""Lesions in layers of other kinds than sums: found where they are, with their cause; and networks that are well."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.remedies import action_for, tied
from nndiag.rules.diagnose import JudgedLayer, Selection, judge
from tests.rules.diagnosing import codes, finding

CLASSES, WORDS, LENGTH = 3, 24, 6
UNIT = 5


class Convolutions(nn.Module):
    """A residual block with batch norms; the last one may start at zero."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)
        nn.init.constant_(self.bn2.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn0(self.stem(x)).relu()
        h = (h + self.bn2(self.conv2(self.bn1(self.conv1(h)).relu()))).relu()
        return self.head(h.mean(dim=(2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(WORDS, 6), nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0].mean(dim=1))


class Attending(nn.Module):
    """A transformer's block with a class token, positions, padding and a rectifier behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8, padding_idx=0)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, LENGTH + 1, 8))
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.full((8,), 1e-5)), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 8), self.embed(x)], dim=1) + self.positions
        z = self.norm1(h)
        h = h + self.attention(z, z, z, need_weights=False)[0]
        return self.head((h + self.scale * self.down(self.up(self.norm2(h)).relu())).mean(dim=1))


def pictures(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % CLASSES
    shapes = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    return shapes[y] + 0.7 * torch.randn(samples, 1, 6, 6, generator=generator), y


def sentences(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ids of which 0 is padding and the last two never occur."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % CLASSES
    x = torch.randint(1, 10, (samples, LENGTH), generator=generator)
    x[:, 1] = 10 + 4 * y + torch.randint(0, 4, (samples,), generator=generator)
    x[samples // 2 :, -1] = 0
    return x, y


Data = Callable[[int, int], tuple[Tensor, Tensor]]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Data]] = {
    "convolutions": (Convolutions, pictures),
    "convolutions from zero": (lambda: Convolutions(0.0), pictures),
    "recurrent": (Recurrent, sentences),
    "attending": (Attending, sentences),
}


def network(name: str, steps: int) -> nn.Module:
    return copy.deepcopy(_network(name, steps))


@functools.cache
def _network(name: str, steps: int) -> nn.Module:
    build, data = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    x, y = data(96, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def diagnosed(model: nn.Module, name: str, curvature: str = "ggn") -> dict[str, JudgedLayer]:
    x, y = NETWORKS[name][1](60, 2)
    measured = measure(
        model, Probe((x,), y, named_loss("cross_entropy")), Plan(Level.CURVATURE, curvature=curvature)
    )
    return {one.measures.name: one for one in judge(measured, Selection())}


def warned(found: dict[str, JudgedLayer]) -> set[tuple[str, int]]:
    """Return the nodes that have anything graver than a note."""
    return {
        (name, node)
        for name, layer in found.items()
        for node, findings in layer.by_node.items()
        if any(one.severity != "info" for one in findings)
    }


@pytest.mark.parametrize("steps", [0, 30])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_are_well_are_left_alone(name: str, steps: int) -> None:
    found = diagnosed(network(name, steps), name)
    assert warned(found) == set()
    assert all(one.severity == "info" for layer in found.values() for one in layer.findings)


def test_exact_curvature_at_the_start_makes_no_alarm() -> None:
    """A network before training has downward directions in many nodes, and slopes that lead out of them."""
    found = diagnosed(network("recurrent", 0), "recurrent", "hessian")
    assert sum(one.counts["saddle"] for one in found.values()) > 5
    assert warned(found) == set()


def test_padding_and_rows_that_never_occur_are_unknown() -> None:
    found = diagnosed(network("attending", 30), "attending")["embed"]
    assert [i for i, word in enumerate(found.verdicts) if word != "healthy"] == [0, 22, 23]
    assert found.counts["unknown"] == 3
    assert not set(found.by_node) & {0, 22, 23}


def lesion(name: str, plant: Callable[[nn.Module], None]) -> dict[str, JudgedLayer]:
    model = network(name, 30)
    with torch.no_grad():
        plant(model)
    return diagnosed(model, name)


def test_a_batch_norms_channel_of_zero() -> None:
    def plant(model: nn.Module) -> None:
        model.bn1.weight[UNIT] = 0

    found = lesion("convolutions", plant)
    assert warned(found) == {("bn1", UNIT), ("conv1", UNIT)}
    assert finding(found["bn1"], UNIT, "ND102").cause is None
    assert {f.cause for f in found["conv1"].by_node[UNIT]} <= {"ND102", "ND201"}  # its shift is below zero
    unit, channel = (
        action_for(found[name].by_node[UNIT], "deploy", False, tied=tied(found[name].measures))
        for name in ("conv1", "bn1")
    )
    assert (unit.kind, channel.kind) == ("prune", "none")
    assert "goes only with the unit" in channel.reason


def test_a_unit_that_its_norm_keeps_below_zero() -> None:
    def plant(model: nn.Module) -> None:
        model.bn1.bias[UNIT] = -100

    found = lesion("convolutions", plant)
    assert warned(found) == {("bn1", UNIT), ("conv1", UNIT)}
    assert finding(found["conv1"], UNIT, "ND201").cause is None
    assert finding(found["bn1"], UNIT, "ND301").cause == "ND201"


def test_a_layer_norms_channel_of_zero() -> None:
    def plant(model: nn.Module) -> None:
        model.norm2.weight[UNIT] = 0
        model.norm2.bias[UNIT] = 0

    found = lesion("attending", plant)
    assert warned(found) == {("norm2", UNIT)}
    assert finding(found["norm2"], UNIT, "ND102").evidence["single"]


def test_a_dead_rectifier_behind_a_layer_norm() -> None:
    def plant(model: nn.Module) -> None:
        model.up.bias[UNIT] = -100

    found = lesion("attending", plant)
    assert warned(found) == {("up", UNIT)}
    assert found["up"].by_node[UNIT][0].code == "ND201"


GATES = 4


def recurrent_rows(model: nn.Module, names: tuple[str, ...], value: float) -> None:
    for name in names:
        getattr(model.lstm, name)[[gate * 8 + UNIT for gate in range(GATES)]] = value


def test_a_recurrent_unit_without_weights() -> None:
    every = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    found = lesion("recurrent", lambda model: recurrent_rows(model, every, 0.0))
    assert warned(found) == {("lstm", UNIT)}
    assert found["lstm"].verdicts[UNIT] == "collapsed"
    assert found["lstm"].by_node[UNIT][0].code == "ND102"


def test_a_recurrent_unit_with_its_gates_shut() -> None:
    found = lesion("recurrent", lambda model: recurrent_rows(model, ("bias_ih_l0",), -100.0))
    assert warned(found) == {("lstm", UNIT)}
    causes = {f.code: f.cause for f in found["lstm"].by_node[UNIT]}
    assert causes["ND203"] is None
    assert causes["ND301"] == causes["ND401"] == "ND203"
    assert found["lstm"].verdicts[UNIT] == "plateau"


def test_a_head_without_values() -> None:
    def plant(model: nn.Module) -> None:
        model.attention.in_proj_weight[20:24] = 0
        model.attention.in_proj_bias[20:24] = 0

    found = lesion("attending", plant)["attention"]
    roots = {node: found.by_node[node][0].code for node in found.by_node}
    assert roots == {
        **dict.fromkeys((*range(4, 8), *range(12, 16)), "ND304"),
        **dict.fromkeys(range(20, 24), "ND102"),
    }
    why = tied(found.measures)
    assert {action_for(found.by_node[n], "deploy", False, tied=why).kind for n in roots} == {"none"}


def test_a_row_of_an_embedding_that_exploded() -> None:
    def plant(model: nn.Module) -> None:
        model.embed.weight[UNIT] *= 1e4

    found = lesion("attending", plant)["embed"]
    assert found.by_node[UNIT][0].code == "ND103"
    assert all(f.cause == "ND103" for f in found.by_node[UNIT][1:])
    assert set(found.by_node) == {UNIT}


def test_rows_that_are_not_finite() -> None:
    from nndiag.measures.record import weights_only
    from nndiag.replay.layers import find_layers

    model = network("attending", 30)
    with torch.no_grad():
        model.embed.weight[UNIT, 2] = torch.nan
        model.positions[0, 3, 1] = torch.inf
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    found = {one.measures.name: one for one in judge(weights_only(find_layers(model), tensors), Selection())}
    assert codes(found["embed"], UNIT) == ["ND101"]
    assert codes(found["positions"], 3)[0] == "ND101"
    assert warned(found) == {("embed", UNIT), ("positions", 3)}
