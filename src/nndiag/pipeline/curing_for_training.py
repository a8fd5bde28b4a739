"""Goal ``train`` carried out on a model in memory: rounds of treatment, each after a measurement of what the one
before did.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from nndiag.errors import InputError
from nndiag.pipeline.cured import Cured, HealSettings, left_node
from nndiag.pipeline.job import Job, Loaded
from nndiag.records.healing import HealedNode
from nndiag.records.level import Level
from nndiag.records.report import Diagnosis
from nndiag.remedies.plan import ADVICE, Treatment, plan
from nndiag.remedies.rates import snippet, suggest
from nndiag.surgery.edits import Edits
from nndiag.surgery.proof import TOLERANCE, Replayed, output_change
from nndiag.surgery.training.evidence import Evidence, look_closely
from nndiag.surgery.training.hushed import hushed
from nndiag.surgery.training.initial import DEFAULT, check_initialiser
from nndiag.surgery.training.record import Done, Left, Promise, Treated
from nndiag.surgery.training.sorting import WEAK, WHISPERS
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.ward import Ward

ROUNDS = 6
"""How often a network is treated at most: what a measurement after a round still shows is treated once more, until
nothing more can be."""
SHARES = 20
"""A single node may cost a twentieth of what all may."""
_WEAKER: tuple[Promise, ...] = ("unchanged", "measured", "finite")

Place = tuple[str, int | None]


def cure_for_training(job: Job, loaded: Loaded, before: Diagnosis, settings: HealSettings) -> Cured:
    """Treat the model of a job, whose weights are loaded, in place.

    Raises:
        InputError: the result is worse than promised.
    """
    return _Training(job, loaded, before, settings).cured()


class _Training:
    """The rounds, and what has been done and left so far."""

    def __init__(self, job: Job, loaded: Loaded, before: Diagnosis, settings: HealSettings) -> None:
        model, probe = job.inputs.model, job.inputs.probe
        assert model is not None
        assert probe is not None
        self.job, self.loaded, self.before, self.settings = job, loaded, before, settings
        self.original = copy.deepcopy(model)
        self.ward = Ward(
            model, probe, settings.scan.seed, _initialiser(job, settings),
            {name: tensor.dtype for name, tensor in loaded.fitted.tensors.items()},
        )  # fmt: skip
        self.first = self.ward.replay(gradients=True)
        self.done: dict[Place, Done] = {}
        self.left: dict[Place, Left] = {}
        self.clear = before

    def cured(self) -> Cured:
        """Treat, and return everything."""
        model, seen = self.ward.model, self._evidence(self.before, self.first)
        after = self._rounds()
        last = self.ward.replay(gradients=True)
        self._keep_promises(last)
        advice = self._advice(after)
        found = suggest(self.clear, advice)
        facts = self.before.checkpoint.optimizer
        final = self._evidence(self.before, last)
        return Cured(
            edits=self.ward.edits() if self.done else Edits(),
            original=self.original,
            module=model,
            after=after,
            actions=tuple(self._action(done, seen, final) for done in self.done.values()),
            left=tuple(left_node(one.treatment, one.reason) for one in self.left.values()),
            suggestions=found,
            snippet=snippet(found, facts),
            loss_before=self.first.loss,
            loss_after=last.loss,
            output_change=output_change(self.first, last),
        )

    def _planned(self, diagnosis: Diagnosis) -> tuple[Treatment, ...]:
        return plan(diagnosis, "train", self.settings.only, self.settings.layers)

    def _rounds(self) -> Diagnosis:
        """Treat until a measurement shows nothing more that can be treated."""
        share = self.settings.max_loss_increase
        found, limit = self.before, Limit(self.first, share, share / SHARES)
        deepest = replace(self.job, level=min(self.job.level, Level.GRADIENTS))
        resting: set[Place] = set()  # left in the round before: another one may make them treatable
        for attempt in range(ROUNDS):
            wanted = [t for t in self._treatable(found) if (t.layer, t.index) not in resting]
            if not wanted:
                break
            self.ward.attempt = attempt
            treated = treat(self.ward, wanted, limit)
            resting = self._note(treated)
            if not treated.done:
                break
            if not limit.before.finite:  # from here on there is a function to keep
                limit = Limit(self.ward.replay(), share, share / SHARES)
                found = self.clear = self.job.examine(self.loaded, self.ward.model)
            else:
                found = deepest.examine(self.loaded, self.ward.model)
        still, seen = {(t.layer, t.index) for t in self._treatable(found)}, int(Level.parse(found.level))
        self.left = {
            place: left
            for place, left in self.left.items()
            if place in still or int(left.treatment.code[2]) > seen  # a later look was not as deep
        }
        return found

    def _treatable(self, diagnosis: Diagnosis) -> list[Treatment]:
        return [t for t in self._planned(diagnosis) if t.kind not in ADVICE]

    def _note(self, treated: Treated) -> set[Place]:
        """Take note of a round, and return what it left. A node treated twice has the weaker of the promises."""
        for done in treated.done:
            place = (done.treatment.layer, done.treatment.index)
            known = self.done.get(place)
            if known is None or _WEAKER.index(done.promise) >= _WEAKER.index(known.promise):
                self.done[place] = done
            self.left.pop(place, None)
        left = {(one.treatment.layer, one.treatment.index): one for one in treated.left}
        self.left |= left
        return set(left)

    def _keep_promises(self, last: Replayed) -> None:
        """Refuse a result that is worse than promised.

        Raises:
            InputError: it is.
        """
        promises = {done.promise for done in self.done.values()}
        do = "treat fewer nodes with --only or --layers; nothing was written"
        if promises and not last.finite:
            raise InputError("heal", "the outputs of the treated network are not finite", do)
        change = output_change(self.first, last)
        if promises == {"unchanged"} and (change is None or change > TOLERANCE):
            said = "not finite" if change is None else f"{change:.2g} of their scale"
            raise InputError("heal", f"the function was to stay, and its outputs changed by {said}", do)
        limit = Limit(self.first, self.settings.max_loss_increase)
        if "measured" in promises and self.first.finite and not limit.allows(last):
            raise InputError("heal", f"the treatments together would {limit.cost(last)}", do)

    def _advice(self, after: Diagnosis) -> list[Treatment]:
        """Return what only the one who trains can do: the plan's own advice, and slopes where turning did not help."""
        planned = [
            t for t in self._planned(self.clear) if t.kind in ADVICE and (t.layer, t.index) not in self.done
        ]
        stiff = [one.treatment for one in self.left.values() if one.treatment.kind == "angular_noise"]
        turned = [
            t for t in self._planned(after) if t.kind == "angular_noise" and (t.layer, t.index) in self.done
        ]
        quiet = self._quiet([treatment for treatment in planned if treatment.code in WEAK])
        self.left |= {(one.layer, one.index): Left(one, WHISPERS) for one in quiet}
        planned = [treatment for treatment in planned if treatment not in quiet]
        return [*planned, *(replace(treatment, kind="leaky_slope") for treatment in (*stiff, *turned))]

    def _quiet(self, weak: Sequence[Treatment]) -> list[Treatment]:
        """Return the treatments of nodes that wait for training to make them heard: no rate mends these."""
        masks = hushed(self.ward, {treatment.layer for treatment in weak})
        return [one for one in weak if one.layer in masks and bool(masks[one.layer][one.index])]

    def _evidence(self, diagnosis: Diagnosis, replayed: Replayed) -> Evidence:
        layers = {treatment.layer for treatment in self._planned(diagnosis)} if replayed.finite else set()
        return look_closely(self.ward, layers | {layer for layer, _ in self.done}, replayed.gradients)

    def _action(self, done: Done, before: Evidence, after: Evidence) -> HealedNode:
        treatment = done.treatment
        layer, index = self.ward.layers[treatment.layer], treatment.index
        return HealedNode(
            layer=treatment.layer,
            index=index,
            code=treatment.code,
            kind=treatment.kind,
            reason=treatment.detail,
            detail=done.detail,
            promise=done.promise,
            gradient_before=before.gradient(layer, index),
            gradient_after=after.gradient(layer, index),
            outgoing_gradient_after=None
            if index is None
            else after.outgoing(self.ward, treatment.layer, index),
            active_before=before.firing(treatment.layer, index),
            active_after=after.firing(treatment.layer, index),
        )


def _initialiser(job: Job, settings: HealSettings) -> str:
    """Return how nodes are drawn: as the options say, else as the configuration does."""
    named = job.inputs.config.actions.init
    if settings.initialiser is not None or named is None:
        return settings.initialiser or DEFAULT
    check_initialiser(named, f"{job.inputs.config.origin('actions.init').source} [actions]: init =")
    return named
