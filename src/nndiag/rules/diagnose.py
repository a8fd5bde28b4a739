"""From numbers to findings and verdicts, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nndiag.errors import UsageError
from nndiag.records.measured import Floats, LayerMeasures, Measured
from nndiag.records.report import DEGENERATE, Finding
from nndiag.rules import RULES, Rule, is_known
from nndiag.rules.across import Blame, blames, own_fault
from nndiag.rules.base import CHANNEL, ELSEWHERE, LAYER_TO_MEND, Context, Hit, Scales
from nndiag.rules.behind import of_the_model
from nndiag.rules.causes import cause_of, shared_cause
from nndiag.rules.channels import channel_blames
from nndiag.rules.elsewhere import Elsewhere
from nndiag.rules.literal import LITERAL_CODES, literal_hits
from nndiag.rules.nodes import absent
from nndiag.rules.scales import layer_scales, model_scales
from nndiag.rules.thresholds import thresholds
from nndiag.rules.verdict import verdicts


def check_codes(option: str, codes: Iterable[str]) -> None:
    """Make sure that findings have these codes, or begin with them.

    Raises:
        UsageError: none does.
    """
    for code in codes:
        if not is_known(code):
            raise UsageError(f"{option} {code}", "no finding has this code or prefix", "see `nndiag rules`")


@dataclass(frozen=True)
class Selection:
    """Which findings to report: codes or prefixes of codes, changed thresholds, and by which profile nodes are judged:
    ``"default"``, or ``"literal"`` for the rule of ``rules/literal.py``.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    profile: Literal["default", "literal"] = "default"

    def __post_init__(self) -> None:
        check_codes("--select", self.select)
        check_codes("--ignore", self.ignore)

    def wants(self, code: str) -> bool:
        """Whether a finding of this code is to be reported."""
        chosen = not self.select or code.startswith(self.select)
        return chosen and not (self.ignore and code.startswith(self.ignore))


@dataclass(frozen=True)
class JudgedLayer:
    """A layer's verdicts and findings.

    ``by_node`` maps an index to its findings, in order of code, causes first.
    """

    measures: LayerMeasures
    verdicts: tuple[str, ...]
    steady: tuple[bool, ...]
    by_node: Mapping[int, tuple[Finding, ...]]
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> Counter[str]:
        """How many nodes have which verdict."""
        return Counter(self.verdicts)


def judge(measured: Measured, selection: Selection) -> tuple[JudgedLayer, ...]:
    """Return every layer of a measurement with its findings and verdicts."""
    literal = selection.profile == "literal"
    contexts, rules = _contexts(measured, selection), _rules(measured, literal)
    hits = _node_hits(measured, contexts, rules, literal)
    of_layers, of_nodes = blames(measured.layers, hits), channel_blames(measured.layers, hits)
    return tuple(
        _judge_layer(
            layer, context, selection, rules, hits[layer.name],
            Elsewhere(layer.nodes, () if literal else of_layers[layer.name], {} if literal else of_nodes[layer.name]),
        )
        for layer, context in zip(measured.layers, contexts, strict=True)
    )  # fmt: skip


_GRAVITY = {"error": 2.0, "warning": 1.0, "info": 0.0}


def flagged(measured: Measured, selection: Selection) -> dict[str, Floats]:
    """Return by layer how grave the gravest finding of every node is: 2 an error, 1 a warning, 0 less."""
    found = {}
    for layer in judge(measured, selection):
        gravity = np.zeros(layer.measures.nodes)
        for node, findings in layer.by_node.items():
            gravity[node] = max((_GRAVITY[finding.severity] for finding in findings), default=0.0)
        found[layer.measures.name] = gravity
    return found


NodeHits = dict[str, list[Hit]]

_OF_THE_CLASS = frozenset("ND201 ND202 ND203 ND204 ND206 ND301 ND302 ND304 ND401".split())
"""What an output may show because the probe has no sample of its class."""


def _of_classes_there(layer: LayerMeasures, hits: NodeHits) -> NodeHits:
    """Return the findings, those that an output has for want of samples of its class as notes."""
    lacking = absent(layer)
    if lacking is None:
        return hits
    return {
        code: [
            replace(
                hit, note=True, message=f"{hit.message}; not observed: the probe has no sample of its class"
            )
            if code in _OF_THE_CLASS and hit.index is not None and lacking[hit.index]
            else hit
            for hit in found
        ]
        for code, found in hits.items()
    }


def _contexts(measured: Measured, selection: Selection) -> list[Context]:
    values, model = thresholds(selection.thresholds), model_scales(measured)
    return [
        Context(measured, values, layer_scales(layer, model), place)
        for place, layer in enumerate(measured.layers)
    ]


def _rules(measured: Measured, literal: bool) -> list[Rule]:
    return [
        rule
        for rule in RULES
        if rule.level is not None
        and rule.level <= measured.level
        and (not literal or rule.code in LITERAL_CODES)
    ]


