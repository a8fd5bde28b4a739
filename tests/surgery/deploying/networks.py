"""Small networks with nodes that do nothing, by construction and not only on the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.remedies.plan import Treatment
from nndiag.surgery.deploying import Deployed, deploy

Call = Callable[[Tensor], Tensor]

EXACT = 1e-12
"""Change of the outputs of networks in double precision that is rounding."""


def prune(layer: str, nodes: Iterable[int]) -> list[Treatment]:
    return [Treatment(layer, node, "ND201", "prune", "dead") for node in nodes]


def merge(layer: str, node: int, twin: int) -> Treatment:
    return Treatment(layer, node, "ND104", "merge", "it repeats another node", twin)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build in double precision, with statistics of norms that are not those they start from."""
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def kill(layer: nn.Module, nodes: list[int]) -> None:
    """Let a rectifier after the layer put out zero for these nodes, whatever the input."""
    with torch.no_grad():
        layer.bias[nodes] = -1e6


def constant(layer: nn.Module, nodes: list[int], value: float) -> None:
    with torch.no_grad():
        layer.weight[nodes] = 0.0
        layer.bias[nodes] = value


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def did(found: Deployed) -> dict[tuple[str, int], str]:
    return {(one.layer, one.index): one.did for one in found.done}


def largest_difference(model: nn.Module, found: Deployed, x: Tensor) -> float:
    """Compare the two networks on samples that surgery never saw, relative to the largest output."""
    with torch.no_grad():
        wanted, made = model(x), found.module(x)
    assert made.shape == wanted.shape
    return float((made - wanted).abs().max() / wanted.abs().max())


def treated(model: nn.Module, x: Tensor, treatments: list[Treatment]) -> Deployed:
    """Deploy on two batches of different size."""
    return deploy(model, [(x[:-3],), (x[-3:],)], treatments)


def all_end(how: str, model: nn.Module, x: Tensor, layer: str, nodes: list[int], unseen: Tensor) -> Deployed:
    """Take nodes out, all of which end in one way, and compare the networks on samples that surgery never saw."""
    found = treated(model, x, prune(layer, nodes))
    assert did(found) == dict.fromkeys(((layer, node) for node in nodes), how)
    assert largest_difference(model, found, unseen) <= EXACT
    return found


class Flat(nn.Module):
    """Convolution, norm, rectifier, then a linear layer over all channels and positions in some order."""

    def __init__(self, flatten: Call) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Linear(6 * 16, 4)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.flatten(F.relu(self.norm(self.conv(x)))))


class Joined(nn.Module):
    """Two branches side by side, the second of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 6)
        self.out = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.out(torch.cat([b, a, -b], dim=1))


class Grouped(nn.Module):
    """A grouped convolution between two ordinary ones."""

    def __init__(self, groups: int, outputs: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.g = nn.Conv2d(8, outputs, 3, groups=groups)
        self.b = nn.Conv2d(outputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.g(F.relu(self.a(x))))).mean((2, 3))


class Residual(nn.Module):
    """A stream of eight units that two layers write to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.out(x + F.relu(self.second(x)))


class Tied(nn.Module):
    """A code and its transposed: one matrix is used twice, the second time from the other side."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(6, 8)
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.code(x)), self.code.weight.t(), self.shift)


class Shared(nn.Module):
    """Two modules that hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(x)) * F.relu(self.b(-x)))


class Raw(nn.Module):
    """Parameters outside of any layer: a scale of each unit, and a matrix from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)
        self.scale, self.matrix = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (F.relu(self.a(x)) * self.scale) @ self.matrix


class Columns(nn.Module):
    """A matrix whose columns are units, and more of them than rows."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(x @ self.matrix + self.shift))


class Gated(nn.Module):
    """One layer gives units and their gates; the first half times the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, dim=-1)
        return self.out(value * F.relu(gate))


class After(nn.Module):
    """Something that takes in all units, between two layers."""

    def __init__(self, between: nn.Module | Call) -> None:
        super().__init__()
        self.a, self.between, self.out = nn.Linear(5, 8), between, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(F.relu(self.a(x))))


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values, as in vision transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(y.reshape(batch, length, self.num_heads * self.head_dim))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.att = Attention(width, heads)
        self.f1, self.f2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.n1(x))
        return x + self.f2(F.gelu(self.f1(self.n2(x))))


class Transformer(nn.Module):
    """Tokens in, logits out; the output layer is the table of embeddings."""

    def __init__(self, words: int = 20, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(1, 7, width))
        self.blocks = nn.ModuleList([Block(width, 4), Block(width, 4)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.down = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return F.relu(y)


class ResNet(nn.Module):
    """Three stages of two blocks, as CIFAR's but narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        blocks, width = [], 8
        for outputs, stride in ((8, 1), (16, 2), (32, 2)):
            blocks += [BasicBlock(width, outputs, stride), BasicBlock(outputs, outputs, 1)]
            width = outputs
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
