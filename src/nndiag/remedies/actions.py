"""The remedies: which action a finding calls for while the network still trains, and once it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nndiag.records.report import Action, ActionKind, Finding

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
    ("ND204", ("reinitialise", "dormant"), ("prune", "dormant: its removal changes little")),
    ("ND401", ("raise_lr", "flat in every direction"), ("prune", "flat: it does nothing on the probe")),
    ("ND103", ("lower_lr", "its weights have exploded"), ("none", "it carries the function")),
    ("ND302", ("angular_noise", "its gradient cannot turn it"), ("none", "it carries the function")),
    ("ND301", ("none", "this loss does not reach it"), ("none", "this loss does not reach it")),
)  # fmt: skip
"""By finding, the most decisive first: what it calls for while training goes on, and in a finished
network."""

_REPLACES = ("prune", "merge", "reinitialise")


def action_for(findings: Sequence[Finding], goal: Goal, is_output: bool) -> Action:
    """Return the action for one node.

    Args:
        findings: of the node.
        goal: ``"train"`` where training goes on, ``"deploy"`` where the network is finished.
        is_output: whether the node is an output of the network, which cannot be taken out or started anew.
    """
    codes = {finding.code for finding in findings if finding.severity != "info"}
    for code, train, deploy in _BY_FINDING:
        if code in codes:
            kind, reason = train if goal == "train" else deploy
            if is_output and kind in _REPLACES:
                return Action(kind="none", reason=f"{reason} ({code}), but it is an output of the network")
            return Action(kind=kind, reason=f"{reason} ({code})")
    return Action(kind="none", reason="see its findings" if codes else "nothing is wrong with it")
