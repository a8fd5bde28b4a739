"""What healing is asked to do, and what comes of treating a model in memory, whatever the goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from nndiag.errors import UsageError
from nndiag.pipeline.settings import ScanSettings
from nndiag.records.healing import Costs, HealedNode, LeftNode, Suggestion
from nndiag.records.report import Diagnosis
from nndiag.remedies import Goal
from nndiag.remedies.plan import Treatment
from nndiag.rules.diagnose import check_codes
from nndiag.surgery.edits import Edits
from nndiag.surgery.training.initial import check_initialiser
from nndiag.surgery.training.trial import MAX_LOSS_INCREASE


@dataclass(frozen=True)
class HealSettings:
    """Options of ``heal``, under the names of the command line.

    ``scan`` holds those that are a scan's too. ``only`` are codes or beginnings of codes, ``layers`` patterns of names;
    everything is treated where there are none. ``max_loss_increase`` is the share of the loss that treatments may cost
    that do not promise to keep the function. ``initialiser`` is ``[actions] init`` of the configuration, or the layer's
    own, where it is not given.

    Raises (when made):
        UsageError: no finding has one of the codes, there is no such initialiser, the share is out of range, or a scan
            would not count nodes.
    """

    goal: Goal
    scan: ScanSettings = field(default_factory=ScanSettings)
    only: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    initialiser: str | None = None
    max_loss_increase: float = MAX_LOSS_INCREASE
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_codes("--only", self.only)
        if self.initialiser is not None:
            check_initialiser(self.initialiser)
        if self.scan.granularity != "node":
            raise UsageError("--granularity head", "nodes are healed, and not heads", "leave it out")
        if not 0 <= self.max_loss_increase < float("inf"):
            what = f"--max-loss-increase {self.max_loss_increase}"
            raise UsageError(what, "is not a usable share", "give a finite number, 0 or more")


@dataclass(frozen=True)
class Cured:
    """A treated network: the edits and what they are edits of, its last diagnosis, and everything that is said of them.

    ``original`` has the names and shapes of the checkpoint, ``module`` those of the result.
    """

    edits: Edits
    original: nn.Module
    module: nn.Module
    after: Diagnosis
    actions: tuple[HealedNode, ...]
    left: tuple[LeftNode, ...]
    loss_before: float | None
    loss_after: float | None
    output_change: float | None
    suggestions: tuple[Suggestion, ...] = ()
    snippet: str | None = None
    widths: Mapping[str, Mapping[str, int | list[int]]] | None = None
    config: Mapping[str, object] | None = None
    costs: tuple[Costs, Costs] | None = None


def left_node(treatment: Treatment, reason: str) -> LeftNode:
    """Return the record of a treatment that was not carried out."""
    return LeftNode(
        layer=treatment.layer, index=treatment.index, code=treatment.code, kind=treatment.kind, reason=reason
    )
