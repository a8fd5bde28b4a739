"""Checks in the formats of build machines: valid, within their limits, one entry a rule and layer, names harmless."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from nndiag.config.policy import parse_policy
from nndiag.gating.checking import gate
from nndiag.gating.severity import by_severity
from nndiag.records.gate import Check, Verdict
from nndiag.report.checks import FORMATS, render_checks
from tests.gating.documents import checkpoint, document, source
from tests.report.published import JUNIT, SARIF
from tests.report.synthetic import ALL, HOSTILE


def failing(count: int, gravity: str = "error", layer: str | None = None) -> list[Check]:
    return [
        Check(
            "max_dead_fraction",
            f"{gravity} {i}" if layer is None else layer,
            0.5,
            0.1,
            False,
            "half are dead",
            gravity,
        )  # type: ignore[arg-type]
        for i in range(count)
    ]


def hostile() -> Verdict:
    return Verdict(
        tuple(Check(name, name, 1.0, 0.0, False, f"message {name}", look=name) for name in HOSTILE),
        "runs/" + HOSTILE[1], HOSTILE[0],
    )  # fmt: skip


def real() -> Verdict:
    found = document(checkpoint(range(40), extra=[source(i, 2.0) for i in range(5)]))
    return gate(found, parse_policy({"max_dead_fraction": 0.05, "forbid": ["ND4", "ND101", "ND2"]}, "p.toml"))


VERDICTS = {
    "real": real, "hostile": hostile, "passed": lambda: Verdict((Check("r", None, 0, 0, True, "fine"),), "m.pt"),
    "none": lambda: Verdict((), ""), "many": lambda: Verdict(tuple(failing(25) + failing(12, "warning")), "m.pt"),
    **{name: (lambda make=make: by_severity(make().model_dump(), "warning")) for name, make in ALL.items()},
}  # fmt: skip
EVERY = pytest.mark.parametrize("verdict", [make() for make in VERDICTS.values()], ids=list(VERDICTS))


@EVERY
def test_junit_is_what_its_schema_allows(verdict: Verdict) -> None:
    text = render_checks(verdict, "junit", "1")
    JUNIT.validate(text)
    root = Tree.fromstring(text)
    cases = root.findall("testsuite/testcase")
    assert len(cases) == len(verdict.checks) == int(root.attrib["tests"])
    assert len(root.findall(".//failure")) == len(verdict.failed) == int(root.attrib["failures"])
    assert len({(case.attrib["classname"], case.attrib["name"]) for case in cases}) == len(cases)


WRONG_XML = (
    ('time="0"', 'time="soon"'), ('<testcase ', '<testcase colour="red" '), ("<failure ", "<crash/><failure "),
    ('<testsuite name="m.pt"', "<testsuite"), ("testsuites", "suites"),
)  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), WRONG_XML)
def test_the_schema_of_junit_refuses_what_is_wrong(right: str, wrong: str) -> None:
    text = render_checks(Verdict(tuple(failing(9)), "m.pt"), "junit", "1")
    assert right in text
    assert not JUNIT.is_valid(text.replace(right, wrong))


@EVERY
def test_sarif_is_what_its_schema_allows(verdict: Verdict) -> None:
    found = json.loads(render_checks(verdict, "sarif", "1.2.3"))
    SARIF.validate(found)
    (run,) = found["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(run["results"]) == len(verdict.failed)
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    prints = [result["partialFingerprints"]["ruleAndLayer/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


WRONG_JSON: tuple[tuple[str, Any], ...] = (
    ("ruleId", 7), ("level", "fatal"), ("message", {}), ("ruleIndex", -2), ("colour", "red"),
    ("locations", [{"line": 1}]), ("partialFingerprints", {"a": 1}),
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG_JSON)
def test_the_schema_of_sarif_refuses_what_is_wrong(key: str, value: Any) -> None:
    found = json.loads(render_checks(Verdict(tuple(failing(1)), "m.pt"), "sarif", "1"))
    assert SARIF.is_valid(found)
    found["runs"][0]["results"][0][key] = value
    assert not SARIF.is_valid(found)


@EVERY
def test_github_annotations_are_few_and_whole(verdict: Verdict) -> None:
    lines = render_checks(verdict, "github", "1").splitlines()
    for kind in ("error", "warning"):
        of_kind = [line for line in lines if line.startswith(f"::{kind} ")]
        assert len(of_kind) <= 10
        assert bool(of_kind) == any(
            (check.gravity == "error") == (kind == "error") for check in verdict.failed
        )
    for line in lines:
        command, _, message = line.removeprefix("::").partition("::")
        assert command.partition(" ")[0] in ("error", "warning", "notice")
        assert "::" not in command
        assert not {"\r", "\n"} & set(message)


def test_what_github_leaves_out_is_counted() -> None:
    lines = render_checks(VERDICTS["many"](), "github", "1").splitlines()
    assert len(lines) == 20
    assert "and 16 more of this kind" in lines[9]
    assert "and 3 more of this kind" in lines[19]
    exactly = render_checks(Verdict(tuple(failing(10)), "m.pt"), "github", "1").splitlines()
    assert len(exactly) == 10
    assert not any("more of this kind" in line for line in exactly)


@pytest.mark.parametrize("format_", FORMATS)
def test_names_from_a_checkpoint_do_nothing(format_: str) -> None:
    text = render_checks(hostile(), format_, "1")
    assert "\x1b" not in text
    assert "\u202e" not in text
    if format_ == "markdown":
        assert "<b>" not in text
        assert "@me" not in text


def test_a_surrogate_in_a_name_is_written() -> None:
    verdict = Verdict((Check("r", "a\ud800b\x00", 1, 0, False, "m\ufffe"),), "m\udcff.pt")
    for format_ in FORMATS:
        assert render_checks(verdict, format_, "1").encode()


def test_one_entry_a_rule_and_layer_never_one_a_node() -> None:
    verdict = real()
    assert {(check.rule, check.layer) for check in verdict.failed} == {
        ("max_dead_fraction", "0"), ("forbid ND201", "0"), ("forbid ND204", "0"), ("forbid ND401", "0"),
        ("forbid ND402", "2"),
    }  # fmt: skip


def test_severity_of_the_last_checkpoint_that_has_it() -> None:
    verdict = by_severity(ALL["dying"]().model_dump(), "error")
    assert [(check.rule, check.layer) for check in verdict.failed] == [("ND252 layer-degenerate", "2")]
    assert by_severity(ALL["dying"]().model_dump(), "never").passed
    healthy = by_severity(ALL["healthy"]().model_dump(), "warning")
    assert healthy.passed
    assert len(healthy.checks) == 3
