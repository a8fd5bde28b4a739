"""The document that ``nndiag scan --format json`` prints, as frozen pydantic models; the schema is made from
them.

A measure that was not taken is absent from its mapping; a number that is not finite is ``null``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

Severity = Literal["error", "warning", "info"]
Verdict = Literal["healthy", "collapsed", "plateau", "source", "saddle", "unknown"]
ActionKind = Literal[
    "prune", "reinitialise", "merge", "bias_warmup", "angular_noise", "lower_lr", "raise_lr", "none"
]
Number = float | int | str | bool | None
VERDICTS: tuple[Verdict, ...] = ("healthy", "collapsed", "plateau", "source", "saddle", "unknown")
DEGENERATE: tuple[Verdict, ...] = ("collapsed", "plateau")


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Record):
    """One thing that holds, with the numbers that show it.

    ``cause`` is the code of the finding it follows from.
    """

    code: str
    name: str
    severity: Severity
    message: str
    evidence: dict[str, Number]
    cause: str | None = None


class Action(Record):
    """What to do about a node.

    ``verified`` is what a trial on the probe showed, or null where none was made: the mean loss before and after
    (``loss_before``, ``loss_after``), the largest change of an output over the largest output (``output_change``), and
    the norm of the gradient of the node's own parameters before (``gradient_before``). For training also of all
    treatments together: the same norm after them (``gradient_after``), that of the weights that listen to the node
    (``outgoing_gradient_after``), and the share of samples and positions at which it is not flat (``active_after``).
    Of a change of the learning rate it is what one step of the node alone does from here: at the rate ``lr``
    (``loss_after``, ``output_change``), at the present one (``loss_after_at_present_lr``), and the gradient once all
    such nodes have stepped.
    """

    kind: ActionKind
    reason: str
    verified: dict[str, Number] | None = None


class LoggedLosses(Record):
    """The last losses that the training itself wrote down up to a checkpoint, and at which step; null where it wrote
    none. They are of other data than the probe: ``training_loss`` is a mean over batches since the entry before.
    """

    training_loss: float | None = None
    training_step: int | None = None
    eval_loss: float | None = None
    eval_step: int | None = None


class CheckpointFacts(Record):
    """The file: where it is, what it is, where in training it was written, and what a log in it says of the loss."""

    path: str
    format: str
    sha256: str
    step: int | None = None
    epoch: int | None = None
    parameters: int
    optimizer: dict[str, Any] | None = None
    logged: LoggedLosses | None = None


class ProbeFacts(Record):
    """What the numbers rest on; ``random`` says that the inputs are noise and no data."""

    samples: int
    loss: str | None
    sha256: str | None
    folds: int
    has_targets: bool
    random: bool = False


class CurvatureFacts(Record):
    """How the curvature was computed.

    ``coverage`` is the share of the loss curvature's trace that was kept, ``negative`` the share of that curvature in
    the output that is negative (of a loss that is not convex), and in no Gauss-Newton block. ``hessian_nodes`` have
    numbers of the Hessian itself, ``ggn_nodes`` of its Gauss-Newton part. Above ``stability_threshold`` the optimiser's
    steps grow along an eigenvector of the curvature, under Adam of the preconditioned one; null where no learning rate
    is known.
    """

    kind: Literal["hessian", "ggn", "mixed"]
    coverage: float
    solver: str
    converged: bool
    products: int
    negative: float = 0.0
    hessian_nodes: int = 0
    ggn_nodes: int = 0
    stability_threshold: float | None = None


class Timing(Record):
    """Seconds; a part that did not run is null."""

    forward_backward_s: float | None
    capture_s: float | None
    curvature_s: float | None
    total_s: float


class BasinRadius(Record):
    """How far along some directions descent returns, in norms of the parameters.

    It came back from ``radius`` in all ``trials`` directions (0: from no distance tried), and in one of them not from
    ``beyond``: it ended elsewhere (``left``) or was not back within the steps (``slow``). Both are null where it came
    back from as far as was tried, or the passes ran out before.
    """

    direction: Literal["sharpest", "flattest", "random"]
    trials: int
    radius: float
    beyond: float | None
    outcome: Literal["left", "slow"] | None


class Basin(Record):
    """From where plain gradient descent on the probe's loss returns; ``passes`` forward and backward were spent."""

    learning_rate: float
    steps: int
    passes: int
    radii: tuple[BasinRadius, ...]


