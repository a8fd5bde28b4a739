"""Batch normalisation as a scale and a shift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiag.replay import normalising
from nndiag.replay.normalising import batch_norm

Given = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def layer(affine: bool = True, shift: bool = True) -> tuple[Tensor, Given]:
    """Return an input with more channels than positions, and statistics, scale and shift of different sizes."""
    x = (3 * drawn(4, 6, 5) + 2).requires_grad_(True)
    mean, variance = drawn(6), drawn(6).square() + 0.1
    weight = (drawn(6) - 0.5).requires_grad_(True) if affine else None
    bias = drawn(6).flip(0).requires_grad_(True) if shift else None
    return x, (mean, variance, weight, bias)


def gradients(y: Tensor, at: list[Tensor]) -> list[Tensor]:
    seed = drawn(*y.shape).flip(0)
    first = torch.autograd.grad(y.tanh(), at, seed, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    return [*first, *torch.autograd.grad(total, at)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalising, "WORTH", 1)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("affine", "shift"), [(True, True), (True, False), (False, True), (False, False)])
def test_values_are_those_of_torch_and_gradients_those_of_the_formula(affine: bool, shift: bool) -> None:
    x, (mean, variance, weight, bias) = layer(affine, shift)
    at = [t for t in (x, weight, bias) if t is not None]
    ours = batch_norm(x, mean, variance, weight, bias, eps=1e-3)
    theirs = F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
    assert "BatchNorm" not in str(ours.grad_fn)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert mean is not None
    assert variance is not None
    formula = (x - mean[:, None]) / (variance[:, None] + 1e-3).sqrt()
    formula = formula if weight is None else formula * weight[:, None]
    formula = formula if bias is None else formula + bias[:, None]
    for found, expected in zip(gradients(ours, at), gradients(formula, at), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("always")
def test_statistics_are_left_as_they_are() -> None:
    x, given = layer()
    before = [t.clone() for t in given[:2] if t is not None]
    batch_norm(x, *given)
    for found, expected in zip(given[:2], before, strict=True):
        assert found is not None
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("case", ["training", "no gradient", "mixed types", "no statistics"])
def test_what_is_no_plain_scale_is_left_to_torch(case: str) -> None:
    x, (mean, variance, weight, bias) = layer()
    training = case in ("training", "no statistics")
    if case == "mixed types":
        x = x.detach().bfloat16().requires_grad_(True)
        mean, variance, weight, bias = (
            None if t is None else t.detach().float() for t in (mean, variance, weight, bias)
        )
    if case == "no statistics":
        mean = variance = None
    with torch.set_grad_enabled(case != "no gradient"):
        found = batch_norm(x, mean, variance, weight, bias, training)
    assert found.grad_fn is None if case == "no gradient" else "BatchNorm" in str(found.grad_fn)
    assert found.dtype == x.dtype


@pytest.mark.usefixtures("always")
def test_statistics_of_another_width_are_refused_by_torch() -> None:
    x, (_, variance, weight, bias) = layer()
    with pytest.raises(RuntimeError, match="running_mean should contain 6 elements"):
        batch_norm(x, torch.zeros(1, dtype=torch.float64), variance, weight, bias)
