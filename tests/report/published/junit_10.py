"""The elements, attributes and contents that the JUnit schema of Jenkins (``junit-10.xsd``) allows, as a table.

Retyped from that schema; checked element by element, since an XSD validator would be one more thing to install.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

_NUMBER, _TIME = re.compile(r"[0-9]+"), re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]{0,3})?")


@dataclass(frozen=True)
class Allowed:
    """Attributes that must and that may be there, children, and whether there may be text."""

    required: frozenset[str]
    optional: frozenset[str]
    children: frozenset[str]
    text: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


JUNIT = {
    "testsuites": Allowed(
        _words(""), _words("name time tests failures disabled errors"), _words("testsuite")
    ),
    "testsuite": Allowed(
        _words("name tests"),
        _words("failures errors group time skipped timestamp hostname id package file log url version"),
        _words("properties testcase testsuite system-out system-err"),
    ),
    "testcase": Allowed(
        _words("name"),
        _words("classname time assertions status class file line log group url"),
        _words("skipped error failure system-out system-err properties rerunFailure"),
    ),
    "failure": Allowed(_words(""), _words("type message"), _words(""), text=True),
}
_COUNTS = _words("tests failures disabled errors skipped assertions")


def problems(element: Element) -> list[str]:
    """Return what the schema does not allow in a document, in words."""
    allowed = JUNIT.get(element.tag)
    if allowed is None:
        return [f"unknown element {element.tag}"]
    given = frozenset(element.attrib)
    found = [f"{element.tag} lacks {name}" for name in allowed.required - given]
    found += [f"{element.tag} has {name}" for name in given - allowed.required - allowed.optional]
    for name, value in element.attrib.items():
        pattern = _NUMBER if name in _COUNTS else _TIME if name == "time" else None
        if pattern is not None and not pattern.fullmatch(value):
            found.append(f"{element.tag} {name}={value}")
    if not allowed.text and (element.text or "").strip():
        found.append(f"{element.tag} holds text")
    for child in element:
        if child.tag not in allowed.children:
            found.append(f"{element.tag} holds {child.tag}")
        found += problems(child)
    return found
