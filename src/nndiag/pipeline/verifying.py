"""``scan --verify``: every recommended action tried on the probe, alone and all together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nndiag.measures.replacing import Replacement
from nndiag.measures.trying import Tried, try_replacements
from nndiag.probe.probe import Probe
from nndiag.records.report import Diagnosis, NodeDiagnosis, Number

_REPLACES = ("prune", "reinitialise", "merge")
"""What leaves a constant or another unit in a unit's place: a new unit's outgoing weights are zero."""


@dataclass(frozen=True)
class Verified:
    """A diagnosis with what its actions did, and a sentence about those that could not be tried."""

    diagnosis: Diagnosis
    untried: str


def verified(found: Diagnosis, model: nn.Module, probe: Probe, seed: int) -> Verified:
    """Try the actions of a diagnosis.

    Args:
        found: what was said of the checkpoint.
        model: with its weights; left exactly as it was.
        probe: what the diagnosis rests on.
        seed: for models that draw numbers.

    Raises:
        NonFiniteOutputError: there is nothing that could be compared.
        ModelError: the model does not run on the probe.
    """
    advised = [node for node in found.nodes if node.action.kind != "none"]
    wanted = {
        (node.layer, node.index): _replacement(node) for node in advised if node.action.kind in _REPLACES
    }
    trials = try_replacements(model, probe, tuple(wanted.values()), seed)
    done = {place: one for place, one in zip(wanted, trials.alone, strict=True) if one is not None}
    nodes = tuple(
        _with(node, _numbers(trials.loss, done[node.layer, node.index], _gradient(node)))
        if (node.layer, node.index) in done
        else node
        for node in found.nodes
    )
    whole = None
    if trials.together is not None:
        whole = {"actions": len(done), **_numbers(trials.loss, trials.together, {})}
    tried = found.model_copy(
        update={"nodes": nodes, "model": found.model.model_copy(update={"verified": whole})}
    )
    return Verified(tried, _untried([node for node in advised if (node.layer, node.index) not in done]))


def _replacement(node: NodeDiagnosis) -> Replacement:
    by = None
    if node.action.kind == "merge":
        partners = (finding.evidence.get("duplicate_of") for finding in node.findings)
        by = next((int(one) for one in partners if isinstance(one, int)), None)
    return Replacement(node.layer, node.index, by)


def _gradient(node: NodeDiagnosis) -> dict[str, Number]:
    known = node.measures.get("gradient_norm")
    return {} if known is None else {"gradient_before": known}


def _numbers(before: float | None, tried: Tried, more: dict[str, Number]) -> dict[str, Number]:
    losses = {} if before is None else {"loss_before": _finite(before), "loss_after": _finite(tried.loss)}
    return {**losses, "output_change": _finite(tried.output_change), **more}


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
