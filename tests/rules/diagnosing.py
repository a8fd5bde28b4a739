"""Hand-made measurements, small networks with planted lesions, and what the rules say of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured, OptimizerFacts
from nndiag.records.report import Finding
from nndiag.rules.diagnose import JudgedLayer, Selection, judge

NODES = 10


def layer(name: str = "0", nodes: int = NODES, **changes: Any) -> LayerMeasures:
    """Return a healthy ReLU layer; ``changes`` are fields, or measures per node (numbers or arrays)."""
    node: dict[str, Any] = {
        "weight_norm": np.linspace(0.9, 1.1, nodes),
        "parameter_norm": np.linspace(0.9, 1.1, nodes),
        "bias": np.zeros(nodes),
        "nonfinite_parameters": np.zeros(nodes),
        "output_mean": np.full(nodes, 0.4),
        "output_std": np.linspace(0.5, 0.7, nodes),
        "output_range": np.full(nodes, 2.0),
        "preactivation_std": np.ones(nodes),
        "dormancy": np.ones(nodes),
        "active_fraction": np.full(nodes, 0.5),
        "gradient_norm": np.full(nodes, 0.1),
        "torque_ratio": np.full(nodes, 0.9),
        "gradient_reach": np.full(nodes, 0.2),
        "gradient_spread": np.full(nodes, 0.2),
        "gradient_signal": np.full(nodes, 0.5),
        "output_reach": np.full(nodes, 0.8),
        "tangent_kernel": np.full(nodes, 3.0),
        "sensitivity": np.full(nodes, 0.8),
        "lambda_max": np.linspace(0.5, 2.0, nodes),
        "lambda_min": np.zeros(nodes),
    }
    whole = {"dead_data_fraction": 0.0, "effective_rank": 6.0, "torque_ratio_mean": 0.9}
    folds = {"open_count": np.full((4, nodes), 12.0), "lambda_max": np.tile(node["lambda_max"], (4, 1))}
    fields: dict[str, Any] = {"activation": "relu", "curvature_kind": "hessian", "fan_in": 16}
    for key, value in changes.items():
        if key in node or key in ("stability_margin", "relaxation_steps"):
            node[key] = np.broadcast_to(np.asarray(value, dtype=np.float64), (nodes,)).copy()
        elif key in whole:
            whole[key] = value
        elif key == "per_fold":
            folds |= value
        else:
            fields[key] = value
    size = fields["fan_in"] + 1
    return LayerMeasures(
        name=name, kind="Linear", nodes=nodes, parameters=nodes * size, per_layer=whole, per_node=node,
        per_fold=folds, **fields,
    )  # fmt: skip


def at(index: int, value: float, usual: float | np.ndarray, nodes: int = NODES) -> np.ndarray:
    """Return an array that is ``usual`` but at one node."""
    found = np.broadcast_to(np.asarray(usual, dtype=np.float64), (nodes,)).copy()
    found[index] = value
    return found


def without(one: LayerMeasures, *names: str) -> LayerMeasures:
    """Return a layer without some of its measures."""
    nodes, folds = (
        {k: v for k, v in measures.items() if k not in names} for measures in (one.per_node, one.per_fold)
    )
    return replace(one, per_node=nodes, per_fold=folds)


def judged(
    *layers: LayerMeasures,
    samples: int = 400,
    optimizer: OptimizerFacts | None = None,
    selection: Selection | None = None,
    level: Level = Level.CURVATURE,
) -> tuple[JudgedLayer, ...]:
    """Return what the rules say of hand-made layers."""
    measured = Measured(level, layers, samples=samples, folds=4, has_targets=True, optimizer=optimizer)
    return judge(measured, selection or Selection())


def codes(one: JudgedLayer, node: int | None) -> list[str]:
    """Return the codes of one node, or of the layer itself."""
    return [finding.code for finding in _findings(one, node)]


def finding(one: JudgedLayer, node: int | None, code: str) -> Finding:
    """Return a finding that must be there."""
    return next(found for found in _findings(one, node) if found.code == code)


def everything(found: tuple[JudgedLayer, ...]) -> set[str]:
    """Return all codes found anywhere."""
    return {c for one in found for node in (None, *one.by_node) for c in codes(one, node)}


def _findings(one: JudgedLayer, node: int | None) -> tuple[Finding, ...]:
    return one.findings if node is None else one.by_node.get(node, ())


def diagnosed(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    loss: str = "cross_entropy",
    facts: OptimizerFacts | None = None,
    moments: Mapping[str, Tensor] | None = None,
    selection: Selection | None = None,
) -> dict[str, JudgedLayer]:
    """Return what the rules say of a model on data, by layer."""
    update = None if facts is None else Update(facts, moments or {})
    measured = measure(model, Probe((x,), y, named_loss(loss)), Plan(Level.CURVATURE), update)
    return {one.measures.name: one for one in judge(measured, selection or Selection())}


def blobs(samples: int = 240, inputs: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a classification problem that a small network learns in a second."""
    centres = 1.2 * torch.randn(classes, inputs, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    return centres[y] + torch.randn(samples, inputs, generator=generator), y


def trained(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a copy of an MLP trained on ``blobs`` for a while, on one thread's worth of work."""
    return copy.deepcopy(_trained(activation))


@functools.cache
def _trained(activation: type[nn.Module]) -> nn.Sequential:
    x, y = blobs(seed=1)
    torch.manual_seed(0)
    model = mlp(activation)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a network as it is before training."""
    return nn.Sequential(nn.Linear(12, 24), activation(), nn.Linear(24, 16), activation(), nn.Linear(16, 4))
