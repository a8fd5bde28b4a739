"""One-unit networks that can be solved on paper: XOR with an abs or a ReLU unit, and a 2-cycle."""

from __future__ import annotations

from typing import Any

import torch
from _run import Checkpoint, Run, Spec, rounded
from torch import Tensor

X = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
XOR = {"x": X, "y": torch.tensor([[0.0], [1.0], [1.0], [0.0]])}
UNIT = {"abs": torch.abs, "slope": lambda z: torch.nn.functional.leaky_relu(z, -1.0), "relu": torch.relu}
Point = tuple[str, list[float]]


def xor_loss(theta: Tensor, unit: str) -> Tensor:
    """The sum over the samples of (unit(w·x + b) − y)²; theta = [w₁, w₂, b] on its last axis."""
    z = theta[..., :2] @ X.double().T + theta[..., 2:]
    return ((UNIT[unit](z) - XOR["y"].double().T) ** 2).sum(-1)


def xor_row(point: Point, unit: str) -> dict[str, Any]:
    """Loss, gradient and Hessian eigenvalues at a point, in float64; the mean is a quarter of the sum."""
    theta = torch.tensor(point[1], dtype=torch.float64, requires_grad=True)
    total = xor_loss(theta, unit)
    (gradient,) = torch.autograd.grad(total, theta)
    hessian = torch.autograd.functional.hessian(lambda t: xor_loss(t, unit), theta.detach())
    sums = [rounded(v) + 0.0 for v in torch.linalg.eigvalsh(hessian).round(decimals=9).tolist()]
    return {
        "file": point[0] + ".safetensors",
        "w": point[1][:2],
        "b": point[1][2],
        "loss_sum": total.item(),
        "loss": total.item() / 4,
        "gradient_norm": rounded(float(gradient.norm())),
        "eigenvalues_sum": sums,
        "eigenvalues_mean": [v / 4 for v in sums],
    }


def linear(weight: list[float], bias: float | None) -> dict[str, Tensor]:
    """The state of a Linear layer with one unit, first in a Sequential."""
    state = {"0.weight": torch.tensor([weight])}
    return state if bias is None else {**state, "0.bias": torch.tensor([bias])}


def xor_run(unit: str, activation: list[Any], points: list[Point]) -> dict[str, Any]:
    """What both XOR toys share, as keywords of Run."""
    spec: Spec = [["Linear", 2, 1], activation]
    states = [(name, linear(theta[:2], theta[2])) for name, theta in points]
    return {
        "spec": spec,
        "probe": XOR,
        "probe_source": "the four points (±1, ±1), target 1 where the signs differ",
        "loss": "mse",
        "include": "point_*.safetensors",
        "checkpoints": [Checkpoint(name, {"point": name.split("_", 2)[2]}, s) for name, s in states],
        "facts": {"checkpoints": [xor_row(point, unit) for point in points]},
    }


def ends(unit: str, starts: int = 300, lr: float = 0.02, steps: int = 2000) -> dict[str, int]:
    """Where gradient descent ends from standard normal starts: how many at each loss (a sum)."""
    theta = torch.randn(starts, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        theta.requires_grad_(True)
        (gradient,) = torch.autograd.grad(xor_loss(theta, unit).sum(), theta)
        theta = theta.detach() - lr * gradient
    final = xor_loss(theta, unit)
    return {f"{v:.3f}": int((final.round(decimals=3) == v).sum()) for v in final.round(decimals=3).unique()}


def xor_abs1() -> Run:
    """The separator and the two strict local minima."""
    points: list[Point] = [
        ("point_0_separator", [-0.5, 0.5, 0.0]),
        ("point_1_local-minimum", [0.0, 0.0, 0.5]),
        ("point_2_local-minimum", [0.0, 0.0, -0.5]),
    ]
    shared = xor_run("slope", ["LeakyReLU", -1.0], points)
    flat_kink = xor_row(points[0], "abs")["eigenvalues_sum"]
    reached = ends("slope")
    shared["facts"] |= {"separator_eigenvalues_sum_with_flat_kink": flat_kink, "ends_of_300_starts": reached}
    course = " and ".join(f"{count} times at loss {loss}" for loss, count in reached.items())
    return Run(
        name="xor_abs1",
        network="one unit, abs",
        verdict="Two of three points are strict local minima that solve nothing: w = 0, b = ±1/2 has loss "
        "1 (a sum; 1/4 as a mean), zero gradient and Hessian 8I (2I); known by float64 automatic "
        "differentiation.",
        story="XOR with f = |w·x + b|, written as LeakyReLU with slope -1. The files are points, not a "
        "course of training. At the separator two samples lie on the kink: its Hessian (sum) has "
        "eigenvalues 8, 8, 8 with the slope -1 that LeakyReLU takes at zero, and 0, 4, 8 with the slope 0 "
        f"of `torch.abs`. From 300 random starts gradient descent ends {course} (sum).",
        **shared,
    )


def xor_relu1() -> Run:
    """The collapse, where the unit is dead, and a stationary point that is none."""
    points: list[Point] = [
        ("point_0_collapse", [0.25, -0.25, -1.0]),
        ("point_1_spurious", [0.75, -0.75, -0.5]),
    ]
    return Run(
        name="xor_relu1",
        network="one unit, ReLU",
        verdict="Both points have zero gradient and solve nothing: in the first the unit is dead (loss 2 "
        "as a sum, 1/2 as a mean, Hessian 0), in the second it serves one sample only (loss 1, Hessian "
        "eigenvalues 0, 0, 6; as a mean 1/4 and 0, 0, 1.5); known by float64 automatic differentiation.",
        story="XOR with f = relu(w·x + b). The files are points, not a course of training.",
        **xor_run("relu", ["ReLU"], points),
    )


def two_cycle() -> Run:
    """f = |w| with target -1: the orbit of gradient descent settles on ±α/(1-α)."""
    rate, w, rows, checkpoints = 0.1, torch.tensor([[0.2]]), [], []
    for step in range(31):
        file = f"step_{step:02d}"
        checkpoints.append(Checkpoint(file, {"step": step}, {"0.weight": w}))
        loss = float((w.abs() + 1) ** 2)
        rows.append(
            {"file": file + ".safetensors", "step": step, "w": rounded(w.item()), "loss": rounded(loss)}
        )
        w = w - rate * 2 * (w.abs() + 1) * w.sign()
    return Run(
        name="two_cycle",
        network="one weight, abs",
        verdict="Never at rest: w settles on the stable 2-cycle ±0.1111 = ±lr/(1 - lr), below any stability "
        "threshold; known from the iterates themselves.",
        story="f = |w·x|, one sample x = 1 with target -1, gradient descent with learning rate 0.1, one "
        "file a step. The curvature is 2 everywhere but at the kink, so 1 - lr·λ = 0.8 on either side, "
        "and the kink between makes the cycle.",
        spec=[["Linear", 1, 1, {"bias": False}], ["LeakyReLU", -1.0]],
        probe={"x": torch.tensor([[1.0]]), "y": torch.tensor([[-1.0]])},
        probe_source="the one sample x = 1, target -1",
        loss="mse",
        include="step_*.safetensors",
        checkpoints=checkpoints,
        facts={"limit": rounded(rate / (1 - rate)), "checkpoints": rows},
        optimizer={"name": "sgd", "lr": rate},
    )
