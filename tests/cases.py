"""The models, losses and data that every measure is checked on, and the dense float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nndiag.probe.loss import Loss, custom_loss, named_loss
from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers


@dataclass(frozen=True)
class Case:
    """A model, its input shape and what it puts out."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: int
    piecewise_linear: bool = True


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


def mlp_without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12, bias=False), nn.LeakyReLU(), nn.Linear(12, 4, bias=False))


def wide_mlp() -> nn.Module:
    """Blocks of 61 parameters: large enough that no solver takes the dense way by itself."""
    return nn.Sequential(nn.Linear(60, 20), nn.ReLU(), nn.Linear(20, 4))


def cnn() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    return with_statistics(net)


def odd_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), padding=(1, 2), dilation=(2, 1), padding_mode="circular"), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding="same", groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=(2, 1), groups=8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def conv1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 5, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(25, 4))


def conv3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))


def transposed() -> nn.Module:
    """Transposed convolutions with every option, groups and output padding included."""
    return nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 2), padding=(0, 3), dilation=(2, 1), groups=2, bias=False),
        nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip


def transposed1d() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(28, 4))


def tokens() -> nn.Module:
    """A Linear over several positions, as in a transformer's feed-forward part."""
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Flatten(), nn.Linear(12, 4))


class Twice(nn.Module):
    """One layer called twice, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 5)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[:, :3], x[:, 3:]
        return self.head(torch.cat([self.shared(left).relu(), self.shared(right).relu()], dim=1))


def with_statistics(net: nn.Module) -> nn.Module:
    """Give batch norms statistics and scales that are not the trivial ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.2)
    return net


CASES = (
    Case("mlp", mlp, (6,), 4),
    Case("mlp_without_bias", mlp_without_bias, (6,), 4),
    Case("wide_mlp", wide_mlp, (60,), 4),
    Case("cnn", cnn, (2, 6, 6), 4),
    Case("odd_convolutions", odd_convolutions, (2, 5, 5), 4),
    Case("conv1d", conv1d, (3, 10), 4),
    Case("conv3d", conv3d, (1, 3, 3, 3), 4),
    Case("transposed", transposed, (2, 3, 3), 4),
    Case("transposed1d", transposed1d, (3, 3), 4),
    Case("tokens", tokens, (4, 5), 4),
    Case("twice", Twice, (6,), 4),
)
LOSSES = ("cross_entropy", "mse", "nll", "bce_with_logits", "huber")


def build(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Return the case's model with seeded weights, in eval mode."""
    torch.manual_seed(seed)
    model = case.build()
    model.eval()(torch.zeros(1, *case.shape))  # lazy layers
    return model.to(dtype)


def probe(
    case: Case, loss: str, samples: int = 10, batch_size: int = 256, dtype: torch.dtype = torch.float64
) -> Probe:
    """Return seeded samples with targets that suit the loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, *case.shape, generator=generator, dtype=torch.float64).to(dtype)
    if loss in ("cross_entropy", "nll"):
        y = torch.randint(0, case.outputs, (samples,), generator=generator)
    else:
        y = torch.rand(samples, case.outputs, generator=generator, dtype=torch.float64).to(dtype)
    return Probe((x,), y, loss_named(loss), batch_size)


def loss_named(name: str) -> Loss:
    if name == "huber":
        return custom_loss(name, lambda f, y: nn.functional.huber_loss(f, y, reduction="none").sum(dim=1))
    return named_loss(name)


def dense_blocks(model: nn.Module, probe: Probe) -> dict[str, Tensor]:
    """Return the Hessian of the mean loss in every node's own parameters, by double backward, ``(nodes, p, p)``."""
    assert probe.loss is not None
    assert probe.targets is not None
    output = model(*probe.inputs)
    value = probe.loss.per_sample(output, probe.loss.prepare(output, probe.targets)).mean()
    parameters = dict(model.named_parameters())
    return {layer.name: _layer_blocks(value, parameters, layer) for layer in find_layers(model)}


def _layer_blocks(value: Tensor, parameters: dict[str, Tensor], layer: Layer) -> Tensor:
    names = [layer.weight] + ([layer.bias] if layer.bias else [])
    own = [parameters[name] for name in names]
    rows = layer.rows(dict(zip(names, torch.autograd.grad(value, own, create_graph=True), strict=True)))
    if not rows.requires_grad:
        return rows.new_zeros(layer.nodes, layer.size, layer.size)
    every = torch.eye(rows.numel(), dtype=rows.dtype).reshape(-1, *rows.shape)
    second = torch.autograd.grad(
        rows, own, every, is_grads_batched=True, allow_unused=True, retain_graph=True
    )
    lines = []
    for entry in range(rows.numel()):
        filled = {
            name: torch.zeros_like(parameter) if part is None else part[entry]
            for name, parameter, part in zip(names, own, second, strict=True)
        }
        lines.append(layer.rows(filled))
    whole = torch.stack(lines).reshape(layer.nodes, layer.size, layer.nodes, layer.size)
    return whole[torch.arange(layer.nodes), :, torch.arange(layer.nodes)].detach()