def _node_hits(
    measured: Measured, contexts: Sequence[Context], rules: Sequence[Rule], literal: bool = False
) -> dict[str, NodeHits]:
    """Return the findings of the nodes, by layer and code."""
    of_nodes = [rule for rule in rules if rule.on == "node"]
    return {
        layer.name: literal_hits(layer, context)
        if literal
        else _of_classes_there(layer, {rule.code: list(rule.find(layer, context)) for rule in of_nodes})
        for layer, context in zip(measured.layers, contexts, strict=True)
    }


def judge_model(measured: Measured, selection: Selection) -> tuple[Finding, ...]:
    """Return the findings about the whole network."""
    if selection.profile == "literal":
        return ()
    context = Context(measured, thresholds(selection.thresholds), Scales({}, model_scales(measured)))
    hits = [
        (rule, hit)
        for rule in RULES
        if rule.on == "model" and rule.level is not None and rule.level <= measured.level
        for hit in rule.find(measured, context)
    ]
    present = {rule.code for rule, hit in hits if not hit.note}
    causes: tuple[Blame, ...] = ()
    if any(not hit.note for _, hit in hits):
        contexts = _contexts(measured, selection)
        causes = of_the_model(measured.layers, _node_hits(measured, contexts, _rules(measured, False)))
    return tuple(
        _finding(rule, hit, present, True, () if hit.note else causes)
        for rule, hit in hits
        if selection.wants(rule.code)
    )


def _judge_layer(
    layer: LayerMeasures,
    context: Context,
    selection: Selection,
    rules: Sequence[Rule],
    hits: Mapping[str, list[Hit]],
    elsewhere: Elsewhere,
) -> JudgedLayer:
    words, steady = verdicts(layer, context, elsewhere.own(hits))
    if selection.profile == "literal":
        steady = [True] * layer.nodes  # the rule knows no folds
    if selection.profile != "literal" and (lacking := absent(layer)) is not None:
        words = [
            "unknown" if gone and word in ("healthy", "plateau") else word
            for word, gone in zip(words, lacking, strict=True)
        ]
    for node in elsewhere.hidden(hits):
        if words[node] == "healthy":
            words[node] = "unknown"
    degenerate = [i for i, word in enumerate(words) if word in DEGENERATE]
    shared = shared_cause(hits, degenerate)
    aware = replace(context, degenerate=len(degenerate), collapsed=words.count("collapsed"), shared=shared)
    whole = [(rule, hit) for rule in rules if rule.on == "layer" for hit in rule.find(layer, aware)]
    present = {rule.code for rule, _ in whole}
    if own_fault(hits, elsewhere.layers) > context.threshold("degenerate_fraction") * layer.nodes:
        to_whole: Sequence[Blame] = ()
    else:
        to_whole = elsewhere.of_layer
    return JudgedLayer(
        measures=layer,
        verdicts=tuple(words),
        steady=tuple(steady),
        by_node=_by_node(rules, hits, selection, steady, elsewhere),
        findings=tuple(
            _finding(rule, hit, present, True, to_whole) for rule, hit in whole if selection.wants(rule.code)
        ),
    )


def _by_node(
    rules: Iterable[Rule],
    hits: Mapping[str, list[Hit]],
    selection: Selection,
    steady: list[bool],
    elsewhere: Elsewhere,
) -> dict[int, tuple[Finding, ...]]:
    found: dict[int, list[tuple[Rule, Hit]]] = {}
    for rule in rules:
        for hit in hits.get(rule.code, ()):
            assert hit.index is not None
            found.setdefault(hit.index, []).append((rule, hit))
    result = {}
    for index in sorted(found):
        present = {rule.code for rule, _ in found[index]}
        wanted = [
            _finding(rule, hit, present, steady[index], elsewhere.of_node(index))
            for rule, hit in found[index]
            if selection.wants(rule.code)
        ]
        if wanted:
            result[index] = tuple(sorted(wanted, key=lambda f: (f.cause is not None, f.code)))
    return result


def _finding(rule: Rule, hit: Hit, present: set[str], steady: bool, elsewhere: Sequence[Blame]) -> Finding:
    """Return the finding as a record.

    One that does not hold in every fold, or rests on few samples, is never an error. One that follows from
    nothing at its own place may follow from another layer; the evidence then names it. What follows from a layer that
    only starts at zero is a note.
    """
    severity, message, evidence = rule.severity, hit.message, dict(hit.evidence)
    blame = next((b for b in elsewhere if b.covers(rule.code)), None)
    if hit.note or (blame is not None and blame.harmless):
        severity = "info"
    if severity == "error" and rule.code != "ND101":
        if not steady:
            severity, message = "warning", f"{message} (not in every part of the probe)"
        elif not hit.sure:
            severity, message = "warning", f"{message} (too few samples to be sure)"
    cause = cause_of(rule.code, present)
    if blame is not None and cause is None:
        cause, message = blame.code, f"{message}: {blame.sentence}"
        evidence |= {LAYER_TO_MEND: blame.layer, ELSEWHERE: blame.sentence}
        if blame.channel:
            evidence[CHANNEL] = True
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=severity,
        message=message,
        evidence=evidence,
        cause=cause,
    )
