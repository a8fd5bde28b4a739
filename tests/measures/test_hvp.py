"""Products with the Hessian of the whole loss against the Hessian that autograd forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from tests.cases import Case, build, probe
from tests.measures.exact_cases import SMOOTH
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from nndiag.errors import InputError
from nndiag.measures import hvp
from nndiag.measures.hvp import HessianProducts, NoSecondDerivativeError
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe


def dense_hessian(model: nn.Module, samples: Probe, names: tuple[str, ...]) -> Tensor:
    """Return the Hessian of the mean loss, a row a backward pass."""
    assert samples.loss is not None
    assert samples.targets is not None
    known = dict(model.named_parameters())
    own = [known[name] for name in names]
    with sdpa_kernel(SDPBackend.MATH):
        output = model(*samples.inputs)
        value = samples.loss.per_sample(output, samples.loss.prepare(output, samples.targets)).mean()
        first = torch.cat([g.flatten() for g in torch.autograd.grad(value, own, create_graph=True)])
    rows = [
        torch.autograd.grad(entry, own, retain_graph=True, allow_unused=True, materialize_grads=True)
        for entry in first
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_products_equal_the_dense_hessian_also_in_batches_of_nine_and_one(case: Case) -> None:
    model, samples = build(case), probe(case, "cross_entropy", batch_size=9)
    products = HessianProducts(model, samples)
    truth = dense_hessian(model, samples, products.names)
    every = torch.eye(products.size, dtype=torch.float64)
    torch.testing.assert_close(products.product(every), truth, rtol=1e-9, atol=1e-12)


def test_one_by_one_equals_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SMOOTH[3]
    model, samples = build(case), probe(case, "mse")
    vectors = torch.randn(3, HessianProducts(model, samples).size, dtype=torch.float64)
    batched = HessianProducts(model, samples).product(vectors)
    monkeypatch.setattr(hvp, "batched_second", lambda *_: None)
    torch.testing.assert_close(HessianProducts(model, samples).product(vectors), batched, rtol=1e-12, atol=0)


@pytest.mark.parametrize("apart", [True, False])
def test_folds_add_up_and_submatrices_are_parts(apart: bool) -> None:
    case = SMOOTH[1]
    model, samples = build(case), probe(case, "mse", batch_size=7)
    names = ("0.bias", "0.weight")
    whole = HessianProducts(model, samples, names)
    every = torch.eye(whole.size, dtype=torch.float64)
    hessian = whole.product(every)
    folds = [HessianProducts(model, samples, names, samples=slice(f, None, 4), apart=apart) for f in range(4)]
    rows = tuple(x[1::4] for x in samples.inputs)
    assert samples.targets is not None
    alone = HessianProducts(model, Probe(rows, samples.targets[1::4], samples.loss), names)
    torch.testing.assert_close(folds[1].product(every), alone.product(every) * len(rows[0]) / len(samples))
    torch.testing.assert_close(sum(fold.product(every) for fold in folds), hessian)
    places = torch.tensor([[3, 0, 9], [8, 2, -1]])
    rows = torch.randn(2, 3, dtype=torch.float64)
    found = whole.product_within(places, rows, at_once=1)
    torch.testing.assert_close(found[0], hessian[places[0]][:, places[0]] @ rows[0])
    torch.testing.assert_close(found[1, :2], hessian[places[1, :2]][:, places[1, :2]] @ rows[1, :2])
    assert found[1, 2] == 0


def flattened(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in names])


def test_vectors_and_tensors_by_name_are_one_thing() -> None:
    case = SMOOTH[0]
    model, samples = build(case), probe(case, "cross_entropy")
    products = HessianProducts(model, samples)
    parameters = dict(model.named_parameters())
    flat = flattened(products.names, parameters)
    for name, tensor in products.named(flat).items():
        assert torch.equal(tensor, parameters[name])
    stack = torch.randn(2, products.size, dtype=torch.float64)
    for row, tensors in enumerate(zip(*products.named(stack).values(), strict=True)):
        assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in tensors]), stack[row])
    output = model(*samples.inputs)
    torch.nn.functional.cross_entropy(output, samples.targets).backward()
    truth = flattened(products.names, {name: p.grad for name, p in parameters.items()})
    torch.testing.assert_close(products.gradient(), truth)


def test_a_linear_network_has_no_curvature_beyond_its_loss() -> None:
    model = nn.Linear(3, 1).double()
    samples = Probe((torch.randn(5, 3, dtype=torch.float64),), torch.zeros(5, 1), named_loss("mse"))
    loss = samples.loss
    assert loss is not None
    products = HessianProducts(model, Probe(samples.inputs, samples.targets, loss), ("bias",))
    assert products.product(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(2.0)


class Cube(torch.autograd.Function):
    """A function whose backward pass may not be differentiated."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class OnceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(Cube.apply(self.hidden(x)))


def test_a_model_that_cannot_be_differentiated_twice_is_named_in_one_line() -> None:
    samples = Probe((torch.randn(5, 3),), torch.zeros(5, 2), named_loss("mse"))
    products = HessianProducts(OnceOnly(), samples)
    with pytest.raises(NoSecondDerivativeError, match="cannot be differentiated twice") as raised:
        products.product(torch.ones(2, products.size))
    assert "\n" not in str(raised.value)
    assert "--curvature ggn" in str(raised.value)


def test_targets_are_needed() -> None:
    with pytest.raises(InputError, match="targets"):
        HessianProducts(nn.Linear(3, 2), Probe((torch.randn(5, 3),), None, named_loss("cross_entropy")))
