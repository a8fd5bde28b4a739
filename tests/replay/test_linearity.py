"""Where a network is said to be piecewise linear, its Gauss-Newton blocks are its Hessian blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.cases import dense_blocks, with_statistics
from tests.replay.networks import inputs
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.replay.linearity import LinearityProof


class Net(nn.Module):
    """Two hidden layers and a head; ``way`` says what is done with them."""

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.wide = nn.Linear(4, 15)
        self.norm = nn.BatchNorm1d(5)
        self.mixing = nn.BatchNorm1d(5, track_running_stats=False)
        self.layer_norm = nn.LayerNorm(5)
        self.prelu = nn.PReLU()
        self.gain = nn.Parameter(torch.randn(5))
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def hidden(way: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    """Return a network of one hidden layer whose units go through ``way``."""
    return lambda m, x: m.c(way(m, m.a(x)))


def attention(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    scores = (h[:, :, None] * h[:, None, :]).softmax(dim=-1)
    return m.c((scores @ h[:, :, None]).squeeze(-1))


class Squared(torch.autograd.Function):
    """A square that no torch function shows."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return 2 * ctx.saved_tensors[0] * grad


@torch.jit.ignore
def hidden_tanh(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        return torch.tanh(x)


LINEAR: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "relu": lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
    "leaky relu": lambda m, x: m.c(F.leaky_relu(m.b(F.leaky_relu(m.a(x))))),
    "prelu, abs, hardtanh": lambda m, x: m.c(F.hardtanh(m.b(m.prelu(m.a(x)))).abs()),
    "residual": hidden(lambda m, h: h.relu() + m.b(h.relu()).relu()),
    "batch norm": lambda m, x: m.c(m.norm(m.a(x)).relu() * m.gain / 3),
    "in place": lambda m, x: m.c(m.b(m.a(x).relu_()).mul_(2).add_(m.gain).clamp_(min=0)),
    "max pool": lambda m, x: m.c(F.max_pool1d(m.wide(x)[:, None], 3).squeeze(1)),
    "maxout": hidden(lambda m, h: torch.maximum(h, m.b(h.relu()))),
    "gate of signs": hidden(lambda m, h: h * (h > 0)),
    "where": hidden(lambda m, h: torch.where(h > 0, h, 0.3 * h)),
    "cat and split": hidden(lambda m, h: torch.cat([h[:, :2].relu(), -h[:, 2:].relu()], dim=1)),
    "weights by data of the input": lambda m, x: m.c(m.a(x).relu() * x.norm(dim=1, keepdim=True)),
    "log_softmax head": lambda m, x: F.log_softmax(m.c(m.a(x).relu()), dim=1),
    "mean of positions": lambda m, x: m.c(
        m.b(m.a(torch.stack([x, x.roll(1, 1)], 1)).relu()).relu().mean(dim=1)
    ),
}
SMOOTH: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "tanh": lambda m, x: m.c(m.a(x).tanh()),
    "gelu": lambda m, x: m.c(F.gelu(m.a(x))),
    "hardswish": lambda m, x: m.c(F.hardswish(m.a(x))),
    "attention": attention,
    "layer norm": lambda m, x: m.c(m.layer_norm(m.a(x)).relu()),
    "batch statistics": lambda m, x: m.c(m.mixing(m.a(x)).relu()),
    "product of data": lambda m, x: m.c(m.a(x) * m.b(m.a(x))),
    "square": lambda m, x: m.c(m.a(x) ** 2),
    "square in place": lambda m, x: m.c(m.a(x).pow_(2)),
    "einsum": lambda m, x: m.c(torch.einsum("ni,nj->ni", m.a(x), m.a(x))),
    "divided by data": lambda m, x: m.c(x[:, :1] / (1 + m.a(x).relu())),
    "parameter over data": lambda m, x: m.c(m.gain / (1 + m.a(x).relu())),
    "weights from a layer": lambda m, x: m.c(
        torch.einsum("nij,nj->ni", m.wide(x).view(-1, 5, 3), m.c(m.a(x).relu()))
    ),
    "tied decoder": lambda m, x: m.c(m.b(F.linear(m.b(m.a(x).relu()).relu(), m.b.weight.t()))),
    "softmax head": lambda m, x: m.c(m.a(x)).softmax(dim=1),
    "log_softmax twice": lambda m, x: F.log_softmax(m.c(F.log_softmax(m.a(x), dim=1)), dim=1),
    "a function of one's own": lambda m, x: m.c(Squared.apply(m.a(x))),
    "unseen": lambda m, x: m.c(hidden_tanh(m.a(x))),
    "unknown": lambda m, x: m.c(torch.sinc(m.a(x))),
}


