"""From numbers to findings and verdicts, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nndiag.errors import UsageError
from nndiag.records.measured import LayerMeasures, Measured
from nndiag.records.report import DEGENERATE, Finding
from nndiag.rules import RULES, Rule
from nndiag.rules.base import Context, Hit
from nndiag.rules.causes import cause_of
from nndiag.rules.scales import layer_scales, model_scales
from nndiag.rules.thresholds import thresholds
from nndiag.rules.verdict import verdicts


@dataclass(frozen=True)
class Selection:
    """Which findings to report: codes or prefixes of codes, and changed thresholds."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, codes in (("--select", self.select), ("--ignore", self.ignore)):
            for code in codes:
                if not any(rule.code.startswith(code) for rule in RULES):
                    raise UsageError(
                        f"{option} {code}", "no finding has this code or prefix", "see `nndiag rules`"
                    )

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
    values = thresholds(selection.thresholds)
    model = model_scales(measured)
    return tuple(
        _judge_layer(layer, Context(measured, values, layer_scales(layer, model)), selection)
        for layer in measured.layers
    )


def _judge_layer(layer: LayerMeasures, context: Context, selection: Selection) -> JudgedLayer:
    rules = [rule for rule in RULES if rule.level is not None and rule.level <= context.measured.level]
    hits = {rule.code: list(rule.find(layer, context)) for rule in rules if rule.on == "node"}
    words, steady = verdicts(layer, context, hits)
    degenerate = sum(word in DEGENERATE for word in words)
    aware = replace(context, degenerate=degenerate)
    whole = [(rule, hit) for rule in rules if rule.on == "layer" for hit in rule.find(layer, aware)]
    present = {rule.code for rule, _ in whole}
    return JudgedLayer(
        measures=layer,
        verdicts=tuple(words),
        steady=tuple(steady),
        by_node=_by_node(rules, hits, selection, steady),
        findings=tuple(
            _finding(rule, hit, present, True) for rule, hit in whole if selection.wants(rule.code)
        ),
    )


def _by_node(
    rules: Iterable[Rule], hits: Mapping[str, list[Hit]], selection: Selection, steady: list[bool]
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
            _finding(rule, hit, present, steady[index])
            for rule, hit in found[index]
            if selection.wants(rule.code)
        ]
        if wanted:
            result[index] = tuple(sorted(wanted, key=lambda f: (f.cause is not None, f.code)))
    return result


def _finding(rule: Rule, hit: Hit, present: set[str], steady: bool) -> Finding:
    """Return the finding as a record.

    One that does not hold in every fold is never an error.
    """
    severity, message = rule.severity, hit.message
    if not steady and severity == "error" and rule.code != "ND101":
        severity, message = "warning", f"{message} (not in every part of the probe)"
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=severity,
        message=message,
        evidence=dict(hit.evidence),
        cause=cause_of(rule.code, present),
    )
