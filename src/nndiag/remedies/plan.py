"""The treatments of a checkpoint: what ``heal`` shall do to which node, read from the record of a scan.

No tensor is looked at here: whether a treatment can be carried out, and what it does, only surgery finds out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from nndiag.records.report import Diagnosis, Finding, LayerDiagnosis, NodeDiagnosis
from nndiag.remedies.actions import Goal, own_findings, takes_out
from nndiag.remedies.parts import TOGETHER
from nndiag.rules.base import ELSEWHERE, LAYER_TO_MEND

TreatmentKind = Literal[
    "reinitialise", "bias_warmup", "angular_noise", "leaky_slope", "lower_lr", "raise_lr", "prune", "merge"
]
ADVICE: frozenset[TreatmentKind] = frozenset(["lower_lr", "raise_lr", "leaky_slope"])
"""Treatments that no change of a parameter carries out: they are for the one who trains."""


_FOLLOWS = "dead behind a layer that starts anew as a whole"


@dataclass(frozen=True)
class Treatment:
    """One thing to do.

    ``index`` is the node, ``None`` for its whole layer; ``code`` the finding that calls for it, ``detail`` a few words.
    ``twin`` is the node that this one repeats, where that is the finding.
    """

    layer: str
    index: int | None
    code: str
    kind: TreatmentKind
    detail: str
    twin: int | None = None


def plan(
    diagnosis: Diagnosis, goal: Goal, only: Sequence[str] = (), layers: Sequence[str] = ()
) -> tuple[Treatment, ...]:
    """Return the treatments that a goal calls for, in the order of the network, whole layers before their nodes.

    A node is treated for its most decisive finding, and for none whose reason lies in another layer.

    Args:
        diagnosis: of one checkpoint, its actions for the same goal.
        goal: ``"train"`` or ``"deploy"``.
        only: codes, or beginnings of codes, of the findings to treat; all where there are none.
        layers: patterns of names of layers to treat, as in a shell; all where there are none.
    """
    nodes: dict[str, list[NodeDiagnosis]] = {}
    for node in diagnosis.nodes:
        nodes.setdefault(node.layer, []).append(node)
    found = [
        treatment
        for layer in diagnosis.layers
        for treatment in (*_of_layer(layer, goal), *_of_nodes(layer, nodes.get(layer.name, ()), goal))
    ]
    if goal == "train":
        found = _with_followers(found, diagnosis, nodes)
    return tuple(
        treatment
        for treatment in found
        if (not only or treatment.code.startswith(tuple(only)))
        and (not layers or any(fnmatchcase(treatment.layer, pattern) for pattern in layers))
    )


def _with_followers(
    found: Sequence[Treatment], diagnosis: Diagnosis, nodes: Mapping[str, Sequence[NodeDiagnosis]]
) -> list[Treatment]:
    """Add dead nodes that follow from a layer of which every node starts anew: they start anew too.

    What such a node hears of that layer is then as good as nothing, so that it is left with no weights to speak of; a
    dead node can be started anew without a change of the function.
    """
    every, more = list(found), True
    sizes = {layer.name: layer.nodes for layer in diagnosis.layers}
    while more:
        anew = Counter(t.layer for t in every if t.kind == "reinitialise" and t.index is not None)
        whole = {name for name, count in anew.items() if count == sizes[name]}
        known = {(t.layer, t.index) for t in every}
        followers = [
            Treatment(node.layer, node.index, "ND201", "reinitialise", _FOLLOWS)
            for node in (node for some in nodes.values() for node in some)
            if (node.layer, node.index) not in known
            and any(f.code == "ND201" and f.evidence.get(LAYER_TO_MEND) in whole for f in node.findings)
        ]
        every += followers
        more = bool(followers)
    order = {name: place for place, name in enumerate(sizes)}
    return sorted(every, key=lambda t: (order[t.layer], t.index is not None))


def _of_layer(layer: LayerDiagnosis, goal: Goal) -> Iterator[Treatment]:
    """Yield what a layer needs as a whole: its bias raised, where data activate none of its units."""
    for finding in layer.findings:
        is_own = finding.severity != "info" and ELSEWHERE not in finding.evidence
        if finding.code == "ND250" and goal == "train" and is_own:
            share = float(finding.evidence["dead_data_fraction"] or 0.0)
            detail = f"{100 * share:.2g} % of the samples activate no unit"
            yield Treatment(layer.name, None, "ND250", "bias_warmup", detail)


def _of_nodes(layer: LayerDiagnosis, nodes: Sequence[NodeDiagnosis], goal: Goal) -> Iterator[Treatment]:
    for node in nodes:
        own = own_findings(node.findings)
        if not own:
            if (
                node.action.kind == "prune" and goal == "deploy"
            ):  # a unit goes with the channel that scales it
                blamed = next(f for f in node.findings if ELSEWHERE in f.evidence)
                yield Treatment(node.layer, node.index, blamed.code, "prune", node.action.reason)
            continue
        code, finding = next(iter(own.items()))
        kind = _kind(code, node, goal) or _silenced(layer, node, finding, goal)
        if kind is not None:
            yield Treatment(node.layer, node.index, code, kind, _detail(node, code), _twin(finding))


def _kind(code: str, node: NodeDiagnosis, goal: Goal) -> TreatmentKind | None:
    """Return what is done for a finding; a scan advises the same, but where it cannot act by itself."""
    if goal == "train" and code in ("ND101", "ND103"):
        return (
            "reinitialise"  # advice would be to go back or to slow down; here the node is there to be mended
        )
    if goal == "deploy" and node.action.kind == "reinitialise":
        return "prune"  # of a whole layer, which becomes a constant
    return None if node.action.kind == "none" else node.action.kind


def _silenced(
    layer: LayerDiagnosis, node: NodeDiagnosis, finding: Finding, goal: Goal
) -> TreatmentKind | None:
    """Return what surgery shall try of a node that a scan says goes only with others: to silence it, or say why not."""
    if goal != "deploy" or node.action.kind != "none" or layer.is_output or layer.kind not in TOGETHER:
        return None
    kind = takes_out(finding)
    return kind if kind in ("prune", "merge") else None


def _detail(node: NodeDiagnosis, code: str) -> str:
    return (
        node.action.reason.replace(f" ({code})", "")
        .partition(", like its whole layer")[0]
        .partition(", but ")[0]
    )


def _twin(finding: Finding) -> int | None:
    twin = finding.evidence.get("duplicate_of")
    return None if twin is None else int(twin)
