"""A probe of random numbers is said to be one in every format of every report, passed or not."""

from __future__ import annotations

import io
import json
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from nndiag.cli.compare import FORMATS as COMPARE_FORMATS
from nndiag.cli.compare import _rendered
from nndiag.cli.scan import _parquet
from nndiag.config.policy import parse_policy
from nndiag.gating.checking import gate
from nndiag.gating.severity import by_severity
from nndiag.records.document import NOISE
from nndiag.records.gate import Verdict
from nndiag.records.report import Report
from nndiag.records.table import comparison_columns
from nndiag.report import CHECK_FORMATS, FORMATS
from nndiag.report.checks import FORMATS as GATE_FORMATS
from nndiag.report.checks import render_checks
from nndiag.report.document import render_json
from tests.comparing.runs import along, compared
from tests.report.builder import diagnosis, layer, report
from tests.report.published import JUNIT, SARIF
from tests.report.test_healing import NOTHING, shown


def healthy(*, random: bool) -> Report:
    """A healthy network on a probe of noise, or of data."""
    found = diagnosis([layer("0", 4)], level="curvature")
    assert found.probe is not None
    probe = found.probe.model_copy(update={"random": random})
    return report(found.model_copy(update={"probe": probe}))


def verdicts(*, random: bool) -> dict[str, Verdict]:
    """What a scan and the gate make of it, both of which pass."""
    document = json.loads(FORMATS["json"](healthy(random=random)))
    return {"scan": by_severity(document, "error"), "gate": gate(document, parse_policy({}, "p.toml"))}


def run(*random: bool) -> list[dict[str, Any]]:
    """The checkpoints of a run on such probes."""
    ends = along(len(random), ["hh" for _ in random])
    return [one | {"probe": {"random": noise}} for one, noise in zip(ends, random, strict=True)]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("format_", FORMATS)
def test_formats_of_a_scan(format_: str) -> None:
    words = ("of random numbers", '"random": true')
    assert any(word in FORMATS[format_](healthy(random=True)) for word in words)
    assert not any(word in FORMATS[format_](healthy(random=False)) for word in words)


@pytest.mark.parametrize("by", ["scan", "gate"])
@pytest.mark.parametrize("format_", dict.fromkeys([*CHECK_FORMATS, *GATE_FORMATS]))
def test_formats_of_checks(format_: str, by: str) -> None:
    noisy, plain = verdicts(random=True)[by], verdicts(random=False)[by]
    assert noisy.passed
    assert NOISE in render_checks(noisy, format_, "1")
    assert "random" not in render_checks(plain, format_, "1")


@pytest.mark.parametrize("by", ["scan", "gate"])
def test_the_published_schemas_allow_it(by: str) -> None:
    verdict = verdicts(random=True)[by]
    text = render_checks(verdict, "junit", "1")
    JUNIT.validate(text)
    found = Tree.fromstring(text).find("testsuite/properties/property")
    assert found is not None
    assert found.attrib == {"name": "caution", "value": NOISE}
    document = json.loads(render_checks(verdict, "sarif", "1"))
    SARIF.validate(document)
    (invocation,) = document["runs"][0]["invocations"]
    assert [one["message"]["text"] for one in invocation["toolExecutionNotifications"]] == [NOISE]
    invocation["toolExecutionNotifications"][0]["message"] = NOISE
    assert not SARIF.is_valid(document)


def test_github_says_it_before_that_all_passed() -> None:
    lines = render_checks(verdicts(random=True)["scan"], "github", "1").splitlines()
    assert lines == [f"::notice title=nndiag::{NOISE}", "::notice title=nndiag::all 1 checks passed"]


@pytest.mark.parametrize("format_", COMPARE_FORMATS)
def test_formats_of_a_comparison(format_: str) -> None:
    said = one_line(_rendered(compared(*run(True, True)), format_))
    assert (NOISE if format_ != "json" else '"random_probe": true') in said
    plain = _rendered(compared(*run(False, False)), format_)
    assert "random numbers" not in plain
    assert '"random_probe": true' not in plain
    if format_ != "json":
        assert f"at 1 of 3 checkpoints {NOISE}" in one_line(
            _rendered(compared(*run(True, False, False)), format_)
        )


def test_tables() -> None:
    columns = comparison_columns(compared(*run(True, False), all_nodes=True))
    assert columns["random_probe"] == [True, False] * 2


@pytest.mark.parametrize("random", [True, False])
def test_parquet(random: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sheet = parquet.read_schema(io.BytesIO(_parquet(healthy(random=random))))
    assert ((sheet.metadata or {}).get(b"nndiag.caution") == NOISE.encode()) is random


def test_healing() -> None:
    noisy = NOTHING.model_copy(update={"random_probe": True})
    said = one_line(shown(noisy))
    assert "on 100 samples of random numbers" in said
    assert NOISE[1:] in said
    assert '"random_probe": true' in render_json(noisy)
    assert "random numbers" not in shown(NOTHING)
    assert '"random_probe": false' in render_json(NOTHING)
