"""How the cost grows with samples, width and depth: exponents fitted to times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.markdown import rows, section
from benchmarks.problems import Case, mlp_case, resnet_case
from benchmarks.setting import Setting, timed
from nndiag.measures import Plan
from nndiag.records.level import Level


@dataclass(frozen=True)
class Axis:
    """What grows, through which values, and the case at a value."""

    name: str
    network: str
    values: Sequence[int]
    case: Callable[[int], Case]


def table(setting: Setting) -> list[str]:
    """Tabulate times along every axis, and their exponents."""
    body = []
    for axis in axes(setting):
        setting.say(axis.name)
        spent, plain = times(axis, setting)
        shown = "; ".join(
            f"{value:,}: {seconds:.2g} s" for value, seconds in zip(axis.values, spent, strict=True)
        )
        body.append([
            axis.name, axis.network, shown, f"**{exponent(axis.values, spent):.2f}**",
            f"{exponent(axis.values, plain):.2f}",
        ])  # fmt: skip
    return [
        *section(
            "Growth",
            "Exponents of time fitted by least squares on logarithms, beside that of one plain forward and backward "
            "pass over the same probe. Every size is taken once in a round, and each time is the median over "
            f"{setting.repeats} rounds. The weights of an MLP grow faster than its width, those of a ResNet "
            "as its depth.",
        ),
        *rows(("grows", "network", "capture, products and solves", "exponent", "of a unit"), body),
    ]


def axes(setting: Setting) -> list[Axis]:
    """Return what grows."""
    device = setting.device
    if setting.quick:
        return [
            Axis("samples", "MLP 64-64-10", (64, 128, 256), lambda n: mlp_case((64, 64, 10), n, device, 5)),
            Axis("width", "MLP 64-w-w-10", (16, 32, 64), lambda w: mlp_case((64, w, w, 10), 128, device, 5)),
            Axis("depth", "ResNet, 16 samples", (8, 14), lambda d: resnet_case((d - 2) // 6, 16, device, 2)),
        ]
    return [
        Axis(
            "samples", "MLP 784-768-768-10", (250, 500, 1000, 2000, 4000),
            lambda n: mlp_case((784, 768, 768, 10), n, device, 40),
        ),
        Axis(
            "width", "MLP 784-w-w-10, 1,000 samples", (256, 512, 1024, 1536),
            lambda w: mlp_case((784, w, w, 10), 1000, device, 40),
        ),
        Axis(
            "depth", "ResNet, 32 samples", (8, 14, 20, 26),
            lambda d: resnet_case((d - 2) // 6, 32, device, 20),
        ),
    ]  # fmt: skip


def times(axis: Axis, setting: Setting) -> tuple[list[float], list[float]]:
    """Return the seconds of a measurement and of a plain pass at every value, sizes in turn."""
    cases = [axis.case(value) for value in axis.values]
    rounds = [
        [timed(case, Plan(Level.CURVATURE), repeats=1)[1] for case in cases] for _ in range(setting.repeats)
    ]
    spent = [median(costs[place].seconds for costs in rounds) for place in range(len(cases))]
    plain = [median(costs[place].unit for costs in rounds) for place in range(len(cases))]
    return spent, plain


def exponent(values: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of ``log seconds`` over ``log values``."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])
