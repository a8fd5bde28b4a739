from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from nndiag.records.report import Report
from nndiag.report import FORMATS
from nndiag.report.document import render_json, render_jsonl
from nndiag.report.schema import schema_text
from tests.report import synthetic
from tests.report.builder import diagnosis, layer, node, report

SCHEMA = json.loads(schema_text())


@pytest.mark.parametrize("name", synthetic.ALL)
def test_json_fits_the_schema(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads(render_json(synthetic.ALL[name]())))


def test_schema_refuses_what_the_records_do_not_have() -> None:
    document = json.loads(render_json(synthetic.healthy()))
    document["checkpoints"][0]["layers"][0]["colour"] = "red"
    assert not Draft202012Validator(SCHEMA).is_valid(document)


@pytest.mark.parametrize("name", synthetic.ALL)
def test_json_is_read_back_as_the_same_report(name: str) -> None:
    text = render_json(synthetic.ALL[name]())
    again = Report.model_validate_json(text)
    assert render_json(again) == text
    if name != "not_finite":
        assert again == synthetic.ALL[name]()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_null_and_what_was_not_taken_is_absent(value: float) -> None:
    one = diagnosis([layer("0", 2, measures={"effective_rank": value})], loss=value)
    one = one.model_copy(update={"model": one.model.model_copy(update={"certificate": {"deep": [value]}})})
    document = json.loads(render_json(report(one)), parse_constant=lambda name: pytest.fail(name))
    found = document["checkpoints"][0]
    assert found["model"]["loss"] is None
    assert found["model"]["certificate"] == {"deep": [None]}
    assert found["layers"][0]["measures"] == {"effective_rank": None}


def test_equal_reports_give_equal_bytes_in_whatever_order_they_were_filled() -> None:
    def made(measures: dict[str, float | None], settings: dict[str, object]) -> Report:
        filled = report(diagnosis([layer("0", 2, measures=measures)]))
        return filled.model_copy(update={"settings": settings})

    one = made({"a": 1.0, "b": 2.0}, {"x": Path("p"), "y": [1]})
    other = made({"b": 2.0, "a": 1.0}, {"y": [1], "x": Path("p")})
    assert one == other
    for name in ("json", "jsonl"):
        assert FORMATS[name](one) == FORMATS[name](other)


def test_verdicts_keep_the_order_of_the_catalogue_and_fields_that_of_the_records() -> None:
    document = json.loads(render_json(synthetic.cnn()))
    assert list(document) == ["schema_version", "nndiag_version", "settings", "checkpoints"]
    verdicts = document["checkpoints"][0]["layers"][0]["verdicts"]
    assert list(verdicts) == ["healthy", "collapsed", "plateau", "source", "saddle", "unknown"]


def test_json_is_ascii_with_a_node_on_a_line_and_ends_with_a_newline() -> None:
    text = render_json(synthetic.hostile())
    assert text.isascii()
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    nodes = sum(len(one.nodes) for one in synthetic.hostile().checkpoints)
    assert sum(line.lstrip().startswith('{"layer":') for line in text.splitlines()) == nodes


def test_jsonl_has_a_line_a_checkpoint_that_stands_alone() -> None:
    text = render_jsonl(synthetic.dying())
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n")
    assert [line["checkpoint"]["epoch"] for line in lines] == list(range(1, 9))
    assert {(line["schema_version"], line["nndiag_version"]) for line in lines} == {(1, "0.1.0")}
    whole = json.loads(render_json(synthetic.dying()))["checkpoints"]
    assert [{**whole[0], "schema_version": 1, "nndiag_version": "0.1.0"}] == lines[:1]


def test_names_that_break_lines_do_not_break_jsonl() -> None:
    odd = report(diagnosis([layer("a\nb\u2028c", 1)], [node("a\nb\u2028c", 0)]))
    assert len(render_jsonl(odd).splitlines()) == 1
