"""Every kind of layer: nodes silenced at random are taken out or zeroed, and the function stays, unseen samples too."""

from __future__ import annotations

import pytest
import torch

from nndiag.replay.layers import find_layers
from nndiag.replay.passes import main_output
from nndiag.surgery.deploying import deploy
from tests.cases import CASES, EVERY_KIND, Case, build
from tests.surgery.deploying.networks import did, prune

GONE = ("removed", "folded")


@pytest.mark.parametrize("case", [*CASES, *EVERY_KIND], ids=lambda case: case.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_silenced_nodes_go_or_stay_without_a_change(case: Case, seed: int) -> None:
    model = build(case, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters(remove_duplicate=False))
    treatments = []
    for layer in find_layers(model):
        nodes = torch.nonzero(torch.rand(layer.nodes, generator=generator) < 0.4).flatten().tolist()
        treatments += prune(layer.name, nodes)
        with torch.no_grad():
            for slot in layer.slots:
                rows = slot.rows(named[slot.parameter]).clone()
                rows[nodes] = 0.0
                named[slot.parameter].copy_(slot.parameter_of(rows))
    x = case.inputs(12)
    found = deploy(model, [(x[:8],), (x[8:],)], treatments)
    unseen = case.inputs(30)[12:]
    with torch.no_grad():
        wanted, made = main_output(model(unseen)), main_output(found.module(unseen))
    assert made.shape == wanted.shape
    assert float((made - wanted).abs().max()) <= 1e-12 * max(1.0, float(wanted.abs().max()))
    assert (
        sum(kind in GONE for kind in did(found).values()) == 0
        or found.before.parameters > found.after.parameters
    )
    state = {**model.state_dict(), **found.edits.values}
    found.module.load_state_dict(state)
