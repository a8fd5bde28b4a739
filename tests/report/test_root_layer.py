"""A network that is one layer has a layer without a name."""

from __future__ import annotations

from nndiag.report import render_text
from tests.report.builder import dead, diagnosis, layer, node, report


def test_it_is_called_something_all_the_same() -> None:
    nodes = [node("", place, "plateau", dead(1000)) for place in range(2)]
    text = render_text(report(diagnosis([layer("", 4, plateau=2)], nodes)))
    assert "(root)" in text
    assert "the only layer" in text
