"""The self-healing loop: trigger, one correction, another look, escalation.

A finding triggers when it stands in several measurements in a row: one batch proves little. What is done, and that it
does no harm, is surgery's business. A node that is found again after its correction is treated by the next rung of the
ladder, with other random numbers, and given up after the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nndiag.errors import NndiagError, UsageError
from nndiag.pipeline.settings import MOST_SEED
from nndiag.probe.probe import Probe
from nndiag.records.report import Diagnosis
from nndiag.remedies.plan import ADVICE, Treatment, TreatmentKind, plan
from nndiag.replay.kinds import Layer
from nndiag.rules.diagnose import check_codes
from nndiag.surgery.training.initial import DEFAULT, check_initialiser
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import MAX_LOSS_INCREASE, Limit
from nndiag.surgery.training.ward import Ward

_NEXT: Mapping[TreatmentKind, TreatmentKind] = {
    "angular_noise": "reinitialise",
    "bias_warmup": "reinitialise",
}
"""By what a treatment of a node that did not last is followed; others are tried again."""

_OTHER_AXIS = "a step does not show which axis of this parameter counts nodes: heal the checkpoint"

Place = tuple[str, int | None]


@dataclass(frozen=True)
class HealingSettings:
    """How the loop goes about it.

    Args:
        patience: measurements in a row in which a finding must stand, before a treatment and again after it.
        attempts: treatments of one node before it is given up.
        max_loss_increase: share of the loss that a treatment may cost which does not promise to keep the function.
        only: codes, or beginnings of codes, of the findings to treat; all where there are none.
        layers: patterns of names of layers to treat; all where there are none.
        initialiser: of nodes that start anew, by the name that ``nndiag heal --init`` takes.
        seed: of the random numbers.

    Raises:
        UsageError: a number is out of range, or there is no such initialiser or finding.
    """

    patience: int = 2
    attempts: int = 3
    max_loss_increase: float = MAX_LOSS_INCREASE
    only: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    initialiser: str = DEFAULT
    seed: int = 0

    def __post_init__(self) -> None:
        check_codes("only", self.only)
        for name in ("patience", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}", "is too small", "give at least 1")
        if not 0 <= self.max_loss_increase < float("inf"):
            what = f"max_loss_increase={self.max_loss_increase}"
            raise UsageError(what, "is not a usable share", "give a finite number, 0 or more")
        if not 0 <= self.seed <= MOST_SEED:
            raise UsageError(f"seed={self.seed}", "is out of range", f"give one from 0 to {MOST_SEED}")
        check_initialiser(self.initialiser)


@dataclass(frozen=True)
class Correction:
    """One treatment that was carried out, or given up: at which step, how often before, and how."""

    step: int
    treatment: Treatment
    attempt: int
    detail: str
    done: bool


@dataclass
class _Case:
    """What is known of one place: in how many measurements in a row it was found, and how often it was treated."""

    seen: int = 0
    attempts: int = 0
    last: TreatmentKind | None = None
    given_up: bool = False


@dataclass
class Healer:
    """Keeps the cases of one run."""

    settings: HealingSettings
    corrections: list[Correction] = field(default_factory=list)
    _cases: dict[Place, _Case] = field(default_factory=dict)

    def look(self, found: Diagnosis) -> list[Treatment]:
        """Take note of a measurement, and return what it is time to treat."""
        settings = self.settings
        planned = [t for t in plan(found, "train", settings.only, settings.layers) if t.kind not in ADVICE]
        there = {(t.layer, t.index) for t in planned}
        for place, case in self._cases.items():
            if place not in there:
                case.seen = 0
        due = []
        for treatment in planned:
            case = self._cases.setdefault((treatment.layer, treatment.index), _Case())
            case.seen += 1
            if case.seen >= settings.patience and not case.given_up:
                due.append(self._escalated(treatment, case))
        return due

    def correct(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        optimizer: Optimizer | None,
        probe: Probe,
        due: Sequence[Treatment],
        step: int,
    ) -> None:
        """Treat a model in place, and let its optimiser forget what was started anew.

        Args:
            model: the model.
            layers: as they were measured; where the probe shows other nodes of one, it is left.
            optimizer: of its parameters.
            probe: on which a treatment is proved.
            due: what it is time to treat.
            step: of the training.
        """
        settings = self.settings
        try:
            ward = Ward(model, probe, settings.seed, settings.initialiser)
            ward.attempt = step  # other random numbers at every step
            counted = {layer.name: layer for layer in layers}
            alike = [t for t in due if ward.layers.get(t.layer) == counted.get(t.layer)]
            for treatment in due:
                if treatment not in alike:
                    self._note(treatment, step, _OTHER_AXIS, done=False)
            treated = treat(ward, alike, Limit(ward.replay(), settings.max_loss_increase))
        except NndiagError as error:
            for treatment in due:
                self._note(treatment, step, str(error), done=False)
            return
        for done in treated.done:
            self._note(done.treatment, step, done.detail, done=True)
        for left in treated.left:
            self._note(left.treatment, step, left.reason, done=False)
        forget(model, optimizer, ward.reset)

    def _escalated(self, treatment: Treatment, case: _Case) -> Treatment:
        if treatment.index is None or case.last is None:
            return treatment
        return replace(treatment, kind=_NEXT.get(case.last, treatment.kind))

    def _note(self, treatment: Treatment, step: int, detail: str, *, done: bool) -> None:
        case = self._cases.setdefault((treatment.layer, treatment.index), _Case())
        case.seen = 0
        case.attempts += 1
        case.last = treatment.kind
        case.given_up = case.attempts >= self.settings.attempts
        self.corrections.append(Correction(step, treatment, case.attempts, detail, done))


def forget(model: nn.Module, optimizer: Optimizer | None, masks: Mapping[str, Tensor]) -> None:
    """Set gradients and what an optimiser keeps of marked entries to zero.

    Its count of steps stays: it is the whole parameter's. Adam then moves fresh entries faster for a while, which
    turned out better in `benchmarks/remedies` than to count anew.

    Args:
        model: whose parameters the masks are named after.
        optimizer: of these parameters; tensors of a parameter's shape in its state are moments and the like.
        masks: by parameter, True where an entry was started anew.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = named.get(name)
            if parameter is None:
                continue
            kept = [] if optimizer is None else list(optimizer.state.get(parameter, {}).values())
            for tensor in (parameter.grad, *kept):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    tensor.masked_fill_(mask.to(tensor.device), 0)
