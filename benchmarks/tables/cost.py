"""What the curvature of every node costs, in forward and backward passes over the same probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.markdown import rows, section
from benchmarks.problems import Case, digits_case, gpt_case, lstm_case, mlp_case, resnet_case
from benchmarks.setting import Cost, Setting, forward_backward_seconds, timed
from nndiag.measures import Plan
from nndiag.records.level import Level
from nndiag.records.measured import Measured

HEAD = (
    "network", "nodes", "their parameters", "samples", "loss", "unit", "capture", "products and solves", "together",
    "on one thread",
)  # fmt: skip
SHORT, MORE = 0.1, 4
"""Where a unit takes fewer seconds than this, times are taken so many times as often."""


def table(setting: Setting) -> list[str]:
    """Time the default plan on every network."""
    body = []
    for make in cases(setting):
        case = make()
        setting.say(case.name)
        run, spent = often(case, setting)
        with threads(1):
            _, alone = often(case, setting)
        body.append([
            case.name, f"{measured_nodes(run):,}", share_covered(case, run), str(len(case.probe)), f"{run.loss:.2g}",
            f"{spent.unit:.3f} s", f"{spent.capture / spent.unit:.1f}", f"{spent.solve / spent.unit:.1f}",
            f"**{spent.units:.1f}**", f"{alone.units:.1f}",
        ])  # fmt: skip
    return [
        *section(
            "Cost of λ_max, λ_min and trace of every node",
            "In units, both parts of the ratio on all threads, and in the last column both on one. The default plan; "
            f"its error is in the next table. Medians of {setting.repeats * MORE} runs where a unit takes less than "
            f"{SHORT} s.",
        ),
        *rows(HEAD, body),
    ]


def often(case: Case, setting: Setting) -> tuple[Measured, Cost]:
    """Time the default plan on one network."""
    short = forward_backward_seconds(case) < SHORT and not setting.quick
    return timed(case, Plan(Level.CURVATURE), setting.repeats * (MORE if short else 1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
