"""Moves of nodes in a tile of variants do what they do in a copy of the network that was changed."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.cases import cnn, mlp
from tests.measures.test_trying import Branching, Residual, Twice, probe
from torch import nn

from nndiag.measures.moving import Move, try_moves
from nndiag.probe.probe import Probe
from nndiag.replay.layers import find_layers


def moves(model: nn.Module, layer: str, nodes: list[int]) -> list[Move]:
    generator = torch.Generator().manual_seed(3)
    size = next(one.size for one in find_layers(model) if one.name == layer)
    return [Move(layer, i, 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)) for i in nodes]


def oracle(model: nn.Module, given: Probe, chosen: list[Move]) -> tuple[float, float]:
    changed = copy.deepcopy(model).eval()
    with torch.no_grad():
        for one in chosen:
            module = changed.get_submodule(one.layer)
            width = module.weight[0].numel()
            module.weight[one.index] += one.by[:width].view_as(module.weight[one.index])
            if module.bias is not None:
                module.bias[one.index] += one.by[width]
        before, after = copy.deepcopy(model).eval()(*given.inputs), changed(*given.inputs)
        loss = nn.functional.cross_entropy(after, given.targets)
    return float(loss), float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize(
    ("make", "shape", "layer"),
    [
        (mlp, (6,), "0"),
        (mlp, (6,), "4"),
        (cnn, (2, 8, 8), "0"),
        (cnn, (2, 8, 8), "3"),
        (Residual, (6,), "block"),
        (Branching, (6,), "inside"),
        (Twice, (6,), "inside"),
    ],
)
def test_each_alone_and_all_together_are_what_a_changed_copy_does(make, shape, layer) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = make().double().train()
    before = copy.deepcopy(model.state_dict())
    given = probe(model, shape)
    wanted = moves(model, layer, [0, 1, 3])
    found = try_moves(model, given, wanted)
    for one, tried in zip(wanted, found.alone, strict=True):
        loss, change = oracle(model, given, [one])
        assert tried.loss == pytest.approx(loss, rel=1e-9)
        assert tried.output_change == pytest.approx(change, rel=1e-9)
    assert found.together is not None
    assert (found.together.loss, found.together.output_change) == pytest.approx(
        oracle(model, given, wanted), rel=1e-9
    )
    assert found.loss == pytest.approx(oracle(model, given, [])[0], rel=1e-12)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())


def test_nodes_of_a_layer_take_passes_and_not_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp().double()
    given, calls = probe(model, (6,)), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    few = try_moves(model, given, moves(model, "0", [0, 1]))
    first = len(calls)
    many = try_moves(model, given, moves(model, "0", list(range(12))))
    assert len(calls) == 2 * first
    assert len(few.alone) < len(many.alone)


def test_nothing_wanted_is_nothing_tried() -> None:
    model = mlp().double()
    found = try_moves(model, probe(model, (6,)), [])
    assert (found.alone, found.together) == ((), None)


def test_nodes_of_a_matrix_outside_of_any_layer_are_what_its_product_has() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.last = nn.Parameter(torch.randn(6, 9)), nn.Linear(9, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(x @ self.matrix))

    torch.manual_seed(0)
    model = Columns().double().eval()
    given, by = probe(model, (6,)), torch.randn(6, dtype=torch.float64)
    found = try_moves(model, given, [Move("matrix", 8, by)])
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.matrix[:, 8] += by
        before, after = model(*given.inputs), changed(*given.inputs)
    assert found.together is not None
    for tried in (found.alone[0], found.together):
        assert tried.output_change == pytest.approx(float((after - before).abs().max() / before.abs().max()))
