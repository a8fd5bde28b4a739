"""Runs made by hand: the documents of scans with chosen norms, directions, biases and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nndiag.comparing.judging import compare_run
from nndiag.comparing.reading import run_of
from nndiag.records.comparison import Comparison
from nndiag.records.packed import pack

WORDS = {"h": "healthy", "c": "collapsed", "p": "plateau", "d": "plateau", "s": "source", "n": "saddle", "u": "unknown",
         "x": "unknown"}  # fmt: skip


def layer(
    states: str, norms: Any = 1.0, biases: Any = None, directions: Any = None, curvatures: Any = None, name: str = "0",
    fan_in: int = 8, **measures: float,
) -> dict[str, Any]:  # fmt: skip
    """Return a layer of a diagnosis, with a letter a node."""
    n = len(states)
    weights = np.broadcast_to(np.asarray(norms, float), n)
    b = None if biases is None else np.broadcast_to(np.asarray(biases, float), n)
    u = np.eye(n, fan_in) if directions is None else np.asarray(directions, float)
    verdicts = dict.fromkeys(WORDS.values(), 0)
    for letter in states:
        verdicts[WORDS[letter]] += 1
    compact = {
        "states": states,
        "parameter_norm": pack(weights if b is None else np.hypot(weights, b)),
        "weight_norm": pack(weights),
        "bias": None if b is None else pack(b),
        "lambda_max": None if curvatures is None else pack(np.broadcast_to(np.asarray(curvatures, float), n)),
        "direction": pack(u, "<f2"),
    }
    return {"name": name, "kind": "Linear", "nodes": n, "fan_in": fan_in, "verdicts": verdicts, "measures": measures,
            "findings": [], "every_node": compact}  # fmt: skip


def diagnosis(
    *layers: dict[str, Any], step: int | None = None, epoch: int | None = None, loss: float | None = None,
    gradient: float | None = None, level: str = "curvature", path: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return one checkpoint of a report."""
    return {
        "checkpoint": {"path": path or f"e{step}.pt", "step": step, "epoch": epoch, "sha256": "0"},
        "level": level,
        "model": {"loss": loss, "gradient_norm": gradient, "findings": []},
        "layers": list(layers),
        "nodes": [],
    }


def compared(*diagnoses: dict[str, Any], **more: Any) -> Comparison:
    """Return the comparison of a run."""
    return compare_run(run_of(diagnoses), "0", **more)


def having(found: Comparison, code: str) -> list[tuple[str, int]]:
    """Return where a finding is."""
    return [(n.layer, n.index) for n in found.nodes for finding in n.findings if finding.code == code]


def of_model(found: Comparison) -> list[str]:
    """Return the codes of the findings on the model."""
    return [finding.code for finding in found.model.findings]


def along(count: int, states: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    """Return checkpoints of one layer, a step each; keywords map the share of the run, 0 to 1, to a value."""
    made = []
    for place in range(count):
        share = place / (count - 1)
        letters = states[min(int(share * len(states)), len(states) - 1)]
        values = {name: make(share) for name, make in more.items() if name not in ("loss", "gradient")}
        loss = more["loss"](share) if "loss" in more else None
        made.append(diagnosis(layer(letters, **values), step=1000 * place // (count - 1), loss=loss))
    return made
