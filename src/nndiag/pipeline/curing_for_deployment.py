"""Goal ``deploy`` carried out on a model in memory: what does nothing is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from nndiag.errors import InputError
from nndiag.pipeline.cured import Cured, HealSettings, left_node
from nndiag.pipeline.job import Job, Loaded
from nndiag.pipeline.surroundings import is_from_config
from nndiag.records.healing import Costs, HealedNode, LeftNode
from nndiag.records.level import Level
from nndiag.records.report import Diagnosis
from nndiag.remedies.plan import Treatment, plan
from nndiag.replay.kinds import Layer
from nndiag.surgery.deploying import Cost, Deployed, Done, deploy
from nndiag.surgery.deploying.widths import widths_of
from nndiag.surgery.edits import Edits
from nndiag.surgery.proof import output_change, replay

Node = tuple[str, int]
ROUNDS = 12
"""How often what was only heard by nodes that went is looked for."""
LIMIT = 1e-5
"""Share of the outputs' scale by which taking out what does nothing may change them, by rounding."""
_KINDS = {"removed": "prune", "folded": "prune", "merged": "merge", "zeroed": "prune"}
_MANNERS = {
    "removed": "taken out: it put out nothing",
    "folded": "taken out, its constant output added to the biases after it",
    "merged": "taken out, its outgoing weights added to those of the node that it repeats",
    "zeroed": "its weights set to zero, since it cannot be taken out",
}


def cure_for_deployment(job: Job, loaded: Loaded, before: Diagnosis, settings: HealSettings) -> Cured:
    """Take out of the model of a job, whose weights are loaded, what does nothing.

    What only the taken nodes listened to does nothing then: a measurement shows it, and it goes next.

    Raises:
        InputError: the result is worse than promised.
    """
    model, probe = job.inputs.model, job.inputs.probe
    assert model is not None
    assert probe is not None
    first = replay(model, probe, settings.scan.seed, gradients=False)
    if not first.finite:
        why = "the outputs of the network are not finite, so that nothing can be proved"
        raise InputError("heal", why, "go back to a checkpoint without ND101, or use --goal train")
    run = _Deployment(job, loaded, before, settings, model)
    run.take_out()
    last = replay(run.module, probe, settings.scan.seed, gradients=False)
    change = output_change(first, last)
    if change is None or change > LIMIT:
        said = "to what is not finite" if change is None else f"by {change:.2g} of their scale"
        why = f"taking nodes out should keep the outputs, and changes them {said}"
        raise InputError("heal", why, "leave them out with --only or --layers; nothing was written")
    widths = widths_of(model, run.module) if run.changed else {}
    return Cured(
        edits=run.edits,
        original=model,
        module=run.module,
        after=run.after,
        actions=tuple(run.actions.values()),
        left=tuple(run.left.values()),
        loss_before=first.loss,
        loss_after=last.loss,
        output_change=change,
        widths=widths or None,
        config=run.config,
        costs=run.costs,
    )


class _Deployment:
    """Rounds of taking nodes out, and what has come of them so far; nodes keep the numbers that they came with."""

    def __init__(
        self, job: Job, loaded: Loaded, before: Diagnosis, settings: HealSettings, model: nn.Module
    ) -> None:
        self.job, self.loaded, self.settings = job, loaded, settings
        self.module, self.after, self.edits = model, before, Edits()
        self.actions: dict[Node, HealedNode] = {}
        self.left: dict[Node, LeftNode] = {}
        self.config: Mapping[str, object] | None = None
        self.costs: tuple[Costs, Costs] | None = None
        self._from_config = is_from_config(job)

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.actions)

    def take_out(self) -> None:
        """Take out what does nothing, until a measurement shows nothing more of that kind."""
        batches = [batch.inputs for batch in self.job.inputs.probe.batches()] if self.job.inputs.probe else []
        shallow = replace(self.job, level=min(self.job.level, Level.GRADIENTS))
        for _ in range(ROUNDS):
            wanted = self._wanted()
            if not wanted:
                return
            found = deploy(self.module, batches, wanted, from_config=self._from_config)
            self._note(found, wanted, _numbers(found.layers, self.edits))
            gone = any(one.did in ("removed", "folded", "merged") for one in found.done)
            if not gone and not found.edits:
                return
            self.module, self.edits = found.module, self.edits.then(found.edits)
            self.config = found.config or self.config
            before = self.costs[0] if self.costs else _costs(found.before)
            self.costs = (before, _costs(found.after))
            # what the optimiser kept of the larger network does not fit the smaller one
            self.after = shallow.examine(replace(self.loaded, update=None), self.module)
            if self._from_config or not gone:
                return

    def _wanted(self) -> list[Treatment]:
        planned = plan(self.after, "deploy", self.settings.only, self.settings.layers)
        return [t for t in planned if t.kind in ("prune", "merge")]

    def _note(self, found: Deployed, wanted: list[Treatment], numbers: Mapping[str, list[int]]) -> None:
        """Take note of what was done, by the numbers that nodes had in the checkpoint."""
        causes = {(t.layer, t.index): t for t in wanted}
        for one in found.done:
            cause = causes[one.layer, one.index]
            index = numbers[one.layer][one.index] if one.layer in numbers else one.index
            node = (one.layer, index)
            if one.did == "left":
                if node not in self.actions:
                    self.left[node] = left_node(replace(cause, index=index), one.why)
                continue
            self.left.pop(node, None)
            known = self.actions.get(node)  # of what a round before made zero the first cause is said
            action = _action(one, cause, index)
            same = {} if known is None else {"code": known.code, "reason": known.reason}
            self.actions[node] = action.model_copy(update=same)


def _numbers(layers: Mapping[str, Layer], edits: Edits) -> dict[str, list[int]]:
    """Return the numbers that the nodes of layers had before earlier rounds, by layer."""
    found = {}
    for layer in layers.values():
        slot = layer.weights[0]
        kept = edits.kept.get(slot.parameter)
        if kept is None:
            continue
        axis = 0 if slot.along_first else next(iter(slot.units))
        places = kept[axis] if axis < len(kept) else None
        if places is not None and len(places) == layer.nodes:
            found[layer.name] = places.tolist()
    return found


def _action(one: Done, cause: Treatment, index: int) -> HealedNode:
    why = f" ({one.why})" if one.why else ""
    return HealedNode(
        layer=one.layer, index=index, code=cause.code, kind=_KINDS[one.did], reason=cause.detail,
        detail=_MANNERS[one.did] + why, promise="unchanged",
    )  # fmt: skip


def _costs(cost: Cost) -> Costs:
    return Costs(flops=cost.flops, seconds=cost.seconds)
