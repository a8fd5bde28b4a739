from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from nndiag.report.inert import inert
from nndiag.report.markdown import render_markdown
from tests.report import synthetic

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
OURS = {
    "h1", "h2", "h3", "p", "ul", "li", "strong", "code", "details", "summary",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


@pytest.mark.parametrize("name", synthetic.ALL)
def test_only_our_own_markup_acts(name: str) -> None:
    page = READER.render(render_markdown(synthetic.ALL[name]()))
    assert set(re.findall(r"</?([a-zA-Z]\w*)", page)) <= OURS


@pytest.mark.parametrize(
    "text",
    [
        "[x](http://y.z)",
        "**b**",
        "`c`",
        "<b>t</b>",
        "a|b",
        "www.x.y",
        "&lt;",
        "![i](u)",
        "~~s~~",
        "$m$",
        "a\\",
        "_e_",
    ],
)
def test_inert_text_reads_as_it_was_written(text: str) -> None:
    (paragraph,) = READER.parse(f"x {inert(text)}")[1:2]
    assert [child.type for child in paragraph.children] == ["text"]
    assert paragraph.children[0].content == f"x {text}"


def test_inert_text_is_one_line_and_calls_nobody() -> None:
    assert "\n" not in inert("a\nb")
    assert "@me" not in inert("@me")
    assert "::" not in inert("::error::x")


@pytest.mark.parametrize("name", synthetic.ALL)
def test_every_table_row_has_the_cells_of_its_head(name: str) -> None:
    page = READER.render(render_markdown(synthetic.ALL[name]()))
    for table in re.findall(r"<table>.*?</table>", page, re.S):
        cells = {len(re.findall("<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(cells) == 1


def test_the_summary_of_a_run() -> None:
    text = render_markdown(synthetic.dying())
    assert text.startswith(
        "# nndiag: ❌ Layer 2 is dead since epoch 5 (mostly since epoch 3): all 64 nodes never fire.\n"
    )
    assert "| <code>2</code> | 0 % | 9.38 % | 62.5 % | 89.1 % | 100 % | 100 % | 100 % | 100 % |" in text
    assert text.count("<details>") == text.count("</details>") == 7
    last = text[text.rindex("</details>") :]
    assert "## <code>epoch\\_008.safetensors</code>, epoch 8" in last
    assert "| <code>2</code> | Linear | 64 plateau | 64 | 100 % | 1.00 | 0 |" in last
    assert (
        "**ND201 dead**, <code>2</code>, all 64 nodes: never fires on any of the 1,000 samples. Hence" in last
    )
    assert "- **Reinitialise 64 nodes** of <code>2</code>: dead on all 1,000 samples" in last


def test_what_is_not_finite_is_said_in_words() -> None:
    text = render_markdown(synthetic.not_finite())
    assert "loss not finite" in text
    assert "| <code>2</code> | Linear | 61 healthy, 3 unknown | 64 | not finite | not finite |" in text
