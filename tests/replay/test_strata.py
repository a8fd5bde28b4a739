"""What every layer and direction of a recurrent call takes and puts out: each step follows from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nndiag.replay.recurrent import strata


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_state_follows_from_the_inputs_and_the_state_before(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(3, 4, 2, bidirectional=True, batch_first=batch_first, bias=bias).eval()
    x = torch.randn(*((5, 6) if batch_first else (6, 5)), 3)
    start = torch.randn(4, 5, 4)
    args = (x, start, rnn._flat_weights, bias, 2, 0.0, False, True, batch_first)
    with torch.no_grad():
        result = torch.rnn_tanh(*args)
        levels = strata(torch.rnn_tanh, "rnn_tanh", args, result)
        assert [len(level) for level in levels] == [2, 2]
        for one in (one for level in levels for one in level):
            w = one.weights
            gates = F.linear(one.inputs, w.input, w.input_bias) + F.linear(
                one.before, w.hidden, w.hidden_bias
            )
            torch.testing.assert_close(torch.tanh(gates), one.states)


def test_a_cell_has_one_step() -> None:
    torch.manual_seed(0)
    cell, x = nn.RNNCell(3, 4), torch.randn(5, 3)
    args = (x, torch.randn(5, 4), cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    with torch.no_grad():
        result = torch.rnn_tanh_cell(*args)
        ((one,),) = strata(torch.rnn_tanh_cell, "rnn_tanh_cell", args, result)
    assert torch.equal(one.inputs[0], x)
    assert torch.equal(one.before[0], args[1])
    assert torch.equal(one.states[0], result)
