"""Models that use their parameters in odd ways: their numbers are right, or they are left out with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.cases import dense_blocks, found_layers, gauss_newton_blocks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from nndiag.errors import ModelError
from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import Measured
from nndiag.replay.kinds import Layer
from nndiag.replay.state import undisturbed

Way = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Some parts, and a head of three classes on what ``way`` makes of the input."""

    def __init__(self, way: Way, head: int = 4, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.way = way
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(head, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self, x))


class Owner(nn.Module):
    """A module of the user's own, with a weight and perhaps a bias."""

    def __init__(self, *shape: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = raw(*shape)
        if bias:
            self.bias = raw(shape[0])


class Doubled(torch.autograd.Function):
    """A function that no torch function shows."""

    @staticmethod
    def forward(ctx, w):  # type: ignore[no-untyped-def]
        return 2 * w

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return 2 * grad


class Failing(Doubled):
    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        raise RuntimeError("no gradient\nhere")


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(5))


def routed(experts: list[int]) -> Tensor:
    """Return samples whose first entry says which expert they go to."""
    x = normal(len(experts), 4)
    x[:, 0] = torch.tensor(experts, dtype=x.dtype)
    return x


def by_experts(m: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, expert in enumerate(m.experts):
        mine = x[:, 0] == i
        if mine.any():
            out[mine] = expert(x[mine])
    return out


def tokens_by_experts() -> Net:
    def way(m: Net, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        chosen = x[..., 0] > 0
        out[chosen] = m.a(x[chosen]).tanh()
        return out.mean(dim=1)

    return Net(way, a=nn.Linear(4, 4))


def uneven(samples: int) -> Tensor:
    """Return four tokens a sample, of which one, four, one are chosen, and one, four, two, one after that."""
    x = normal(samples, 4, 4)
    counts = torch.tensor([1, 4, 1, 1, 4, 2, 1, 1, 4, 1])[:samples]
    x[..., 0] = torch.where(torch.arange(4) < counts[:, None], 1.0, -1.0)
    return x


def experts(count: int = 3) -> Net:
    return Net(by_experts, experts=nn.ModuleList(nn.Linear(4, 4) for _ in range(count)))


def cut_short(m: Net, x: Tensor) -> Tensor:
    """Positions first, up to the longest of the batch; the first entry of a sample says how long it is."""
    length = x[:, 0, 0].abs().mul(2).long().clamp(1, x.shape[1])
    x = x[:, : int(length.max())].transpose(0, 1)
    inside = torch.arange(len(x))[:, None] < length[None]
    return (m.a(x).relu() * inside[..., None].to(x)).sum(dim=0)


def late() -> Tensor:
    x = normal(10, 4, 4)
    x[:3, 0, 0] = 0.1
    x[5, 0, 0] = 9.0
    return x


def gated(m: Net, x: Tensor) -> Tensor:
    """Positions first, and nothing of the first samples comes through."""
    return (m.a(x.transpose(0, 1)).tanh() * (x[:, 0, 0] > 0).to(x)[None, :, None]).mean(dim=0)


def closed() -> Tensor:
    x = normal(10, 3, 4)
    x[:3, 0, 0] = -1.0
    return x


def placed(m: Net, x: Tensor) -> Tensor:
    tokens = x.new_zeros(len(x), 2, 4)
    tokens[:, 0], tokens[:, 1] = m.token, m.a(x)
    return tokens.relu().mean(dim=1)


def in_buffer(m: Net, x: Tensor) -> Tensor:
    m.buffer[: len(x), 0], m.buffer[: len(x), 1] = x, x.roll(1, 1)
    return m.a(m.buffer[: len(x)]).relu().mean(dim=1)


def with_buffer() -> Net:
    model = Net(in_buffer, a=nn.Linear(4, 4))
    model.register_buffer("buffer", torch.zeros(10, 2, 4))
    return model


def script(part: object) -> Any:
    """Script a part of a model, which torch calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(part)


def scripted() -> Net:
    return Net(lambda m, x: m.a(x), a=script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()))


def squared(x: Tensor) -> Tensor:
    return x * x


def hooked() -> Net:
    model = Net(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(4, 4)).double()
    model.a.weight.register_hook(lambda grad: grad * 0)
    model.a.register_full_backward_hook(lambda m, given, of_output: (given[0] * 3,))
    return model


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)


def conv(m: Net, x: Tensor) -> Tensor:
    return F.conv1d(x, m.a.weight, m.a.bias, groups=2).relu().mean(dim=2)


def conv_and_back(m: Net, x: Tensor) -> Tensor:
    return F.conv_transpose1d(m.a(x).relu(), m.a.weight).mean(dim=2)


ODD: dict[str, tuple[Callable[[], Net], Tensor]] = {
    "groups that the module does not tell": (lambda: Net(conv, a=Owner(4, 2, 3, bias=True)), normal(10, 4, 5)),
    "a kernel used both ways": (lambda: Net(conv_and_back, a=nn.Conv1d(4, 4, 2)), normal(10, 4, 5)),
    "a kernel used the other way": (
        lambda: Net(lambda m, x: F.conv1d(x, m.a.weight).mean(dim=2), a=nn.ConvTranspose1d(4, 4, 2, bias=False)),
        normal(10, 4, 5),
    ),
    "a product of parameters": (
        lambda: Net(lambda m, x: (m.a(x) + x @ (m.b @ m.c)).relu(), a=nn.Linear(4, 4), b=raw(4, 2), c=raw(2, 4)),
        normal(10, 4),
    ),
    "a layer on a parameter": (
        lambda: Net(lambda m, x: m.a(m.b).relu().mean(dim=0) * x, a=nn.Linear(4, 4), b=raw(3, 4)), normal(10, 4),
    ),
    "a layer on a vector": (lambda: Net(lambda m, x: m.a(m.b).relu() * x, a=nn.Linear(4, 4), b=raw(4)), normal(10, 4)),
    "a weight that is a vector": (
        lambda: Net(lambda m, x: F.linear(x, m.a.weight)[:, None].relu() * x, a=Owner(4)), normal(10, 4),
    ),
    "a scale of several entries a node": (
        lambda: Net(lambda m, x: F.layer_norm(x, (3, 4), m.a.weight).mean(dim=1), a=Owner(3, 4)), normal(10, 3, 4),
    ),
    "a parameter put in place": (lambda: Net(placed, a=nn.Linear(4, 4), token=raw(4)), normal(10, 4)),
    "a function of one's own beside a layer": (
        lambda: Net(lambda m, x: (m.a(x) + F.linear(x, Doubled.apply(m.a.weight))).tanh(), a=nn.Linear(4, 4)),
        normal(10, 4),
    ),
    "a scripted part": (scripted, normal(10, 4)),
    "a reentrant checkpoint": (
        lambda: Net(lambda m, x: checkpoint(m.a, x, use_reentrant=True).mean(dim=1), a=attention()), normal(10, 3, 4),
    ),
    "a checkpoint": (
        lambda: Net(lambda m, x: checkpoint(m.a, x, use_reentrant=False).mean(dim=1), a=attention()),
        normal(10, 3, 4),
    ),
    "a vmap over positions": (
        lambda: Net(lambda m, x: torch.func.vmap(m.a)(x).relu().mean(dim=1), a=nn.Linear(4, 4)), normal(10, 3, 4),
    ),
    "a vmap over parameters": (
        lambda: Net(lambda m, x: torch.func.vmap(lambda w: (x @ w).relu())(m.a).mean(dim=0), a=raw(2, 4, 4)),
        normal(10, 4),
    ),
    "a slope of many channels": (
        lambda: Net(lambda m, x: m.b(m.a(x, x)), a=nn.Bilinear(4, 4, 4), b=nn.PReLU(4)), normal(3, 4),
    ),
    "experts": (experts, routed([0, 1, 0, 2, 1, 0, 2, 2, 1, 0])),
    "an expert that is called late": (experts, routed([0, 0, 0, 1, 1, 0, 1, 2, 0, 0])),
    "tokens of three samples for experts, two a sample in the mean": (tokens_by_experts, uneven(3)),
    "tokens of many samples for experts": (tokens_by_experts, uneven(10)),
    "an expert of the last batch": (lambda: experts(2), routed([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
    "parts of three samples": (
        lambda: Net(lambda m, x: torch.cat([m.a(part).relu() for part in x.split(3)]), a=nn.Linear(4, 4)),
        normal(9, 4),
    ),
    "as many positions as the batch needs": (lambda: Net(cut_short, a=nn.Linear(4, 4)), late()),
    "nothing from the first samples": (lambda: Net(gated, a=nn.Linear(4, 4)), closed()),
    "numbers that are not real": (
        lambda: Net(
            lambda m, x: m.a(x) + m.c + (x.to(torch.complex128) @ m.b).real,
            a=nn.Linear(4, 4), b=nn.Parameter(torch.randn(4, 4, dtype=torch.complex128)),
            c=nn.Parameter(torch.arange(4), requires_grad=False),
        ),
        normal(10, 4),
    ),
    "inputs changed in place": (
        lambda: Net(lambda m, x: m.a(x.mul_(2).add_(1)).relu(), a=nn.Linear(4, 4)), normal(10, 4),
    ),
    "inputs in a buffer": (with_buffer, normal(10, 4)),
    "hooks that change gradients": (hooked, normal(10, 4)),
    "rows weighed by how often they occur": (
        lambda: Net(lambda m, x: m.a(x).relu().mean(dim=1), a=nn.Embedding(5, 4, scale_grad_by_freq=True)), ids(10, 4),
    ),
    "weights of bags": (
        lambda: Net(
            lambda m, x: m.a(x, None, m.b.expand(len(x), 4)), a=nn.EmbeddingBag(5, 4, mode="sum"), b=raw(4)
        ),
        ids(10, 4),
    ),
    "a conversion that does nothing": (
        lambda: Net(lambda m, x: F.linear(x, m.a.weight.to(x.dtype), m.a.bias).relu(), a=nn.Linear(4, 4)),
        normal(10, 4),
    ),
}  # fmt: skip
JOINTLY: dict[str, Way] = {
    "a bias that multiplies": lambda m, x: F.linear(x, m.a.weight) * m.a.bias,
    "a bias before the weight": lambda m, x: F.linear(x + m.a.bias, m.a.weight),
    "a slope that varies": lambda m, x: F.prelu(m.a(x), m.a(x[:1].detach() * 0 + 1).mean()),
    "a scale that varies": lambda m, x: F.batch_norm(
        m.a(x), m.mean, m.mean + 1, m.a(torch.ones_like(m.mean)[None])[0]
    ),
    "a scripted square": lambda m, x: script(squared)(m.a(x)),
}


def build(make: Callable[[], Net]) -> Net:
    torch.manual_seed(0)
    return make().double().eval()


def probe(model: nn.Module, x: Tensor, batch_size: int = 10) -> Probe:
    return Probe((x.clone(),), torch.arange(len(x)) % 3, named_loss("cross_entropy"), batch_size)


def found(model: nn.Module, x: Tensor, batch_size: int = 10) -> Measured:
    return measure(model, probe(model, x, batch_size), Plan(Level.CURVATURE, noise=0.0, tolerance=1e-9))


def assert_right(model: nn.Module, x: Tensor, measured: Measured, rtol: float = 1e-6) -> None:
    """Compare extremes, traces and gradients with what autograd gives entry by entry."""
    with undisturbed(model, 0):
        layers = found_layers(model, probe(model, x))
        truth = gauss_newton_blocks(model, probe(model, x), layers)
        losses = F.cross_entropy(model(x.clone()), torch.arange(len(x)) % 3, reduction="none")
        named = dict(model.named_parameters(remove_duplicate=False))
        real = {n: p for n, p in named.items() if p.requires_grad}
        grads = [
            torch.autograd.grad(loss, list(real.values()), retain_graph=True, materialize_grads=True)
            for loss in losses
        ]
    assert {name for name, _ in measured.unmeasured} == named.keys() - real.keys()
    for layer, record in zip(layers, measured.layers, strict=True):
        assert record.name == layer.name
        seen = np.ones(layer.nodes, bool) if record.observed is None else record.observed
        values = torch.linalg.eigvalsh(truth[layer.name].double()).numpy()[seen]
        for name, expected in (("lambda_max", values[:, -1]), ("trace", values.sum(axis=1))):
            np.testing.assert_allclose(
                record.per_node[name][seen], expected, rtol=rtol, atol=1e-9, err_msg=layer.name
            )
        rows = torch.stack([layer.rows(dict(zip(real, g, strict=True))) for g in grads]).double()
        mean, squares = rows.mean(dim=0).norm(dim=1).numpy(), rows.square().sum(dim=2).mean(dim=0).numpy()
        norm, spread = record.per_node["gradient_norm"], record.per_node["gradient_spread"]
        np.testing.assert_allclose(norm[seen], mean[seen], rtol=rtol, atol=1e-9)
        np.testing.assert_allclose((norm**2 + spread**2)[seen], squares[seen], rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("batch_size", [10, 9])
@pytest.mark.parametrize("name", ODD)
def test_numbers_are_those_of_autograd(name: str, batch_size: int) -> None:
    make, x = ODD[name]
    model = build(make)
    assert_right(model, x, found(model, x, batch_size))


@pytest.mark.parametrize("name", JOINTLY)
def test_parameters_that_multiply_each_other_are_not_called_exact(name: str) -> None:
    model = build(lambda: Net(JOINTLY[name], a=nn.Linear(4, 4)))
    model.register_buffer("mean", torch.rand(4).double())
    x = normal(6, 4)
    record = next(layer for layer in found(model, x).layers if layer.name == "a")
    exact = torch.linalg.eigvalsh(dense_blocks(model, probe(model, x))["a"])[:, -1].numpy()
    assert (
        np.abs(record.per_node["lambda_max"] - exact).max() > 1e-4 * exact.max()
    )  # else there is nothing to see
    assert record.curvature_kind == "ggn"


def test_a_parameter_with_two_names_is_one_layer() -> None:
    model = build(lambda: Net(lambda m, x: (x @ m.a).relu() @ m.b, a=raw(4, 4)))
    model.b = model.a
    x = normal(10, 4)
    measured = found(model, x)
    assert [layer.name for layer in measured.layers] == ["a", "head"]
    assert_right(model, x, measured)


def test_lower_precision_inside_a_model() -> None:
    def way(m: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = m.a(x).relu()
        return hidden.float()

    torch.manual_seed(0)
    model = Net(way, a=nn.Linear(4, 4)).eval()
    x = normal(10, 4).float()
    for batch_size in (10, 9):
        assert_right(model, x, found(model, x, batch_size), rtol=0.05)


def test_one_number_a_sample_may_be_without_an_axis() -> None:
    x, y = normal(10, 4), normal(10, 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    flat = nn.Sequential(model, nn.Flatten(0))
    plan = Plan(Level.CURVATURE, noise=0.0)
    for batch_size in (10, 9):
        wide = measure(model, Probe((x,), y, named_loss("mse"), batch_size), plan)
        thin = measure(flat, Probe((x,), y[:, 0], named_loss("mse"), batch_size), plan)
        for one, two in zip(wide.layers, thin.layers, strict=True):
            np.testing.assert_allclose(one.per_node["lambda_max"], two.per_node["lambda_max"], rtol=1e-9)


def test_samples_that_influence_each_other_a_little_are_not_apart() -> None:
    def way(m: Net, x: Tensor) -> Tensor:
        hidden = m.a * x
        return hidden.relu() + 1e-4 * hidden.mean(dim=0)

    measured = found(build(lambda: Net(way, a=raw(4))), normal(10, 4))
    assert dict(measured.unmeasured) == {"a": "samples of a batch influence each other there"}


def test_gradients_that_cannot_be_taken_are_said_in_one_line() -> None:
    model = build(lambda: Net(lambda m, x: Failing.apply(m.a(x)), a=nn.Linear(4, 4)))
    with pytest.raises(ModelError, match="its gradients cannot be taken") as error:
        found(model, normal(10, 4))
    assert "\n" not in str(error.value)


def test_a_model_is_left_as_it_was() -> None:
    def way(m: Net, x: Tensor) -> Tensor:
        m.a.weight.data.clamp_(-0.1, 0.1)
        m.b.weight.data = torch.renorm(m.b.weight.data, 2, 0, 0.1)
        m.last = m.b(m.a(x)) * m.c
        return F.embedding(x[:, 0].long().clamp(0), m.table, max_norm=0.1) + m.last

    model = build(lambda: Net(way, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=raw(4), table=raw(9, 4)))
    calls: list[int] = []
    model.a.weight.register_hook(lambda grad: calls.append(1))
    model.head.register_full_backward_hook(lambda *_: calls.append(2))
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    attributes = [dict(vars(module)) for module in model.modules()]
    found(model, normal(10, 4))
    for name, parameter in model.named_parameters():
        one, place, values = before[name]
        assert parameter is one
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, values)
    assert [vars(module) for module in model.modules()] == attributes
    assert not calls
    model(normal(2, 4)).sum().backward()
    assert sorted(calls) == [1, 2]
    assert "apply" not in vars(CheckpointFunction)
    inner = torch.utils.checkpoint._checkpoint_without_reentrant_generator
    assert inner.__module__ == "torch.utils.checkpoint"


EXACTLY: dict[str, tuple[Callable[[], Net], Tensor]] = {
    name: ODD[name]
    for name in ("a function of one's own beside a layer", "a scripted part", "experts", "a layer on a vector")
} | {
    "weight norm": (
        lambda: Net(lambda m, x: m.a(x).tanh(), a=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        normal(10, 4),
    ),
    "a temperature": (lambda: Net(lambda m, x: (m.a(x) / m.b.exp()).tanh(), a=nn.Linear(4, 4), b=raw()), normal(10, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACTLY)
def test_exact_blocks_are_those_of_finite_differences(name: str) -> None:
    make, x = EXACTLY[name]
    model = build(make)
    plan = Plan(Level.CURVATURE, noise=0.0, tolerance=1e-9, curvature="hessian")
    measured = measure(model, probe(model, x), plan)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for layer, record in zip(found_layers(model, probe(model, x)), measured.layers, strict=True):
        if "lambda_max" not in record.per_node:
            assert not record.reached
            continue
        rows = layer.rows(parameters).detach().clone()
        for node in range(layer.nodes):
            block = torch.stack([_slope(model, x, layer, rows, node, entry) for entry in range(layer.size)])
            values = torch.linalg.eigvalsh((block + block.T) / 2)
            assert record.per_node["lambda_max"][node] == pytest.approx(float(values[-1]), rel=1e-4, abs=1e-6)
            assert record.per_node["lambda_min"][node] == pytest.approx(float(values[0]), rel=1e-4, abs=1e-6)


def _slope(model: nn.Module, x: Tensor, layer: Layer, rows: Tensor, node: int, entry: int) -> Tensor:
    """Return how the gradient of a node changes with one of its entries, by central differences."""
    step, ends = 1e-4, []
    for sign in (1, -1):
        moved = rows.clone()
        moved[node, entry] += sign * step
        put_rows(model, layer, moved)
        value = F.cross_entropy(model(x.clone()), torch.arange(len(x)) % 3)
        named = dict(model.named_parameters(remove_duplicate=False))
        grads = torch.autograd.grad(value, [named[name] for name in layer.names], materialize_grads=True)
        ends.append(layer.rows(dict(zip(layer.names, grads, strict=True)))[node])
    put_rows(model, layer, rows)
    return (ends[0] - ends[1]) / (2 * step)


def put_rows(model: nn.Module, layer: Layer, rows: Tensor) -> None:
    """Give the layer's parameters the entries of ``(nodes, size)`` rows."""
    named = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for slot in layer.slots:
            named[slot.parameter].copy_(slot.parameter_of(rows[:, layer.place(slot)]))
