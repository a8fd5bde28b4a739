"""The optimiser's own map against the matrix of its linearised step, formed densely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.cases import CASES, build, dense_blocks, probe
from torch import Tensor, nn

from nndiag.measures import Plan, Update, measure
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts

LR, DECAY = 0.05, 0.2


def divisor(facts: OptimizerFacts, moments: list[Tensor], size: int) -> Tensor:
    """Return ``√v̂ + ε`` of a node's parameters after a hundred steps, ones where the rule has no moments."""
    if not facts.is_adam:
        return torch.ones(size, dtype=torch.float64)
    return (torch.cat(moments) / (1 - 0.999**100)).sqrt() + 1e-3


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize("solver", ["lanczos", "dense", "power"])
def test_its_ends_are_those_of_the_step(name: str, decay: float | None, solver: str) -> None:
    case = next(c for c in CASES if c.name == "wide_mlp")
    model, samples = build(case), probe(case, "mse", samples=80)
    facts = OptimizerFacts(name, LR, betas=(0.9, 0.999), eps=1e-3, weight_decay=decay)
    moments = {n: torch.rand_like(p) for n, p in model.named_parameters()} if facts.is_adam else {}
    found = measure(
        model, samples, Plan(Level.CURVATURE, solver, tolerance=1e-8), Update(facts, moments, 100)
    )
    truth = dense_blocks(model, samples)
    for layer in found.layers:
        names = [f"{layer.name}.weight", f"{layer.name}.bias"]
        for i, block in enumerate(truth[layer.name]):
            p = divisor(
                facts, [moments[n].reshape(layer.nodes, -1)[i] for n in names if n in moments], len(block)
            )
            w = (decay or 0.0) * torch.eye(len(block), dtype=torch.float64)
            inside, outside = (w, 0 * w) if name == "adam" else (0 * w, w)
            seen = torch.diag(p.rsqrt()) @ (block + inside) @ torch.diag(p.rsqrt())
            ends = torch.linalg.eigvalsh(torch.eye(len(block)) - LR * (seen + outside))
            close = {"rel": 2e-2, "abs": 2e-2} if solver == "power" else {"rel": 1e-6, "abs": 1e-6}
            assert layer.per_node["update_map_min"][i] == pytest.approx(float(ends[0]), **close)
            assert layer.per_node["update_map_max"][i] == pytest.approx(float(ends[-1]), **close)
            margin = (1 - float(ends[0])) / LR / facts.stability_threshold
            assert layer.per_node["stability_margin"][i] == pytest.approx(margin, **close)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_standard_error_of_its_margin_is_that_of_the_folds(name: str) -> None:
    case = next(c for c in CASES if c.name == "wide_mlp")
    model, samples = build(case), probe(case, "mse", samples=80)
    facts = OptimizerFacts(name, LR, betas=(0.9, 0.999), eps=1e-3)
    moments = {n: torch.rand_like(p) for n, p in model.named_parameters()} if facts.is_adam else {}
    found = measure(model, samples, Plan(Level.CURVATURE, tolerance=1e-10), Update(facts, moments, 100))
    folds = [
        dense_blocks(
            model, replace(samples, inputs=(samples.inputs[0][k::4],), targets=samples.targets[k::4])
        )
        for k in range(4)
    ]
    whole = dense_blocks(model, samples)
    for layer in found.layers:
        names = [f"{layer.name}.weight", f"{layer.name}.bias"]
        for i, block in enumerate(whole[layer.name]):
            own = [moments[n].reshape(layer.nodes, -1)[i] for n in names if n in moments]
            scale = divisor(facts, own, len(block)).rsqrt()
            vector = torch.linalg.eigh(scale[:, None] * block * scale).eigenvectors[:, -1] * scale
            forms = np.array([float(vector @ fold[layer.name][i] @ vector) for fold in folds])
            error = forms.std(ddof=1) / 2
            assert layer.per_node["stability_margin_se"][i] == pytest.approx(
                error / facts.stability_threshold, rel=1e-5
            )
            if facts.is_adam:
                assert layer.per_node["lambda_max_preconditioned_se"][i] == pytest.approx(error, rel=1e-5)


def test_adam_without_its_moments_says_nothing() -> None:
    model, samples = build(CASES[0]), probe(CASES[0], "mse")
    found = measure(model, samples, Plan(Level.CURVATURE), Update(OptimizerFacts("adam", LR), {}))
    assert not any("stability_margin" in layer.per_node for layer in found.layers)


