"""The document that ``heal`` prints and writes beside the new checkpoint, as frozen pydantic models."""

from __future__ import annotations

from typing import Literal

from nndiag.records.report import SCHEMA_VERSION, Record


class HealedNode(Record):
    """One thing that was done; ``index`` is null for a whole layer. ``reason`` says why, ``detail`` how.

    ``promise`` says what holds of the function: ``unchanged`` on the probe to 1e-6 of the outputs' scale; ``measured``:
    it may have changed, and the loss says by how much that matters; ``finite``: it was not finite before. The gradients
    are norms, of the mean loss: of the node's own parameters, and of the weights that listen to it. ``active`` is the
    share of samples and positions at which its activation is not flat.
    """

    layer: str
    index: int | None
    code: str
    kind: str
    reason: str
    detail: str
    promise: Literal["unchanged", "measured", "finite"]
    gradient_before: float | None = None
    gradient_after: float | None = None
    outgoing_gradient_after: float | None = None
    active_before: float | None = None
    active_after: float | None = None


class LeftNode(Record):
    """One thing that was not done, or was taken back, and why."""

    layer: str
    index: int | None
    code: str
    kind: str
    reason: str


class Suggestion(Record):
    """What only the one who trains can do: another learning rate for a layer, or another slope of its activation.

    ``lr`` is a rate to use; ``largest_stable_lr`` the largest one at which no node of the layer is above the threshold
    of the optimiser; null where no rate is known.
    """

    layer: str
    nodes: tuple[int, ...]
    code: str
    kind: str
    reason: str
    lr: float | None = None
    largest_stable_lr: float | None = None


class Costs(Record):
    """Floating-point operations of matrix products and convolutions per sample, and seconds of one forward pass over a
    batch of the probe."""

    flops: float
    seconds: float


class Healing(Record):
    """What was changed in a checkpoint and what it did.

    ``written`` is null where nothing was to be written. ``random_probe`` says that the probe was noise and no data.
    ``output_change`` is the largest difference of an output on the probe, relative to the largest output.
    ``findings_before`` and ``findings_after`` count findings of nodes and layers by code, as far as ``level``.
    ``snippet`` is Python for the user's own training code. Of a network that was made smaller, ``widths`` are the new
    sizes, as ``nndiag.resize`` takes them, and ``cost_before`` and ``cost_after`` what it takes.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    nndiag_version: str
    goal: Literal["train", "deploy"]
    source: str
    written: str | None
    samples: int
    random_probe: bool = False
    level: str
    actions: tuple[HealedNode, ...]
    left: tuple[LeftNode, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    snippet: str | None = None
    loss_before: float | None
    loss_after: float | None
    output_change: float | None
    parameters_before: int
    parameters_after: int
    findings_before: dict[str, int]
    findings_after: dict[str, int]
    widths: dict[str, dict[str, int | list[int]]] | None = None
    cost_before: Costs | None = None
    cost_after: Costs | None = None
    notes: tuple[str, ...] = ()
