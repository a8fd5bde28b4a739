"""A loop over nodes with the products of curvlinops and of PyHessian, at equal error."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch

from benchmarks.loops import LOOPS, Loop, NodeBlock
from benchmarks.markdown import rows, section
from benchmarks.problems import Case, mlp_case, resnet_case
from benchmarks.setting import Setting, clock, timed
from nndiag.measures import Plan
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured
from nndiag.spectrum import extremes_by, lanczos

TOLERANCE = 1e-2
"""Residual relative to λ_max at which every loop and nndiag stop."""


@dataclass(frozen=True)
class LoopCost:
    """Means over the sampled nodes: seconds a node for the extremes, more seconds for the trace, products for the
    extremes; and the largest relative difference to nndiag's λ_max."""

    nodes: int
    extremes: float
    trace: float
    products: float
    difference: float


def table(setting: Setting) -> list[str]:
    """Time the loops on a sample of nodes and set them against all nodes at once."""
    body = []
    for case, sample, trace_products in cases(setting):
        setting.say(f"{case.name}, nndiag")
        run, spent = timed(case, Plan(Level.CURVATURE, tolerance=TOLERANCE), setting.repeats)
        nodes = sum(layer.nodes for layer in looped(case, run))
        body.append([case.name, "nndiag", "all", "", f"{spent.seconds:.2f} s", "1", "in it", "1", ""])
        for name, loop in LOOPS.items():
            setting.say(f"{case.name}, {name}")
            found = loop_cost(loop, case, run, sample, trace_products)
            extremes = found.extremes * nodes
            everything = extremes + found.trace * nodes
            body.append([
                "", name, f"{found.nodes} of {nodes:,}", f"{found.products:.1f}", f"{extremes:,.0f} s",
                f"**{extremes / spent.seconds:,.0f}**", f"{everything:,.0f} s",
                f"**{everything / spent.seconds:,.0f}**", f"{found.difference:.1e}",
            ])  # fmt: skip
    head = (
        "network", "products of", "nodes looped over", "products a node", "λ_max, λ_min of all", "times nndiag's",
        "and the traces", "times nndiag's", "largest difference of λ_max",
    )  # fmt: skip
    return [
        *section(
            "Against a loop over the nodes",
            "λ_max, λ_min and trace of every node; the loops only go over linear and convolutional ones, nndiag's time "
            "is that of all the kinds it measures. The loops take the same Lanczos with the same rule "
            f"(residuals below {TOLERANCE:g} of λ_max) and differ in the product alone: curvlinops' Gauss-Newton "
            "operator of the layer's parameters, cut to the node by its `SubmatrixLinearOperator`; PyHessian's "
            "Hessian-vector product with a vector that is zero outside the node, with gradients only of that layer's "
            "parameters and the graph kept between products. **Measured on a random sample of nodes and extrapolated** "
            "as mean time a node times the number of nodes; what is set up for a layer once is shared out among its "
            "nodes. The trace takes a loop more products: as many as curvlinops' XTrace needs for a root-mean-square "
            "error of 1 %, 64 on blocks of the MLP and 32 on those of the ResNet, tried on dense ones; these are not "
            "run but counted at the time of the products that are.",
        ),
        *rows(head, body),
    ]


def cases(setting: Setting) -> list[tuple[Case, int, int]]:
    """Return the networks, with how many nodes are sampled and how many products a trace takes."""
    if setting.quick:
        return [
            (mlp_case((64, 64, 64, 10), 200, setting.device, 20), 3, 64),
            (resnet_case(1, 32, setting.device, 5), 2, 32),
        ]
    return [
        (mlp_case((784, 512, 512, 10), 1000, setting.device), 16, 64),
        (resnet_case(3, 256, setting.device), 4, 32),
    ]


def looped(case: Case, run: Measured) -> list[LayerMeasures]:
    """Return the linear and convolutional layers."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [layer for layer in run.layers if isinstance(case.model.get_submodule(layer.name), kinds)]


def loop_cost(loop: Loop, case: Case, run: Measured, sample: int, trace_products: int) -> LoopCost:
    """Take the extremes of a sample of nodes, one at a time."""
    every = [(layer, node) for layer in looped(case, run) for node in range(layer.nodes)]
    draw = torch.Generator().manual_seed(1)
    device = case.probe.inputs[0].device
    extremes, traces, products, differences = [], [], [], []
    for place in torch.randperm(len(every), generator=draw)[:sample].tolist():
        layer, node = every[place]
        begun = clock(device)
        open_layer = loop(case, layer.name)
        ready = clock(device)
        size = layer.parameters // layer.nodes
        block = NodeBlock(open_layer.product(node), size)
        start = torch.Generator().manual_seed(0)
        like = next(case.model.parameters()).detach()
        found = extremes_by(lanczos, block, like, generator=start, tolerance=TOLERANCE)
        taken = clock(device) - ready
        extremes.append(taken + (ready - begun) / layer.nodes)
        traces.append(taken / found.products * min(trace_products, size))
        products.append(found.products)
        expected, largest = float(layer.per_node["lambda_max"][node]), float(found.largest[0])
        if largest > 0:
            differences.append(abs(expected - largest) / largest)
    return LoopCost(sample, mean(extremes), mean(traces), mean(products), max(differences, default=0.0))
