"""What one checkpoint of a report says, in the terms of a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nndiag.records.document import Json, found_in, subject_of
from nndiag.records.fitting import is_number
from nndiag.records.gate import Gravity

LEVELS = ("weights", "activations", "gradients", "curvature")
_DEGENERATE = ("collapsed", "plateau")
_LETTERS = {"c": "collapsed", "p": "plateau", "d": "plateau"}

HOW_BAD: Mapping[str, tuple[str, bool]] = {
    "ND102": ("weight_norm", False),
    "ND103": ("times_median", True),
    "ND204": ("dormancy", False),
    "ND250": ("dead_data_fraction", True),
    "ND251": ("effective_rank", False),
    "ND252": ("degenerate_fraction", True),
    "ND302": ("torque_ratio", False),
    "ND350": ("torque_ratio_mean", False),
    "ND402": ("stability_margin", True),
    "ND403": ("lambda_min", False),
}
"""Of findings that come in degrees the evidence that says how bad it is, and whether more is worse."""

Place = tuple[str, str | None, int | None]
"""A rule's word, a layer, a node."""


@dataclass(frozen=True)
class LayerFacts:
    """One layer: its judged nodes, and the indices of those that are dead, and that are degenerate."""

    nodes: int
    judged: int
    dead: frozenset[int]
    degenerate: frozenset[int]
    effective_rank: float | None

    @property
    def dead_fraction(self) -> float:
        """Share of the judged nodes that have ND201."""
        return len(self.dead) / max(self.judged, 1)

    @property
    def degenerate_fraction(self) -> float:
        """Share of the judged nodes that are collapsed or on a plateau."""
        return len(self.degenerate) / max(self.judged, 1)


@dataclass(frozen=True)
class Facts:
    """A checkpoint: its layers, loss, and findings by place.

    ``findings`` maps ``(code, layer, node)`` to how bad it is, a number that grows with the trouble, ``None`` where the
    finding comes in no degrees. ``gravity`` has their severities. ``loss`` is NaN where it was asked for and is not
    finite, ``None`` where it was not taken.
    """

    subject: str
    level: str
    layers: Mapping[str, LayerFacts]
    loss: float | None
    findings: Mapping[Place, float | None] = field(default_factory=dict)
    gravity: Mapping[Place, Gravity] = field(default_factory=dict)
    messages: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    looked_for: tuple[str, ...] = ()

    def reaches(self, level: str) -> bool:
        """Whether the checkpoint was measured at this level or deeper."""
        return self.level in LEVELS and LEVELS.index(self.level) >= LEVELS.index(level)

    def sees(self, code: str) -> bool:
        """Whether a finding of this code would be in the report."""
        chosen = not self.looked_for or any(_overlap(code, one) for one in self.looked_for)
        return chosen and not any(code.startswith(one) for one in self.left_out)


def facts_of(document: Json, index: int = -1) -> Facts:
    """Return what a report says of one of its checkpoints."""
    diagnosis = document["checkpoints"][index]
    findings: dict[Place, float | None] = {}
    gravity: dict[Place, Gravity] = {}
    messages: dict[tuple[str, str | None], str] = {}
    dead: dict[str, set[int]] = {}
    for finding, layer, node in found_in(diagnosis):
        code = str(finding.get("code", ""))
        place = (code, layer, node)
        findings[place] = _badness(code, finding.get("evidence") or {})
        gravity[place] = _gravity(finding.get("severity"))
        messages.setdefault((code, layer), str(finding.get("message", "")))
        if code == "ND201" and layer is not None and node is not None:
            dead.setdefault(layer, set()).add(node)
    settings = document.get("settings") or {}
    return Facts(
        subject=subject_of(diagnosis),
        level=diagnosis["level"],
        layers={
            layer["name"]: _layer(
                layer, frozenset(dead.get(layer["name"], ())), _degenerate(layer, diagnosis)
            )
            for layer in diagnosis["layers"]
        },
        loss=_loss(diagnosis),
        findings=findings,
        gravity=gravity,
        messages=messages,
        left_out=tuple(settings.get("ignore") or ()),
        looked_for=tuple(settings.get("select") or ()),
    )


def _gravity(word: object) -> Gravity:
    """Return a severity; one that is not known counts as the gravest."""
    return word if word == "warning" or word == "info" else "error"


def _layer(layer: Json, dead: frozenset[int], degenerate: frozenset[int]) -> LayerFacts:
    rank = layer.get("measures", {}).get("effective_rank")
    return LayerFacts(layer["nodes"], layer["nodes"] - layer.get("unobserved", 0), dead, degenerate, rank)


def _degenerate(layer: Json, diagnosis: Json) -> frozenset[int]:
    """Return the degenerate nodes: from the table of every node where there is one, else from those that are listed."""
    table = layer.get("every_node")
    if isinstance(table, dict) and isinstance(states := table.get("states"), str):
        return frozenset(i for i, letter in enumerate(states) if letter in _LETTERS)
    return frozenset(
        node["index"]
        for node in diagnosis["nodes"]
        if node["layer"] == layer["name"] and node.get("verdict") in _DEGENERATE
    )


def _loss(diagnosis: Json) -> float | None:
    loss = diagnosis["model"].get("loss")
    if loss is not None:
        return float(loss)
    probe = diagnosis.get("probe") or {}
    asked = (
        probe.get("has_targets") and probe.get("loss") and diagnosis["level"] in ("gradients", "curvature")
    )
    return math.nan if asked else None


def _badness(code: str, evidence: Json) -> float | None:
    """Return how bad a finding is, on a scale on which more is worse."""
    if code not in HOW_BAD:
        return None
    measure, more_is_worse = HOW_BAD[code]
    value = evidence.get(measure)
    if isinstance(value, bool) or not is_number(value):
        return None
    return float(value) if more_is_worse else -float(value)


def _overlap(code: str, other: str) -> bool:
    return code.startswith(other) or other.startswith(code)