def run(
    model: nn.Module, x: Tensor, loss: str
) -> tuple[Probe, dict[str, tuple[str | None, dict[str, np.ndarray]]]]:
    targets = torch.arange(len(x)) % 3
    probe = Probe((x,), targets if loss != "mse" else torch.eye(3, dtype=x.dtype)[targets], named_loss(loss))
    found = measure(model, probe, Plan(Level.CURVATURE, tolerance=1e-10))
    return probe, {one.name: (one.curvature_kind, dict(one.per_node)) for one in found.layers}


def build(way: Callable[[Net, Tensor], Tensor]) -> Net:
    """Return the network without the layers that it does not use."""
    torch.manual_seed(0)
    model = Net(way).double().eval()
    for one in measure(model, Probe((inputs(4),), None, None), Plan(Level.ACTIVATIONS)).layers:
        if not one.reached:
            delattr(model, one.name)
    return model


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("way", LINEAR)
def test_piecewise_linear_networks_are_proved_so_and_their_blocks_are_the_hessian(
    way: str, loss: str
) -> None:
    if way == "log_softmax head" and loss == "mse":
        pytest.skip("only a cross-entropy makes nothing of this head")
    check(build(LINEAR[way]), inputs(4), loss)


def check(model: nn.Module, x: Tensor, loss: str) -> None:
    probe, found = run(model, x, loss)
    assert {kind for kind, _ in found.values()} == {"hessian"}
    for name, blocks in dense_blocks(model, probe).items():
        values = torch.linalg.eigvalsh(blocks).numpy()
        atol = 1e-8 * np.abs(values).max() + 1e-14
        np.testing.assert_allclose(found[name][1]["lambda_max"], values[:, -1], atol=atol)
        np.testing.assert_allclose(found[name][1]["lambda_min"], values[:, 0], atol=atol)
        np.testing.assert_allclose(found[name][1]["trace"], values.sum(axis=1), atol=10 * atol)


@pytest.mark.parametrize("way", SMOOTH)
def test_what_is_not_known_to_be_piecewise_linear_is_not_called_exact(way: str) -> None:
    _, found = run(build(SMOOTH[way]), inputs(4), "cross_entropy")
    kinds = {kind for kind, _ in found.values() if kind is not None}
    assert kinds == {"ggn"}


def test_a_layer_used_twice_is_not_called_exact_and_the_others_are() -> None:
    model = build(lambda m, x: m.c(m.b(m.a(x)).relu() @ m.b.weight))
    probe, found = run(model, inputs(4), "cross_entropy")
    assert {name: kind for name, (kind, _) in found.items()} == {"a": "hessian", "b": "ggn", "c": "hessian"}
    for name in ("a", "c"):
        values = torch.linalg.eigvalsh(dense_blocks(model, probe)[name]).numpy()
        np.testing.assert_allclose(found[name][1]["lambda_max"], values[:, -1], rtol=1e-8)


@pytest.mark.parametrize("way", ["exp", "square"])
def test_a_parameter_that_goes_through_a_curve_is_not_called_exact(way: str) -> None:
    model = build(lambda m, x: m.c(x[:, :1] * (m.gain.exp() if way == "exp" else m.gain * m.gain)))
    _, found = run(model, inputs(4), "cross_entropy")
    assert found["gain"][0] == "ggn"


def test_log_softmax_before_a_squared_error_is_smooth() -> None:
    _, found = run(build(LINEAR["log_softmax head"]), inputs(4), "mse")
    assert {found[name][0] for name in ("a", "c")} == {"ggn"}


def test_it_holds_for_nll_behind_log_softmax() -> None:
    check(build(LINEAR["log_softmax head"]), inputs(4), "nll")


@pytest.mark.parametrize(
    ("axis", "classes", "holds"), [(1, 1, True), (-1, 1, True), (0, 1, False), (1, -1, True)]
)
def test_a_log_softmax_is_a_head_over_classes_alone(axis: int, classes: int, holds: bool) -> None:
    scores = torch.zeros(4, 3, requires_grad=True) * 1.0
    head = scores.log_softmax(dim=axis)
    proof = LinearityProof()
    proof.see("log_softmax", (scores, axis), {}, head)
    assert proof.holds(head, classes) == holds
    assert not proof.holds(head, None)


@pytest.mark.parametrize("seed", range(4))
def test_random_piecewise_linear_architectures(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: Callable[[], nn.Module]) -> nn.Module:
        return choices[int(torch.randint(len(choices), (), generator=generator))]()

    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1)]
    parts.append(pick(lambda: nn.BatchNorm2d(4), nn.Identity))
    parts.append(
        pick(nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.2), nn.PReLU, nn.Hardtanh)
    )
    parts.append(
        pick(lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2), lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=2))
    )
    parts += [nn.Flatten(), nn.Linear(16, 6), pick(nn.ReLU, nn.ReLU6, nn.Hardtanh), nn.Linear(6, 3)]
    model = with_statistics(nn.Sequential(*parts)).double().eval()
    check(model, inputs(2, 4, 4), "cross_entropy")
