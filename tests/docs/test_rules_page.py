"""docs/rules.md, `nndiag rules` and `nndiag explain` say the same of every finding, and no code is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nndiag.cli import main
from nndiag.comparing.catalogue import EVERY_RULE as RULES
from nndiag.rules import Rule
from nndiag.rules.explaining import page, sections
from nndiag.rules.thresholds import THRESHOLDS

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
CONTRACT = {
    "ND101": "non-finite", "ND102": "zero-collapse", "ND103": "exploding-norm", "ND104": "duplicate-weights",
    "ND201": "dead", "ND202": "saturated", "ND203": "constant-output", "ND204": "dormant", "ND205": "always-on",
    "ND206": "duplicate-output", "ND250": "dead-data", "ND251": "rank-collapse", "ND252": "layer-degenerate",
    "ND301": "no-gradient", "ND302": "no-torque", "ND303": "exploding-gradient", "ND304": "no-influence",
    "ND350": "low-torque", "ND401": "plateau", "ND402": "source", "ND403": "negative-curvature", "ND404": "flip",
    "ND450": "sharp-layer", "ND501": "output-collapse", "ND502": "class-never-predicted",
    "ND503": "softmax-gravity-well", "ND504": "entropy-collapse", "ND505": "not-stationary", "ND506": "saddle",
}  # fmt: skip
ERRORS = {"ND101", "ND252", "ND402", "ND501"}
NOTES = {"ND205", "ND505", "ND506"}


def test_the_page_is_the_catalogue() -> None:
    assert page(RULES) == PAGE, "run `make rules`"


def test_every_code_of_the_contract_is_there() -> None:
    of_one = {rule.code: rule.name for rule in RULES if rule.code < "ND700"}
    assert of_one == CONTRACT
    for rule in RULES:
        if rule.code < "ND700":
            wanted = "error" if rule.code in ERRORS else "info" if rule.code in NOTES else "warning"
            assert rule.severity == wanted, rule.code


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_explain_prints_what_the_page_says(rule: Rule, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", rule.code]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for heading, text in sections(rule):
        assert f"{heading} {text}" in printed
        assert f"**{heading}.** {text}" in PAGE


def test_the_list_names_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [[r.code, r.name, r.on, r.severity] for r in RULES]
    assert all(line.endswith(rule.summary) for line, rule in zip(lines, RULES, strict=True))


def test_every_threshold_is_listed_and_belongs_to_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--thresholds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[t.name, f"{t.default:g}"] for t in THRESHOLDS]
    used = {name for rule in RULES for name in rule.thresholds}
    assert used == {t.name for t in THRESHOLDS}
    for threshold in THRESHOLDS:
        cell = threshold.unit.replace("|", "\\|")
        assert f"| `{threshold.name}` | {threshold.default:g} | {cell} |" in PAGE


def test_an_unknown_threshold_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Path(__file__).parents[2] / "sample_checkpoints" / "xor_relu1"
    for file in toy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "nndiag.toml"
    config.write_text(config.read_text() + "\n[rules.thresholds]\ndormanci = 0.1\n", encoding="utf-8")
    assert main(["scan", str(tmp_path), "--quiet"]) == 2
    assert "did you mean dormancy?" in capsys.readouterr().err
