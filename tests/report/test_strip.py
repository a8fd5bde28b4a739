from __future__ import annotations

import pytest

from nndiag.records.report import Verdict
from nndiag.report.picture import thinned
from nndiag.report.selection import Fold, folded
from nndiag.report.strip import legend, letter, marks
from tests.report.builder import dead, finding, layer, node

NAN = finding("ND101", "non-finite", "m", "error")
ODD = finding("ND206", "duplicate-output", "m")
NOTE = finding("ND205", "always-on", "m", "info")


@pytest.mark.parametrize(
    ("verdict", "findings", "mark"),
    [
        ("plateau", dead(3), "D"),
        ("plateau", (), "P"),
        ("collapsed", dead(3), "C"),
        ("source", (), "S"),
        ("saddle", (), "N"),
        ("unknown", (), "?"),
        ("unknown", (NAN,), "X"),
        ("unknown", (ODD,), "W"),
        ("healthy", (ODD,), "W"),
        ("healthy", (NOTE,), ""),
    ],
)
def test_a_node_has_the_letter_of_its_gravest_trouble(verdict: Verdict, findings: tuple, mark: str) -> None:
    assert letter(node("0", 0, verdict, findings)) == mark


@pytest.mark.parametrize("width", [1, 3, 8, 16, 100])
@pytest.mark.parametrize("nodes", [1, 2, 7, 64, 1000])
def test_a_strip_has_a_cell_for_every_node_or_is_full(nodes: int, width: int) -> None:
    made = marks(layer("0", nodes), [], width)
    assert made == "." * min(nodes, width)
    every = marks(
        layer("0", nodes, plateau=nodes), [node("0", i, findings=dead(1)) for i in range(nodes)], width
    )
    assert every == "D" * min(nodes, width)


def test_marks_stand_where_the_nodes_are_and_are_small_where_they_are_few() -> None:
    assert marks(layer("0", 8, plateau=1), [node("0", 6)], 8) == "......P."
    assert marks(layer("0", 8, plateau=1), [node("0", 6)], 4) == "...P"
    assert marks(layer("0", 9, plateau=1), [node("0", 8)], 3) == "..p"
    assert marks(layer("0", 4, plateau=1, source=1), [node("0", 0), node("0", 1, "source")], 2) == "S."


def test_nodes_that_are_not_listed_are_unjudged_where_none_is_healthy() -> None:
    assert marks(layer("0", 4, unknown=4), [], 4) == "????"
    assert marks(layer("0", 4, unknown=2, plateau=2), [node("0", 0), node("0", 1)], 4) == "PP??"
    assert marks(layer("0", 4, unknown=1), [node("0", 0, "unknown")], 4) == "?..."


def test_the_legend_explains_what_was_shown_and_nothing_else() -> None:
    assert [mark for mark, _, _ in legend({".", "d", "S"})] == ["S", "D", ""]
    assert legend({"."}) == []


def test_runs_of_rows_are_folded_but_never_a_single_one() -> None:
    assert folded(6, {0, 2}) == [0, 1, 2, Fold(3, 3)]
    assert folded(3, set(), {1}) == [Fold(3, 0, healthy=False)]
    assert Fold(3, 0, healthy=False).say("layer") == "3 more layers"
    assert Fold(37, 0).say("layer") == "37 healthy layers"


@pytest.mark.parametrize(("count", "room"), [(5, 9), (5, 5), (300, 48), (3, 2), (1, 1)])
def test_thinning_keeps_both_ends_and_the_order(count: int, room: int) -> None:
    kept = thinned(count, room)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert len(kept) == min(count, max(room, 2))
    assert list(kept) == sorted(set(kept))
