"""What the curvature of every node costs, in forward and backward passes over the same probe."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.markdown import rows, section
from benchmarks.problems import Case, digits_case, gpt_case, lstm_case, mlp_case, resnet_case
from benchmarks.setting import Setting, timed
from nndiag.measures import Plan
from nndiag.records.level import Level
from nndiag.records.measured import Measured

HEAD = (
    "network", "nodes", "their parameters", "samples", "loss", "unit", "capture", "products and solves", "together",
)  # fmt: skip


def table(setting: Setting) -> list[str]:
    """Time the default plan on every network."""
    body = []
    for make in cases(setting):
        case = make()
        setting.say(case.name)
        run, spent = timed(case, Plan(Level.CURVATURE), setting.repeats)
        body.append([
            case.name, f"{measured_nodes(run):,}", share_covered(case, run), str(len(case.probe)), f"{run.loss:.2g}",
            f"{spent.unit:.3f} s", f"{spent.capture / spent.unit:.1f}", f"{spent.solve / spent.unit:.1f}",
            f"**{spent.units:.1f}**",
        ])  # fmt: skip
    return [
        *section(
            "Cost of λ_max, λ_min and trace of every node",
            "In units. The default plan; its error is in the next table.",
        ),
        *rows(HEAD, body),
    ]


def cases(setting: Setting) -> list[Callable[[], Case]]:
    """Return the networks, each to be built when its turn comes."""
    device = setting.device
    if setting.quick:
        return [
            lambda: mlp_case((64, 64, 64, 10), 200, device, 20),
            lambda: resnet_case(1, 32, device, 5),
            lambda: gpt_case(32, 1, 32, device, 5),
            lambda: lstm_case(32, 32, device, 5),
        ]
    return [
        lambda: digits_case(1000, device),
        lambda: mlp_case((784, 512, 512, 10), 1000, device),
        lambda: resnet_case(3, 256, device),
        lambda: resnet_case(9, 64, device, 40),
        lambda: gpt_case(96, 4, 128, device),
        lambda: lstm_case(128, 256, device),
    ]


def measured_nodes(run: Measured) -> int:
    """Return how many nodes have their curvature."""
    return sum(layer.nodes for layer in run.layers if "lambda_max" in layer.per_node)


def share_covered(case: Case, run: Measured) -> str:
    """Return how many of the network's parameters belong to a measured node."""
    of_nodes = sum(layer.parameters for layer in run.layers if "lambda_max" in layer.per_node)
    everything = sum(parameter.numel() for parameter in case.model.parameters())
    return f"{of_nodes:,} of {everything:,}"
