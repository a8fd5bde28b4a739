"""What a measurement is asked to do, and what is known of how the network was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

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
class Update:
    """The update rule with the tensors that belong to it: Adam's second moments by parameter name."""

    facts: OptimizerFacts
    second_moments: Mapping[str, Tensor]
    step: int | None = None

    def preconditioner(self, layer: Layer) -> Tensor | None:
        """Return Adam's ``P = √(v/(1−β₂ᵗ)) + ε`` as ``(nodes, size)``; ``None`` where it is not known."""
        if not self.facts.is_adam or not set(layer.names) <= self.second_moments.keys():
            return None
        return self._divisor(layer.rows(self.second_moments))

    def divisor(self, name: str) -> Tensor:
        """Return the same for one parameter, in its own shape."""
        return self._divisor(self.second_moments[name])

    def _divisor(self, moments: Tensor) -> Tensor:
        beta2 = self.facts.betas[1] if self.facts.betas else 0.999
        correction = 1 - beta2**self.step if self.step else 1.0
        return (moments.double().clamp_min(0) / correction).sqrt() + (self.facts.eps or 1e-8)
