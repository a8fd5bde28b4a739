"""The networks of the performance tables: shapes from the literature, built small and seeded."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a parameter-free shortcut (He et al. 2016, option A)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - width_in

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        short = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            short = nn.functional.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return torch.relu(out + short)


class ResNet(nn.Module):
    """The CIFAR ResNets of He et al. 2016: ``6n + 2`` layers, 16-32-64 channels."""

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        width = 16
        for stage, channels in enumerate((16, 32, 64)):
            for i in range(n):
                blocks.append(Block(width, channels, 2 if stage and not i else 1))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(out.mean(dim=(2, 3)))


def mlp(*widths: int) -> nn.Module:
    """A ReLU MLP of these widths."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a learnable ten-class problem of 3x32x32 images: a smooth pattern per class, in noise."""
    coarse = torch.randn(10, 3, 8, 8, generator=generator)
    patterns = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return patterns[labels] + noise, labels


def vectors(count: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a learnable ten-class problem of vectors: a mean per class, in noise."""
    means = torch.randn(10, width, generator=generator) * 0.15
    labels = torch.randint(0, 10, (count,), generator=generator)
    return means[labels] + torch.randn(count, width, generator=generator), labels


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float = 0.05) -> nn.Module:
    """Train with momentum on minibatches, so that the network is not one at initialisation."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        pick = torch.randint(0, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()
