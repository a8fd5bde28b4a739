"""The proof of a treatment: what is replayed, for outputs of every shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nndiag.probe.probe import Probe
from nndiag.surgery.proof import output_change, replay


@pytest.mark.parametrize(("end", "shape"), [(nn.Flatten(0), (5,)), (nn.Unflatten(1, (1, 1)), (5, 1, 1))])
def test_without_a_loss_the_gradient_is_that_of_the_mean_square_of_outputs_of_any_shape(
    end: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 1), end), torch.randn(5, 3)
    found = replay(model, Probe((x,), None, None), 0)
    assert found.outputs.shape == shape
    assert found.loss is None
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found.gradients[name], parameter.grad)
    assert output_change(found, found) == 0.0
