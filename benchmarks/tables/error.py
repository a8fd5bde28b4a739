"""How far the default is from dense blocks of exact columns in float64, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.dense import dense_eigenvalues
from benchmarks.markdown import rows, section
from benchmarks.problems import Case, digits_case, mlp_case, resnet_case
from benchmarks.setting import Setting
from nndiag.measures import Plan, measure
from nndiag.records.level import Level
from nndiag.records.measured import Floats, Measured

ALIVE = 1e-6
"""Nodes with less than this share of their layer's largest λ_max have no error relative to their own."""
SEEDS = 5
"""Seeds of random signs: with one alone chance would show."""
MEASURES = ("lambda_max", "lambda_min", "trace")


def table(setting: Setting) -> list[str]:
    """Tabulate the errors of the default plan."""
    body = []
    for case, limit in cases(setting):
        setting.say(case.name)
        runs = errors_of(case, [Plan(Level.CURVATURE, seed=seed) for seed in range(SEEDS)], limit)
        for name in MEASURES:
            every = np.concatenate([errors[name] for errors in runs])
            marks = [float(np.quantile(every, q)) for q in (0.5, 0.9, 0.99, 1.0)]
            least = min(float((errors[name] <= 0.01).mean()) for errors in runs)
            body.append([
                case.name, str(len(runs[0][name])), name, *(f"{mark:.1e}" for mark in marks),
                f"{(every <= 0.01).mean():.1%}", f"{least:.1%}",
            ])  # fmt: skip
    head = ("network", "nodes", "measure", "median", "90 %", "99 %", "largest", "within 1 %", "least")
    return [
        *section(
            "Error against dense float64 blocks",
            "λ_max and λ_min relative to the node's own dense λ_max, the trace relative to itself. The dense blocks "
            "are the benchmark's own: float64, every column, all eigenvalues (`benchmarks/dense.py`). "
            "Of wide layers a random sample of nodes is formed, 96 for the MLPs and 32 for the ResNet; nodes with "
            f"λ_max below {ALIVE:g} of their layer's largest are left out. Over {SEEDS} seeds, of which `least` is the "
            "one with the fewest nodes within 1 %.",
        ),
        *rows(head, body),
    ]


def cases(setting: Setting) -> list[tuple[Case, int]]:
    """Return the networks, with how many nodes of a layer are formed at most."""
    if setting.quick:
        return [
            (mlp_case((64, 64, 64, 10), 200, setting.device, 20), 96),
            (resnet_case(1, 32, setting.device, 5), 32),
        ]
    return [
        (digits_case(1000, setting.device), 96),
        (mlp_case((784, 512, 512, 10), 1000, setting.device), 96),
        (resnet_case(3, 256, setting.device), 32),
    ]


def errors_of(case: Case, plans: Sequence[Plan], limit: int) -> list[dict[str, Floats]]:
    """Return by plan the relative errors of the living nodes among ``limit`` of every layer, by measure."""
    runs = [measure(case.model, case.probe, plan) for plan in plans]
    draw = torch.Generator().manual_seed(0)
    nodes = {
        layer.name: torch.randperm(layer.nodes, generator=draw)[:limit].sort().values
        for layer in runs[0].layers
        if dense_can(case, layer.name)
    }
    truth = dense_eigenvalues(case, nodes)
    return [_errors(run, nodes, truth) for run in runs]


def _errors(run: Measured, nodes: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Floats]:
    layers = {layer.name: layer for layer in run.layers if layer.name in nodes}
    errors: dict[str, list[Floats]] = {name: [] for name in MEASURES}
    for name, layer in layers.items():
        values, chosen = truth[name].cpu().numpy(), nodes[name].numpy()
        alive = values[:, -1] > ALIVE * layer.per_node["lambda_max"].max()
        exact = {"lambda_max": values[:, -1], "lambda_min": values[:, 0], "trace": values.sum(axis=1)}
        for what, expected in exact.items():
            scale = expected if what == "trace" else exact["lambda_max"]
            found = np.abs(layer.per_node[what][chosen] - expected)[alive] / scale[alive]
            errors[what].append(found)
    return {what: np.concatenate(parts) for what, parts in errors.items()}


def dense_can(case: Case, name: str) -> bool:
    """Whether the benchmark forms the blocks of this layer itself."""
    return isinstance(case.model.get_submodule(name), torch.nn.Linear | torch.nn.Conv2d)
