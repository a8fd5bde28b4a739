"""Findings and actions of one checkpoint, gathered by what they say and where; plain data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nndiag.records.report import ActionKind, Diagnosis, Finding, Severity

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Group:
    """One finding at one place: a layer's nodes, a layer (``nodes`` empty), or the model (``layer`` is None).

    ``message`` is the most common one; ``uniform`` says that there was no other. ``consequences`` are the
    groups that follow from this one, flattened. ``unsteady`` counts nodes whose verdict differs between folds.
    """

    code: str
    name: str
    severity: Severity
    layer: str | None
    nodes: tuple[int, ...]
    layer_nodes: int
    message: str
    uniform: bool
    cause: str | None = None
    unsteady: int = 0
    consequences: tuple[Group, ...] = ()

    @property
    def gravity(self) -> int:
        """The worst severity of the group and of what follows from it; 0 is an error."""
        return min(SEVERITIES.index(group.severity) for group in (self, *self.consequences))


@dataclass(frozen=True)
class Advice:
    """One kind of action for nodes of one layer.

    ``reasons`` counts how many nodes each reason concerns, ``verified`` those that it was tried for on the probe, where
    the outputs changed by at most ``change`` of the largest, for one node alone; ``None`` where that is not known.
    """

    kind: ActionKind
    layer: str
    nodes: tuple[int, ...]
    layer_nodes: int
    reasons: tuple[tuple[str, int], ...]
    verified: int
    change: float | None = None


_Key = tuple[str | None, str, str | None]


def findings_of(diagnosis: Diagnosis) -> Iterator[tuple[Finding, str | None, int | None]]:
    """Yield every finding with its layer (None: the model) and its node (None: the whole layer)."""
    for finding in diagnosis.model.findings:
        yield finding, None, None
    for layer in diagnosis.layers:
        for finding in layer.findings:
            yield finding, layer.name, None
    for node in diagnosis.nodes:
        for finding in node.findings:
            yield finding, node.layer, node.index


def gather(diagnosis: Diagnosis) -> tuple[Group, ...]:
    """Return the findings grouped by place and code, causes holding their consequences, the worst first."""
    members: dict[_Key, list[tuple[Finding, int | None]]] = defaultdict(list)
    for finding, layer, node in findings_of(diagnosis):
        members[layer, finding.code, finding.cause].append((finding, node))
    sizes = {layer.name: layer.nodes for layer in diagnosis.layers}
    shaky = {(node.layer, node.index) for node in diagnosis.nodes if not node.steady}
    flat = {key: _group(key, found, sizes, shaky) for key, found in members.items()}
    order = {name: place for place, name in enumerate(sizes)}
    return tuple(sorted(_fold(flat), key=lambda group: _importance(group, order)))


def advise(diagnosis: Diagnosis) -> tuple[Advice, ...]:
    """Return the recommended actions grouped by kind and layer, those that concern most nodes first."""
    nodes: dict[tuple[ActionKind, str], list[int]] = defaultdict(list)
    reasons: dict[tuple[ActionKind, str], Counter[str]] = defaultdict(Counter)
    verified: Counter[tuple[ActionKind, str]] = Counter()
    changes: dict[tuple[ActionKind, str], list[float]] = defaultdict(list)
    for node in diagnosis.nodes:
        if node.action.kind == "none":
            continue
        key = node.action.kind, node.layer
        nodes[key].append(node.index)
        reasons[key][node.action.reason] += 1
        tried = node.action.verified
        verified[key] += tried is not None
        if tried is not None and isinstance(change := tried.get("output_change"), float):
            changes[key].append(change)
    sizes = {layer.name: layer.nodes for layer in diagnosis.layers}
    order = {name: place for place, name in enumerate(sizes)}
    made = [
        Advice(kind, layer, tuple(sorted(where)), sizes.get(layer, len(where)),
               _by_count(reasons[kind, layer]), verified[kind, layer],
               max(changes[kind, layer], default=None))
        for (kind, layer), where in nodes.items()
    ]  # fmt: skip
    return tuple(
        sorted(made, key=lambda advice: (-len(advice.nodes), order.get(advice.layer, 0), advice.kind))
    )


def tally(diagnosis: Diagnosis) -> Counter[Severity]:
    """Return how many findings there are of each severity."""
    return Counter(finding.severity for finding, _, _ in findings_of(diagnosis))


def _by_count(counter: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _group(
    key: _Key,
    found: list[tuple[Finding, int | None]],
    sizes: Mapping[str, int],
    shaky: Collection[tuple[str, int]],
) -> Group:
    layer, code, cause = key
    messages = _by_count(Counter(finding.message for finding, _ in found))
    nodes = tuple(sorted(node for _, node in found if node is not None))
    worst = min((finding.severity for finding, _ in found), key=SEVERITIES.index)
    return Group(
        code=code,
        name=found[0][0].name,
        severity=worst,
        layer=layer,
        nodes=nodes,
        layer_nodes=sizes.get(layer, len(nodes)) if layer is not None else 0,
        message=messages[0][0],
        uniform=len(messages) == 1,
        cause=cause,
        unsteady=sum((layer, node) in shaky for node in nodes) if shaky else 0,
    )


def _fold(flat: Mapping[_Key, Group]) -> Iterator[Group]:
    """Yield the groups that follow from none here, each with everything that follows from it."""
    by_code: dict[str, list[_Key]] = defaultdict(list)
    for key in flat:
        by_code[key[1]].append(key)
    followers: dict[_Key, list[Group]] = defaultdict(list)
    roots: list[_Key] = []
    for key, group in flat.items():
        root = _root(key, flat, by_code)
        if root == key:
            roots.append(key)
        else:
            followers[root].append(group)
    for key in roots:
        after = sorted(followers[key], key=lambda group: (group.code, group.layer or ""))
        yield _with_consequences(flat[key], after)


def _root(key: _Key, flat: Mapping[_Key, Group], by_code: Mapping[str, list[_Key]]) -> _Key:
    seen = {key}
    while (parent := _parent(key, flat, by_code)) is not None:
        if parent in seen:
            return min(seen, key=lambda one: (one[1], one[0] or ""))
        seen.add(parent)
        key = parent
    return key


def _parent(key: _Key, flat: Mapping[_Key, Group], by_code: Mapping[str, list[_Key]]) -> _Key | None:
    """Return where the cause of a group stands: in its own layer, about its own nodes, if it can be."""
    layer, _, cause = key
    candidates = [other for other in by_code.get(cause or "", ()) if other != key]
    near = [other for other in candidates if other[0] == layer]
    if len(near) < 2:
        return next(iter(near or candidates), None)
    mine = set(flat[key].nodes)
    return max(near, key=lambda other: len(mine.intersection(flat[other].nodes)))


def _with_consequences(group: Group, after: Iterable[Group]) -> Group:
    return Group(**{**group.__dict__, "consequences": tuple(after)})


def _importance(group: Group, order: Mapping[str, int]) -> tuple[int, int, int, int, str]:
    place = order.get(group.layer, len(order)) if group.layer is not None else -1
    return group.gravity, SEVERITIES.index(group.severity), -len(group.nodes), place, group.code
