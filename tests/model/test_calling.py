"""Which inputs a model takes, and positional inputs given to it by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nndiag.model.calling import argument_names, call_by_names


class Named(nn.Module):
    """Takes its inputs in an order that nobody expects."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(
        self,
        past_key_values: Any = None,
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Tensor:
        assert mask is not None
        assert tokens is not None
        assert labels is None
        return self.head(tokens * mask)


def test_arguments_are_inputs_without_targets_and_switches() -> None:
    assert argument_names(Named()) == ("mask", "tokens")
    assert argument_names(nn.Linear(2, 2)) == ("input",)


def test_inputs_by_position_arrive_under_their_names_and_nothing_else_changes() -> None:
    model = Named()
    before = model.state_dict()
    tokens, mask = torch.randn(4, 3), torch.tensor([[1.0, 0.0, 1.0]])
    call_by_names(model, ("tokens", "mask"))
    assert torch.equal(model(tokens, mask), model.head(tokens * mask))
    assert model.state_dict().keys() == before.keys()
    called = torch.func.functional_call(model, {"head.bias": torch.zeros(2)}, (tokens, mask))
    assert torch.equal(called, (tokens * mask) @ model.head.weight.T)
