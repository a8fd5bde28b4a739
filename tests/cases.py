"""The models, losses and data that every measure is checked on, and the dense float64 oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nndiag.probe.loss import Loss, custom_loss, named_loss
from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers
from nndiag.replay.orientation import unit_axes
from nndiag.replay.passes import main_output


@dataclass(frozen=True)
class Case:
    """A model, its input shape and what it puts out; ``tokens`` where it takes ids below that."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    outputs: int
    piecewise_linear: bool = True
    tokens: int | None = None

    def inputs(self, samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return seeded samples: ids below ``tokens``, or normal numbers."""
        generator = torch.Generator().manual_seed(1)
        if self.tokens is not None:
            return torch.randint(0, self.tokens, (samples, *self.shape), generator=generator)
        return torch.randn(samples, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


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


class Tokens(nn.Module):
    """Integer inputs through an embedding; what follows is given."""

    def __init__(self, rest: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.embed, self.rest = embedding, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.embed(x))


def embedding() -> nn.Module:
    """Row 0 is padding; ids go up to 8, so that rows 9 and 10 are never looked up."""
    rest = nn.Sequential(nn.Flatten(), nn.Linear(15, 6), nn.ReLU(), nn.Linear(6, 4))
    return Tokens(rest, nn.Embedding(11, 3, padding_idx=0))


def embedding_bag() -> nn.Module:
    return Tokens(
        nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), nn.EmbeddingBag(9, 3, mode="mean", padding_idx=2)
    )


class WeighedBag(nn.Module):
    """A bag given by offsets, with weights of its own and bags of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 3, mode="sum"), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.ones_like(x, dtype=torch.bool)
        keep[:, -1] = x[:, 0] % 2 == 0  # every other bag is one shorter
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), keep.sum(dim=1).cumsum(0)[:-1]])
        weights = (x[keep] + 1).to(self.head.weight.dtype) / 4
        return self.head(self.bag(x[keep], offsets, per_sample_weights=weights))


class Tied(nn.Module):
    """A decoder that shares the weight of the embedding, and has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.decoder = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
        self.decoder.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.mix(self.embed(x)).relu().mean(dim=1))[:, :4]


class TransposedTie(nn.Module):
    """An autoencoder whose decoder is the transpose of its encoder: no kind knows that use."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = nn.Linear(6, 5), nn.Parameter(torch.randn(4) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.encoder(x).relu(), self.encoder.weight.t())[:, :4] + self.out


class Raw(nn.Module):
    """Parameters in products of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(6, 5) * 0.5)
        self.left = nn.Parameter(torch.randn(7, 5) * 0.5)
        self.experts = nn.Parameter(torch.randn(2, 7, 3) * 0.5)
        self.scale = nn.Parameter(torch.rand(3) + 0.5)
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.weight = nn.Parameter(torch.randn(4, 9) * 0.5)
        self.bias = nn.Parameter(torch.randn(4) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.right).relu()
        hidden = (self.left @ hidden.T).T.relu()
        mixed = torch.einsum("bi,eio->beo", hidden, self.experts) * self.scale
        mixed = torch.cat([mixed, self.token.expand(len(x), 1, 3)], dim=1)
        return nn.functional.linear(mixed.flatten(1), self.weight, self.bias)


class Positions(nn.Module):
    """Positions looked up once for all samples, as GPT-2 and BERT do; the last of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.mix, self.head = nn.Embedding(5, 3), nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + self.positions(torch.arange(x.shape[1])[None])
        return self.head(self.mix(hidden).relu().mean(dim=1))


class Conv1D(nn.Module):
    """The linear layer of GPT-2: a node is a column of the weight."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.4), nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


def gpt2_linear() -> nn.Module:
    return nn.Sequential(Conv1D(7, 5), nn.ReLU(), Conv1D(3, 7), nn.Flatten(), nn.Linear(12, 4))


def norms() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.InstanceNorm2d(3, affine=True),
        nn.ReLU(), nn.Flatten(2), nn.LayerNorm([3, 4]), nn.Linear(4, 5), nn.RMSNorm(5), nn.Flatten(), nn.Linear(15, 4),
    )  # fmt: skip
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1 or "7." in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net


class Recurrent(nn.Module):
    """A recurrent layer, its last output read."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        output = self.layer(x)[0]
        return self.head(output.mean(dim=1 if self.layer.batch_first else 0))


