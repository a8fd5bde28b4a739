"""Learnable problems, and networks trained on them: no network of a table is one at initialisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import GPT, ResNet, SequenceLSTM, mlp
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe

CLASSES = 10
BATCH = 64
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A trained network and the probe it is examined on, both on one device."""

    name: str
    model: nn.Module
    probe: Probe


def images(count: int, generator: torch.Generator) -> Data:
    """Return 3x32x32 images: a smooth pattern per class, in noise."""
    coarse = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    patterns = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return patterns[labels] + noise, labels


def vectors(count: int, width: int, generator: torch.Generator) -> Data:
    """Return vectors: a mean per class, in noise."""
    means = torch.randn(CLASSES, width, generator=generator) * 0.15
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return means[labels] + torch.randn(count, width, generator=generator), labels


def sequences(count: int, length: int, vocabulary: int, generator: torch.Generator) -> Data:
    """Return sequences of tokens: every class prefers some of them."""
    preferences = torch.randn(CLASSES, vocabulary, generator=generator).softmax(dim=1)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.multinomial(preferences[labels], length, replacement=True, generator=generator), labels


def signals(count: int, length: int, features: int, generator: torch.Generator) -> Data:
    """Return sequences of vectors: a mean per class, in noise."""
    means = torch.randn(CLASSES, 1, features, generator=generator) * 0.3
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return means[labels] + torch.randn(count, length, features, generator=generator), labels


def digits(count: int) -> Data:
    """Return scikit-learn's handwritten digits, enlarged to 28x28 and standardised."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pictures = torch.from_numpy(loaded.images[:count]).float()[:, None]
    x = F.interpolate(pictures, size=(28, 28), mode="bilinear").flatten(1)
    return (x - x.mean()) / x.std(), torch.from_numpy(loaded.target[:count]).long()


def trained_case(
    name: str,
    build: Callable[[], nn.Module],
    data: Data,
    device: torch.device,
    *,
    steps: int,
    lr: float = 0.05,
) -> Case:
    """Train with momentum on minibatches of the probe and return network and probe."""
    torch.manual_seed(0)
    x, y = (part.to(device) for part in data)
    model = build().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        pick = torch.randint(0, len(x), (BATCH,), generator=order).to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Case(name, model.eval(), Probe((x,), y, named_loss("cross_entropy")))


@cache
def mlp_case(widths: tuple[int, ...], samples: int, device: torch.device, steps: int = 100) -> Case:
    """A ReLU MLP."""
    data = vectors(samples, widths[0], seeded())
    name = f"MLP {'-'.join(map(str, widths))} on vectors in noise"
    return trained_case(name, lambda: mlp(*widths), data, device, steps=steps)


@cache
def digits_case(samples: int, device: torch.device, steps: int = 200) -> Case:
    """A ReLU MLP on pictures, whose entries depend on each other as they do in data."""
    widths = (784, 512, 512, 10)
    name = f"MLP {'-'.join(map(str, widths))} on digits"
    return trained_case(name, lambda: mlp(*widths), digits(samples), device, steps=steps)


@cache
def resnet_case(n: int, samples: int, device: torch.device, steps: int = 120) -> Case:
    """A CIFAR ResNet of ``6n + 2`` layers."""
    data = images(samples, seeded())
    return trained_case(f"ResNet-{6 * n + 2}", lambda: ResNet(n), data, device, steps=steps)


@cache
def gpt_case(width: int, depth: int, samples: int, device: torch.device, steps: int = 60) -> Case:
    """A small GPT on sequences of 64 tokens."""
    data = sequences(samples, 64, 64, seeded())
    name = f"GPT, {depth} layers of {width}"
    return trained_case(name, lambda: GPT(64, 64, width, depth, heads=4), data, device, steps=steps)


@cache
def lstm_case(width: int, samples: int, device: torch.device, steps: int = 60) -> Case:
    """An LSTM on sequences of 32 vectors."""
    data = signals(samples, 32, 32, seeded())
    return trained_case(
        f"LSTM 32-{width}", lambda: SequenceLSTM(32, width), data, device, steps=steps, lr=0.2
    )


def seeded() -> torch.Generator:
    """Return the generator of every problem's data."""
    return torch.Generator().manual_seed(0)
