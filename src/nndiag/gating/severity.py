"""The gate without a policy: every finding by its severity, for ``scan --fail-on`` and its formats for builds."""

from __future__ import annotations

from typing import Literal

from nndiag.records.document import Json, caution_of, found_in, subject_of
from nndiag.records.gate import Check, Verdict

AT_LEAST = {"error": ("error",), "warning": ("error", "warning"), "never": ()}
"""The severities that fail, by the word of ``--fail-on``."""

_ORDER = {"error": 0, "warning": 1, "info": 2}


def by_severity(document: Json, fail_on: Literal["error", "warning", "never"]) -> Verdict:
    """Return a check a finding and layer, of all checkpoints of a report; of several the last that has it counts.

    Layers without findings pass as such. Notes are no checks.
    """
    failing = AT_LEAST[fail_on]
    found: dict[tuple[str, str | None], Check] = {}
    layers: dict[str, int] = {}
    for diagnosis in document["checkpoints"]:
        layers.update({layer["name"]: layer["nodes"] for layer in diagnosis["layers"]})
        for key, check in _of_one(diagnosis, failing).items():
            earlier = found.get(key)
            if earlier is None or check.passed <= earlier.passed:
                found[key] = check
    troubled = {check.layer for check in found.values()}
    checks = [*found.values()]
    checks += [
        Check("findings", name, 0, 0, True, "no finding", "info") for name in layers if name not in troubled
    ]
    checks.sort(key=lambda check: (check.passed, _ORDER[check.gravity]))
    return Verdict(
        tuple(checks), subject_of(document["checkpoints"][-1]), f"--fail-on {fail_on}",
        caution=caution_of(document["checkpoints"]),
    )  # fmt: skip


def _of_one(diagnosis: Json, failing: tuple[str, ...]) -> dict[tuple[str, str | None], Check]:
    sizes = {layer["name"]: layer["nodes"] for layer in diagnosis["layers"]}
    groups: dict[tuple[str, str | None], list[tuple[Json, int | None]]] = {}
    for finding, layer, node in found_in(diagnosis):
        if finding["severity"] != "info":
            groups.setdefault((finding["code"], layer), []).append((finding, node))
    made = {}
    for (code, layer), members in groups.items():
        gravest = min((finding for finding, _ in members), key=lambda finding: _ORDER[finding["severity"]])
        nodes = tuple(sorted(node for _, node in members if node is not None))
        who = f"{len(nodes):,} of {sizes.get(layer, 0):,} nodes: " if nodes and layer is not None else ""
        made[code, layer] = Check(
            f"{code} {gravest['name']}", layer, len(members), None, gravest["severity"] not in failing,
            f"{who}{gravest['message']}", gravest["severity"], code, nodes, f"nndiag explain {code}",
        )  # fmt: skip
    return made
