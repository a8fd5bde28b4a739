"""The certificate against dense float64 Hessians, closed forms, and points that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nndiag.errors import ModelError
from nndiag.measures.certificate import Bounds, certify
from nndiag.measures.certificate.basin import PASSES_A_STEP
from nndiag.measures.certificate.extremes import LEAST_PRODUCTS, MOST_PRODUCTS, products_allowed
from nndiag.measures.certificate.noise import Gradient
from nndiag.measures.certificate.objective import Objective, trainable
from nndiag.measures.certificate.point import Ends, kind_of, rounding_of, stationary
from nndiag.probe.loss import custom_loss, named_loss
from nndiag.probe.probe import Probe
from nndiag.records.measured import BasinRadius, Certificate, OptimizerFacts

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
BOUNDS = Bounds(signal=2.0, flat=1e-3)


class Surface(nn.Module):
    """A loss that is a function of the parameters alone: its output, once a sample, is θ."""

    def __init__(self, *theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def certified(height: Callable[[Tensor], Tensor], *theta: float, **more: OptimizerFacts) -> Certificate:
    probe = Probe((torch.zeros(3, 1),), torch.zeros(3), custom_loss("height", lambda out, _: height(out)))
    return certify(Surface(*theta), probe, BOUNDS, **more)


def well(out: Tensor) -> Tensor:
    """Two wells at ±1 with a ridge of height 1 at 0; the second derivative in both is 8."""
    return (out[:, 0] ** 2 - 1) ** 2


def radius(found: Certificate, direction: str) -> BasinRadius:
    assert found.basin is not None
    (one,) = (one for one in found.basin.radii if one.direction == direction)
    return one


def blobs(samples: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return all per-sample gradients and the eigenvalues of the Hessian, by autograd's own means."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def losses(vector: Tensor) -> Tensor:
        parts = vector.split([math.prod(shape) for shape in shapes])
        named = {name: part.view(s) for name, part, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, x), y, reduction="none")

    hessian = torch.autograd.functional.hessian(lambda vector: losses(vector).mean(), theta)
    return torch.autograd.functional.jacobian(losses, theta), torch.linalg.eigvalsh(hessian)


def test_numbers_of_a_network_agree_with_dense_ones() -> None:
    (x, y), model = blobs(30), smooth()
    gradients, eigenvalues = dense(model, x, y)
    found = certify(model, Probe((x,), y, named_loss("cross_entropy"), batch_size=7), BOUNDS)
    mean = gradients.mean(dim=0)
    noise = ((gradients - mean).square().sum() / 29 / 30).sqrt()
    assert found.gradient_norm == pytest.approx(float(mean.norm()), rel=1e-12)
    assert found.gradient_noise == pytest.approx(float(noise), rel=1e-12)
    assert (found.parameters, found.gradient_groups) == (57, 30)
    assert found.converged
    for one, error, truth in (
        (found.lambda_max, found.lambda_max_error, eigenvalues[-1]),
        (found.lambda_min, found.lambda_min_error, eigenvalues[0]),
    ):
        assert abs(one - float(truth)) <= error
        assert error <= 2e-4 * float(eigenvalues.abs().max())
    assert (found.stationary, found.kind, found.basin) == ("within_noise", "saddle", None)
    assert float(eigenvalues[0]) < 0
    model[2].bias.data[0] += 3
    moved = certify(model, Probe((x,), y, named_loss("cross_entropy")), BOUNDS)
    assert (moved.stationary, moved.kind, moved.basin) == ("no", "not_stationary", None)


def test_noise_of_groups_is_that_of_single_samples_on_average() -> None:
    (x, y), model = blobs(90), smooth()
    gradients, _ = dense(model, x, y)
    spread = (gradients - gradients.mean(dim=0)).square().sum()
    truth = float((spread / 89 / 90).sqrt())
    squares = [
        certify(model, Probe((x,), y, named_loss("cross_entropy")), BOUNDS, seed).gradient_noise
        for seed in range(12)
    ]
    found = math.sqrt(sum(one**2 for one in squares if one is not None) / 12)
    assert found == pytest.approx(truth, rel=0.05)


def test_a_trained_network_is_at_a_minimum_or_saddle_as_its_dense_hessian_says() -> None:
    (x, y), model = blobs(), smooth()
    step = torch.optim.LBFGS(model.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        step.zero_grad()
        value = nn.functional.cross_entropy(model(x), y) + 0.02 * sum(
            p.square().sum() for p in model.parameters()
        )
        value.backward()
        return value

    def decayed(out: Tensor, target: Tensor) -> Tensor:
        penalty = 0.02 * sum(p.square().sum() for p in model.parameters())
        return nn.functional.cross_entropy(out, target, reduction="none") + penalty

    for _ in range(8):
        step.step(loss)
    found = certify(model, Probe((x,), y, custom_loss("decayed", decayed)), BOUNDS)
    _, eigenvalues = dense(model, x, y)
    assert found.stationary in ("exact", "within_noise")
    assert found.gradient_norm < 1e-3 * (found.gradient_noise or 0)
    truth = float(eigenvalues[0]) + 0.04
    assert found.lambda_min == pytest.approx(truth, abs=2e-4 * found.lambda_max)
    assert found.kind == ("strict_minimum" if truth > 0 else "saddle")


@pytest.mark.parametrize(
    ("diagonal", "kind"),
    [
        ((2.0, 1.0, 0.5), "strict_minimum"),
        ((2.0, 1.0, 0.0), "weak_minimum"),
        ((2.0, 1.0, -1e-4), "weak_minimum"),
        ((2.0, 1.0, -6.0), "saddle"),
        ((2.0, 1.0, -0.01), "saddle"),
        ((-2.0, -1.0, -6.0), "saddle"),
        ((0.0, 0.0, 0.0), "degenerate"),
    ],
)
def test_kinds_of_quadratic_points(diagonal: tuple[float, ...], kind: str) -> None:
    weights = torch.tensor(diagonal, dtype=torch.float64)
    found = certified(lambda out: 1 + (out**2 * weights).sum(1) / 2, 0.0, 0.0, 0.0)
    assert found.kind == kind
    assert found.stationary == "exact"
    assert found.lambda_max == pytest.approx(max(diagonal), abs=1e-9)
    assert found.lambda_min == pytest.approx(min(diagonal), abs=1e-9)
    assert (found.basin is not None) == kind.endswith("minimum")


ENDS = Ends(2.0, 1.0, 1e-6, 1e-6, 10, True)


@pytest.mark.parametrize(
    ("norm", "noise", "zero"),
    [(0.0, 0.0, "exact"), (0.0, None, "exact"), (0.19, 0.1, "within_noise"), (0.21, 0.1, "no"), (0.1, None, "no")],
)  # fmt: skip
def test_stationary_up_to_rounding_noise_or_not(norm: float, noise: float | None, zero: str) -> None:
    gradient = Gradient(1.0, norm, noise, typical=1.0, groups=4)
    assert stationary(gradient, rounding_of(gradient, ENDS, 3.0, 1e-7), BOUNDS) == zero


def test_rounding_is_what_cancels_or_what_rounding_the_parameters_does() -> None:
    gradient = Gradient(1.0, 0.0, 0.0, typical=2.0, groups=4)
    assert rounding_of(gradient, ENDS, 3.0, 1e-7) == pytest.approx(2e-6)
    assert rounding_of(gradient, ENDS, 30.0, 1e-7) == pytest.approx(6e-6)


def test_a_wide_residual_leaves_minimum_and_saddle_open() -> None:
    open_ended = Ends(2.0, 1e-3, 1e-6, 0.5, 64, False)
    assert kind_of("exact", open_ended, 1.0, 1.0, BOUNDS) == "undetermined"
    assert kind_of("exact", Ends(2.0, -0.1, 1e-6, 0.5, 64, False), 1.0, 1.0, BOUNDS) == "saddle"
    assert kind_of("exact", Ends(math.nan, math.nan, 0, 0, 1, False), 1.0, 1.0, BOUNDS) == "undetermined"


def xor(run: str, file: str, activation: nn.Module) -> Certificate:
    model = nn.Sequential(nn.Linear(2, 1), activation)
    model.load_state_dict(load_file(SAMPLES / run / file))
    probe = load_file(SAMPLES / run / "probe.safetensors")
    return certify(model, Probe((probe["x"],), probe["y"], named_loss("mse")), BOUNDS)


@pytest.mark.parametrize("file", ["point_1_local-minimum", "point_2_local-minimum"])
def test_the_spurious_minima_of_abs_on_xor_are_strict(file: str) -> None:
    found = xor("xor_abs1", f"{file}.safetensors", nn.LeakyReLU(-1.0))
    assert (found.kind, found.stationary, found.gradient_norm) == ("strict_minimum", "exact", 0.0)
    assert 4 * found.loss == pytest.approx(1.0)  # the text's loss is the sum over the four points
    assert (4 * found.lambda_min, 4 * found.lambda_max) == pytest.approx((8.0, 8.0))
    for direction in ("sharpest", "flattest", "random"):
        one = radius(found, direction)
        assert one.outcome == "left"
        assert 0.5 < one.radius < 1.5


def test_the_separator_of_abs_on_xor_is_strict() -> None:
    found = xor("xor_abs1", "point_0_separator.safetensors", nn.LeakyReLU(-1.0))
    assert (found.kind, found.loss) == ("strict_minimum", 0.0)


def test_the_critical_points_of_relu_on_xor() -> None:
    spurious = xor("xor_relu1", "point_1_spurious.safetensors", nn.ReLU())
    assert (spurious.kind, spurious.stationary) == ("weak_minimum", "exact")
    assert 4 * spurious.loss == pytest.approx(1.0)
    assert 4 * spurious.lambda_max == pytest.approx(6.0, rel=1e-5)
    assert 4 * spurious.lambda_min == pytest.approx(0.0, abs=1e-5)
    collapse = xor("xor_relu1", "point_0_collapse.safetensors", nn.ReLU())
    assert (collapse.kind, collapse.stationary, collapse.basin) == ("degenerate", "exact", None)
    assert 4 * collapse.loss == pytest.approx(2.0)
    assert (collapse.lambda_min, collapse.lambda_max) == (0.0, 0.0)


def test_the_basin_of_a_double_well_ends_where_a_step_lands_beyond_the_ridge() -> None:
    found = certified(well, 1.0)
    assert found.basin is not None
    assert found.basin.learning_rate == pytest.approx(1 / 8)
    one = radius(found, "sharpest")
    # inwards the ridge is 1 away; outwards a step of w (w² − 1)/2 jumps over it from w = √3 on
    assert one.radius <= math.sqrt(3) - 1 <= (one.beyond or 0)
    assert (one.beyond or 0) - one.radius <= 1 / 32
    assert one.outcome == "left"
    assert found.basin.passes <= PASSES_A_STEP * found.basin.steps


def test_with_a_small_learning_rate_the_basin_ends_at_the_ridge() -> None:
    found = certified(well, 1.0, optimizer=OptimizerFacts(name="sgd", lr=1 / 32))
    assert found.basin is not None
    assert (found.basin.learning_rate, found.basin.steps) == (pytest.approx(1 / 16), 40)
    one = radius(found, "sharpest")
    # outwards a step of w (w² − 1)/4 jumps over the ridge from w = √5 on, so that inwards is nearer
    assert one.radius <= 1.0 <= (one.beyond or 0)
    assert (one.beyond or 0) - one.radius <= 1 / 16


@pytest.mark.parametrize(
    "optimizer", [OptimizerFacts(name="adam", lr=0.3), OptimizerFacts(name="sgd", lr=0.3, momentum=0.9)]
)
def test_only_the_learning_rate_of_plain_descent_counts(optimizer: OptimizerFacts) -> None:
    found = certified(well, 1.0, optimizer=optimizer)
    assert found.basin is not None
    assert found.basin.learning_rate == pytest.approx(1 / 8)


def test_above_the_stable_learning_rate_there_is_no_way_back() -> None:
    found = certified(
        lambda out: 1 + 4 * (out[:, 0] - 1) ** 2, 1.0, optimizer=OptimizerFacts(name="sgd", lr=0.26)
    )
    assert (radius(found, "sharpest").radius, radius(found, "sharpest").outcome) == (0.0, "left")


def test_a_bowl_has_no_end_and_a_slow_direction_is_called_slow() -> None:
    found = certified(lambda out: ((out - 1) ** 2 * torch.tensor([1.0, 0.002])).sum(1) / 2, 1.0, 1.0)
    assert found.kind == "strict_minimum"
    assert (radius(found, "sharpest").radius, radius(found, "sharpest").beyond) == (4.0, None)
    assert (radius(found, "flattest").radius, radius(found, "flattest").outcome) == (0.0, "slow")


def test_a_well_as_low_and_as_near_is_another_one() -> None:
    # minima at 0 and 1; from −u a step of u (u + 1) (2u + 1) lands beyond the ridge at 1/2 from 2u³ + 3u² = 1/2 on
    found = certified(lambda out: 1 + (out[:, 0] * (out[:, 0] - 1)) ** 2, 0.0)
    one = radius(found, "sharpest")
    assert one.radius <= (math.sqrt(3) - 1) / 2 <= (one.beyond or 0)


def test_an_error_in_the_middle_leaves_the_weights_as_they_were() -> None:
    x, y = blobs(40)
    model = smooth()
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    objective = Objective(model, Probe((x,), y, named_loss("cross_entropy")), trainable(model))
    handle = model[2].register_forward_hook(interrupt)

    def wander() -> None:
        with objective.moving():
            while True:
                objective.at(objective.point() + 1.0)

    with pytest.raises(KeyboardInterrupt):
        wander()
    handle.remove()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.fixture
def at_rest() -> tuple[nn.Module, Probe]:
    """A network at an exact minimum, in training mode, with gradients of its own and a frozen parameter."""
    x, _ = blobs(40)
    model = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).double()
    model[2].weight.requires_grad_(False)
    model.eval()
    y = model(x).detach()
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model, Probe((x,), y, named_loss("mse"))


def test_a_model_is_left_as_it_was(at_rest: tuple[nn.Module, Probe]) -> None:
    model, probe = at_rest
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grad, state = model[0].weight.grad, torch.get_rng_state()
    found = certify(model, probe, BOUNDS)
    assert found.basin is not None
    assert found.basin.passes > 0
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model[0].weight.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert model[1].training
    assert not model[2].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_parameters_do_not_count(at_rest: tuple[nn.Module, Probe]) -> None:
    model, probe = at_rest
    assert certify(model, probe, BOUNDS).parameters == 15 + 3 + 3
    model.requires_grad_(False)
    assert certify(model, probe, BOUNDS).parameters == 15 + 3 + 6


def test_the_same_seed_gives_the_same_certificate_and_batches_do_not_matter() -> None:
    (x, y), model = blobs(), smooth()
    one = certify(model, Probe((x,), y, named_loss("cross_entropy")), BOUNDS, seed=5)
    assert certify(model, Probe((x,), y, named_loss("cross_entropy")), BOUNDS, seed=5) == one
    other = certify(model, Probe((x,), y, named_loss("cross_entropy"), batch_size=11), BOUNDS, seed=5)
    assert other.gradient_noise == pytest.approx(one.gradient_noise, rel=1e-9)
    assert other.lambda_max == pytest.approx(one.lambda_max, rel=1e-9)


def test_a_single_sample_has_no_noise() -> None:
    (x, y), model = blobs(1), smooth()
    found = certify(model, Probe((x,), y, named_loss("cross_entropy")), BOUNDS)
    assert (found.gradient_noise, found.gradient_groups, found.stationary) == (None, 1, "no")


def test_curvature_that_is_not_finite_is_a_value() -> None:
    found = certified(lambda out: (out[:, 0].abs() + 0 * out[:, 0]).sqrt() ** 4, 0.0)
    assert math.isnan(found.lambda_max)
    assert not found.converged
    assert found.kind in ("not_stationary", "undetermined")


def test_a_model_without_a_second_derivative_is_an_error() -> None:
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(self.layer(x), torch.eye(3, dtype=x.dtype), p=3)

    x, y = blobs(8)
    with pytest.raises(ModelError, match=r"^--certificate: .* differentiated twice.*; leave it out"):
        certify(Distances().double(), Probe((x,), y, named_loss("cross_entropy")), BOUNDS)


def test_memory_caps_the_products() -> None:
    assert products_allowed(1000, 4) == MOST_PRODUCTS
    assert products_allowed(25_000_000, 4) == 21
    assert products_allowed(10**9, 4) == LEAST_PRODUCTS


def test_progress_goes_forward() -> None:
    said: list[tuple[str, float]] = []
    probe = Probe((torch.zeros(3, 1),), torch.zeros(3), custom_loss("well", lambda out, _: well(out)))
    certify(Surface(1.0), probe, BOUNDS, progress=lambda what, done, total: said.append((what, done / total)))
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert {what for what, _ in said} == {f"certificate: {one}" for one in ("gradient", "curvature", "basin")}
