"""The published schemas of what build servers read: originals, whose bytes are checked when they are read."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import xmlschema

_SHA256 = {
    "junit-10.xsd": "a1a816f58d1bf95ebabf371994df0b9246dee66ea9572fbec4f9296f1b2c0ff6",
    "sarif-2.1.0-rtm.5.json": "2d99159ae54a3eea97f81781cff48780548657c35949f4b7f25e99a2ba4de4f8",
}


def published(name: str) -> str:
    """Return the text of a published schema, as it was published."""
    content = (Path(__file__).parent / name).read_bytes()
    assert sha256(content).hexdigest() == _SHA256[name], f"{name} is not what was published"
    return content.decode()


JUNIT = xmlschema.XMLSchema10(published("junit-10.xsd"))


def _sarif() -> Any:
    schema = json.loads(published("sarif-2.1.0-rtm.5.json"))
    jsonschema.Draft4Validator.check_schema(schema)
    return jsonschema.Draft4Validator(schema)


SARIF = _sarif()
