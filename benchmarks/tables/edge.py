"""Full-batch training past the edge of stability: where the sharpest node ends up.

Gradient descent at learning rate ``α`` drives the largest Hessian eigenvalue up to ``2/α`` and holds it there, Adam
that of the preconditioned Hessian to ``38/α`` (Cohen et al. 2021, 2022). The margin of a node is its own block's
eigenvalue over the same threshold, and a principal block's is no larger than the whole matrix's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.markdown import rows, section
from benchmarks.networks import mlp
from benchmarks.setting import Setting
from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts

LOOKS = 8
"""How many points of the last part of a training are examined."""
EPS = 1e-8


@dataclass(frozen=True)
class Training:
    """A full-batch training with the mean squared error."""

    name: str
    build: Callable[[], nn.Module]
    features: int
    optimizer: str
    lr: float
    steps: int

    @property
    def facts(self) -> OptimizerFacts:
        """The update rule."""
        return OptimizerFacts(self.optimizer, self.lr, betas=(0.9, 0.999), eps=EPS)


def table(setting: Setting) -> list[str]:
    """Train and tabulate the margins."""
    body = []
    for training in trainings(setting):
        setting.say(f"{training.name}, {training.optimizer}")
        looks = margins(training, setting.device)
        sharpest = max({look.node for look in looks}, key=[look.node for look in looks].count)
        body.append([
            training.name, training.optimizer, f"{training.lr:g}", f"{training.steps:,}",
            "–" if training.facts.is_adam else f"{looks[0].before:.2f}", spread([look.whole for look in looks]),
            f"**{spread([look.margin for look in looks])}**", sharpest,
        ])  # fmt: skip
    head = (
        "network", "optimiser", "α", "steps", "at the start, whole network", "in the end, whole network",
        "its sharpest node", "which",
    )  # fmt: skip
    return [
        *section("At the edge of stability", *EXPLAINED),
        *rows(head, body),
    ]


EXPLAINED = (
    "Eigenvalues over the optimiser's threshold: λ_max · α/2 for gradient descent, λ_max of the Hessian preconditioned "
    "by Adam's own second moments · α/38. Full-batch training with the mean squared error on 200 samples with labels "
    f"±1; medians, and the range, over {LOOKS} points of the last half. The whole network's come from the dense "
    "float64 Hessian, the nodes' `stability_margin` from nndiag.",
    "In the first network one node, the only one of its layer, has 257 of the 282 parameters and nearly the whole of "
    "the sharp direction: its margin is that of the network, near 1. In an ordinary network the direction is spread "
    "over many nodes, and the margin of each stays below the network's, as that of a principal block must.",
)


@dataclass(frozen=True)
class Look:
    """Margins at one point of a training; ``before`` is the whole network's at its start."""

    before: float
    whole: float
    margin: float
    node: str


def trainings(setting: Setting) -> list[Training]:
    """Return the trainings."""
    part = 4 if setting.quick else 1
    one = "deep linear 256-1-8-1, one node carries the sharp direction"
    spread_out = "MLP 32-16-16-1, tanh"
    narrow = lambda: mlp(256, 1, 8, 1, activation=nn.Identity)  # noqa: E731
    wide = lambda: mlp(32, 16, 16, 1, activation=nn.Tanh)  # noqa: E731
    return [
        Training(one, narrow, 256, "sgd", 0.01, 2000 // part),
        Training(one, narrow, 256, "adam", 0.01, 2000 // part),
        Training(spread_out, wide, 32, "sgd", 0.1, 2000 // part),
        Training(spread_out, wide, 32, "adam", 0.003, 1000 // part),
    ]


def margins(training: Training, device: torch.device) -> list[Look]:
    """Train, and look at the network at the start and ``LOOKS`` times in the last half."""
    torch.manual_seed(0)
    model = training.build().to(device)
    x, y = (part.to(device) for part in labelled(200, training.features))
    probe = Probe((x,), y, named_loss("mse"))
    stepper = STEPPERS[training.optimizer](model.parameters(), lr=training.lr)
    every = training.steps // (2 * LOOKS)
    before, looks = whole_margin(model, probe, Update(training.facts, {})), []
    for step in range(1, training.steps + 1):
        stepper.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        stepper.step()
        if step > training.steps // 2 and step % every == 0:
            update = Update(training.facts, second_moments(model, stepper), step)
            whole = whole_margin(model, probe, update)
            looks.append(Look(before, whole, *sharpest_node(model, probe, update)))
    return looks


STEPPERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def labelled(count: int, features: int) -> tuple[Tensor, Tensor]:
    """Return vectors with labels ±1, a mean each, away from the origin."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1
    direction = torch.randn(features, generator=generator)
    return torch.randn(count, features, generator=generator) + 0.15 * y * direction + 1.0, y


def second_moments(model: nn.Module, stepper: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's running mean of squared gradients by parameter name; nothing for another optimiser."""
    return {
        name: stepper.state[parameter]["exp_avg_sq"]
        for name, parameter in model.named_parameters()
        if "exp_avg_sq" in stepper.state[parameter]
    }


def whole_margin(model: nn.Module, probe: Probe, update: Update) -> float:
    """Return λ_max of the dense float64 Hessian of all parameters, preconditioned for Adam, over the threshold."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    at = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    sizes = [shape.numel() for shape in shapes]

    def loss(theta: Tensor) -> Tensor:
        parts = {n: t.view(s) for n, t, s in zip(names, theta.split(sizes), shapes, strict=True)}
        assert probe.targets is not None
        return nn.functional.mse_loss(
            functional_call(model, parts, probe.inputs[0].double()), probe.targets.double()
        )

    hessian = torch.func.hessian(loss)(at).detach()
    if update.second_moments:
        assert update.step is not None
        moments = torch.cat([update.second_moments[name].double().flatten() for name in names])
        scale = ((moments / (1 - 0.999**update.step)).sqrt() + EPS).rsqrt()
        hessian = hessian * scale[:, None] * scale
    assert update.facts.stability_threshold is not None
    return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]) / update.facts.stability_threshold


def sharpest_node(model: nn.Module, probe: Probe, update: Update) -> tuple[float, str]:
    """Return the largest ``stability_margin`` of a node, and the node."""
    run = measure(model, probe, Plan(Level.CURVATURE), update)
    found = [
        (float(margin), f"{layer.name}[{node}]")
        for layer in run.layers
        for node, margin in enumerate(layer.per_node["stability_margin"])
    ]
    return max(found)


def spread(values: Sequence[float]) -> str:
    """Return the median and the range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