class Certificate(Record):
    """The checkpoint as a point of the probe's mean loss, over all trainable parameters together.

    ``gradient_noise`` is the standard error of the gradient over the draw of the samples, from ``gradient_groups``
    groups of them, null for one sample; ``gradient_rounding`` is what rounding alone may make. ``lambda_max`` and
    ``lambda_min`` are the ends of the full Hessian's spectrum, with the solver's residuals as errors, after
    ``products`` products with it. ``basin`` is null where the point is no minimum.
    """

    kind: Literal["strict_minimum", "weak_minimum", "saddle", "degenerate", "not_stationary", "undetermined"]
    stationary: Literal["exact", "within_noise", "no"]
    parameters: int
    parameter_norm: float
    loss: float | None
    gradient_norm: float | None
    gradient_noise: float | None
    gradient_rounding: float | None
    gradient_groups: int
    lambda_max: float | None
    lambda_min: float | None
    lambda_max_error: float | None
    lambda_min_error: float | None
    products: int
    converged: bool
    basin: Basin | None


class ModelDiagnosis(Record):
    """What concerns the whole network.

    ``verified`` is what all recommended actions did together on the probe, as ``Action.verified`` has it for one, and
    how many were tried (``actions``); null where none were. Where learning rates are to change beside that, one step of
    all these nodes (``steps``, ``steps_loss_after``, ``steps_loss_after_at_present_lr``).
    """

    loss: float | None = None
    gradient_norm: float | None = None
    findings: tuple[Finding, ...] = ()
    certificate: Certificate | None = None
    verified: dict[str, Number] | None = None


class EveryNode(Record):
    """All nodes of a layer in short, so that checkpoints can be compared node by node without listing them.

    ``states`` has a letter a node: ``h`` healthy, ``c`` collapsed, ``p`` plateau, ``d`` plateau and dead (ND201), ``s``
    source, ``n`` saddle, ``u`` unknown, ``x`` not finite. The rest are base64 of little-endian float32, one number a
    node; ``direction`` of float16, up to 16 a node: a random sketch of its unit weight vector. The verdicts of
    ``unsteady`` nodes do not hold in every fold of the probe.
    """

    states: str
    unsteady: tuple[int, ...] = ()
    parameter_norm: str
    weight_norm: str
    bias: str | None = None
    lambda_max: str | None = None
    direction: str | None = None


class LayerDiagnosis(Record):
    """One layer: its size, how many of its nodes have which verdict, its own measures and findings.

    ``unobserved`` nodes were never used by the probe: rows of an embedding that it never looks up, of which only the
    weights are known, and outputs whose class no label of it names. The units of an ``is_output`` layer are the
    network's outputs.
    """

    name: str
    kind: str
    is_output: bool = False
    nodes: int
    fan_in: int
    parameters: int
    activation: str | None = None
    verdicts: dict[Verdict, int]
    unobserved: int = 0
    curvature_kind: Literal["hessian", "ggn", "mixed"] | None = None
    measures: dict[str, float | None]
    findings: tuple[Finding, ...] = ()
    every_node: EveryNode | None = None


class NodeDiagnosis(Record):
    """One node: ``layer`` is the dotted path of the owner of its parameters, ``index`` counts along the unit
    axis."""

    layer: str
    index: int
    verdict: Verdict
    steady: bool = True
    curvature_kind: Literal["hessian", "ggn"] | None = None
    measures: dict[str, float | None]
    findings: tuple[Finding, ...] = ()
    action: Action


class Unmeasured(Record):
    """A parameter that was not measured, and why."""

    name: str
    reason: str


class Diagnosis(Record):
    """Everything said of one checkpoint.

    ``nodes`` holds those with findings unless all were asked for.
    """

    checkpoint: CheckpointFacts
    probe: ProbeFacts | None = None
    level: Literal["weights", "activations", "gradients", "curvature"]
    curvature: CurvatureFacts | None = None
    timing: Timing
    model: ModelDiagnosis
    layers: tuple[LayerDiagnosis, ...]
    nodes: tuple[NodeDiagnosis, ...]
    unmeasured: tuple[Unmeasured, ...] = ()


class Report(Record):
    """The whole document: one diagnosis a checkpoint, in training order."""

    schema_version: Literal[1] = SCHEMA_VERSION
    nndiag_version: str
    settings: dict[str, Any]
    checkpoints: tuple[Diagnosis, ...] = Field(min_length=1)

    def to_dataframe(self) -> Any:
        """Return the listed nodes of all checkpoints as a ``pandas.DataFrame``, a column a measure.

        Raises:
            UsageError: pandas is not installed.
        """
        from nndiag.records.table import dataframe, report_columns

        return dataframe(report_columns(self))
