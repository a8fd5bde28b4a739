"""The document that ``nndiag compare --format json`` prints, as frozen pydantic models.

Lists along a run have an entry a checkpoint, ``null`` where a number was not taken or is not finite.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nndiag.records.report import SCHEMA_VERSION, Finding, LoggedLosses, Record, Verdict

Course = tuple[float | None, ...]
Trend = Literal["better", "worse", "same"]


class ComparedCheckpoint(Record):
    """One checkpoint of the run. ``parameter_norm`` is over all nodes; ``lr`` is the learning rate, where it is
    known; ``random_probe`` says that its numbers rest on noise and no data; ``logged`` are the training's own losses.
    """

    path: str
    step: int | None
    epoch: int | None
    loss: float | None
    gradient_norm: float | None
    parameter_norm: float | None
    sha256: str
    level: str
    lr: float | None = None
    random_probe: bool = False
    logged: LoggedLosses | None = None


class Fit(Record):
    """How the run ends. ``state`` is ``converged``; ``norm-growing`` (the loss has settled and ``‖θ‖`` has not);
    ``oscillating``, to and fro without growing; ``diverging``; ``not-finite``; ``moving``; or ``unknown`` for fewer
    than four checkpoints.

    ``loss_change`` is between the last two quarters, over the range of the loss; ``norm_growth`` of ``‖θ‖`` over the
    last half; ``growth_per_doubling`` with its standard error from the line of ``‖θ‖`` in the logarithm of time.
    """

    state: Literal["converged", "norm-growing", "oscillating", "diverging", "not-finite", "moving", "unknown"]
    loss_change: float | None = None
    norm_growth: float | None = None
    growth_per_doubling: float | None = None
    growth_error: float | None = None


class ModelComparison(Record):
    """What concerns the whole network."""

    findings: tuple[Finding, ...]
    fit: Fit


class Step(Record):
    """What happened in a layer from one checkpoint to the next: how many nodes went from one verdict to another."""

    to: int
    transitions: dict[str, int]


class Change(Record):
    """A measure of a layer at the first and the last checkpoint, and whether that is better or worse."""

    first: float
    last: float
    trend: Trend


class Decline(Record):
    """How fast a layer loses nodes, in units of ``settings.clock``.

    ``half_life`` of its living nodes, from an exponential fit, or, where that misses it, from the last checkpoint at
    which none had died to when half of them had; and when its degenerate share crosses ``limit``, the policy's
    ``max_degenerate_fraction``: between two checkpoints where it has (``crossed``), else at the current pace.
    Errors are one standard error, or half the gap between the checkpoints.
    """

    half_life: float | None
    half_life_error: float | None
    limit: float | None
    crosses_at: float | None
    crosses_error: float | None
    crossed: bool


class LayerComparison(Record):
    """One layer along the run. ``transitions`` counts its nodes from verdict to verdict, first to last checkpoint;
    ``steps`` from each checkpoint to the next, where any changed. ``degenerate``, ``dead`` and ``verdicts`` count
    nodes at every checkpoint, null where one lacks the layer.
    """

    name: str
    kind: str
    nodes: int
    degenerate: tuple[int | None, ...]
    dead: tuple[int | None, ...]
    verdicts: tuple[dict[Verdict, int] | None, ...]
    transitions: dict[str, int]
    steps: tuple[Step, ...]
    measures: dict[str, Course]
    change: dict[str, Change]
    decline: Decline | None
    findings: tuple[Finding, ...] = ()


class NodeComparison(Record):
    """One node along the run.

    ``degenerate_since`` is the checkpoint from which on it is degenerate to the end; ``recovered_at`` the first at
    which it was no longer, after the last time that it had been. ``measures``: ``rho`` is ``‖θ_t‖/‖θ_{t−1}‖``,
    ``direction_change`` the distance of unit weight vectors from the checkpoint before (an estimate, to about 18 %),
    ``bias_drift`` and ``norm_growth`` against the first checkpoint, ``lambda_smoothed`` a moving average of λ_max
    over a tenth of the run.
    """

    layer: str
    index: int
    verdicts: tuple[Verdict | None, ...]
    degenerate_since: int | None
    recovered_at: int | None
    measures: dict[str, Course]
    findings: tuple[Finding, ...]


class Comparison(Record):
    """The whole document."""

    schema_version: Literal[1] = SCHEMA_VERSION
    nndiag_version: str
    settings: dict[str, Any]
    checkpoints: tuple[ComparedCheckpoint, ...] = Field(min_length=2)
    model: ModelComparison
    layers: tuple[LayerComparison, ...]
    nodes: tuple[NodeComparison, ...]

    def to_dataframe(self) -> Any:
        """Return the listed nodes at every checkpoint as a ``pandas.DataFrame``, a column a measure.

        Raises:
            UsageError: pandas is not installed.
        """
        from nndiag.records.table import comparison_columns, dataframe

        return dataframe(comparison_columns(self))
