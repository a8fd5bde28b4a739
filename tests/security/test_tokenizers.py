"""Tokenizers that make a text longer without end: their library ends the process where memory runs out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import valid
from tests.security.conftest import Program
from tests.security.stock import in_child

library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
Refused = Callable[..., str]
WORDS = (
    ".",
    "--data",
    "text.txt",
    "--loss",
    "causal_lm",
    "--block-size",
    "8",
    "--level",
    "activations",
    "--quiet",
)


def replacing(folder: Path, *contents: str) -> Path:
    """The files of a small language model, of which the tokenizer replaces ``a`` several times over."""
    valid.text_model(folder)
    file = folder / "tokenizer.json"
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": content} for content in contents]
    normalizer = {"type": "Sequence", "normalizers": steps}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))
    return file


def test_replacements_of_replacements(run: Path, refused: Refused) -> None:
    file = replacing(run, *["a" * 100] * 5)
    text = (run / "text.txt").read_text()
    assert in_child(lambda: len(library.Tokenizer.from_file(str(file)).encode(text))).signal == signal.SIGABRT
    assert "its replacements make a text 10,000,000,000 times as long" in refused(*WORDS)


def test_usual_replacements(run: Path, scan: Program) -> None:
    replacing(run, "\u2581", "b", "''")
    assert scan(*WORDS).code == 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "\x00"], ids=range(4))
def test_tokenizers_that_are_none(run: Path, refused: Refused, text: str) -> None:
    valid.text_model(run)
    (run / "tokenizer.json").write_text(text)
    assert "is damaged, or no tokenizer" in refused(*WORDS)
