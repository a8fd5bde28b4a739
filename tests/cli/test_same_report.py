"""What must not change a report: running again, the size of batches, how an activation is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.support import FULL


def stripped(document: Any) -> Any:
    for found in document["checkpoints"]:
        del found["timing"]
    return document


def without_timing(text: str) -> str:
    return re.sub(r'"timing": \{[^}]*\}', "", text)


def test_the_same_scan_twice_gives_the_same_bytes(cli: Cli) -> None:
    one, other = (cli("scan", "run", *FULL, "--format", "json", "--all-nodes").out for _ in range(2))
    assert "timing" not in without_timing(one)
    assert without_timing(one) == without_timing(other)


@pytest.mark.parametrize("form", ["rich", "markdown"])
def test_the_same_scan_twice_reads_the_same(cli: Cli, form: str) -> None:
    one, other = (cli("scan", "run", *FULL, "--format", form).out for _ in range(2))
    seconds = re.compile(r"[\d.,]+ (ms|s|min)\b")
    assert seconds.sub("", one).split() == seconds.sub("", other).split()


def test_batches_do_not_change_the_numbers(cli: Cli) -> None:
    whole, parts = (
        cli("scan", "net.safetensors", *FULL, "--format", "json", "--all-nodes", "--dtype", "float64",
            "--batch-size", size).document()
        for size in ("10", "9")
    )  # fmt: skip
    whole["settings"]["batch_size"] = 9
    assert_close(stripped(whole), stripped(parts))


def test_spellings_of_relu_give_one_report(cli: Cli, work: Path) -> None:
    document, *others = (
        stripped(
            cli("scan", "named.safetensors", "--model", f"models.py:{spelling}", *FULL[2:],
                "--format", "json", "--all-nodes").document()
        )
        for spelling in ("Net", "Module", "InPlace", "Method")
    )  # fmt: skip
    assert document["checkpoints"][0]["layers"][0]["name"] == "hidden"
    assert document["checkpoints"][0]["layers"][0]["activation"] == "relu"
    for other in others:
        assert json.dumps(other) == json.dumps(document)


def assert_close(one: Any, other: Any, place: str = "") -> None:
    """Compare two documents, numbers up to rounding."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_close(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_close(left, right, f"{place}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12), place
    else:
        assert one == other, place
