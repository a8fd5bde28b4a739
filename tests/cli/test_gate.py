"""``nndiag gate`` as a build runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.support import run_process
from tests.gating.documents import checkpoint, document, source


def written(folder: Path, found: object, name: str = "report.json") -> str:
    (folder / name).write_text(json.dumps(found))
    return name


@pytest.fixture
def sick(work: Path) -> str:
    (work / "policy.toml").write_text("max_dead_fraction = 0.05\n")
    return written(work, document(checkpoint(range(6), extra=[source(3, 2.0)])))


def test_a_report_that_fails(cli: Cli, sick: str) -> None:
    ended = cli("gate", sick, "--policy", "policy.toml")
    assert (ended.code, ended.err) == (1, "")
    assert "max_dead_fraction, layer 0: 6 of 64 nodes are dead: 9.4%, at most 5.0% may be" in ended.out
    assert "look closer: nndiag scan runs/exp/model.safetensors --select ND201 --verbose" in ended.out


def test_the_json_is_the_contracts(cli: Cli, sick: str) -> None:
    found = cli("gate", sick, "--policy", "policy.toml", "--format", "json").document(1)
    assert set(found) == {"passed", "rules"}
    assert found["passed"] is False
    assert all(set(row) == {"rule", "layer", "value", "limit", "passed", "message"} for row in found["rules"])
    assert found["rules"][0]["layer"] == "0"


def test_a_baseline_from_beginning_to_end(cli: Cli, sick: str, work: Path) -> None:
    words = ("gate", sick, "--policy", "policy.toml", "--baseline", "b.json")
    assert "no such file" in cli(*words).failed(2)
    assert cli(*words, "--update-baseline").code == 0
    assert cli(*words).code == 0
    first = (work / "b.json").read_bytes()
    assert cli(*words, "--update-baseline").code == 0
    assert (work / "b.json").read_bytes() == first
    assert [path.name for path in work.glob(".b.json*")] == []
    worse = written(work, document(checkpoint(range(7))), "worse.json")
    ended = cli("gate", worse, "--policy", "policy.toml", "--baseline", "b.json")
    assert ended.code == 1
    assert "worse than the baseline's" in ended.out


def test_without_a_baseline_there_is_nothing_to_update(cli: Cli, sick: str) -> None:
    assert "add --baseline FILE" in cli("gate", sick, "--update-baseline").failed(2)
    assert "is the report itself" in cli("gate", sick, "--baseline", sick, "--update-baseline").failed(2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[1]", "is no report"),
        ('{"schema_version": 2, "checkpoints": []}', "schema version 2"),
        ('{"schema_version": 1, "checkpoints": []}', "holds no checkpoint"),
        ('{"schema_version": 1, "checkpoints": [{}]}', "is no report"),
    ],
)
def test_what_is_no_report_is_three(cli: Cli, work: Path, text: str, said: str) -> None:
    assert "no such file" in cli("gate", "gone.json").failed(3)
    (work / "r.json").write_text(text)
    assert said in cli("gate", "r.json").failed(3)


def test_a_wrong_policy_is_two(cli: Cli, sick: str, work: Path) -> None:
    (work / "wrong.toml").write_text("[policy]\nmax_dead = 1\n")
    assert 'did you mean "max_dead_fraction"?' in cli("gate", sick, "--policy", "wrong.toml").failed(2)
    (work / "wrong.toml").write_text("[policy\n")
    assert "is not valid TOML" in cli("gate", sick, "--policy", "wrong.toml").failed(2)


def test_a_pattern_that_matches_nothing_is_noted(cli: Cli, sick: str, work: Path) -> None:
    (work / "p.toml").write_text('[policy.layers."head*"]\nmax_dead_fraction = 0.5\n')
    ended = cli("gate", sick, "--policy", "p.toml")
    assert ended.err == 'note: policy: no layer matches "head*"\n'
    assert cli("gate", sick, "--policy", "p.toml", "--quiet").err == ""


def test_every_format_goes_into_files(cli: Cli, sick: str, work: Path) -> None:
    names = ("rich", "json", "junit", "sarif", "github", "markdown")
    outputs = [word for name in names for word in ("--output", f"{name}={name}.txt")]
    assert cli("gate", sick, *outputs).code == 1
    assert all((work / f"{name}.txt").read_text().endswith("\n") for name in names)
    assert "is one of the scan's own inputs" in cli("gate", sick, "--output", f"json={sick}").failed(2)


def test_neither_torch_nor_numpy_nor_pydantic_is_imported(work: Path, sick: str) -> None:
    code = (
        "import sys; from nndiag.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'pydantic'} & set(sys.modules); "
        "print(heavy or 'light', file=sys.stderr); sys.exit(code)"
    )
    for format_ in ("rich", "json", "junit", "sarif", "github", "markdown"):
        ended = run_process("gate", sick, "--format", format_, cwd=work, launcher=("-c", code))
        assert (ended.code, ended.err) == (1, "light\n"), sys.executable


def test_scan_writes_the_same_formats(cli: Cli) -> None:
    for name in ("junit", "sarif", "github"):
        ended = cli("scan", "net.pt", "--format", name, "--quiet")
        assert ended.code == 0
        assert ended.out


def test_findings_along_a_run_can_be_forbidden(cli: Cli, work: Path) -> None:
    (work / "p.toml").write_text('forbid = ["ND701"]\n')
    run = written(work, document(checkpoint(step=0), checkpoint(range(6), step=10)), "run.json")
    found = cli("gate", run, "--policy", "p.toml", "--format", "json").document(1)
    assert [(row["rule"], row["layer"], row["value"]) for row in found["rules"] if not row["passed"]] == [
        ("forbid ND701", "0", 6)
    ]
    one = written(work, document(checkpoint()), "one.json")
    assert "this is about a run" in cli("gate", one, "--policy", "p.toml").failed(2)
