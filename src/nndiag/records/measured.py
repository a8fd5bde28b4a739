"""What a replay measured, as plain numbers: the hand-over from torch to the rules.

A measure that was not taken has no entry. An entry of an array that is NaN was taken and is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nndiag.records.level import Level

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class OptimizerFacts:
    """The update rule that trained the checkpoint, as far as it is known.

    ``name`` is ``"sgd"``, ``"adam"`` or ``"adamw"``; ``source`` says where the facts come from
    (``"checkpoint"``, ``"nndiag.toml"``, ``"options"``). ``horizon`` is the number of steps within which
    a direction must relax to count as trainable.
    """

    name: str | None = None
    lr: float | None = None
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    horizon: float | None = None
    source: str = "options"

    @property
    def stability_threshold(self) -> float | None:
        """Largest stable eigenvalue of the (preconditioned) curvature: ``2(1+β)/α``, Adam
        ``(2+2β₁)/((1−β₁)α)``.

        Source: math of the heavy-ball and Adam maps; Cohen et al. 2022, "Adaptive gradient methods at the
        edge of
        stability", section 3. ``None`` without a learning rate.
        """
        if not self.lr:
            return None
        if self.is_adam:
            beta1 = self.betas[0] if self.betas else 0.9
            return (2.0 + 2.0 * beta1) / ((1.0 - beta1) * self.lr)
        return 2.0 * (1.0 + (self.momentum or 0.0)) / self.lr

    @property
    def is_adam(self) -> bool:
        """Whether the steps are divided by a running second moment."""
        return self.name in ("adam", "adamw")


@dataclass(frozen=True)
class LayerMeasures:
    """The numbers of one layer and of its nodes.

    ``per_node`` maps a measure to an array of shape ``(nodes,)``; ``per_fold`` to ``(folds, nodes)``.
    ``activation`` is the nonlinearity that acts on the layer's units (``"relu"``), ``None`` where there
    is none or it was not seen. ``duplicates`` maps a measure (``"weights"``, ``"outputs"``) to pairs
    ``(node, earlier node that it repeats)``. ``curvature_kind`` is ``"hessian"`` where the block is
    proved to be the Hessian, ``"ggn"`` where it is the Gauss-Newton block, ``None`` where curvature was
    not taken. ``reached`` is False where the probe never ran the layer; ``is_output`` says that its units
    are the network's outputs.
    """

    name: str
    kind: str
    nodes: int
    fan_in: int
    parameters: int
    activation: str | None = None
    curvature_kind: str | None = None
    per_layer: Mapping[str, float] = field(default_factory=dict)
    per_node: Mapping[str, Floats] = field(default_factory=dict)
    per_fold: Mapping[str, Floats] = field(default_factory=dict)
    duplicates: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    reached: bool = True
    is_output: bool = False


@dataclass(frozen=True)
class CurvatureFacts:
    """How the curvature was computed: share of the trace kept by the columns, solver, and whether every node
    converged."""

    kind: str
    coverage: float
    solver: str
    converged: bool
    products: int


@dataclass(frozen=True)
class Timing:
    """Seconds; ``forward_backward_s`` is one plain pass over the same probe, the unit of the budgets."""

    forward_backward_s: float | None = None
    capture_s: float | None = None
    curvature_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Everything measured on one checkpoint."""

    level: Level
    layers: tuple[LayerMeasures, ...]
    samples: int | None = None
    folds: int | None = None
    has_targets: bool = False
    loss: float | None = None
    gradient_norm: float | None = None
    optimizer: OptimizerFacts | None = None
    curvature: CurvatureFacts | None = None
    timing: Timing = field(default_factory=Timing)
    unmeasured: tuple[tuple[str, str], ...] = ()
