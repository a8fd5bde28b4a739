"""After a replay, and after one that failed, a model is exactly what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level


class Counting(nn.Module):
    """A model with everything that a replay might disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.untracked = nn.BatchNorm1d(6, track_running_stats=False)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("none", None)
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        self.register_buffer("cache", torch.ones(1))
        self.none = torch.ones(1)
        hidden = self.drop(self.norm(self.first(x)).relu_() + 0 * torch.rand(1, dtype=x.dtype))
        if self.fail:
            raise RuntimeError("broken on purpose")
        return self.last(hidden)


def prepared() -> Counting:
    torch.manual_seed(0)
    model = Counting().double()
    model.train()
    model.drop.eval()
    model.first.weight.requires_grad_(False)
    for parameter in (model.first.bias, model.last.weight):
        parameter.grad = torch.randn_like(parameter)
    return model


def probe() -> Probe:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return Probe((x,), torch.arange(9) % 3, named_loss("cross_entropy"), batch_size=4)


@contextmanager
def unchanged(model: Counting) -> Iterator[None]:
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    grads = {
        name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
    }
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers()}
    names = {name: list(module._buffers) for name, module in model.named_modules()}
    hooks = {name: [dict(getattr(module, kind)) for kind in _HOOKS] for name, module in model.named_modules()}
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    for name, p in model.named_parameters():
        held, before = grads[name]
        assert p.grad is held
        assert before is None or torch.equal(p.grad, before)
        assert torch.equal(p, values[name])
    assert {name: list(module._buffers) for name, module in model.named_modules()} == names
    assert model.none is None
    after = dict(model.named_buffers())
    assert after.keys() == buffers.keys()
    for name, (held, before) in buffers.items():
        assert after[name] is held
        assert torch.equal(held, before)
    for name, module in model.named_modules():
        assert [dict(getattr(module, kind)) for kind in _HOOKS] == hooks[name]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@pytest.mark.parametrize("level", list(Level)[1:])
def test_a_replay_leaves_nothing_behind(level: Level) -> None:
    model = prepared()
    with unchanged(model):
        measured = measure(model, probe(), Plan(level))
    assert {layer.name for layer in measured.layers if not layer.reached} == {"untracked"}


def test_neither_does_one_that_fails_inside_the_model() -> None:
    model = prepared()
    model.fail = True
    with unchanged(model), pytest.raises(ModelError, match="broken on purpose"):
        measure(model, probe(), Plan(Level.CURVATURE))


def test_neither_does_an_interrupt() -> None:
    model = prepared()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.norm.register_forward_hook(interrupt)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        measure(model, probe(), Plan(Level.GRADIENTS))
    handle.remove()


def test_eval_mode_is_used_and_dropout_does_nothing() -> None:
    model = prepared()
    seen: list[bool] = []
    model.drop.train()
    handle = model.drop.register_forward_hook(lambda module, args, out: seen.append(module.training))
    with unchanged(model):
        measure(model, probe(), Plan(Level.ACTIVATIONS))
    handle.remove()
    assert seen
    assert not any(seen)


def test_hooks_of_the_user_run_and_count() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    model[0].register_forward_hook(lambda module, args, out: out - 1e3)
    measured = measure(model, probe(), Plan(Level.ACTIVATIONS))
    assert (measured.layers[0].per_node["active_fraction"] == 0).all()


def test_two_replays_give_the_same_numbers_whatever_the_random_state() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.randn_like(x))

    torch.manual_seed(0)
    model = Noisy().double()
    one = measure(model, probe(), Plan(Level.GRADIENTS))
    torch.manual_seed(1234)
    two = measure(model, probe(), Plan(Level.GRADIENTS))
    assert one.loss == two.loss


def test_an_embedding_that_scales_its_rows_gets_them_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 3)).double()
    before = model[0].weight.detach().clone()
    samples = Probe((torch.tensor([[0, 1], [1, 2], [3, 1]]),), torch.arange(3), named_loss("cross_entropy"))
    measured = measure(model, samples, Plan(Level.CURVATURE))
    assert torch.equal(model[0].weight, before)
    assert "lambda_max" in measured.layers[0].per_node


def test_frozen_parameters_are_measured_as_any() -> None:
    free, frozen = prepared(), prepared()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    one, two = (measure(model, probe(), Plan(Level.CURVATURE)) for model in (free, frozen))
    for first, second in zip(one.layers, two.layers, strict=True):
        assert first.per_node.keys() == second.per_node.keys()
        for name, values in first.per_node.items():
            assert (values == second.per_node[name])[values == values].all(), (first.name, name)
