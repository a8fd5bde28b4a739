"""Checks as JUnit XML: a test suite of one test case a rule and layer, as build servers read it."""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from nndiag.errors import printable
from nndiag.records.gate import Check, Verdict


def render_junit(verdict: Verdict) -> str:
    """Return the checks as one ``testsuites`` document; names that XML cannot hold are escaped."""
    counts = {"tests": str(len(verdict.checks)), "failures": str(len(verdict.failed)), "errors": "0"}
    root = Tree.Element("testsuites", {"name": "nndiag", **counts, "time": "0"})
    suite = Tree.SubElement(
        root, "testsuite", {"name": _safe(verdict.subject or "nndiag"), **counts, "time": "0"}
    )
    if verdict.caution:
        properties = Tree.SubElement(suite, "properties")
        Tree.SubElement(properties, "property", {"name": "caution", "value": _safe(verdict.caution)})
    for check in verdict.checks:
        suite.append(_case(check, verdict.subject))
    Tree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Tree.tostring(root, encoding="unicode") + "\n"


def _case(check: Check, subject: str) -> Tree.Element:
    layer = "model" if check.layer is None else f"layer {check.layer}"
    names = {"classname": _safe(f"nndiag.{layer}"), "name": _safe(f"{check.rule} [{layer}]"), "time": "0"}
    case = Tree.Element("testcase", names)
    if not check.passed:
        said = {"message": _safe(check.message), "type": _safe(check.rule)}
        failure = Tree.SubElement(case, "failure", said)
        lines = [f"{layer} of {subject}: {check.message}"]
        if check.look:
            lines.append(f"look closer: {check.look}")
        failure.text = "\n".join(_safe(line) for line in lines)
    return case


def _safe(text: str) -> str:
    """Return text that XML 1.0 can hold, on one line: what is no character there is shown as an escape."""
    shown = printable(text)
    return "".join(c if _is_xml(c) else c.encode("unicode_escape").decode("ascii") for c in shown)


def _is_xml(c: str) -> bool:
    return " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c >= "\U00010000"
