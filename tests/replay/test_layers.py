"""Which parameters are layers, and why others are not."""

from __future__ import annotations

import pytest
from torch import nn

from nndiag.replay.layers import find_layers, unmeasured


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_that_were_pruned_to_nothing_are_none() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 0), nn.Linear(0, 3))
    layers = find_layers(model)
    assert [layer.name for layer in layers] == ["0"]
    assert dict(unmeasured(model, layers)) == {
        "1.weight": "it is empty",
        "1.bias": "it is empty",
        "2.weight": "it is empty",
        "2.bias": "its layer has no weights",
    }
