"""The networks of this benchmark and how they are trained: Linear layers with ReLU, Adam, scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.lesions.digits import digits

WIDTHS = (64, 64, 64, 32, 10)
BATCH = 64
LR = 1e-3

Data = tuple[Tensor, Tensor]
AfterStep = Callable[[int], None]


def network(seed: int) -> nn.Sequential:
    """Return a network with He-normal weights and zero biases."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, units in pairwise(WIDTHS):
        layer = nn.Linear(inputs, units)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def train(
    model: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    data: Data,
    steps: int,
    seed: int,
    before_step: Callable[[Tensor], object] = lambda loss: None,
    after_step: AfterStep = lambda step: None,
) -> None:
    """Train with cross-entropy on batches of a fixed order.

    Args:
        model: changed in place.
        optimizer: of its parameters.
        data: inputs and labels.
        steps: how many.
        seed: of the order.
        before_step: called with the loss when the gradients are there.
        after_step: called with the number of steps done.
    """
    order = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for chosen in torch.randperm(len(data[0]), generator=order).split(BATCH):
            if done == steps:
                return
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
            loss.backward()
            before_step(loss)
            optimizer.step()
            done += 1
            after_step(done)


def accuracy(model: nn.Module, data: Data) -> float:
    """Return the share of samples of the right class."""
    with torch.no_grad():
        return float((model(data[0]).argmax(dim=1) == data[1]).double().mean())


def loss_on(model: nn.Module, data: Data) -> float:
    """Return the mean cross-entropy."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(data[0]), data[1]))


def dormant_share(model: nn.Sequential, x: Tensor, tau: float = 0.025) -> float:
    """Return the share of hidden units with a dormancy score of at most τ."""
    few = total = 0
    with torch.no_grad():
        h = x
        for module in model[:-1]:
            h = module(h)
            if isinstance(module, nn.ReLU):
                size = h.mean(dim=0)
                few += int((size <= tau * size.mean()).sum())
                total += len(size)
    return few / total


def train_data() -> Data:
    """Return what is trained on."""
    return digits().train


def test_data() -> Data:
    """Return what accuracies are of: samples that training has not seen."""
    return digits().reporting
