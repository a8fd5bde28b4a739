"""What is kept of backward passes, taken in one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nndiag.measures.batchview import layer_uses
from nndiag.measures.shown import Shown
from nndiag.replay.layers import find_layers, owners
from nndiag.replay.passes import Forward, forward
from nndiag.replay.separation import Blind

BATCH = 5


def passes(model: nn.Module, x: Tensor, columns: int) -> tuple[Forward, list[Shown], list[Tensor]]:
    """Pass random seeds back, and take them in."""
    model = model.double().eval()
    seen = forward(model, [x], owners(model, find_layers(model)), Blind())
    every = [Shown(use) for use in layer_uses(seen, {}, ())]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(seen.output.shape, generator=generator, dtype=x.dtype) for _ in range(columns)]
    for seed in seeds:
        gradients = seen.gradients(seed)
        for shown in every:
            shown.add(gradients)
    return seen, every, seeds


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_squares_are_all_that_one_position_needs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    _, (first, last), seeds = passes(model, drawn(BATCH, 4), 3)
    assert not first.columns
    assert not first.jacobians
    assert last.weights is not None
    torch.testing.assert_close(last.weights, torch.stack(seeds).square().sum(dim=0))


def test_norms_give_jacobians_of_every_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = drawn(3)
    x = drawn(BATCH, 2, 6)
    seen, (conv, shown), seeds = passes(model, x, 2)
    assert len(conv.columns) == len(shown.jacobians) == 2
    assert not shown.columns
    for seed, found in zip(seeds, shown.jacobians, strict=True):
        assert found.shape == (BATCH, 3, 2)
        for sample in range(BATCH):
            at = seed[sample : sample + 1]
            expected = torch.autograd.grad(model(x[sample : sample + 1]), [norm.weight, norm.bias], at)
            torch.testing.assert_close(found[sample], torch.stack(expected, dim=1))
    assert seen.output.shape == (BATCH, 3, 5)


def test_a_layer_with_positions_keeps_its_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2))
    _, (shown,), seeds = passes(model, drawn(BATCH, 2, 6), 2)
    assert shown.weights is None
    for seed, (own,) in zip(seeds, shown.columns, strict=True):
        torch.testing.assert_close(own.reshape(seed.shape), seed)
