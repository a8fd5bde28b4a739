"""Performance tables: what the curvature of every node costs, in forward and backward passes over the same probe.

All figures of a row come from one process on one machine, so that only ratios matter. Run with ``make bench``; the
output is committed as ``benchmarks/RESULTS.md``. The machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import ResNet, images, mlp, trained, vectors
from torch import nn

import nndiag
from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import Measured

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the tables to this file as well")
    parser.add_argument("--quick", action="store_true", help="the smaller networks alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    lines: list[str] = []
    for table in (
        heading,
        lambda: cost_table(options.quick),
        lambda: error_table(options.quick),
        solver_table,
    ):
        part = table()
        print("\n".join(part), flush=True)
        lines += part
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def heading() -> list[str]:
    """Name the machine and the versions."""
    return [
        "# Performance",
        "",
        f"`python benchmarks/speed.py` on {processor()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, nndiag {nndiag.__version__}, Python {platform.python_version()}.",
        "",
        "A unit is one plain forward and backward pass over the same probe, timed in the same process. Medians of "
        f"{REPEATS} runs.",
    ]


def processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def digits_mlp() -> tuple[nn.Module, Probe]:
    """784-512-512-10 on 1,000 samples."""
    x, y = vectors(1000, 784, torch.Generator().manual_seed(0))
    return trained(mlp(784, 512, 512, 10), x, y, 100), Probe((x,), y, named_loss("cross_entropy"))


def resnet(n: int) -> tuple[nn.Module, Probe]:
    """A CIFAR ResNet of 6n + 2 layers on 256 images."""
    x, y = images(256, torch.Generator().manual_seed(0))
    return trained(ResNet(n), x, y, 120), Probe((x,), y, named_loss("cross_entropy"))


def cost_table(quick: bool) -> list[str]:
    """What every node's extremes and trace cost."""
    lines = [
        "",
        "## Cost of λ_max, λ_min and trace of every node",
        "",
        "| network | nodes | samples | loss | unit | capture | products and solves | together |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cases: list[tuple[str, Callable[[], tuple[nn.Module, Probe]]]] = [("MLP 784-512-512-10", digits_mlp)]
    if not quick:
        cases += [("ResNet-20", lambda: resnet(3))]
    for name, make in cases:
        model, probe = make()
        runs = [measure(model, probe, Plan(Level.CURVATURE)) for _ in range(REPEATS)]
        units = [
            (run.timing.capture_s or 0, run.timing.curvature_s or 0, run.timing.forward_backward_s or 1)
            for run in runs
        ]
        capture = statistics.median(a / u for a, _, u in units)
        solve = statistics.median(b / u for _, b, u in units)
        together = statistics.median((a + b) / u for a, b, u in units)
        nodes = sum(layer.nodes for layer in runs[0].layers)
        unit = statistics.median(u for *_, u in units)
        lines.append(
            f"| {name} | {nodes:,} | {len(probe)} | {runs[0].loss:.2g} | {unit:.3f} s | {capture:.1f} | {solve:.1f} "
            f"| **{together:.1f}** |"
        )
    return lines


def error_table(quick: bool) -> list[str]:
    """How far the default is from the dense blocks of exact columns."""
    lines = [
        "",
        "## Error of the default against exact columns and eigenvalues converged to 1e-6",
        "",
        "Relative to each node's own λ_max, over the nodes with λ_max above 1e-6 of their layer's largest.",
        "",
        "| network | measure | median | 90 % | 99 % | largest |",
        "|---|---|---|---|---|---|",
    ]
    for name, make in [("MLP 784-512-512-10", digits_mlp)] + (
        [] if quick else [("ResNet-20", lambda: resnet(3))]
    ):
        model, probe = make()
        fast = measure(model, probe, Plan(Level.CURVATURE))
        exact = measure(model, probe, Plan(Level.CURVATURE, tolerance=1e-6, noise=0.0))
        for what in ("lambda_max", "lambda_min", "trace"):
            errors = np.concatenate(list(relative_errors(fast, exact, what)))
            cut = [np.quantile(errors, q) for q in (0.5, 0.9, 0.99)]
            shown = " | ".join(f"{value:.1e}" for value in (*cut, errors.max()))
            lines.append(f"| {name} | {what} | {shown} |")
    return lines


def relative_errors(fast: Measured, exact: Measured, what: str):
    """Yield the errors of each layer's living nodes."""
    for one, two in zip(fast.layers, exact.layers, strict=True):
        scale = two.per_node["lambda_max"]
        alive = scale > 1e-6 * scale.max()
        yield (
            np.abs(one.per_node[what] - two.per_node[what])[alive]
            / np.abs(two.per_node["trace"] if what == "trace" else scale)[alive]
        )


def curvature_seconds(run: Measured) -> float:
    """Return the time of capture, products and solves."""
    return (run.timing.capture_s or 0) + (run.timing.curvature_s or 0)


def solver_table() -> list[str]:
    """Lanczos against power iteration and dense."""
    lines = [
        "", "## Solvers", "", "MLP 256-128-128-10 on 300 samples, exact columns.", "",
        "| solver | products | units | converged |", "|---|---|---|---|",
    ]  # fmt: skip
    x, y = vectors(300, 256, torch.Generator().manual_seed(0))
    model, probe = trained(mlp(256, 128, 128, 10), x, y, 60), Probe((x,), y, named_loss("cross_entropy"))
    for solver in ("lanczos", "power", "dense"):
        run = measure(model, probe, Plan(Level.CURVATURE, solver=solver, noise=0.0))
        assert run.curvature is not None
        spent = curvature_seconds(run) / (run.timing.forward_backward_s or 1)
        lines.append(
            f"| {solver} | {run.curvature.products} | {spent:.0f} | {'yes' if run.curvature.converged else 'no'} |"
        )
    return lines


if __name__ == "__main__":
    main()