def test_thresholds_of_momentum_and_adam() -> None:
    assert OptimizerFacts("sgd", 0.1, momentum=0.9).stability_threshold == pytest.approx(38)
    assert OptimizerFacts("adam", 0.1, betas=(0.9, 0.999)).stability_threshold == pytest.approx(380)
    assert OptimizerFacts("sgd", 0.1).stability_threshold == pytest.approx(20)
    assert np.isclose(OptimizerFacts("adamw", 0.1, weight_decay=0.3).added_decay, 0.3)


def steps_out(curvature: float, **options) -> bool:
    """Whether descent on a parabola leaves it."""
    at = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([at], lr=0.1, **options)
    for _ in range(2000):
        optimizer.zero_grad()
        (curvature * at.square() / 2).sum().backward()
        optimizer.step()
        if float(at.detach().abs()) > 1e4:
            return True
    return False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "dampening": 0.9},
        {"dampening": 0.5},
    ],
    ids=str,
)
def test_beyond_the_threshold_torch_s_own_steps_leave(options: dict) -> None:
    threshold = OptimizerFacts("sgd", 0.1, **options).stability_threshold
    assert threshold is not None
    assert not steps_out(0.98 * threshold, **options)
    assert steps_out(1.02 * threshold, **options)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("budget", [None, 400_000])
def test_groups_that_differ(name: str, budget: int | None) -> None:
    """Biases have no decay, the second layer has another rate and other betas, the third is not the optimiser's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(80, 60, dtype=torch.float64), torch.randn(80, 3, dtype=torch.float64)
    samples = Probe((x,), y, named_loss("mse"))
    plain = OptimizerFacts(name, LR, betas=(0.9, 0.999), eps=1e-3, weight_decay=DECAY)
    other = replace(plain, lr=2 * LR, betas=(0.8, 0.99), momentum=0.3, weight_decay=None)
    names = [n for n, _ in model.named_parameters()]
    first, second, third = dict.fromkeys(n.split(".")[0] for n in names)
    rules = {f"{first}.weight": plain, f"{first}.bias": replace(plain, weight_decay=0.0)}
    rules |= {n: other for n in names if n.startswith(f"{second}.")}
    moments = {n: torch.rand_like(p) for n, p in model.named_parameters()} if plain.is_adam else {}
    steps = {n: 7 if n.endswith("bias") else 100 for n in names}
    update = Update(replace(plain, lr=None, weight_decay=None), moments, 100, rules, steps)
    plan = Plan(Level.CURVATURE, tolerance=1e-8, memory_budget=budget)
    found, truth = measure(model, samples, plan, update), dense_blocks(model, samples)
    for layer in found.layers:
        if layer.name == third:
            assert "stability_margin" not in layer.per_node
            assert "learning_rate" not in layer.per_layer
            continue
        own = rules[f"{layer.name}.weight"]
        assert layer.per_layer["learning_rate"] == own.lr
        assert ("lambda_max_preconditioned" in layer.per_node) == own.is_adam
        assert own.lr is not None
        assert own.betas is not None
        for i, block in enumerate(truth[layer.name]):
            parts, decays = [], []
            for n in (f"{layer.name}.weight", f"{layer.name}.bias"):
                entries = model.get_parameter(n)[i].numel()
                p = torch.ones(entries, dtype=torch.float64)
                if own.is_adam:
                    correction = 1 - own.betas[1] ** steps[n]
                    p = (moments[n].reshape(layer.nodes, -1)[i] / correction).sqrt() + 1e-3
                parts.append(p)
                decays.append(torch.full((entries,), rules[n].weight_decay or 0.0, dtype=torch.float64))
            p, w = torch.cat(parts), torch.diag(torch.cat(decays))
            inside, outside = (w, 0 * w) if name == "adam" else (0 * w, w)
            seen = torch.diag(p.rsqrt()) @ (block + inside) @ torch.diag(p.rsqrt()) + outside
            ends = torch.linalg.eigvalsh(torch.eye(len(block)) - own.lr * seen)
            assert layer.per_node["update_map_min"][i] == pytest.approx(float(ends[0]), rel=1e-6, abs=1e-6)
            assert layer.per_node["update_map_max"][i] == pytest.approx(float(ends[-1]), rel=1e-6, abs=1e-6)
            margin = (1 - float(ends[0])) / own.lr / own.stability_threshold
            assert layer.per_node["stability_margin"][i] == pytest.approx(margin, rel=1e-6)
