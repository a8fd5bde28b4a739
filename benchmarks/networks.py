"""The networks of the performance tables: shapes from the literature, built small."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
            short = F.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
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


class Attention(nn.Module):
    """Causal self-attention with a projection each for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """A pre-norm block: attention, then a GELU network four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A GPT-2 in small that classifies a sequence by its last token."""

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, heads: int, classes: int = 10
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Transformer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        out = self.blocks(self.tokens(x) + self.places(places))
        return self.head(self.norm(out)[:, -1])


class SmoothConvolutions(nn.Sequential):
    """Three convolutions with GELU that classify pictures of 28x28."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, 2, 1), nn.GELU(), nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.GELU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 2, 1), nn.GELU(), nn.Flatten(),
            nn.Linear(2 * channels * 16, classes),
        )  # fmt: skip


class SmoothEncoder(nn.Module):
    """A block of a Transformer that classifies a sequence of vectors by the mean over its positions."""

    def __init__(self, features: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(features, width), Transformer(width, 4)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.first(x))).mean(dim=1))


class SequenceLSTM(nn.Module):
    """An LSTM that classifies a sequence by its last state."""

    def __init__(self, features: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """An MLP of these widths."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])
