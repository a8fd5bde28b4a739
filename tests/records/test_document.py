"""Reports that somebody edited: what is damaged is said in one line with its place, whoever reads it."""

from __future__ import annotations

import copy
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nndiag
from nndiag.errors import InputError, NndiagError
from nndiag.report import render_json
from nndiag.report.checks import render_checks
from nndiag.report.compare_terminal import render_comparison_text

TWO_CYCLE = Path(__file__).parents[2] / "sample_checkpoints" / "two_cycle"
VALUES = (
    None, True, 0, -1, 3, 1.5, 1e308, float("nan"), float("inf"), 10**400, 2**63, "x", "", "\0", "\ud800",
    "a/b\x1b[2J", [], [None], [1], ["x"], {}, {"x": 1}, {"code": None},
)  # fmt: skip
EVERYTHING = {
    "forbid": ["ND2", "ND7"], "max_new_degenerate": 3, "max_regression": 0.1, "min_effective_rank": 1,
    "max_dead_fraction": 0.1, "max_degenerate_fraction": 0.2,
}  # fmt: skip
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A real report: three checkpoints with findings on nodes and on the model."""
    outcome = nndiag.scan([TWO_CYCLE], nndiag.ScanSettings(last=3, all_nodes=True))
    found: dict[str, Any] = json.loads(render_json(outcome.report))
    return found


def compare(path: Path) -> None:
    found = nndiag.compare(path)
    render_comparison_text(found)
    render_json(found)


def gate(path: Path) -> None:
    verdict = nndiag.gate(path, {})
    for name in ("rich", "json", "junit", "sarif", "github", "markdown"):
        render_checks(verdict, name, "0")
    nndiag.gate(path, EVERYTHING)


@pytest.mark.parametrize("read", [compare, gate])
@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("checkpoint", "epoch"), "x", "checkpoint.epoch is neither a whole number nor null"),
        (("checkpoint", "optimizer"), [], "checkpoint.optimizer is neither an object nor null"),
        (("checkpoint", "optimizer"), {"lr": "0.1"}, "checkpoint.optimizer.lr is neither a finite number nor null"),
        (("checkpoint", "logged"), {"eval_step": .5}, "checkpoint.logged.eval_step is neither a whole number nor null"),
        (("model", "loss"), [], "model.loss is neither a finite number nor null"),
        (("model", "loss"), 10**400, "model.loss is neither a finite number nor null"),
        (("model", "findings"), None, "model.findings is no list of objects"),
        (("layers",), [1], "layers is no list of objects"),
        (("layers", 0, "measures"), None, "layers[0].measures is no object of finite numbers"),
        (("layers", 0, "fan_in"), None, "layers[0].fan_in is no whole number from 0 up"),
        (("layers", 0, "nodes"), 0, "layers[0].nodes is no whole number from 1 up"),
        (("layers", 0, "findings"), [None], "layers[0].findings is no list of objects"),
        (("nodes", 0, "findings"), None, "nodes[0].findings is no list of objects"),
        (("nodes", 0, "findings"), [{"evidence": 3}], "nodes[0].findings[0].evidence is no object"),
        (("nodes", 0, "index"), [], "nodes[0].index is no whole number from 0 up"),
        (("nodes", 0, "measures"), {"bias": "x"}, "nodes[0].measures is no object of finite numbers"),
    ],
)  # fmt: skip
def test_the_place_of_the_damage_is_said(
    report: dict[str, Any],
    tmp_path: Path,
    read: Callable[[Path], None],
    place: Place,
    value: object,
    said: str,
) -> None:
    damaged = copy.deepcopy(report)
    put(damaged["checkpoints"][1], place, value)
    file = written(damaged, tmp_path)
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(caught.value) == f"{file}: is damaged: checkpoints[1].{said}; scan again"


def test_what_is_missing_is_said(report: dict[str, Any], tmp_path: Path) -> None:
    damaged = copy.deepcopy(report)
    del damaged["checkpoints"][2]["layers"][0]["verdicts"]
    with pytest.raises(
        InputError, match=r"is damaged: checkpoints\[2\].layers\[0\].verdicts is missing; scan again"
    ):
        gate(written(damaged, tmp_path))


def test_any_damage_ends_in_a_verdict_or_in_one_line(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change one place of the report at a time, every kind of place as often as the others."""
    monkeypatch.chdir(tmp_path)
    rng, said = random.Random(7), []
    kinds = defaultdict(list)
    for place in places(report):
        kinds[tuple("*" if isinstance(key, int) else key for key in place)].append(place)
    for _ in range(150):
        damaged = copy.deepcopy(report)
        place = rng.choice(kinds[rng.choice(sorted(kinds))])
        put(damaged, place, rng.choice(VALUES))
        file = written(damaged, tmp_path)
        for read in (compare, gate):
            try:
                read(file)
            except NndiagError as error:
                said.append(str(error))
    assert len(said) > 50  # else nothing was damaged that is read
    assert {len(line.splitlines()) for line in said} == {1}


def places(found: Any, above: Place = ()) -> Iterator[Place]:
    inside = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inside:
        yield (*above, key)
        yield from places(value, (*above, key))


def put(found: Any, place: Place, value: object) -> None:
    for key in place[:-1]:
        found = found[key]
    found[place[-1]] = value


def written(document: dict[str, Any], folder: Path) -> Path:
    """Write a document as nobody lays it out, so that its nodes are read."""
    file = folder / "r.json"
    file.write_text(json.dumps(document))
    return file
