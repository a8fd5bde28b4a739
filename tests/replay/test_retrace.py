"""Samples that go through the network once more show the same uses and gradients as when they were watched."""

from __future__ import annotations

import pytest
import torch
from tests.replay.networks import Between, inputs
from torch import Tensor, nn

from nndiag.replay.layers import find_layers, owners
from nndiag.replay.passes import forward
from nndiag.replay.retrace import Retrace
from nndiag.replay.separation import Blind


class Last(nn.Module):
    """A recurrent layer's output at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


MODELS = {
    "norm": (Between(nn.Linear(4, 6), lambda z, m: m.norm(z).relu()), (4,)),
    "conv": (Between(nn.Conv2d(2, 6, 3), lambda z, m: m.norm2d(z).relu().mean((2, 3))), (2, 5, 5)),
    "attention": (nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (3, 8)),
    "recurrent": (Last(), (6, 5)),
    "raw": (Between(nn.Linear(4, 6), lambda z, m: torch.prelu(z * m.gain + m.shift, m.prelu.weight)), (4,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_calls_and_gradients_are_the_same(name: str) -> None:
    model, shape = MODELS[name]
    model, x = model.double().eval(), inputs(*shape)
    held = owners(model, find_layers(model))
    watched, again = forward(model, [x], held, Blind()), forward(model, [x], held, Blind(), Retrace)
    uses = [[call for call in seen.calls if call.use is not None] for seen in (watched, again)]
    assert [(c.layer.name, c.shape, c.dtype) for c in uses[0]] == [
        (c.layer.name, c.shape, c.dtype) for c in uses[1]
    ]
    for one, two in zip(*uses, strict=True):
        assert one.use is not None
        assert two.use is not None
        torch.testing.assert_close(one.use.inputs, two.use.inputs)
    assert watched.watch.used_elsewhere == again.watch.used_elsewhere
    seed = torch.ones_like(watched.output)
    gradients = [
        [g for g, call in zip(seen.gradients(seed), seen.calls, strict=True) if call.use is not None]
        for seen in (watched, again)
    ]
    torch.testing.assert_close(*gradients)
