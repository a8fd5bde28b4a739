"""What codes and actions are called in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from nndiag.records.report import ActionKind
from nndiag.report.groups import Group

_LONGEST_NAME = 48
_DO: Mapping[str, str] = {
    "ND101": "hold numbers that are not finite",
    "ND102": "have shrunk to zero",
    "ND103": "have exploding weights",
    "ND104": "repeat the weights of another node",
    "ND201": "never fire",
    "ND202": "are saturated",
    "ND203": "have a constant output",
    "ND204": "are dormant",
    "ND205": "always fire",
    "ND206": "repeat the output of another node",
    "ND301": "get no gradient",
    "ND302": "get no torque",
    "ND303": "get an exploding gradient",
    "ND304": "have no influence on the output",
    "ND401": "lie on a plateau",
    "ND402": "are above the stability threshold",
    "ND403": "have negative curvature",
    "ND404": "flip at every step",
}
_DOES: Mapping[str, str] = {
    "hold": "holds", "have": "has", "repeat": "repeats", "never": "never", "are": "is", "always": "always",
    "get": "gets", "lie": "lies", "flip": "flips",
}  # fmt: skip
_KINDS: Mapping[str, str] = {
    "NonDynamicallyQuantizableLinear": "Linear", "MultiheadAttention": "Attention",
}  # fmt: skip
"""Names of kinds that say less than another."""
_VERBS: Mapping[ActionKind, str] = {
    "prune": "Prune",
    "reinitialise": "Reinitialise",
    "merge": "Merge",
    "bias_warmup": "Warm up the bias of",
    "angular_noise": "Add angular noise to",
    "lower_lr": "Lower the learning rate of",
    "raise_lr": "Raise the learning rate of",
    "none": "Leave",
}


def predicate(code: str, name: str, count: int) -> str:
    """Return what ``count`` nodes with this finding do, e.g. ``"never fire"``."""
    phrase = _DO.get(code)
    if phrase is None:
        return f"{'shows' if count == 1 else 'show'} {name}"
    if count != 1:
        return phrase
    verb, _, rest = phrase.partition(" ")
    return f"{_DOES[verb]} {'fires' if rest == 'fire' else rest}"


def imperative(kind: ActionKind) -> str:
    """Return the verb of an action, e.g. ``"Reinitialise"``."""
    return _VERBS[kind]


def kind_name(kind: str) -> str:
    """Return what people call a kind of layer."""
    return _KINDS.get(kind, kind)


def called(layer: str) -> str:
    """Return a layer as a sentence calls it: ``"layer 2"``, but ``"layer2.1.conv1"`` without saying it twice.

    A long name loses its beginning. The layer that is the whole network has no name of its own.
    """
    if not layer:
        return "the only layer"
    if len(layer) > _LONGEST_NAME:
        layer = "…" + layer[1 - _LONGEST_NAME :]
    return layer if layer.lower().startswith("layer") else f"layer {layer}"


def share(count: int, total: int) -> str:
    """Return ``"3 of 64 nodes"``, or ``"its only node"`` of a layer that has one."""
    if total == 1:
        return "its only node"
    return f"{count:,} of {total:,} nodes"


def hence(group: Group) -> str:
    """Return what follows from a group, e.g. ``"ND204 dormant, ND301 no-gradient in layer 0"``."""
    nodes: dict[tuple[str, str, str | None, str], int] = {}
    for one in group.consequences:
        key = one.code, one.name, one.layer, one.severity
        nodes[key] = nodes.get(key, 0) + len(one.nodes)
    said: list[str] = []
    for (code, name, layer, severity), count in nodes.items():
        words = f"{code} {name}"
        if layer != group.layer:
            words += f" in {called(layer)}" if layer is not None else " of the model"
        if count and (layer != group.layer or count != len(group.nodes)):
            words += f" ({count:,})"
        if severity == "error" != group.severity:
            words += " (error)"
        said.append(words)
    return ", ".join(said)
