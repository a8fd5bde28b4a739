"""Amounts of memory are read as people write them, and what is shown can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nndiag.config.sizes import bytes_in_words, parse_bytes
from nndiag.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 2**30), ("4GiB", 4 * 2**30), ("4gib", 4 * 2**30), (" 500 MB ", 500 * 10**6),
        ("1.5KiB", 1536), (".5kB", 500), ("2TB", 2 * 10**12), ("7b", 7), ("3.MiB", 3 * 2**20),
    ],
)  # fmt: skip
def test_what_is_written(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory-budget") == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "4XB", "-1GiB", "4 4GiB", "1e9", "nan", "half", "0", "0.1B", "4Gi"]
)
def test_nonsense(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text, "--memory-budget")
    assert caught.value.what == f"--memory-budget {text}"


@given(st.integers(1, 2**50))
def test_rounded_up_it_is_never_less(size: int) -> None:
    shown = parse_bytes(bytes_in_words(size, up=True), "--memory-budget")
    assert size <= shown <= 1.1 * size + 1
    assert parse_bytes(bytes_in_words(size), "--memory-budget") == pytest.approx(size, rel=0.06)
