"""A policy applied to a checkpoint: one check a rule and layer."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nndiag.config.policy import ALWAYS_FORBIDDEN, Policy
from nndiag.errors import UsageError
from nndiag.gating.baseline import DEGENERATE, LOSS, Baseline, signed, worse
from nndiag.gating.facts import LEVELS, Facts, Place, facts_of
from nndiag.records.document import Json, caution_of
from nndiag.records.gate import Check, Gravity, Verdict

_ORDER = {"error": 0, "warning": 1, "info": 2}


def gate(document: Json, policy: Policy, baseline: Baseline | None = None) -> Verdict:
    """Decide on the last checkpoint of a report.

    Args:
        document: the report.
        policy: what is allowed; where it is empty, no finding may be an error.
        baseline: known troubles, which pass until they are worse.

    Returns:
        Every check, failed ones first.

    Raises:
        UsageError: the policy asks for what the report cannot tell.
    """
    facts = facts_of(document)
    earlier = [facts_of(document, index) for index in range(len(document["checkpoints"]) - 1)]
    _require_sight(facts, policy)
    checks = list(limits_of(facts, policy))
    checks += _new_degenerate(facts, policy, baseline, earlier)
    checks += _regression(facts, policy, baseline, earlier)
    if policy.empty:
        checks += _by_severity(facts)
    checks += _forbidden(facts, policy, baseline or {})
    if baseline is not None:
        checks = [_tolerated(check, baseline) for check in checks]
    notes = tuple(f'policy: no layer matches "{pattern}"' for pattern in policy.unmatched(facts.layers))
    ordered = sorted(checks, key=lambda check: (check.passed, _ORDER[check.gravity]))
    return Verdict(tuple(ordered), facts.subject, policy.source, notes, caution_of(document["checkpoints"]))


def limits_of(facts: Facts, policy: Policy) -> Iterator[Check]:
    """Yield the checks of the limits that one checkpoint alone decides, layer by layer."""
    for name, layer in facts.layers.items():
        limits = policy.of(name)
        if (limit := limits.max_degenerate_fraction) is not None:
            share = layer.degenerate_fraction
            yield _share(facts, "max_degenerate_fraction", name, share, limit, layer.degenerate)
        if (limit := limits.max_dead_fraction) is not None:
            yield _share(facts, "max_dead_fraction", name, layer.dead_fraction, limit, layer.dead)
        rank = layer.effective_rank
        if (limit := limits.min_effective_rank) is not None and rank is not None:
            words = f"effective rank {rank:.3g}, at least {limit:g} is wanted"
            yield Check(
                "min_effective_rank", name, rank, limit, rank >= limit, words,
                look=_look(facts, "--verbose"),
            )  # fmt: skip


def _share(facts: Facts, rule: str, name: str, share: float, limit: float, nodes: frozenset[int]) -> Check:
    layer = facts.layers[name]
    word = "dead" if rule == "max_dead_fraction" else "degenerate"
    words = f"{len(nodes):,} of {layer.judged:,} nodes are {word}: {share:.1%}, at most {limit:.1%} may be"
    more = ("--select", "ND201", "--verbose") if word == "dead" else ("--verbose",)
    return Check(
        rule, name, share, limit, share <= limit + 1e-12, words, nodes=tuple(sorted(nodes)),
        look=_look(facts, *more),
    )  # fmt: skip


def _new_degenerate(
    facts: Facts, policy: Policy, baseline: Baseline | None, earlier: Sequence[Facts]
) -> Iterator[Check]:
    """Yield the checks of nodes that are degenerate and were not: in the baseline, else at the first checkpoint."""
    for name, layer in facts.layers.items():
        limit = policy.of(name).max_new_degenerate
        if limit is None:
            continue
        if baseline is not None:
            before = {node for rule, where, node in baseline if rule == DEGENERATE and where == name}
        elif earlier:
            before = set(earlier[0].layers[name].degenerate) if name in earlier[0].layers else set()
        else:
            raise UsageError(
                "max_new_degenerate", "the report holds one checkpoint, and nothing to compare it with",
                "add --baseline FILE, or scan the run",
            )  # fmt: skip
        new = tuple(sorted(layer.degenerate - before))
        since = "the baseline" if baseline is not None else "the first checkpoint"
        who = f"{len(new):,} node{'' if len(new) == 1 else 's'}"
        words = f"{who} newly degenerate since {since}, at most {limit:,} may be"
        yield Check(
            "max_new_degenerate", name, len(new), limit, len(new) <= limit, words, nodes=new,
            look=_look(facts, "--verbose"),
        )  # fmt: skip


def _regression(
    facts: Facts, policy: Policy, baseline: Baseline | None, earlier: Sequence[Facts]
) -> Iterator[Check]:
    """Yield the check of the loss against that of the baseline, else the lowest of the run."""
    limit = policy.limits.max_regression
    if limit is None:
        return
    if baseline is not None:
        before = baseline.get((LOSS, None, None))
    else:
        before = min((f.loss for f in earlier if f.loss is not None and math.isfinite(f.loss)), default=None)
    if facts.loss is None or before is None:
        where = "the report" if facts.loss is None else "the baseline" if baseline is not None else "the run"
        do = (
            "scan with --loss and targets"
            if facts.loss is None
            else "add --baseline FILE with one, or scan the run"
        )
        raise UsageError("max_regression", f"{where} holds no loss to compare", do)
    grown = (
        (facts.loss - before) / abs(before)
        if before
        else math.copysign(math.inf, facts.loss) * (facts.loss > 0)
    )
    grown = 0.0 if math.isnan(grown) and facts.loss == before else grown
    words = (
        f"the loss is {facts.loss:.3g}, {grown:+.1%} against {before:.3g}; at most {limit:+.1%} is allowed"
    )
    if math.isnan(facts.loss):
        words = f"the loss is not finite, against {before:.3g}"
    value = grown if math.isfinite(grown) else None
    yield Check("max_regression", None, value, limit, grown <= limit, words, look=_look(facts, "--verbose"))


def _forbidden(facts: Facts, policy: Policy, baseline: Baseline) -> Iterator[Check]:
    """Yield for every forbidden code a check a layer that has it, or one that passes."""
    tokens = _tokens(policy)
    hit: set[str] = set()
    for (code, layer), nodes in _by_code(facts).items():
        forbidding = [token for token in _of_layer(policy, layer) if code.startswith(token)]
        if not forbidding:
            continue
        hit.update(forbidding)
        places = [(code, layer, node) for node in nodes]
        bad = [
            place
            for place in places
            if place not in baseline or worse(facts.findings[place], baseline[place])
        ]
        new = sum(place not in baseline for place in bad)
        said = _counted(len(nodes), layer, facts)
        words = f"{said}: {facts.messages[code, layer]}"
        if baseline and bad:
            words += f" ({new:,} not in the baseline, {len(bad) - new:,} worse than in it)"
        elif not bad:
            words += " (known from the baseline)"
        indices = tuple(sorted(node for _, _, node in (bad or places) if node is not None))
        yield Check(
            f"forbid {code}", layer, len(nodes), 0, not bad, words, _gravest(facts, places), code, indices,
            _look(facts, "--select", code, "--verbose"),
        )  # fmt: skip
    for token in tokens:
        if token not in hit:
            yield Check(f"forbid {token}", None, 0, 0, True, "not found")


def _by_severity(facts: Facts) -> Iterator[Check]:
    """Yield what holds without a policy: no finding may be an error."""
    errors = 0
    for (code, layer), nodes in _by_code(facts).items():
        places = [(code, layer, node) for node in nodes]
        if _gravest(facts, places) != "error" or code.startswith(ALWAYS_FORBIDDEN):
            continue
        errors += 1
        words = f"{_counted(len(nodes), layer, facts)}: {facts.messages[code, layer]}"
        indices = tuple(sorted(node for node in nodes if node is not None))
        yield Check(
            f"no error {code}", layer, len(nodes), 0, False, words, "error", code, indices,
            _look(facts, "--select", code, "--verbose"),
        )  # fmt: skip
    if not errors:
        yield Check("no errors", None, 0, 0, True, "no finding is an error")


def _tolerated(check: Check, baseline: Baseline) -> Check:
    """Return a failed check as passed where the baseline knows it and it is no worse."""
    place = (check.rule, check.layer, None)
    if check.passed or check.rule.startswith("max_new"):
        return check
    if check.code is not None and check.rule.startswith("no error"):
        places = [(check.code, check.layer, node) for node in check.nodes or (None,)]
        known = all(one in baseline for one in places)
        return (
            replace(check, passed=True, message=f"{check.message} (known from the baseline)")
            if known
            else check
        )
    if check.value is None or place not in baseline:
        return check
    then = baseline[place]
    if worse(signed(check.rule, check.value), then):
        said = "unknown" if then is None else f"{abs(then):.3g}"
        return replace(check, message=f"{check.message} (worse than the baseline's {said})")
    return replace(check, passed=True, message=f"{check.message} (known from the baseline)")


def _require_sight(facts: Facts, policy: Policy) -> None:
    """Make sure that the report can tell what the policy asks.

    Raises:
        UsageError: it was not measured deep enough, or left out what is forbidden.
    """
    asked = set(policy.limits.given).union(*(limits.given for limits in policy.layers.values()))
    for rule, level in (
        ("max_degenerate_fraction", "activations"), ("max_dead_fraction", "activations"),
        ("max_new_degenerate", "activations"), ("min_effective_rank", "activations"),
    ):  # fmt: skip
        if rule in asked and not facts.reaches(level):
            why = f"the report is of level {facts.level}, and this needs {level}"
            raise UsageError(f"policy {rule}", why, "scan with --model and --data, or remove the key")
    if "max_dead_fraction" in asked and not facts.sees("ND201"):
        raise UsageError(
            "policy max_dead_fraction", "the report leaves out ND201", "scan without --select and --ignore"
        )
    for token in _tokens(policy):
        _require_known(token)
        digit = token[2:3]
        deep = LEVELS[int(digit) - 1] if digit in ("1", "2", "3", "4") else None
        if deep is not None and not facts.reaches(deep):
            why = f"the report is of level {facts.level}, and this needs {deep}"
            raise UsageError(f"policy forbid {token}", why, "scan deeper, or remove the code")
        if not facts.sees(token) and token not in ALWAYS_FORBIDDEN:
            raise UsageError(
                f"policy forbid {token}", "the report leaves it out", "scan without --select and --ignore"
            )


def _require_known(token: str) -> None:
    """Make sure that a forbidden code, or what it begins with, is one: a slip must not pass every build.

    Raises:
        UsageError: no finding has it.
    """
    if token in ALWAYS_FORBIDDEN:
        return
    from nndiag.rules import is_known

    if not is_known(token):
        raise UsageError(f"policy forbid {token}", "no finding has this code or prefix", "see `nndiag rules`")


def _tokens(policy: Policy) -> tuple[str, ...]:
    parts = [policy.limits.forbid, *(limits.forbid for limits in policy.layers.values())]
    given = [token for part in parts if part is not None for token in part]
    general = () if policy.limits.forbid is not None else ALWAYS_FORBIDDEN
    return tuple(dict.fromkeys([*general, *given]))


def _of_layer(policy: Policy, layer: str | None) -> Sequence[str]:
    limits = policy.limits if layer is None else policy.of(layer)
    return ALWAYS_FORBIDDEN if limits.forbid is None else limits.forbid


def _by_code(facts: Facts) -> Mapping[tuple[str, str | None], list[int | None]]:
    found: dict[tuple[str, str | None], list[int | None]] = {}
    for code, layer, node in facts.findings:
        found.setdefault((code, layer), []).append(node)
    return found


def _gravest(facts: Facts, places: Sequence[Place]) -> Gravity:
    return min((facts.gravity[place] for place in places), key=_ORDER.__getitem__)


def _counted(count: int, layer: str | None, facts: Facts) -> str:
    if layer is None or layer not in facts.layers:
        return "the model" if layer is None else f"{count:,} nodes"
    return f"{count:,} of {facts.layers[layer].nodes:,} nodes"


def _look(facts: Facts, *words: str) -> str:
    """Return the command that shows the checkpoint again."""
    return " ".join(["nndiag scan", shlex.quote(facts.subject), *words])