class Cells(nn.Module):
    """Recurrent cells, called by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.plain = nn.LSTMCell(3, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4, bias=False)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = a = b = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            a = self.gru(h, a)
            b = self.plain(a, b)
        return self.head(b)


class Attending(nn.Module):
    """Self-attention, then attention to it from fewer queries, the keys of another width."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.self_attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
        self.cross = nn.MultiheadAttention(6, 3, batch_first=batch_first, bias=False)
        self.apart = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, batch_first=batch_first, add_bias_kv=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        mixed, _ = self.self_attention(x, x, x, need_weights=False)
        few = x[:, :2] if self.batch_first else x[:2]
        crossed, _ = self.cross(few, mixed, mixed)
        apart, _ = self.apart(crossed, mixed[..., :5], mixed[..., 2:])
        return self.head(apart.mean(dim=1 if self.batch_first else 0))


def transformer() -> nn.Module:
    """torch's own encoder and decoder layers, sequence first as they are by default."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1)
            self.decoder = nn.TransformerDecoderLayer(
                4, 2, 6, activation="gelu", batch_first=False, norm_first=True
            )
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            memory = self.encoder(x.transpose(0, 1))
            return self.head(self.decoder(memory[:2], memory).mean(dim=0))

    return Both()


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
EVERY_KIND = (
    Case("embedding", embedding, (5,), 4, tokens=9),
    Case("embedding_bag", embedding_bag, (5,), 4, False, tokens=9),
    Case("weighed_bag", WeighedBag, (4,), 4, False, tokens=9),
    Case("tied", Tied, (5,), 4, False, tokens=9),
    Case("transposed_tie", TransposedTie, (6,), 4, False),
    Case("raw", Raw, (6,), 4),
    Case("positions", Positions, (4, 3), 4),
    Case("gpt2_linear", gpt2_linear, (4, 5), 4),
    Case("norms", norms, (2, 5, 5), 4, False),
    Case("rnn", lambda: Recurrent(nn.RNN(3, 4, nonlinearity="relu"), 4), (3, 3), 4, False),
    Case("lstm", lambda: Recurrent(nn.LSTM(3, 4, num_layers=2, bidirectional=True), 8), (3, 3), 4, False),
    Case(
        "lstm_projected", lambda: Recurrent(nn.LSTM(3, 4, proj_size=2, batch_first=True), 2), (3, 3), 4, False
    ),
    Case("gru", lambda: Recurrent(nn.GRU(3, 4, batch_first=True, bias=False), 4), (3, 3), 4, False),
    Case("cells", Cells, (3, 3), 4, False),
    Case("attention", lambda: Attending(True), (4, 6), 4, False),
    Case("attention_sequence_first", lambda: Attending(False), (4, 6), 4, False),
    Case("transformer", transformer, (4, 4), 4, False),
)
LOSSES = ("cross_entropy", "mse", "nll", "bce_with_logits", "huber")


def build(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """Return the case's model with seeded weights, in eval mode."""
    torch.manual_seed(seed)
    model = case.build()
    return model.eval().to(dtype)


def probe(
    case: Case, loss: str, samples: int = 10, batch_size: int = 256, dtype: torch.dtype = torch.float64
) -> Probe:
    """Return seeded samples with targets that suit the loss."""
    x = case.inputs(samples, dtype)
    generator = torch.Generator().manual_seed(2)
    if loss in ("cross_entropy", "nll"):
        y = torch.randint(0, case.outputs, (samples,), generator=generator)
    else:
        y = torch.rand(samples, case.outputs, generator=generator, dtype=torch.float64).to(dtype)
    return Probe((x,), y, loss_named(loss), batch_size)


