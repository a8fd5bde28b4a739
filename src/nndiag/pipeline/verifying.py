"""``scan --verify``: every recommended action tried on the probe, alone and all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nndiag.measures import Update
from nndiag.measures.compared import Tried
from nndiag.measures.moving import try_moves
from nndiag.measures.replacing import Replacement
from nndiag.measures.trying import try_replacements
from nndiag.pipeline.stepping import SteppedNodes, try_rates
from nndiag.pipeline.treating import moves_alone, try_treatments
from nndiag.probe.probe import Probe
from nndiag.records.finite import finite
from nndiag.records.report import Diagnosis, NodeDiagnosis, Number
from nndiag.remedies import Goal

_REPLACES = ("prune", "reinitialise", "merge")
"""What leaves a constant or another unit in a unit's place: a new unit's outgoing weights are zero."""


@dataclass(frozen=True)
class Verified:
    """A diagnosis with what its actions did, and a sentence about those that could not be tried."""

    diagnosis: Diagnosis
    untried: str


Place = tuple[str, int]
Numbers = dict[str, Number]


def verified(
    found: Diagnosis, model: nn.Module, probe: Probe, update: Update | None, seed: int, goal: Goal
) -> Verified:
    """Try the actions of a diagnosis.

    Alone, a unit that is to go or to start anew is replaced by its mean output, one to be merged by the other; a bias
    is raised, or weights turned, in one node; a node whose learning rate is to change takes one step at either rate.
    All together, for training, treatments are carried out on a copy as ``nndiag heal`` does it, which also shows the
    gradients that reach the nodes then; for deployment all units are replaced at once.

    Args:
        found: what was said of the checkpoint.
        model: with its weights; left exactly as it was.
        probe: what the diagnosis rests on.
        update: the update rule, where it is known.
        seed: of random numbers.
        goal: what the actions are for.

    Raises:
        NonFiniteOutputError: there is nothing that could be compared.
        ModelError: the model does not run on the probe.
    """
    advised = [node for node in found.nodes if node.action.kind != "none"]
    wanted = {
        (node.layer, node.index): _replacement(node) for node in advised if node.action.kind in _REPLACES
    }
    trials = try_replacements(model, probe, tuple(wanted.values()), seed)
    alone = {
        place: _numbers(trials.loss, one)
        for place, one in zip(wanted, trials.alone, strict=True)
        if one is not None
    }
    training = goal == "train" and bool(advised)
    treated = try_treatments(found, model, probe, seed) if training else None
    moves = moves_alone(found, model, probe, seed) if training else ()
    stepped = try_rates(found, model, probe, update, seed) if training else SteppedNodes()
    if moves:
        moved = try_moves(model, probe, moves, seed)
        tried = zip(moves, moved.alone, strict=True)
        alone |= {(move.layer, move.index): _numbers(moved.loss, one) for move, one in tried}
    more: tuple[Mapping[Place, Numbers], ...] = (
        alone,
        {} if treated is None else treated.nodes,
        stepped.nodes,
    )
    known = {place for part in more for place in part}
    nodes = tuple(
        _with(node, _gradient(node), *(part.get((node.layer, node.index), {}) for part in more))
        if (node.layer, node.index) in known and node.action.kind != "none"
        else node
        for node in found.nodes
    )
    whole = None if treated is None else treated.together
    if whole is None and trials.together is not None:
        whole = {"actions": sum(place in wanted for place in alone), **_numbers(trials.loss, trials.together)}
    whole = _with_steps(whole, stepped.together)
    tried_all = found.model_copy(
        update={"nodes": nodes, "model": found.model.model_copy(update={"verified": whole})}
    )
    left = [node for node in advised if (node.layer, node.index) not in known]
    return Verified(tried_all, _untried(left, stepped.why_not))


def _with_steps(whole: Numbers | None, steps: Numbers | None) -> Numbers | None:
    """Add what steps at other rates do to what treatments do; they are not the same change of the network."""
    if steps is None or whole is None:
        return steps if whole is None else whole
    after, present = steps["loss_after"], steps["loss_after_at_present_lr"]
    more = {"steps": steps["actions"], "steps_loss_after": after, "steps_loss_after_at_present_lr": present}
    return {**whole, **more}


def _replacement(node: NodeDiagnosis) -> Replacement:
    by = None
    if node.action.kind == "merge":
        partners = (finding.evidence.get("duplicate_of") for finding in node.findings)
        by = next((int(one) for one in partners if isinstance(one, int)), None)
    return Replacement(node.layer, node.index, by)


def _gradient(node: NodeDiagnosis) -> dict[str, Number]:
    known = node.measures.get("gradient_norm")
    return {} if known is None else {"gradient_before": known}


def _numbers(before: float | None, tried: Tried) -> dict[str, Number]:
    losses = {} if before is None else {"loss_before": finite(before), "loss_after": finite(tried.loss)}
    return {**losses, "output_change": finite(tried.output_change)}


def _with(node: NodeDiagnosis, *parts: Mapping[str, Number]) -> NodeDiagnosis:
    numbers = {name: value for part in parts for name, value in part.items()}
    action = node.action.model_copy(update={"verified": numbers})
    return node.model_copy(update={"action": action})


def _untried(nodes: Sequence[NodeDiagnosis], why_no_step: str) -> str:
    """Return which actions were not tried, and why no step was, empty where all were."""
    counts = Counter(node.action.kind for node in nodes)
    said = ", ".join(
        f"{kind} of {count:,} node{'s' * (count != 1)}" for kind, count in sorted(counts.items())
    )
    why = f" ({why_no_step})" if why_no_step and {"lower_lr", "raise_lr"} & counts.keys() else ""
    return f"not tried on the probe: {said}{why}" if said else ""
