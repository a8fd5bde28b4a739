"""Reports as JSON, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nndiag.report import render_json
from tests.report.builder import dead, diagnosis, finding, layer, node, report


def document(*checkpoints: Any, **settings: Any) -> dict[str, Any]:
    """Return the document of some checkpoints."""
    import json

    found: dict[str, Any] = json.loads(render_json(report(*checkpoints)))
    found["settings"] |= settings
    return found


def checkpoint(
    dead_nodes: Sequence[int] = (), *, extra: Sequence[Any] = (), rank: float = 20.0, **more: Any
) -> Any:
    """Return a checkpoint of layers 0 (64 nodes, some dead) and 2 (10 nodes, healthy)."""
    layers = [
        layer("0", 64, plateau=len(dead_nodes), measures={"effective_rank": rank}),
        layer("2", 10),
    ]
    nodes = [node("0", i, findings=dead(1000)) for i in dead_nodes]
    return diagnosis(layers, [*nodes, *extra], **more)


def source(index: int, margin: float) -> Any:
    """Return a node of layer 2 above its threshold."""
    found = finding("ND402", "source", "above it", "error", stability_margin=margin, threshold=1.0)
    return node("2", index, "source", [found])