def loss_named(name: str) -> Loss:
    if name == "huber":
        return custom_loss(name, lambda f, y: nn.functional.huber_loss(f, y, reduction="none").sum(dim=1))
    return named_loss(name)


def dense_blocks(model: nn.Module, probe: Probe, layers: Sequence[Layer] | None = None) -> dict[str, Tensor]:
    """Return the Hessian of the mean loss in every node's own parameters, by double backward, ``(nodes, p, p)``."""
    assert probe.loss is not None
    assert probe.targets is not None
    with sdpa_kernel(SDPBackend.MATH):
        output = main_output(model(*probe.inputs))
        value = probe.loss.per_sample(output, probe.loss.prepare(output, probe.targets)).mean()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {
            layer.name: _layer_blocks(value, parameters, layer)
            for layer in layers or found_layers(model, probe)
        }


def found_layers(model: nn.Module, probe: Probe) -> Sequence[Layer]:
    """Return the layers as a replay finds them."""
    return find_layers(model, unit_axes=unit_axes(model, probe.inputs))


def gauss_newton_blocks(
    model: nn.Module, probe: Probe, layers: Sequence[Layer] | None = None
) -> dict[str, Tensor]:
    """Return ``(1/N) Σ_n J_nᵀ B_n J_n`` of every node by autograd, entry by entry, ``(nodes, p, p)``."""
    assert probe.loss is not None
    assert probe.targets is not None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    layers = layers or found_layers(model, probe)
    output = main_output(model(*probe.inputs))
    targets = probe.loss.prepare(output, probe.targets)
    count = output[0].numel()
    curvature = _output_hessians(probe.loss, output.detach(), targets)
    names = sorted({name for layer in layers for name in layer.names})
    lines: list[dict[str, Tensor]] = []
    for entry in output.flatten():
        grads = torch.autograd.grad(
            entry, [parameters[n] for n in names], retain_graph=True, allow_unused=True
        )
        lines.append(
            {
                n: torch.zeros_like(parameters[n]) if g is None else g
                for n, g in zip(names, grads, strict=True)
            }
        )
    found = {}
    for layer in layers:
        rows = torch.stack([layer.rows(line) for line in lines]).reshape(-1, count, layer.nodes, layer.size)
        found[layer.name] = torch.einsum("nais,nab,nbit->ist", rows, curvature, rows) / len(rows)
    return found


def _output_hessians(loss: Loss, output: Tensor, targets: Tensor) -> Tensor:
    """Return ``∂²ℓ_n/∂f_n²``, ``(samples, outputs, outputs)``."""
    leaf = output.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss.per_sample(leaf, targets).sum(), leaf, create_graph=True)
    lines = [
        torch.autograd.grad(grad.flatten(1)[:, i].sum(), leaf, retain_graph=True)[0].flatten(1)
        for i in range(output[0].numel())
    ]
    return torch.stack(lines, dim=1).detach()


def _layer_blocks(value: Tensor, parameters: dict[str, Tensor], layer: Layer) -> Tensor:
    names = list(layer.names)
    own = [parameters[name] for name in names]
    grads = torch.autograd.grad(value, own, create_graph=True, allow_unused=True)
    filled_grads = [torch.zeros_like(p) if g is None else g for p, g in zip(own, grads, strict=True)]
    rows = layer.rows(dict(zip(names, filled_grads, strict=True)))
    if not rows.requires_grad:
        return rows.new_zeros(layer.nodes, layer.size, layer.size)
    every = torch.eye(rows.numel(), dtype=rows.dtype).reshape(-1, *rows.shape)
    lines = []
    for direction in every:
        second = torch.autograd.grad(rows, own, direction, allow_unused=True, retain_graph=True)
        filled = {
            name: torch.zeros_like(parameter) if part is None else part
            for name, parameter, part in zip(names, own, second, strict=True)
        }
        lines.append(layer.rows(filled))
    whole = torch.stack(lines).reshape(layer.nodes, layer.size, layer.nodes, layer.size)
    return whole[torch.arange(layer.nodes), :, torch.arange(layer.nodes)].detach()
