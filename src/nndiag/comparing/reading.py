"""From the JSON of scans to arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nndiag.comparing.run import ABSENT, Bytes, Floats, LayerRun, Mark, Run, clock_of
from nndiag.errors import InputError
from nndiag.records.document import content_of, is_on_noise, parsed
from nndiag.records.packed import unpack
from nndiag.records.report import LoggedLosses

Json = Mapping[str, Any]

_NODES = b'\n      "nodes": [\n'
_NODES_END = b"\n      ]"
_COMPACT = b'"every_node": {'
_LETTERS = {"healthy": "h", "collapsed": "c", "plateau": "p", "source": "s", "saddle": "n", "unknown": "u"}


def read_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the checkpoints of reports, in order.

    Raises:
        InputError: a file is missing, unreadable, or no report of a scan.
    """
    return [
        diagnosis
        for path in paths
        for diagnosis in parsed(_without_nodes(content_of(path)), path)["checkpoints"]
    ]


def _without_nodes(content: bytes) -> bytes:
    """Return a report as nndiag lays it out without its lists of nodes, where the layers hold every node in short.

    A line break inside a string is escaped, so that these lines are the list and nothing else.
    """
    if _COMPACT not in content or _NODES not in content:
        return content
    parts, place = [], 0
    while (start := content.find(_NODES, place)) >= 0:
        end = content.find(_NODES_END, start)
        if end < 0:
            return content
        parts += [content[place:start], b'\n      "nodes": [']
        place = end
    return b"".join([*parts, content[place:]])


def run_of(diagnoses: Sequence[Json]) -> Run:
    """Return the arrays of a run.

    Args:
        diagnoses: the entries of ``checkpoints`` of reports, in training order.

    Raises:
        InputError: a layer has other sizes in different checkpoints, or they have none in common.
    """
    marks = tuple(_mark(one) for one in diagnoses)
    tables = [{layer["name"]: layer for layer in one["layers"]} for one in diagnoses]
    names = dict.fromkeys(name for table in reversed(tables) for name in table)
    if len(tables) > 1 and not any(sum(name in table for table in tables) > 1 for name in names):
        why = f"and {marks[-1].path} have no layer in common"
        raise InputError(marks[0].path, why, "compare checkpoints of one network")
    listed = [_listed(one["nodes"]) for one in diagnoses]
    layers = tuple(_layer_run(name, tables, listed, marks) for name in names)
    return Run(marks, layers, *clock_of(marks))


def _mark(diagnosis: Json) -> Mark:
    facts, model = diagnosis["checkpoint"], diagnosis["model"]
    optimizer = facts.get("optimizer") or {}
    return Mark(
        path=str(facts.get("path", "")),
        step=facts.get("step"),
        epoch=facts.get("epoch"),
        loss=model.get("loss"),
        gradient_norm=model.get("gradient_norm"),
        sha256=str(facts.get("sha256", "")),
        level=str(diagnosis.get("level", "")),
        lr=optimizer.get("lr"),
        random_probe=is_on_noise(diagnosis),
        logged=_logged(facts.get("logged")),
    )


def _logged(said: Json | None) -> LoggedLosses | None:
    return None if said is None else LoggedLosses(**{key: said.get(key) for key in LoggedLosses.model_fields})


