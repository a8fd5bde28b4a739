"""Exact blocks of nodes on smooth networks against the dense float64 autograd Hessian."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.cases import Case, build, dense_blocks, found_layers, probe
from tests.measures.exact_cases import SMOOTH, start
from torch import Tensor, nn

from nndiag.errors import InputError, ModelError
from nndiag.measures.curvature import CurvatureSettings
from nndiag.measures.exact import ExactLayer, ExactSettings, Refinement, merged, refine
from nndiag.measures.exact.blocks import TiledBlocks
from nndiag.measures.hvp import NoSecondDerivativeError
from nndiag.measures.plan import Update
from nndiag.probe.loss import custom_loss, named_loss
from nndiag.probe.probe import Probe
from nndiag.records.measured import OptimizerFacts
from nndiag.replay.state import undisturbed

SETTINGS = CurvatureSettings(tolerance=1e-9)


def refined(
    model: nn.Module,
    samples: Probe,
    mode: Literal["auto", "hessian"] = "hessian",
    update: Update | None = None,
    apart: bool = True,
) -> Refinement:
    """Return what a refinement of all layers finds."""
    layers = found_layers(model, samples)
    with undisturbed(model, 0):
        found = start(layers, samples) if apart else {}
        return refine(model, samples, layers, found, ExactSettings(mode, SETTINGS), update)


def assert_close(one: ExactLayer, blocks: Tensor, measures: tuple[str, ...]) -> None:
    """Compare with the eigenvalues of dense blocks, relative to the largest of each."""
    assert one.curvature is not None
    values = torch.linalg.eigvalsh(blocks).numpy()[one.nodes]
    expected = {"lambda_max": values[:, -1], "lambda_min": values[:, 0], "trace": values.sum(axis=1)}
    scale = np.abs(values).max(axis=1) + 1e-9 * np.abs(values).max() + 1e-15
    for name in measures:
        error = np.abs(one.curvature.per_node[name] - expected[name]) / scale
        assert error.max() < 1e-6, name


ALL = ("lambda_max", "lambda_min", "trace")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
@pytest.mark.parametrize("mode", ["hessian", "auto"])
def test_every_node_of_a_small_smooth_network_is_exact(
    case: Case, loss: str, mode: Literal["auto", "hessian"]
) -> None:
    model, samples = build(case), probe(case, loss, batch_size=7)
    found, blocks = refined(model, samples, mode), dense_blocks(model, samples)
    for layer in found_layers(model, samples):
        one = found.layers[layer.name]
        assert list(one.nodes) == list(range(layer.nodes))
        assert_close(one, blocks[layer.name], ALL)
    assert found.note is None


class Centred(nn.Module):
    """Samples that see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(x))
        return self.out(torch.tanh(h - 2 * h.mean(dim=0)))


def test_layers_whose_samples_are_not_apart_are_refined_too() -> None:
    """They have no Gauss-Newton numbers, and their nodes must not be taken for sums over samples."""
    torch.manual_seed(0)
    model, samples = Centred().double(), probe(SMOOTH[0], "mse")
    found, blocks = refined(model, samples, apart=False), dense_blocks(model, samples)
    for layer in found_layers(model, samples):
        assert_close(found.layers[layer.name], blocks[layer.name], ALL)


WIDE = Case(
    "wide",
    lambda: nn.Sequential(nn.Linear(270, 6), nn.GELU(), nn.Flatten(), nn.Linear(24, 3)),
    (4, 270),
    3,
    piecewise_linear=False,
)
"""Blocks that are cheaper multiplied than formed."""


def test_large_blocks_are_formed_where_that_can_be_afforded() -> None:
    model, samples = build(WIDE), probe(WIDE, "cross_entropy", samples=6)
    found, blocks = refined(model, samples, "auto"), dense_blocks(model, samples)
    for layer in found_layers(model, samples):
        assert_close(found.layers[layer.name], blocks[layer.name], ALL)


