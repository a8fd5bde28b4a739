"""Dead layers behind a layer that starts anew as a whole start anew with it."""

from __future__ import annotations

import torch
from torch import nn

from nndiag.pipeline.in_memory import diagnose_model
from nndiag.remedies.plan import Treatment, plan


def planned(dead: int, goal: str = "train") -> tuple[Treatment, ...]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[:dead] = -100.0
        net[2].bias.fill_(-100.0 if dead < 12 else -0.5)  # dead by itself, or for want of an input
        net[2].weight.abs_()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, 6, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    return plan(diagnose_model(net, (x, y), None, None).checkpoints[0], goal)  # type: ignore[arg-type]


def restarts(treatments: tuple[Treatment, ...]) -> set[tuple[str, int | None]]:
    return {(t.layer, t.index) for t in treatments if t.kind == "reinitialise"}


def test_a_layer_that_only_lacks_an_input_starts_anew_with_the_one_before_it() -> None:
    found = planned(12)
    assert restarts(found) == {("0", i) for i in range(12)} | {("2", i) for i in range(8)}
    layers = [t.layer for t in found]
    assert layers == sorted(layers)
    assert {t.detail for t in found if t.layer == "2" and t.index is not None} == {
        "dead behind a layer that starts anew as a whole"
    }


def test_where_some_nodes_of_the_layer_before_live_each_is_judged_by_itself() -> None:
    assert restarts(planned(4)) == {("0", i) for i in range(4)} | {("2", i) for i in range(8)}
