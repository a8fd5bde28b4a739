"""Goal ``deploy`` carried out on a model in memory: what does nothing is taken out."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from nndiag.errors import InputError
from nndiag.pipeline.cured import Cured, HealSettings, left_node
from nndiag.pipeline.job import Job, Loaded
from nndiag.records.healing import Costs, HealedNode
from nndiag.records.report import Diagnosis
from nndiag.remedies.plan import Treatment, plan
from nndiag.surgery.deploying import Cost, Deployed, deploy
from nndiag.surgery.edits import Edits
from nndiag.surgery.proof import output_change, replay

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

    Raises:
        InputError: the result is worse than promised.
    """
    model, probe = job.inputs.model, job.inputs.probe
    assert model is not None
    assert probe is not None
    treatments = [
        t for t in plan(before, "deploy", settings.only, settings.layers) if t.kind in ("prune", "merge")
    ]
    first = replay(model, probe, settings.scan.seed, gradients=False)
    if not first.finite:
        why = "the outputs of the network are not finite, so that nothing can be proved"
        raise InputError("heal", why, "go back to a checkpoint without ND101, or use --goal train")
    if not treatments:
        return Cured(Edits(), model, model, before, (), (), first.loss, first.loss, 0.0)
    found = deploy(model, (batch.inputs for batch in probe.batches()), treatments)
    last = replay(found.module, probe, settings.scan.seed, gradients=False)
    change = output_change(first, last)
    if change is None or max(change, found.output_change) > LIMIT:
        why = f"taking nodes out should keep the outputs, and changes them by {change or found.output_change:.2g}"
        raise InputError("heal", why, "leave them out with --only or --layers; nothing was written")
    after = _examined(job, loaded, found.module)
    causes = {(t.layer, t.index): t for t in treatments}
    return Cured(
        edits=found.edits,
        original=copy.deepcopy(model),
        module=found.module,
        after=after,
        actions=_actions(found, causes),
        left=tuple(
            left_node(causes[one.layer, one.index], one.why) for one in found.done if one.did == "left"
        ),
        loss_before=first.loss,
        loss_after=last.loss,
        output_change=change,
        widths=found.widths or None,
        costs=(_costs(found.before), _costs(found.after)),
    )


def _examined(job: Job, loaded: Loaded, module: nn.Module) -> Diagnosis:
    """Examine a smaller network; what the optimiser kept of the larger one does not fit it."""
    return job.examine(replace(loaded, update=None), module)


def _actions(found: Deployed, causes: dict[tuple[str, int | None], Treatment]) -> tuple[HealedNode, ...]:
    actions = []
    for one in found.done:
        if one.did == "left":
            continue
        cause = causes[one.layer, one.index]
        why = f" ({one.why})" if one.why else ""
        action = HealedNode(
            layer=one.layer, index=one.index, code=cause.code, kind=_KINDS[one.did], reason=cause.detail,
            detail=_MANNERS[one.did] + why, promise="unchanged",
        )  # fmt: skip
        actions.append(action)
    return tuple(actions)


def _costs(cost: Cost) -> Costs:
    return Costs(flops=cost.flops, seconds=cost.seconds)
