"""Lesions that are not written into the weights of one unit: detached, above the learning rate, and none at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.lesions.digits import digits
from benchmarks.lesions.networks import Site
from benchmarks.lesions.planting import Node, parameter
from nndiag.measures import Plan, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts

DORMANT = 0.025
"""Share of the layer's mean activation up to which a unit is dormant (Sokar et al. 2023)."""
RATE = 0.005
"""Share of the samples on which a sparse unit fires."""


def detach(model: nn.Module, site: Site, unit: int) -> None:
    """Let what the unit puts out pass forward and no gradient back."""
    assert site.listener

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        keep = torch.ones(inputs[0].shape[-1])
        keep[unit] = 0
        return (inputs[0] * keep + (inputs[0] * (1 - keep)).detach(),)

    model.get_submodule(site.listener).register_forward_pre_hook(cut)


def make_sparse(model: nn.Module, site: Site, unit: int, x: Tensor) -> int:
    """Lower a rectifier's bias until it fires on 0.5 % of the samples; return on how many it does."""
    name = site.norm or site.layer
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    z = seen[0][:, unit] if seen[0].dim() != 3 else seen[0][:, :, unit]
    highest = z.flatten(1).amax(dim=1) if z.dim() > 1 else z
    wanted = math.ceil(RATE * len(x))
    top = highest.topk(wanted + 1).values
    parameter(model, f"{name}.bias")[unit] -= (top[-1] + top[-2]) / 2
    return wanted


def rates_above(
    model: nn.Module, counts: tuple[int, ...]
) -> Iterator[tuple[OptimizerFacts, frozenset[Node]]]:
    """Yield learning rates of gradient descent, each with the nodes whose own threshold it exceeds.

    The thresholds are of all eigenvalues of dense float64 blocks with every column of the loss curvature.
    """
    x, y = digits().reporting
    plan = Plan(Level.CURVATURE, solver="dense", noise=0.0, curvature="ggn")
    measured = measure(model.double(), Probe((x.double(),), y, named_loss("cross_entropy")), plan)
    model.float()
    sharp = sorted(
        (
            (float(value), (layer.name, i))
            for layer in measured.layers
            for i, value in enumerate(layer.per_node["lambda_max"])
        ),
        reverse=True,
    )
    base = OptimizerFacts(name="sgd")
    for count in counts:
        edge = math.sqrt(sharp[count - 1][0] * sharp[count][0])
        if sharp[count - 1][0] > 1.002 * sharp[count][0]:  # else the two cannot be told apart
            yield replace(base, lr=2 / edge), frozenset(node for _, node in sharp[:count])


def confirmed(model: nn.Module, sites: tuple[Site, ...], node: Node, code: str) -> bool:
    """Whether plain hooks see what a finding says of a unit without a wound: dead (ND201) or dormant (ND204).

    A wound changes what other units do; those that stop firing because of it are dead all the same.
    """
    site = next((one for one in sites if one.layer == node[0] and one.listener), None)
    if site is None or site.activation != "relu" or code not in ("ND201", "ND204"):
        return False
    seen: list[Tensor] = []
    assert site.listener
    hook = model.get_submodule(site.listener).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        model(digits().reporting[0])
    hook.remove()
    y = seen[0].flatten(0, -2)
    if code == "ND201":
        return bool((y[:, node[1]] == 0).all())
    mean = y.abs().mean(dim=0)
    weights = parameter(model, f"{site.layer}.weight").flatten(1).norm(dim=1)
    usual = mean[
        weights <= 100 * weights.median()
    ].mean()  # a unit that exploded is no measure for the others
    return bool(mean[node[1]] <= DORMANT * usual)
