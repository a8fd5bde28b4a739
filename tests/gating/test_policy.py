"""What a policy may say, for which layers, and where it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nndiag.config.load import load_run_config
from nndiag.config.policy import KEYS, Limits, Policy, parse_policy
from nndiag.config.tables import LayerLimits, PolicyTable
from nndiag.errors import UsageError
from nndiag.gating.policies import find_policy
from tests.gating.documents import checkpoint, document


def test_both_readers_know_the_same_keys() -> None:
    assert set(PolicyTable.model_fields) == {*KEYS, "layers"}
    assert set(LayerLimits.model_fields) == set(KEYS) - {"max_regression"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_dead_fractoin": 0.1}, 'unknown key "max_dead_fractoin"; did you mean "max_dead_fraction"?'),
    ({"max_dead_fraction": 1.5}, "max_dead_fraction is 1.5, expected a number of at most 1"),
    ({"max_dead_fraction": -1}, "expected a number of at least 0"),
    ({"max_dead_fraction": True}, "expected a finite number"),
    ({"max_regression": float("nan")}, "expected a finite number"),
    ({"max_new_degenerate": 1.5}, "expected a whole number"),
    ({"forbid": "ND101"}, "expected a list of codes"),
    ({"layers": {"a": {"max_regression": 1.0}}}, 'unknown key "max_regression"'),
    ({"layers": {"a": 1}}, "expected a table"),
    ({"layers": 1}, "expected a table"),
]


@pytest.mark.parametrize(("table", "said"), WRONG)
def test_what_is_wrong_is_said_and_scan_refuses_it_too(
    table: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy(table, "f.toml [policy]")
    assert said in str(caught.value)
    with pytest.raises(ValueError, match=r"."):
        PolicyTable.model_validate(table)


def test_the_most_specific_pattern_wins_key_by_key() -> None:
    policy = parse_policy(
        {
            "max_dead_fraction": 0.1,
            "min_effective_rank": 2,
            "layers": {
                "*": {"max_dead_fraction": 0.2, "max_new_degenerate": 7},
                "features.*": {"max_dead_fraction": 0.3},
                "features.0": {"max_dead_fraction": 0.4, "forbid": []},
                "features.[0-9]": {"max_dead_fraction": 0.35},
            },
        },
        "p",
    )
    assert policy.of("head").max_dead_fraction == 0.2
    assert policy.of("features.12").max_dead_fraction == 0.3
    assert policy.of("features.0") == Limits(0.0 or None, 0.4, 7, None, 2.0, ())
    assert policy.unmatched({"head": 0}) == ("features.*", "features.0", "features.[0-9]")


def test_the_runs_policy_is_filled_up_by_the_users() -> None:
    run = parse_policy({"max_dead_fraction": 0.1, "layers": {"a": {"max_dead_fraction": 0.5}}}, "run")
    user = parse_policy(
        {"max_dead_fraction": 0.9, "max_regression": 0.2, "layers": {"a": {"max_new_degenerate": 1}}}, "user"
    )
    both = run.over(user)
    assert (both.limits.max_dead_fraction, both.limits.max_regression) == (0.1, 0.2)
    assert both.of("a") == Limits(None, 0.5, 1, 0.2, None, None)
    assert both.source == "run and user"
    assert Policy().over(user).source == "user"


def test_where_a_policy_is_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "nndiag.toml").write_text("[policy]\nmax_dead_fraction = 0.1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.nndiag.policy]\nmax_regression = 0.5\n")
    found = document(checkpoint(path=str(run / "e.safetensors")))
    policy = find_policy(found, tmp_path / "r.json", None, tmp_path)
    assert (policy.limits.max_dead_fraction, policy.limits.max_regression) == (0.1, 0.5)
    relative = document(checkpoint(path="run/e.safetensors"))
    assert find_policy(relative, tmp_path / "r.json", None, Path("/")).limits.max_dead_fraction == 0.1
    assert find_policy(relative, None, None, Path("/")).empty


@pytest.mark.parametrize(
    "text",
    [
        "max_dead_fraction = 0.3",
        "[policy]\nmax_dead_fraction = 0.3",
        "[tool.nndiag.policy]\nmax_dead_fraction = 0.3",
    ],
)
def test_a_named_file_counts_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "nndiag.toml").write_text("[policy]\nmax_regression = 0.1\n")
    file = tmp_path / "p.toml"
    file.write_text(text)
    found = document(checkpoint(path=str(tmp_path / "e.safetensors")))
    policy = find_policy(found, None, file, tmp_path)
    assert policy.limits == Limits(max_dead_fraction=0.3)


def test_a_named_file_must_hold_one(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    with pytest.raises(UsageError, match="no such file"):
        find_policy(document(checkpoint()), None, file, tmp_path)
    file.write_text("[policy]\n")
    with pytest.raises(UsageError, match="holds no policy"):
        find_policy(document(checkpoint()), None, file, tmp_path)


def test_scan_accepts_tables_of_layers(tmp_path: Path) -> None:
    (tmp_path / "nndiag.toml").write_text('[policy.layers."0*"]\nmax_dead_fraction = 0.5\n')
    assert load_run_config(tmp_path).policy.layers["0*"].max_dead_fraction == 0.5
