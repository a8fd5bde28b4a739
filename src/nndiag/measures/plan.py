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

    def scaling(self, like: Tensor) -> tuple[Tensor, float | Tensor]:
        """Return ``D`` and ``w`` in the type and on the device of vectors; there must be a divisor."""
        assert self.divisor is not None
        decay = self.decay.to(like) if isinstance(self.decay, Tensor) else self.decay
        return self.divisor.rsqrt().to(like), decay


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

    def layer_facts(self, layer: Layer) -> OptimizerFacts | None:
        """Return the facts of a layer's parameters, without the decay where that differs; ``None`` where more does."""
        own = {self.rule(name) for name in layer.names}
        bare = own if len(own) == 1 else {one and replace(one, weight_decay=None) for one in own}
        return bare.pop() if len(bare) == 1 else None

    def layer_rule(self, layer: Layer) -> LayerRule:
        """Return how the optimiser sees a layer."""
        facts = self.layer_facts(layer)
        if facts is None:
            return LayerRule()
        divisor = self.preconditioner(layer)
        if all(self.rule(name) == facts for name in layer.names):
            return LayerRule(facts, divisor, facts.coupled_decay if divisor is not None else 0.0)
        if facts.is_adam and divisor is None:
            return LayerRule(facts)
        decay = self._decays(layer)
        divisor = torch.ones_like(decay) if divisor is None else divisor
        # what is not divided by P counts P times inside
        decay = decay.to(divisor) * (divisor if facts.name == "adamw" else 1)
        return LayerRule(facts, divisor, decay)

    def _decays(self, layer: Layer) -> Tensor:
        """Return the weight decay of every entry, ``(nodes, size)``."""
        held = {}
        for slot in layer.slots:
            rule = self.rule(slot.parameter)
            decay = 0.0 if rule is None else rule.weight_decay or 0.0
            held[slot.parameter] = torch.full(slot.shape, decay, dtype=torch.float64)
        return layer.rows(held)

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
