"""What a measurement is asked to do, and what is known of how the network was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nndiag.measures.seeds import COVERAGE, PASSES
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.replay.kinds import Layer

Progress = Callable[[str, int, int], None]
"""Told ``(what is being done, steps done, steps in all)``."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how.

    ``noise`` is what sampling the lesser columns of the loss curvature may cost in accuracy, as a share of the trace:
    0 takes all of them exactly, ``None`` does so where that is cheap; ``coverage`` is the share of the trace that is to
    be exact where ``passes`` backward passes allow it. ``tolerance`` is the largest error of an
    eigenvalue accepted from the solver, relative to the largest of its block; ``None`` suits it to the noise.
    ``curvature`` is ``"ggn"`` for Gauss-Newton blocks alone, ``"hessian"`` for exact blocks everywhere, ``"auto"`` for
    exact ones where they are affordable or matter. ``granularity`` is ``"node"``, or ``"head"`` to take the rows of an
    attention head together.
    ``memory_budget`` is what a measurement may take beside model and probe, in bytes; ``None`` is half of what is
    free. ``jitter`` is noise on the inputs under which masks are looked at again, in standard deviations of each; 0 is
    none.
    """

    level: Level
    solver: str = "lanczos"
    tolerance: float | None = None
    noise: float | None = None
    coverage: float = COVERAGE
    passes: int = PASSES
    seed: int = 0
    granularity: str = "node"
    curvature: Literal["auto", "ggn", "hessian"] = "ggn"
    memory_budget: int | None = None
    jitter: float = 0.0


@dataclass(frozen=True)
class LayerRule:
    """How the optimiser sees the blocks of a layer: ``D (G + wI) D``, and as they are where ``divisor`` is ``None``.

    ``facts`` are those of its parameters; ``divisor`` is ``P = D⁻²``, ``(nodes, size)``. ``decay`` is ``w``, one number
    or one for each entry, ``(nodes, size)``; the decay of ``facts`` is what is not in it.
    """

    facts: OptimizerFacts | None = None
    divisor: Tensor | None = None
    decay: float | Tensor = 0.0

    def of(self, nodes: slice | Tensor) -> LayerRule:
        """Return the same for some nodes."""
        divisor = None if self.divisor is None else self.divisor[nodes]
        decay = self.decay[nodes] if isinstance(self.decay, Tensor) else self.decay
        return LayerRule(self.facts, divisor, decay)

    @property
    def preconditioned(self) -> bool:
        """Whether steps are divided by something."""
        return self.divisor is not None and self.facts is not None and self.facts.is_adam


@dataclass(frozen=True)
class Update:
    """The update rule with the tensors that belong to it: Adam's second moments by parameter name.

    ``rules`` are the facts of every parameter that the optimiser holds, where that is known: its groups may differ, and
    what is missing there it does not train. ``steps`` are those of each parameter, where they differ from ``step``.
    """

    facts: OptimizerFacts
    second_moments: Mapping[str, Tensor]
    step: int | None = None
    rules: Mapping[str, OptimizerFacts] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)

    def rule(self, name: str) -> OptimizerFacts | None:
        """Return the facts of a parameter, ``None`` where the optimiser does not hold it."""
        return self.rules.get(name) if self.rules else self.facts

    def layer_rule(self, layer: Layer) -> LayerRule:
        """Return how the optimiser sees a layer; without facts where its parameters differ in more than the decay."""
        own = [self.rule(name) for name in layer.names]
        bare = {replace(one, weight_decay=None) if one is not None else None for one in own}
        first = own[0]
        if first is None or len(bare) > 1:
            return LayerRule()
        divisor = self.preconditioner(layer)
        if len(set(own)) == 1:
            return LayerRule(first, divisor, first.coupled_decay if divisor is not None else 0.0)
        if first.is_adam and divisor is None:
            return LayerRule(replace(first, weight_decay=None))
        held = {name: torch.full(slot.shape, one.weight_decay or 0.0, dtype=torch.float64)
                for slot, name, one in zip(layer.slots, layer.names, own, strict=True) if one is not None}  # fmt: skip
        decay = layer.rows(held)
        if divisor is None:
            divisor = torch.ones_like(decay)
        decay = decay.to(divisor)
        if first.name == "adamw":  # what is not divided by P counts P times inside
            decay = decay * divisor
        return LayerRule(replace(first, weight_decay=None), divisor, decay)

    def preconditioner(self, layer: Layer) -> Tensor | None:
        """Return Adam's ``P = √(v/(1−β₂ᵗ)) + ε`` as ``(nodes, size)``; ``None`` where it is not known."""
        if not self.facts.is_adam or not set(layer.names) <= self.second_moments.keys():
            return None
        return layer.rows({name: self.divisor(name) for name in layer.names})

    def divisor(self, name: str) -> Tensor:
        """Return the same for one parameter, in its own shape."""
        facts, moments = self.rule(name) or self.facts, self.second_moments[name]
        beta2 = facts.betas[1] if facts.betas else 0.999
        step = self.steps.get(name, self.step)
        correction = 1 - beta2**step if step else 1.0
        eps = 1e-8 if facts.eps is None else facts.eps
        return (moments.double().clamp_min(0) / correction).sqrt() + eps