def _listed(nodes: Iterable[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for node in nodes:
        found.setdefault(node["layer"], []).append(node)
    return found


def _layer_run(
    name: str,
    tables: Sequence[Mapping[str, Json]],
    listed: Sequence[Mapping[str, list[Json]]],
    marks: Sequence[Mark],
) -> LayerRun:
    there = [table.get(name) for table in tables]
    last = next(layer for layer in reversed(there) if layer is not None)
    count, nodes = len(tables), int(last["nodes"])
    states: Bytes = np.full((count, nodes), ABSENT, np.uint8)
    columns = {
        key: np.full((count, nodes), np.nan)
        for key in ("parameter_norm", "weight_norm", "bias", "lambda_max")
    }
    directions: dict[int, NDArray[np.float32]] = {}
    for place, layer in enumerate(there):
        if layer is None:
            continue
        if layer["nodes"] != nodes:
            why = f"has {layer['nodes']:,} nodes in {marks[place].path} and {nodes:,} in {marks[-1].path}"
            raise InputError(f"layer {name}", why, "compare checkpoints of one network")
        compact = layer.get("every_node")
        if compact is None:
            _from_listed(
                layer, listed[place].get(name, ()), states[place], {k: v[place] for k, v in columns.items()}
            )
            continue
        try:
            states[place] = _letters(compact["states"], nodes)
            for key, values in columns.items():
                if compact.get(key) is not None:
                    values[place] = unpack(compact[key], nodes)
            if compact.get("direction") is not None:
                directions[place] = unpack(compact["direction"], nodes, "<f2").reshape(nodes, -1)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                marks[place].path, f"its report is damaged: every_node of {name}", "scan again"
            ) from error
    for values in columns.values():
        values[~np.isfinite(values)] = np.nan
    return LayerRun(
        name, str(last.get("kind", "")), nodes, int(last.get("fan_in", 0)), states, columns["parameter_norm"],
        columns["weight_norm"], columns["bias"], columns["lambda_max"], _stacked(directions, count, nodes),
        _measures(there), _unsteady(there[-1], listed[-1].get(name, ())), last.get("is_output") is True,
    )  # fmt: skip


def _unsteady(layer: Json | None, nodes: Iterable[Json]) -> frozenset[int]:
    """Return the nodes whose last verdict does not hold in every fold of the probe."""
    compact = None if layer is None else layer.get("every_node")
    if isinstance(compact, dict) and isinstance(listed := compact.get("unsteady", []), list):
        return frozenset(i for i in listed if isinstance(i, int))
    return frozenset(node.get("index", -1) for node in nodes if node.get("steady") is False)


def _letters(text: str, nodes: int) -> Bytes:
    found = np.frombuffer(text.encode("ascii", "replace"), np.uint8)
    if found.size != nodes:
        raise ValueError("states")
    return found


def _stacked(directions: Mapping[int, Any], count: int, nodes: int) -> Any:
    if not directions:
        return None
    width = max(one.shape[1] for one in directions.values())
    found = np.full((count, nodes, width), np.nan, np.float32)
    for place, one in directions.items():
        if one.shape[1] == width:
            found[place] = one
    return found


def _from_listed(layer: Json, nodes: Iterable[Json], states: Bytes, columns: Mapping[str, Floats]) -> None:
    """Fill the row of one checkpoint from a report that lists nodes by themselves; those not listed have no finding."""
    verdicts = layer["verdicts"]
    states[:] = ord("u" if verdicts.get("unknown") and not verdicts.get("healthy") else "h")
    for node in nodes:
        index = node.get("index")
        if not isinstance(index, int) or not 0 <= index < len(states):
            continue
        dead = any(finding.get("code") == "ND201" for finding in node.get("findings", ()))
        letter = _LETTERS.get(str(node.get("verdict")), "u")
        states[index] = ord("d" if dead and letter == "p" else letter)
        measures = node.get("measures") or {}
        for key, values in columns.items():
            value = measures.get(key)
            if value is None and key == "parameter_norm":
                value = _parameter_norm(measures)
            if value is not None:
                values[index] = value


def _parameter_norm(measures: Json) -> float | None:
    weight, bias = measures.get("weight_norm"), measures.get("bias") or 0.0
    return None if weight is None else float(np.hypot(weight, bias))


def _measures(layers: Sequence[Json | None]) -> dict[str, Floats]:
    names = dict.fromkeys(name for layer in layers if layer is not None for name in layer.get("measures", ()))
    return {
        name: np.array(
            [
                np.nan if layer is None or (v := layer.get("measures", {}).get(name)) is None else float(v)
                for layer in layers
            ]
        )
        for name in names
    }
