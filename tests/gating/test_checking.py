"""Each key of a policy, on both sides of its limit, with and without a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nndiag.config.policy import parse_policy
from nndiag.errors import UsageError
from nndiag.gating.baseline import baseline_text, entries_of, load_baseline
from nndiag.gating.checking import gate, limits_of
from nndiag.gating.facts import facts_of
from nndiag.records.gate import Check
from tests.gating.documents import checkpoint, document, source
from tests.report.builder import finding, node


def failed(found: dict[str, Any], baseline: Any = None, **policy: Any) -> dict[tuple[str, str | None], Check]:
    verdict = gate(found, parse_policy(policy, "p"), baseline)
    assert verdict.passed == (not verdict.failed)
    return {(check.rule, check.layer): check for check in verdict.failed}


SIX = document(checkpoint(range(6)))  # 6 of 64 are 9.4 %


@pytest.mark.parametrize("rule", ["max_degenerate_fraction", "max_dead_fraction"])
def test_a_share_of_nodes(rule: str) -> None:
    assert not failed(SIX, **{rule: 6 / 64})
    check = failed(SIX, **{rule: 0.09})[rule, "0"]
    assert (check.value, check.limit, check.nodes) == (6 / 64, 0.09, (0, 1, 2, 3, 4, 5))
    assert "6 of 64 nodes" in check.message
    assert check.look.startswith("nndiag scan runs/exp/model.safetensors")


def test_the_last_checkpoint_counts() -> None:
    assert not failed(document(checkpoint(range(6)), checkpoint()), max_dead_fraction=0.05)
    assert failed(document(checkpoint(), checkpoint(range(6))), max_dead_fraction=0.05)


def test_new_degenerate_nodes_since_the_first_checkpoint_or_the_baseline() -> None:
    two = document(checkpoint([1, 2]), checkpoint([1, 2, 3, 4]))
    check = failed(two, max_new_degenerate=1)["max_new_degenerate", "0"]
    assert (check.value, check.nodes) == (2, (3, 4))
    assert not failed(two, max_new_degenerate=2)
    known = {("degenerate", "0", i): None for i in (1, 2, 3)}
    assert not failed(two, known, max_new_degenerate=1)
    assert failed(two, {}, max_new_degenerate=3)
    with pytest.raises(UsageError, match="nothing to compare it with"):
        failed(SIX, max_new_degenerate=1)


def test_regression_of_the_loss() -> None:
    run = document(checkpoint(loss=0.5), checkpoint(loss=0.6))
    assert not failed(run, max_regression=0.2)
    check = failed(run, max_regression=0.19)["max_regression", None]
    assert check.value == pytest.approx(0.2)
    assert failed(document(checkpoint(loss=0.6)), {("loss", None, None): 0.5}, max_regression=0.19)
    assert failed(document(checkpoint(loss=0.5), checkpoint(loss=float("nan"))), max_regression=9.0)
    with pytest.raises(UsageError, match="no loss to compare"):
        failed(document(checkpoint()), max_regression=0.1)


def test_effective_rank_where_it_was_taken() -> None:
    low = document(checkpoint(rank=3.0))
    assert set(failed(low, min_effective_rank=4)) == {("min_effective_rank", "0")}
    assert not failed(low, min_effective_rank=3)
    assert not failed(low, min_effective_rank=4, layers={"0": {"min_effective_rank": 2}})


def test_forbidden_codes_and_their_beginnings() -> None:
    found = document(checkpoint([5], extra=[source(3, 2.0)]))
    assert set(failed(found, forbid=["ND402"])) == {("forbid ND402", "2")}
    assert set(failed(found, forbid=["ND4"])) == {("forbid ND402", "2"), ("forbid ND401", "0")}
    assert not failed(found, forbid=["ND103"])
    assert not failed(found, forbid=["ND402"], layers={"2": {"forbid": []}})


def test_numbers_that_are_not_finite_never_pass_unless_that_is_said() -> None:
    broken = finding("ND101", "non-finite", "3 parameters are not finite", "error")
    found = document(checkpoint(extra=[node("2", 0, "unknown", [broken])]))
    assert ("forbid ND101", "2") in failed(found)
    assert ("forbid ND101", "2") in failed(found, max_dead_fraction=0.5)
    assert not failed(found, forbid=[])


def test_without_a_policy_no_finding_may_be_an_error() -> None:
    assert not failed(document(checkpoint([5])))
    assert ("no error ND402", "2") in failed(document(checkpoint(extra=[source(3, 2.0)])))


@pytest.mark.parametrize(
    ("found", "policy", "said"),
    [
        (document(checkpoint(level="weights")), {"max_dead_fraction": 0.1}, "is of level weights"),
        (document(checkpoint(level="weights")), {"forbid": ["ND201"]}, "this needs activations"),
        (document(checkpoint(), ignore=["ND2"]), {"max_dead_fraction": 0.1}, "leaves out ND201"),
        (document(checkpoint(), select=["ND1"]), {"forbid": ["ND402"]}, "leaves it out"),
    ],
)
def test_what_the_report_cannot_tell_is_an_error_and_no_pass(
    found: dict[str, Any], policy: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        failed(found, **policy)


@pytest.mark.parametrize("code", ["XX", "ND20l", "ND9", "ND709"])
def test_a_code_that_does_not_exist_is_no_pass(code: str) -> None:
    with pytest.raises(UsageError, match="no finding has this code"):
        failed(SIX, forbid=[code])
    with pytest.raises(UsageError, match="no finding has this code"):
        failed(SIX, layers={"0": {"forbid": [code]}})


POLICY = parse_policy({"max_dead_fraction": 0.05, "forbid": ["ND402"]}, "p")


def baseline_of(found: dict[str, Any], tmp_path: Path) -> Any:
    facts = facts_of(found)
    file = tmp_path / "b.json"
    file.write_text(baseline_text(entries_of(facts, limits_of(facts, POLICY)), "0"))
    return load_baseline(file, POLICY)


def test_what_is_in_the_baseline_passes_until_it_is_worse(tmp_path: Path) -> None:
    known = baseline_of(document(checkpoint(range(6), extra=[source(3, 2.0)])), tmp_path)
    for nodes, margin, worse in (
        (range(6), 2.0, set()),
        (range(6), 2.01, set()),  # rounding
        (range(5), 1.5, set()),
        (range(6), 2.1, {("forbid ND402", "2")}),
        (range(7), 2.0, {("max_dead_fraction", "0")}),
    ):
        verdict = gate(document(checkpoint(nodes, extra=[source(3, margin)])), POLICY, known)
        assert {(check.rule, check.layer) for check in verdict.failed} == worse
    other = gate(document(checkpoint(extra=[source(4, 1.1)])), POLICY, known)
    (check,) = other.failed
    assert check.nodes == (4,)
    assert "1 not in the baseline" in check.message


def test_an_earlier_report_is_a_baseline_too(tmp_path: Path) -> None:
    found = document(checkpoint(range(6), extra=[source(3, 2.0)]))
    file = tmp_path / "main.json"
    file.write_text(json.dumps(found))
    assert load_baseline(file, POLICY) == baseline_of(found, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 1, "entries": [{"rule": 1}]}',
        '{"schema_version": 1, "entries": [{"rule": "max_dead_fraction"}]}',
        f'{{"schema_version": 1, "entries": [{{"rule": "x", "layer": null, "node": null, "value": 1{"0" * 400}}}]}}',
        '{"entries": []}',
    ],
)
def test_what_is_no_baseline(tmp_path: Path, text: str) -> None:
    file = tmp_path / "b.json"
    with pytest.raises(UsageError, match="no such file"):
        load_baseline(file, POLICY)
    file.write_text(text)
    with pytest.raises(UsageError, match="--update-baseline"):
        load_baseline(file, POLICY)
