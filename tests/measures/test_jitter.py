"""Masks under noise: a unit at its edge fires, one far below does not, and counts agree with a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nndiag.errors import UsageError
from nndiag.measures import Plan, measure
from nndiag.measures.jitter import DRAWS
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.rules.diagnose import Selection, judge


def edge() -> nn.Sequential:
    """Unit 0 is at its edge on these inputs, unit 1 far below, unit 2 alive."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-1.0, -50.0, 0.1]))
        model[2].weight.fill_(1.0)
    return model


X = torch.linspace(-1, 1, 101)[:, None]


def test_only_the_unit_at_its_edge_fires() -> None:
    measured = measure(edge(), Probe((X,), None, None), Plan(Level.ACTIVATIONS, jitter=0.05))
    nodes = measured.layers[0].per_node
    assert nodes["active_fraction"][:2].tolist() == [0, 0]
    assert nodes["jitter_active"][0] > 0
    assert nodes["jitter_active"][1] == 0
    (found, _) = judge(measured, Selection())
    assert (found.steady[0], found.steady[1]) == (False, True)
    said = [next(f.message for f in found.by_node[i] if f.code == "ND201") for i in (0, 1)]
    assert "at its edge" in said[0]
    assert "nor under noise" in said[1]


@pytest.mark.parametrize("batch_size", [101, 30])
def test_flips_are_those_of_a_plain_loop(batch_size: int) -> None:
    model, probe = edge(), Probe((X,), None, None, batch_size=batch_size)
    measured = measure(model, probe, Plan(Level.ACTIVATIONS, jitter=0.3, seed=4))
    generator = torch.Generator().manual_seed(4)
    flips = torch.zeros(3)
    for part in X.split(batch_size):
        for _ in range(DRAWS):
            noisy = part + 0.3 * X.std(dim=0, correction=0) * torch.randn(part.shape, generator=generator)
            flips += ((model[0](part) > 0) != (model[0](noisy) > 0)).sum(dim=0)
    assert measured.layers[0].per_node["mask_flips"].tolist() == pytest.approx(
        (flips / (DRAWS * 101)).tolist()
    )


def test_without_jitter_nothing_is_added() -> None:
    measured = measure(edge(), Probe((X,), None, None), Plan(Level.ACTIVATIONS))
    assert "jitter_active" not in measured.layers[0].per_node


def test_integers_cannot_be_jittered() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(4, 2))
    probe = Probe((torch.arange(5)[:, None],), None, None)
    with pytest.raises(UsageError, match="integers"):
        measure(model, probe, Plan(Level.ACTIVATIONS, jitter=0.1))
