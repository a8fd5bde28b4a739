"""The same wounds as model-clinic and torchdiag see them, where they are installed."""

from __future__ import annotations

import contextlib
import io
import random
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from benchmarks.lesions.counting import units_of
from benchmarks.lesions.digits import digits
from benchmarks.lesions.networks import ARCHITECTURES, Architecture, Site, trained
from benchmarks.lesions.planting import LESIONS, Lesion
from benchmarks.lesions.scanning import said_of
from benchmarks.markdown import rows, section

NETWORKS = ("ReLU MLP", "tanh MLP", "CNN with BatchNorm", "LSTM")
TOOLS = ("model-clinic", "torchdiag")


def rivals(seed: int) -> list[str]:
    """Return the table: how many wounds each tool notices, and how many it puts at the right node."""
    versions = {tool: _version(tool) for tool in TOOLS}
    lines = section(
        "Beside other tools",
        "One wound at a time, the strengths of each lesion, networks of seed "
        f"{seed}: {', '.join(NETWORKS)}. Noticed: it says something that it does not say of the network without the "
        "wound. Named: it says which unit; model-clinic by the rows of a tensor it lists, torchdiag counts and names "
        "none. "
        + "; ".join(f"{tool} {found or 'is not installed'}" for tool, found in versions.items())
        + ".",
    )
    counts: dict[str, Counter[str]] = {}
    clean: Counter[str] = Counter()
    for architecture in (one for one in ARCHITECTURES if one.name in NETWORKS):
        model = trained(architecture, seed)
        before = {tool: _said(tool, model) for tool in TOOLS if versions[tool]}
        clean.update({tool: len(found) for tool, found in before.items()})
        for lesion, site, wounded, unit in _wounded(architecture, seed):
            count = counts.setdefault(lesion.name, Counter())
            count["planted"] += 1
            node, code = lesion.expected(site, unit)
            count["nndiag"] += code in said_of(wounded, digits().reporting).every.get(node, ())
            for tool, found in before.items():
                new = _said(tool, wounded) - found
                count[tool] += bool(new)
                count[f"{tool} names"] += any(place == (site.weights[0], unit) for _, place in new)
    body = []
    for name, count in counts.items():
        cells = [f"{count['nndiag']} of {count['planted']}"]
        for tool in TOOLS:
            found = f"{count[tool]}, named {count[f'{tool} names']}" if versions[tool] else "–"
            cells.append(found)
        body.append([name, *cells])
    lines += rows(["lesion", "nndiag, named", "model-clinic", "torchdiag"], body)
    said = "; ".join(f"{tool} {clean[tool]}" for tool in TOOLS if versions[tool])
    return [*lines, f"Said of the networks without wounds: {said or '–'}.", ""]


def _version(tool: str) -> str | None:
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def _wounded(architecture: Architecture, seed: int) -> Iterator[tuple[Lesion, Site, nn.Module, int]]:
    base = said_of(trained(architecture, seed), digits().reporting)
    draw = random.Random(seed)
    for site in architecture.sites:
        for lesion in (one for one in LESIONS if one.fits(site)):
            for strength in lesion.strengths:
                for unit in units_of(site, base, draw, 1):
                    model = trained(architecture, seed)
                    with torch.no_grad():
                        lesion.plant(model, site, unit, strength)
                    yield lesion, site, model, unit


Place = tuple[str, int]


def _said(tool: str, model: nn.Module) -> set[tuple[str, Place]]:
    """Return what a tool says: a sentence, and the row of a tensor where it names one."""
    with contextlib.redirect_stdout(io.StringIO()):
        return set(_clinic(model) if tool == "model-clinic" else _torchdiag(model))


def _clinic(model: nn.Module) -> Iterator[tuple[str, Place]]:
    from model_clinic.clinic import diagnose

    for finding in diagnose(dict(model.state_dict()), plugins=False):
        details: dict[str, Any] = finding.details
        if finding.severity == "INFO":
            continue
        nodes = details.get("dead_indices", []) if details.get("dim") == "rows" else []
        for node in nodes:
            if isinstance(node, int):
                yield finding.condition, (finding.param_name, node)
        if not nodes:
            count = details.get("dead_count", details.get("duplicate_pairs", ""))
            yield f"{finding.condition} {count}", (finding.param_name, -1)


def _torchdiag(model: nn.Module) -> Iterator[tuple[str, Place]]:
    import torchdiag

    try:
        report = torchdiag.check_dead_neurons(model, digits().reporting[0])
    except Exception:  # another tool's failure is its answer
        return
    for name, found in report.items():
        if found["dead"]:
            yield f"{found['dead']} dead", (name, -1)