class Known:
    """Products with blocks that are known, laid out one after the other."""

    def __init__(self, stack: Tensor) -> None:
        self.stack, self.like = stack, stack

    def product_within(self, places: Tensor, rows: Tensor, at_once: int) -> Tensor:
        return torch.einsum("kpq,kq->kp", self.stack[places[:, 0] // self.stack.shape[1]], rows)


def test_estimated_traces_are_right_within_their_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(80, 60, 60, generator=generator, dtype=torch.float64)
    stack = factor + factor.mT
    stack += 20.0  # one eigenvalue of 1200, which alone would make signs err by 600 each
    places = torch.arange(80 * 60).reshape(80, 60)
    known: Any = Known(stack)
    trace, error = TiledBlocks(known, [known], places, 1, 64, seed=0).estimated_traces
    off = (trace - stack.diagonal(dim1=1, dim2=2).sum(dim=1)) / error
    assert 0.7 < float(off.square().median().sqrt()) / 0.71 < 1.4  # Student's t with seven degrees of freedom
    assert abs(float(off.mean())) < 0.5
    assert float(error.median()) < 60


def test_folds_are_forms_of_the_folds_own_hessians() -> None:
    case = SMOOTH[2]
    model, samples = build(case), probe(case, "cross_entropy", samples=11)
    one = refined(model, samples).layers["0"]
    values, vectors = torch.linalg.eigh(dense_blocks(model, samples)["0"])
    assert one.curvature is not None
    for fold in range(4):
        rows = slice(fold, None, 4)
        part = Probe(tuple(x[rows] for x in samples.inputs), samples.targets[rows], samples.loss)
        own = dense_blocks(model, part)["0"]
        for name, place in (("lambda_max", -1), ("lambda_min", 0)):
            v = vectors[:, :, place]
            expected = torch.einsum("np,npq,nq->n", v, own, v).numpy()
            np.testing.assert_allclose(one.curvature.per_fold[name][fold], expected, rtol=1e-6, atol=1e-12)
    sizes = samples.fold_sizes.numpy()[:, None] / len(samples)
    mean = (one.curvature.per_fold["lambda_max"] * sizes).sum(axis=0)
    np.testing.assert_allclose(mean, values[:, -1].numpy(), rtol=1e-9)


def test_adam_sees_the_preconditioned_hessian() -> None:
    case = SMOOTH[1]
    model, samples = build(case), probe(case, "mse")
    moments = {n: torch.rand(p.shape, dtype=torch.float64) for n, p in model.named_parameters()}
    facts = OptimizerFacts("adam", lr=0.01, betas=(0.9, 0.999), eps=1e-8)
    update = Update(facts, moments)
    found, blocks = refined(model, samples, update=update), dense_blocks(model, samples)
    for layer in found_layers(model, samples):
        scale = update.preconditioner(layer)
        assert scale is not None
        root = scale.rsqrt()
        values = torch.linalg.eigvalsh(root[:, :, None] * blocks[layer.name] * root[:, None, :])[:, -1]
        curvature = found.layers[layer.name].curvature
        assert curvature is not None
        np.testing.assert_allclose(curvature.per_node["lambda_max_preconditioned"], values, rtol=1e-6)
        threshold = facts.stability_threshold
        assert threshold is not None
        np.testing.assert_allclose(curvature.per_node["stability_margin"], values / threshold, rtol=1e-6)


def test_extremes_are_signed_and_not_the_largest_magnitude() -> None:
    """One node, ``L = ½ wᵀ diag(2, 1, −6) w``."""
    model = nn.Linear(3, 1, bias=False).double()
    x = 3**0.5 * torch.eye(3, dtype=torch.float64)
    loss = custom_loss("quadratic", lambda z, y: (y * z**2).sum(dim=1) / 2)
    one = refined(model, Probe((x,), torch.tensor([[2.0], [1.0], [-6.0]], dtype=torch.float64), loss))
    (found,) = one.layers.values()
    curvature = found.curvature
    assert curvature is not None
    assert [curvature.per_node[n][0] for n in ALL] == pytest.approx([2.0, -6.0, -3.0])


class Squares(torch.autograd.Function):
    """A function that refuses a second derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


class OnceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(Squares.apply(self.hidden(x)))


def test_what_cannot_be_differentiated_twice_is_an_error_or_a_note() -> None:
    model, samples = OnceOnly().double(), probe(SMOOTH[0], "mse")
    with pytest.raises(NoSecondDerivativeError, match="cannot be differentiated twice"):
        refined(model, samples)
    found = refined(model, samples, "auto")
    assert not found.layers
    assert found.note is not None
    assert "stays that of Gauss-Newton blocks: the model cannot be differentiated twice" in found.note


def test_without_targets_there_is_no_exact_hessian() -> None:
    model, samples = build(SMOOTH[0]), probe(SMOOTH[0], "cross_entropy")
    blind = Probe(samples.inputs, None, named_loss("cross_entropy"))
    with pytest.raises(InputError, match="targets"):
        refined(model, blind)
    found = refined(model, blind, "auto")
    assert "targets" in (found.note or "")


class Roots(nn.Module):
    """``|z|^{3/2}``, whose second derivative at zero is infinite; one unit is at zero on every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 3)
        with torch.no_grad():
            self.hidden.weight[1] = 0.0
            self.hidden.bias[1] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).abs().pow(1.5))


