"""Where a report's JSON does not have the types of its records, as far as they are read again.

The schema says more; checking every node against it takes longer than all that is done with the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import float_info
from typing import Any, TypeGuard

Json = Mapping[str, Any]
Fits = Callable[[Any], bool]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number: a document writes others as ``null``."""
    return isinstance(value, int | float) and -float_info.max <= value <= float_info.max


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_size(value: object) -> bool:
    return _is_count(value) and value != 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_measures(value: object) -> bool:
    return isinstance(value, dict) and all(one is None or is_number(one) for one in value.values())


def _is_measures_of_node(value: object) -> bool:
    """Look at those alone that are read: nodes are many, and have thirty numbers each."""
    return isinstance(value, dict) and all(
        (one := value.get(key)) is None or is_number(one)
        for key in ("parameter_norm", "weight_norm", "bias", "lambda_max")
    )


def _or_null(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


Kind = tuple[Fits, str, Any]
"""Whether a value fits, what it is otherwise, and what stands for it where it is left out."""

Kinds = Mapping[str, Kind]


def _needed(kind: Kind) -> Kind:
    return (*kind[:2], None)


_TEXT: Kind = (_is_text, "no text", "")
_TEXTS: Kind = (_is_texts, "no list of texts", [])
_COUNT: Kind = (_is_count, "no whole number from 0 up", 0)
_SIZE: Kind = (_is_size, "no whole number from 1 up", None)
_OBJECT: Kind = (_is_object, "no object", {})
_OBJECTS: Kind = (_is_objects, "no list of objects", [])
_MEASURES: Kind = (_is_measures, "no object of finite numbers", {})
_MEASURES_OF_NODE: Kind = (_is_measures_of_node, "no object of finite numbers", {})
_NUMBER_OR_NULL: Kind = (_or_null(is_number), "neither a finite number nor null", None)
_WHOLE_OR_NULL: Kind = (_or_null(_is_whole), "neither a whole number nor null", None)
_OBJECT_OR_NULL: Kind = (_or_null(_is_object), "neither an object nor null", None)

_DOCUMENT: Kinds = {"settings": _OBJECT}
_SETTINGS: Kinds = {"select": _TEXTS, "ignore": _TEXTS}
_DIAGNOSIS: Kinds = {
    "level": _needed(_TEXT), "layers": _needed(_OBJECTS), "nodes": _needed(_OBJECTS), "probe": _OBJECT_OR_NULL,
}  # fmt: skip
_CHECKPOINT: Kinds = {
    "path": _TEXT, "sha256": _TEXT, "step": _WHOLE_OR_NULL, "epoch": _WHOLE_OR_NULL, "optimizer": _OBJECT_OR_NULL,
    "logged": _OBJECT_OR_NULL,
}  # fmt: skip
_OPTIMIZER: Kinds = {"lr": _NUMBER_OR_NULL}
_LOGGED: Kinds = {
    "training_loss": _NUMBER_OR_NULL, "training_step": _WHOLE_OR_NULL,
    "eval_loss": _NUMBER_OR_NULL, "eval_step": _WHOLE_OR_NULL,
}  # fmt: skip
_MODEL: Kinds = {"loss": _NUMBER_OR_NULL, "gradient_norm": _NUMBER_OR_NULL, "findings": _OBJECTS}
_LAYER: Kinds = {
    "name": _needed(_TEXT), "kind": _TEXT, "nodes": _SIZE, "fan_in": _COUNT, "unobserved": _COUNT,
    "verdicts": _needed(_OBJECT), "measures": _MEASURES, "findings": _OBJECTS,
}  # fmt: skip
_NODE: Kinds = {
    "layer": _needed(_TEXT), "index": _needed(_COUNT), "measures": _MEASURES_OF_NODE, "findings": _OBJECTS,
}  # fmt: skip
_FINDING: Kinds = {"code": _TEXT, "message": _TEXT, "evidence": _OBJECT}


def misfit(document: Json) -> str | None:
    """Return what is wrong first, with its place (``checkpoints[0].model.loss is …``), or ``None``.

    Args:
        document: a report whose ``checkpoints`` are objects with objects ``checkpoint`` and ``model``, and lists
            ``layers`` and ``nodes``.
    """
    wrong = _of(document, _DOCUMENT, "") or _of(document.get("settings", {}), _SETTINGS, "settings.")
    places = enumerate(document["checkpoints"])
    return wrong or next(filter(None, (_of_diagnosis(one, f"checkpoints[{i}].") for i, one in places)), None)


def _of_diagnosis(diagnosis: Json, place: str) -> str | None:
    facts, model = diagnosis["checkpoint"], diagnosis["model"]
    return (
        _of(diagnosis, _DIAGNOSIS, place)
        or _of(facts, _CHECKPOINT, f"{place}checkpoint.")
        or _of(facts.get("optimizer") or {}, _OPTIMIZER, f"{place}checkpoint.optimizer.")
        or _of(facts.get("logged") or {}, _LOGGED, f"{place}checkpoint.logged.")
        or _of(model, _MODEL, f"{place}model.")
        or _of_rows(model.get("findings", ()), _FINDING, f"{place}model.findings")
        or _with_findings(diagnosis["layers"], _LAYER, f"{place}layers")
        or _with_findings(diagnosis["nodes"], _NODE, f"{place}nodes")
    )


def _with_findings(rows: Sequence[Json], kinds: Kinds, place: str) -> str | None:
    wrong = _of_rows(rows, kinds, place)
    if wrong is not None:
        return wrong
    listed = [row.get("findings", ()) for row in rows]
    if _fit([finding for findings in listed for finding in findings], _FINDING):
        return None
    each = (_of_rows(findings, _FINDING, f"{place}[{i}].findings") for i, findings in enumerate(listed))
    return next(filter(None, each), None)


def _of_rows(rows: Sequence[Json], kinds: Kinds, place: str) -> str | None:
    if _fit(rows, kinds):
        return None
    return next(filter(None, (_of(row, kinds, f"{place}[{index}].") for index, row in enumerate(rows))), None)


def _fit(rows: Sequence[Json], kinds: Kinds) -> bool:
    """Key by key: of many rows that takes half the time."""
    return all(
        all(map(fits, [row.get(key, left_out) for row in rows])) for key, (fits, _, left_out) in kinds.items()
    )


def _of(row: Json, kinds: Kinds, place: str) -> str | None:
    for key, (fits, word, left_out) in kinds.items():
        if not fits(row.get(key, left_out)):
            return f"{place}{key} is {word if key in row else 'missing'}"
    return None
