"""The README's ready workflow and job: valid by the published schemas, and their commands do what they are for."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from ruamel.yaml import YAML

from tests.report.published import JUNIT, SARIF

ROOT = Path(__file__).parents[2]
GITHUB, GITLAB = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def problems(text: str, schema: str) -> list[str]:
    validator = jsonschema.Draft7Validator(get_builtin_schema(f"vendor.{schema}"))
    return [error.message for error in validator.iter_errors(parsed(text))]


@pytest.mark.parametrize(("text", "schema"), [(GITHUB, "github-workflows"), (GITLAB, "gitlab-ci")])
def test_a_recipe_is_what_its_service_reads(text: str, schema: str) -> None:
    assert problems(text, schema) == []
    assert problems(text.replace("script:", "scrpt:").replace("runs-on:", "runs_on:"), schema) != []


def commands(lines: list[str]) -> list[list[str]]:
    """Return the commands of nndiag among the lines of a shell."""
    found = [shlex.split(line) for line in lines]
    return [words for words in found if words[0] == "nndiag"]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


WORKFLOW, JOB = parsed(GITHUB)["jobs"]["gate"], parsed(GITLAB)["network-health"]
SCAN, GATE = commands([step["run"] for step in WORKFLOW["steps"] if "run" in step])


@pytest.fixture(scope="module")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an empty baseline, whose nightly run is the dying one, scanned as the workflow does."""
    folder = tmp_path_factory.mktemp("nightly")
    (folder / "runs").mkdir()
    (folder / "runs" / "nightly").symlink_to(ROOT / "sample_checkpoints" / "dying_mlp")
    (folder / "main.json").write_text('{"schema_version": 1, "entries": []}')
    scanned = run(SCAN, folder)
    assert scanned.returncode == 0, scanned.stderr
    return folder


def test_the_workflow_fails_the_build_and_leaves_what_its_later_steps_take(nightly: Path) -> None:
    gate = run(GATE, nightly)
    assert gate.returncode == 1, gate.stderr
    assert gate.stdout.startswith("::error title=nndiag")
    (sarif,) = (step["with"]["sarif_file"] for step in WORKFLOW["steps"] if "sarif" in step.get("uses", ""))
    SARIF.validate(json.loads((nightly / sarif).read_text()))
    (summary,) = (step["run"] for step in WORKFLOW["steps"] if "SUMMARY" in step.get("run", ""))
    assert (nightly / shlex.split(summary)[1]).read_text().startswith("# nndiag gate: ❌")
    assert parsed(GITHUB)["permissions"]["security-events"] == "write"  # what the upload needs


def test_the_job_fails_the_build_and_leaves_its_report(nightly: Path) -> None:
    scan, gate = commands(JOB["script"])
    assert scan == SCAN
    assert run(gate, nightly).returncode == 1
    JUNIT.validate((nightly / JOB["artifacts"]["reports"]["junit"]).read_text())
