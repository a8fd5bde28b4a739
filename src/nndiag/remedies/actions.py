"""The remedies: which action a finding calls for while the network still trains, and once it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nndiag.records.report import Action, ActionKind, Finding
from nndiag.rules.base import CHANNEL, ELSEWHERE

Goal = Literal["train", "deploy"]

Remedy = tuple[ActionKind, str]

_BY_FINDING: tuple[tuple[str, Remedy, Remedy], ...] = (
    ("ND101", ("none", "not finite: go back to the last checkpoint without it"),
              ("none", "not finite: go back to the last checkpoint without it")),
    ("ND102", ("reinitialise", "collapsed: it is a constant"), ("prune", "collapsed: it is a constant")),
    ("ND201", ("reinitialise", "dead: no gradient can revive it"), ("prune", "dead: it does nothing on the probe")),
    ("ND202", ("reinitialise", "saturated: hardly any gradient passes"), ("prune", "saturated: nearly constant")),
    ("ND402", ("lower_lr", "its curvature is above the stability threshold"), ("none", "training is over")),
    ("ND304", ("reinitialise", "nothing listens to it"), ("prune", "nothing listens to it")),
    ("ND203", ("reinitialise", "its output is constant"), ("prune", "its output is constant")),
    ("ND104", ("reinitialise", "it repeats another node"), ("merge", "it repeats another node")),
    ("ND206", ("reinitialise", "its output repeats another's"), ("merge", "its output repeats another's")),
    ("ND204", ("reinitialise", "dormant"), ("prune", "dormant: try its removal on data first")),
    ("ND401", ("raise_lr", "flat in every direction"), ("prune", "flat: the output hardly depends on it")),
    ("ND103", ("lower_lr", "its weights have exploded"), ("none", "it carries the function")),
    ("ND404", ("lower_lr", "the next step takes back this one"), ("none", "training is over")),
    ("ND303", ("lower_lr", "its gradients have exploded"), ("none", "training is over")),
    ("ND302", ("angular_noise", "its gradient cannot turn it"), ("none", "it carries the function")),
    ("ND403", ("none", "at a saddle: descent leaves it by itself"), ("none", "it carries the function")),
    ("ND301", ("none", "this loss does not reach it"), ("none", "this loss does not reach it")),
)  # fmt: skip
"""By finding, the most decisive first: what it calls for while training goes on, and in a finished
network."""

_REPLACES = ("prune", "merge", "reinitialise")
_TAKES_OUT = ("prune", "merge")


def action_for(
    findings: Sequence[Finding],
    goal: Goal,
    is_output: bool,
    whole_layer: bool = False,
    few: int | None = None,
    tied: str | None = None,
) -> Action:
    """Return the action for one node.

    Args:
        findings: of the node.
        goal: ``"train"`` where training goes on, ``"deploy"`` where the network is finished.
        is_output: whether the node is an output of the network, which cannot be taken out or started anew.
        whole_layer: whether no node of its layer is any better: taking them all out would cut the network through.
        few: the samples that the findings rest on, where they are too few to act on unchecked.
        tied: why the node cannot be taken out by itself, where it cannot.
    """
    serious = [finding for finding in findings if finding.severity != "info"]
    if not serious:
        return Action(kind="none", reason="nothing is wrong with it")
    own = own_findings(findings)
    if not own:
        return _mended_elsewhere(serious, goal, is_output or tied is not None)
    if "ND301" in own and own["ND301"].evidence.get("detached"):
        return Action(
            kind="none",
            reason="the code detaches it: the output depends on it, and it does not learn (ND301)",
        )
    for code, train, deploy in _BY_FINDING:
        if code in own:
            kind, reason = _special(own[code], goal, is_output) or (train if goal == "train" else deploy)
            if is_output and kind in _REPLACES:
                return Action(kind="none", reason=f"{reason} ({code}), but it is an output of the network")
            if tied and kind in _TAKES_OUT:
                return Action(kind="none", reason=f"{reason} ({code}), but {tied}")
            if whole_layer and kind == "prune":
                kind, reason = (
                    "reinitialise",
                    f"{reason}, like its whole layer: pruning would cut the network",
                )
            caution = f"; only {few} samples say so: check on more" if few and kind in _REPLACES else ""
            return Action(kind=kind, reason=f"{reason} ({code}){caution}")
    return Action(kind="none", reason="see its findings")


def own_findings(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return the findings above a note whose reason lies in the node itself, by code, the most decisive first."""
    serious = [finding for finding in findings if finding.severity != "info"]
    elsewhere = {finding.code for finding in serious if ELSEWHERE in finding.evidence}
    own = {f.code: f for f in serious if f.code not in elsewhere and f.cause not in elsewhere}
    known = [code for code, _, _ in _BY_FINDING if code in own]
    return {code: own[code] for code in [*known, *(code for code in own if code not in known)]}


def takes_out(finding: Finding) -> ActionKind | None:
    """Return how a finished network is freed of a node with this finding: pruned, merged, or not at all."""
    for code, _, deploy in _BY_FINDING:
        if code == finding.code:
            kind, _ = _special(finding, "deploy", False) or deploy
            return kind if kind in _TAKES_OUT else None
    return None


def _mended_elsewhere(findings: Sequence[Finding], goal: Goal, stays: bool) -> Action:
    """Return what to do about a node whose trouble lies in another layer.

    In a finished network a unit goes together with the channel that scales it.
    """
    first = next(finding for finding in findings if ELSEWHERE in finding.evidence)
    sentence, together = first.evidence[ELSEWHERE], first.evidence.get(CHANNEL) and goal == "deploy"
    do = "the two go together" if together else "mend that first"
    kind: ActionKind = "prune" if together and not stays else "none"
    return Action(kind=kind, reason=f"{sentence}: {do} ({first.code})")


def _special(finding: Finding, goal: Goal, is_output: bool) -> Remedy | None:
    """Return what a finding calls for where its evidence says that the usual remedy would do harm."""
    if finding.evidence.get("profile") == "literal":
        return (
            "none",
            "degenerate by the literal rule, which flags healthy nodes too: judge by the default profile",
        )
    if finding.code == "ND202" and finding.evidence.get("switches"):
        if goal == "train":
            return "none", "saturated, yet it switches: scale its weights down or normalise its inputs"
        return "none", "saturated, yet it switches: it carries the function"
    if finding.code == "ND102" and finding.evidence.get("single") and goal == "train":
        return "reinitialise", "its one weight is zero: start it anew, from one if it is a scale"
    if finding.code == "ND104" and finding.evidence.get("rows") and goal == "train":
        return "reinitialise", "it repeats another row, and learns the same as long as both are used alike"
    if finding.code == "ND104" and finding.evidence.get("mirrored"):
        return "none", "the mirror image of another node: the two differ where it counts"
    if finding.code == "ND401" and finding.evidence.get("reason") == "outputs" and goal == "train":
        return "reinitialise", "flat: the outputs hardly move without it"
    if finding.code == "ND201" and is_output and goal == "train":
        return "bias_warmup", "a dead output: raise its bias until it fires"
    return None