def test_second_derivatives_that_are_not_finite() -> None:
    model, samples = Roots().double(), probe(SMOOTH[0], "mse")
    with pytest.raises(ModelError, match="not finite in 1 nodes of layer hidden"):
        refined(model, samples)
    one = refined(model, samples, "auto").layers["hidden"]
    assert list(one.nodes) == [0, 2, 3]
    both, exact = merged(start(found_layers(model, samples), samples)["hidden"], one, 4)
    assert list(exact) == [True, False, True, True]
    assert both is not None
    assert both.per_node["lambda_max"][1] == 1.0
    assert np.isnan(both.per_node["lambda_min"][1])
    assert np.isnan(both.per_fold["lambda_min"][:, 1]).all()


class TiedTwice(nn.Module):
    """One weight used in a linear map and once more, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.tied(x))
        return torch.tanh(h @ self.tied.weight)[:, :3]


class Again(nn.Module):
    """One layer called on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_blocks_known_by_products_alone_claim_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are too large to be formed; the trace is estimated then, under another name."""
    monkeypatch.setitem(refine.__globals__, "FORMED_BYTES", 1)
    torch.manual_seed(0)
    model, samples = Again().double(), probe(SMOOTH[0], "cross_entropy", samples=6)
    found, blocks = refined(model, samples, "auto"), dense_blocks(model, samples)
    assert_close(found.layers["out"], blocks["out"], ALL)  # applied once: its blocks are known
    assert_close(found.layers["layer"], blocks["layer"], ALL[:2])
    curvature = found.layers["layer"].curvature
    assert curvature is not None
    assert np.isnan(curvature.per_node["trace"]).all()
    truth = blocks["layer"].diagonal(dim1=1, dim2=2).sum(dim=1).numpy()
    off = np.abs(curvature.per_node["trace_estimate"] - truth)
    assert (off <= 5 * curvature.per_node["trace_se"] + 1e-9 * np.abs(truth)).all()


@pytest.mark.parametrize("network", [TiedTwice, Again])
def test_every_use_of_a_weight_counts(network: type[nn.Module]) -> None:
    model, samples = network().double(), probe(SMOOTH[0], "mse")
    found = refined(model, samples)
    for name, blocks in dense_blocks(model, samples).items():
        assert_close(found.layers[name], blocks, ALL)


def test_nodes_that_are_not_to_be_looked_at_are_left_alone() -> None:
    """Only the embedding rows that the probe looks up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.tensor([[0, 2], [2, 5], [5, 0], [7, 7]])
    samples = Probe((x,), torch.tensor([0, 1, 1, 0]), named_loss("cross_entropy"))
    layers = found_layers(model, samples)
    seen = np.isin(np.arange(9), x.numpy())
    with undisturbed(model, 0):
        found = refine(
            model,
            samples,
            layers,
            start(layers, samples),
            ExactSettings("hessian", SETTINGS),
            among={"0": seen},
        )
    one = found.layers["0"]
    assert one.nodes.tolist() == [0, 2, 5, 7]
    assert_close(one, dense_blocks(model, samples)["0"], ALL)


def test_progress_is_told_within_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["nndiag.measures.exact.refine"], "TOGETHER", 2)
    model, samples = build(SMOOTH[0]), probe(SMOOTH[0], "mse")
    layers, told = found_layers(model, samples), []

    def progress(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    with undisturbed(model, 0):
        settings = ExactSettings("hessian", SETTINGS)
        refine(model, samples, layers, start(layers, samples), settings, progress=progress)
    first = [done for what, done, _ in told if what == f"curvature of layer {layers[0].name}, exactly"]
    assert first[0] == 0
    assert len(first) > 2
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2]
