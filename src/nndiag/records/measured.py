"""What a replay measured, as plain numbers: the hand-over from torch to the rules.

A measure that was not taken has no entry. An entry of an array that is NaN was taken and is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nndiag.records.level import Level
from nndiag.records.predictions import Predictions

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Stationary = Literal["exact", "within_noise", "no"]
PointKind = Literal[
    "strict_minimum", "weak_minimum", "saddle", "degenerate", "not_stationary", "undetermined"
]


@dataclass(frozen=True)
class OptimizerFacts:
    """The update rule that trained the checkpoint, as far as it is known.

    ``name`` is ``"sgd"``, ``"adam"`` or ``"adamw"``, or that of a rule whose map is not known here (``"rmsprop"``, …),
    ``None`` where nothing says which it is; ``source`` says where the facts come from
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
    dampening: float | None = None
    nesterov: bool | None = None

    @property
    def stability_threshold(self) -> float | None:
        """Largest stable eigenvalue of the (preconditioned) curvature: ``2(1+β)/((1−τ)α)`` with momentum β and
        dampening τ, with Nesterov's momentum ``2(1+β)/((1+2β)α)``, Adam ``(2+2β₁)/((1−β₁)α)``.

        ``None`` without a learning rate, or where the rule is none of these. With ``a = αλ`` a step of torch's Nesterov
        has the characteristic polynomial ``z² − (1+β)(1−a)z + β(1−a)``, whose roots reach the unit circle there.

        Source: math of the heavy-ball and Adam maps; Cohen et al. 2022, "Adaptive gradient methods at the
        edge of stability", section 3.
        """
        if not self.lr or not self.is_known:
            return None
        if self.is_adam:
            beta1 = self.betas[0] if self.betas else 0.9
            return (2.0 + 2.0 * beta1) / ((1.0 - beta1) * self.lr)
        momentum, dampening = self.momentum or 0.0, self.dampening or 0.0
        if self.nesterov:
            return 2.0 * (1.0 + momentum) / ((1.0 + 2.0 * momentum) * self.lr)
        if not momentum:  # dampening is of the momentum alone
            return 2.0 / self.lr
        return 2.0 * (1.0 + momentum) / ((1.0 - dampening) * self.lr) if dampening < 1 else None

    @property
    def coupled_decay(self) -> float:
        """Weight decay that goes through Adam's preconditioner with the gradient (not AdamW's, which is decoupled)."""
        return (self.weight_decay or 0.0) if self.name == "adam" else 0.0

    @property
    def added_decay(self) -> float:
        """Weight decay that is added to every eigenvalue of the curvature as the optimiser sees it."""
        return 0.0 if self.name == "adam" else (self.weight_decay or 0.0)

    @property
    def is_known(self) -> bool:
        """Whether what the rule's steps do near a minimum is known here."""
        return self.is_adam or self.name == "sgd"

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
    not taken, and ``"mixed"`` where ``exact`` is the mask of nodes whose numbers are those of the Hessian, beside
    Gauss-Newton ones. ``reached`` is False where the probe never ran the layer; ``observed``
    says of each node whether the probe ever used it (``None``: all), as rows of an embedding may never be looked up;
    ``is_output`` says that its units are the network's outputs. ``directions`` sketches the unit vectors of the nodes'
    weights, ``(nodes, k)``: differences of sketches have about the length of differences of directions.
    """

    name: str
    kind: str
    nodes: int
    fan_in: int
    parameters: int
    activation: str | None = None
    curvature_kind: str | None = None
    exact: Mask | None = None
    per_layer: Mapping[str, float] = field(default_factory=dict)
    per_node: Mapping[str, Floats] = field(default_factory=dict)
    per_fold: Mapping[str, Floats] = field(default_factory=dict)
    duplicates: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    reached: bool = True
    observed: Mask | None = None
    is_output: bool = False
    directions: NDArray[np.float16] | None = None

    def kind_of(self, node: int) -> str | None:
        """Return what a node's curvature is of: ``"hessian"``, ``"ggn"``, or ``None`` where it was not taken."""
        if self.curvature_kind is None or self.exact is None:
            return self.curvature_kind
        return "hessian" if self.exact[node] else "ggn"


@dataclass(frozen=True)
class CurvatureFacts:
    """How the curvature was computed: share of the trace kept by the columns, solver, and whether every node
    converged; ``negative`` is the share of the loss's curvature in the output that is negative, and so left out of
    Gauss-Newton blocks."""

    kind: str
    coverage: float
    solver: str
    converged: bool
    products: int
    negative: float = 0.0


@dataclass(frozen=True)
class BasinRadius:
    """How far along some directions gradient descent still returns, in units of the norm of the parameters.

    ``direction`` is ``"sharpest"`` (both ways along the eigenvector of λ_max), ``"flattest"`` (λ_min) or ``"random"``.
    Descent came back from ``radius`` in all ``trials`` directions (0: from no distance tried), and in one of them not
    from ``beyond``, where its ``outcome`` was that it had ``"left"``, or was ``"slow"``: on its way back after the last
    step. Both are ``None`` where it came back from as far as was tried. Between the two nothing is known.
    """

    direction: Literal["sharpest", "flattest", "random"]
    trials: int
    radius: float
    beyond: float | None
    outcome: Literal["left", "slow"] | None


@dataclass(frozen=True)
class Basin:
    """The basin of a minimum: plain gradient descent on the probe's loss from points around it.

    ``learning_rate`` and ``steps`` are those of every trial, ``passes`` all forward and backward passes spent.
    """

    learning_rate: float
    steps: int
    passes: int
    radii: tuple[BasinRadius, ...]


@dataclass(frozen=True)
class Certificate:
    """What the checkpoint is as a point of the mean loss over the probe, over all trainable parameters as one vector.

    ``gradient_noise`` is the standard error of the gradient over the draw of the samples, from ``gradient_groups``
    groups of them, ``None`` for one sample; ``gradient_rounding`` what rounding alone may make. ``stationary`` says
    which of the two the gradient does not exceed. ``lambda_max`` and ``lambda_min`` are of the full Hessian, with the
    residuals of the solver. ``basin`` is ``None`` where the point is no minimum.
    """

    kind: PointKind
    stationary: Stationary
    parameters: int
    parameter_norm: float
    loss: float
    gradient_norm: float
    gradient_noise: float | None
    gradient_rounding: float
    gradient_groups: int
    lambda_max: float
    lambda_min: float
    lambda_max_error: float
    lambda_min_error: float
    products: int
    converged: bool
    basin: Basin | None = None


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
    certificate: Certificate | None = None
    predictions: Predictions | None = None
    timing: Timing = field(default_factory=Timing)
    unmeasured: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
