"""``scan --verify``: every recommended action tried on the probe, alone and all together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nndiag.measures.replacing import Replacement
from nndiag.measures.trying import Tried, try_replacements
from nndiag.pipeline.treating import try_treatments
from nndiag.probe.probe import Probe
from nndiag.records.report import Diagnosis, NodeDiagnosis, Number
from nndiag.remedies import Goal

_REPLACES = ("prune", "reinitialise", "merge")
"""What leaves a constant or another unit in a unit's place: a new unit's outgoing weights are zero."""


@dataclass(frozen=True)
class Verified:
    """A diagnosis with what its actions did, and a sentence about those that could not be tried."""

    diagnosis: Diagnosis
    untried: str


def verified(found: Diagnosis, model: nn.Module, probe: Probe, seed: int, goal: Goal) -> Verified:
    """Try the actions of a diagnosis.

    Alone, a unit that is to go or to start anew is replaced by its mean output, one to be merged by the other. All
    together, for training, they are carried out on a copy as ``nndiag heal`` does it, which also shows the gradients
    that reach the nodes then; for deployment all units are replaced at once.

    Args:
        found: what was said of the checkpoint.
        model: with its weights; left exactly as it was.
        probe: what the diagnosis rests on.
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
    alone = {place: one for place, one in zip(wanted, trials.alone, strict=True) if one is not None}
    treated = try_treatments(found, model, probe, seed) if goal == "train" and advised else None
    of_treated = {} if treated is None else treated.nodes
    numbers = {
        (node.layer, node.index): {
            **({} if (one := alone.get((node.layer, node.index))) is None else _numbers(trials.loss, one)),
            **_gradient(node),
            **of_treated.get((node.layer, node.index), {}),
        }
        for node in advised
        if (node.layer, node.index) in alone or (node.layer, node.index) in of_treated
    }
    nodes = tuple(
        _with(node, numbers[node.layer, node.index]) if (node.layer, node.index) in numbers else node
        for node in found.nodes
    )
    whole: dict[str, Number] | None = None
    if treated is not None and treated.together is not None:
        whole = treated.together
    elif trials.together is not None:
        whole = {"actions": len(alone), **_numbers(trials.loss, trials.together)}
    tried = found.model_copy(
        update={"nodes": nodes, "model": found.model.model_copy(update={"verified": whole})}
    )
    return Verified(tried, _untried([node for node in advised if (node.layer, node.index) not in numbers]))


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
    losses = {} if before is None else {"loss_before": _finite(before), "loss_after": _finite(tried.loss)}
    return {**losses, "output_change": _finite(tried.output_change)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _with(node: NodeDiagnosis, numbers: dict[str, Number]) -> NodeDiagnosis:
    action = node.action.model_copy(update={"verified": numbers})
    return node.model_copy(update={"action": action})


def _untried(nodes: Sequence[NodeDiagnosis]) -> str:
    """Return which actions were not tried, empty where all were."""
    counts = Counter(node.action.kind for node in nodes)
    said = ", ".join(f"{kind} of {count:,} nodes" for kind, count in sorted(counts.items()))
    return f"not tried on the probe: {said}" if said else ""
