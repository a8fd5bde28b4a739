"""Verdicts, their precedence and steadiness; causes; what the selection and the thresholds change."""

from __future__ import annotations

import numpy as np
import pytest

from nndiag.comparing.catalogue import EVERY_RULE
from nndiag.errors import UsageError
from nndiag.records.level import Level
from nndiag.records.measured import OptimizerFacts
from nndiag.rules.base import ELSEWHERE, LAYER_TO_MEND
from nndiag.rules.diagnose import Selection
from nndiag.rules.thresholds import THRESHOLDS, thresholds
from tests.rules.diagnosing import NODES, at, codes, everything, finding, judged, layer, without

SGD = OptimizerFacts(name="sgd", lr=0.1)
DEAD = {"active_fraction": 0.0, "output_range": 0.0, "output_std": 0.0, "output_mean": 0.0, "dormancy": 0.0,
        "gradient_reach": 0.0, "output_reach": 0.0, "lambda_max": 0.0, "tangent_kernel": 0.0, "lambda_min": 0.0,
        "gradient_norm": 0.0, "torque_ratio": np.nan}  # fmt: skip
USUAL = {"active_fraction": 0.5, "output_range": 2.0, "output_std": 0.6, "output_mean": 0.4, "dormancy": 1.0,
         "gradient_reach": 0.2, "output_reach": 0.8, "lambda_max": 1.0, "tangent_kernel": 3.0, "lambda_min": 0.0,
         "gradient_norm": 0.1, "torque_ratio": 0.9}  # fmt: skip
SHUT = {"open_count": np.zeros((4, NODES)), "lambda_max": np.zeros((4, NODES))}


def dead_node(index: int, **more: object) -> dict[str, object]:
    return {name: at(index, DEAD[name], USUAL[name]) for name in DEAD} | more


def test_precedence() -> None:
    sick = {"weight_norm": at(0, 0, 1.0), "stability_margin": np.array([3.0] * NODES)}
    (found,) = judged(layer(**dead_node(0, **sick)), optimizer=SGD)
    assert found.verdicts[0] == "collapsed"
    assert found.verdicts[1] == "source"
    (found,) = judged(layer(**dead_node(0, stability_margin=np.full(NODES, 3.0))), optimizer=SGD)
    assert found.verdicts[0] == "plateau"
    (found,) = judged(layer(**dead_node(0, nonfinite_parameters=at(0, 2, 0), weight_norm=at(0, 0, 1.0))))
    assert found.verdicts[0] == "unknown"
    assert set(found.verdicts[1:]) == {"healthy"}


def test_healthy_is_said_only_where_curvature_was_measured() -> None:
    (found,) = judged(without(layer(), "lambda_max"))
    assert set(found.verdicts) == {"unknown"}
    (found,) = judged(layer(lambda_max=at(2, np.nan, 1.0)))
    assert [i for i, word in enumerate(found.verdicts) if word == "unknown"] == [2]


def test_a_dead_unit_is_the_cause_of_what_it_shows() -> None:
    (found,) = judged(layer(**dead_node(3)))
    causes = {f.code: f.cause for f in found.by_node[3]}
    assert causes == {"ND201": None, "ND203": "ND201", "ND204": "ND201", "ND301": "ND201", "ND401": "ND201"}
    assert found.by_node[3][0].code == "ND201"


def test_collapsed_weights_are_the_cause_of_death() -> None:
    (found,) = judged(layer(**dead_node(3, weight_norm=at(3, 0, 1.0))))
    assert {f.cause for f in found.by_node[3] if f.code != "ND102"} == {"ND102"}


def test_no_influence_is_the_cause_of_no_gradient_and_plateau() -> None:
    cut = {"output_reach": at(3, 0, 0.8), "gradient_reach": at(3, 0, 0.2), "lambda_max": at(3, 0, 1.0),
           "tangent_kernel": at(3, 0, 3.0)}  # fmt: skip
    (found,) = judged(layer(**cut))
    assert {f.code: f.cause for f in found.by_node[3]} == {"ND304": None, "ND301": "ND304", "ND401": "ND304"}
    assert found.verdicts[3] == "plateau"


@pytest.mark.parametrize("folds", [[0, 0, 0, 3], [5, 0, 5, 5]])
def test_a_unit_that_is_off_in_some_folds_only_is_unsteady(folds: list[int]) -> None:
    counts = np.full((4, NODES), 9.0)
    counts[:, 3] = folds
    (found,) = judged(layer(active_fraction=at(3, 0.01, 0.5), per_fold={"open_count": counts}))
    assert [i for i, steady in enumerate(found.steady) if not steady] == [3]
    assert found.verdicts[3] == "healthy"


def test_a_unit_that_is_off_in_all_folds_is_steady() -> None:
    (found,) = judged(layer(**dead_node(3)))
    assert found.steady[0]
    (found,) = judged(layer(**(DEAD | {"per_fold": SHUT})))
    assert all(found.steady)


def test_an_unsteady_finding_is_no_error() -> None:
    curvatures = np.ones((4, NODES))
    curvatures[2, 3] = 0.5
    margin = at(3, 1.2, 0.2)
    shaky = layer(lambda_max=1.0, stability_margin=margin, per_fold={"lambda_max": curvatures})
    steady = layer(lambda_max=1.0, stability_margin=margin, per_fold={"lambda_max": np.ones((4, NODES))})
    assert finding(judged(steady, optimizer=SGD)[0], 3, "ND402").severity == "error"
    seen = finding(judged(shaky, optimizer=SGD)[0], 3, "ND402")
    assert seen.severity == "warning"
    assert "not in every part of the probe" in seen.message


def test_a_non_finite_node_is_an_error_whatever_the_folds_say() -> None:
    counts = np.full((4, NODES), 9.0)
    counts[0, 3] = 0
    (found,) = judged(layer(nonfinite_parameters=at(3, 1, 0), per_fold={"open_count": counts}))
    assert not found.steady[3]
    assert finding(found, 3, "ND101").severity == "error"


@pytest.mark.parametrize(("samples", "severity"), [(19, "warning"), (20, "error")])
def test_few_samples_make_no_error(samples: int, severity: str) -> None:
    (found,) = judged(layer(**DEAD), samples=samples)
    assert finding(found, None, "ND252").severity == severity
    (found,) = judged(layer(stability_margin=2.0), samples=samples, optimizer=SGD)
    assert finding(found, 0, "ND402").severity == severity


def test_but_weights_need_no_samples() -> None:
    (found,) = judged(layer(weight_norm=0.0), samples=1)
    assert finding(found, None, "ND252").severity == "error"


def test_one_dead_layer_is_the_cause_before_and_after_it() -> None:
    cut = dict.fromkeys(("output_reach", "gradient_reach", "lambda_max", "tangent_kernel"), 0.0)
    fed = {"preactivation_std": 0.0, "output_std": 0.0, "output_range": 0.0}
    before, dead, after = judged(
        layer("0", **cut),
        layer("2", dead_data_fraction=1.0, **DEAD),
        layer("4", activation=None, is_output=True, **fed),
    )
    for node in range(NODES):
        seen = finding(before, node, "ND304")
        assert (seen.cause, seen.evidence[LAYER_TO_MEND]) == ("ND250", "2")
        assert seen.evidence[ELSEWHERE] == "layer 2 after it is dead"
        assert seen.message.endswith(": layer 2 after it is dead")
        assert finding(before, node, "ND301").cause == "ND304"
        assert finding(dead, node, "ND201").cause is None
        assert LAYER_TO_MEND not in finding(dead, node, "ND201").evidence
        seen = finding(after, node, "ND203")
        assert (seen.cause, seen.evidence[LAYER_TO_MEND]) == ("ND250", "2")
        assert seen.message.endswith(": layer 2 before it is dead")
    assert finding(before, None, "ND252").cause == "ND250"
    assert finding(dead, None, "ND252").cause is None
    assert finding(dead, None, "ND250").cause == "ND252"


def test_a_layer_that_is_degenerate_by_itself_is_not_excused_by_another() -> None:
    own = np.array([0.0] * 6 + [0.5] * 4)
    cut = dict.fromkeys(("output_reach", "gradient_reach", "lambda_max", "tangent_kernel"), 0.0)
    half_dead = layer("0", **cut, active_fraction=own, output_range=own, output_std=own)
    before, _, _ = judged(half_dead, layer("2", **DEAD), layer("4", is_output=True))
    assert finding(before, None, "ND252").cause is None
    assert finding(before, 0, "ND201").cause is None
    assert finding(before, 9, "ND304").evidence[LAYER_TO_MEND] == "2"


def test_a_branch_with_influence_is_not_excused() -> None:
    cut = {"output_reach": at(3, 0, 0.8)}
    before, _ = judged(layer("0", **cut), layer("2", **DEAD))
    seen = finding(before, 3, "ND304")
    assert seen.cause is None
    assert LAYER_TO_MEND not in seen.evidence


def test_a_layer_of_its_own_bias_is_not_excused_by_a_dead_layer_before() -> None:
    _, after = judged(layer("0", **DEAD), layer("2", **DEAD))
    assert all(finding(after, node, "ND201").cause is None for node in range(NODES))


def test_nothing_listens_where_all_weights_of_the_next_layer_are_zero() -> None:
    cut = dict.fromkeys(("output_reach", "gradient_reach", "lambda_max", "tangent_kernel"), 0.0)
    before, _ = judged(layer("0", **cut), layer("2", weight_norm=0.0))
    assert finding(before, 0, "ND304").cause == "ND102"
    assert finding(before, 0, "ND304").evidence[ELSEWHERE] == "layer 2 after it has collapsed"


SICK = layer(**dead_node(3, weight_norm=at(1, 0, 1.0)))


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), {"ND102", "ND201", "ND203", "ND204", "ND301", "ND401"}),
        (Selection(select=("ND2",)), {"ND201", "ND203", "ND204"}),
        (Selection(select=("ND201", "ND4")), {"ND201", "ND401"}),
        (Selection(ignore=("ND20",)), {"ND102", "ND301", "ND401"}),
        (Selection(select=("ND2",), ignore=("ND203",)), {"ND201", "ND204"}),
    ],
)
def test_selection_takes_codes_and_prefixes_and_changes_no_verdict(
    selection: Selection, wanted: set[str]
) -> None:
    (found,) = judged(SICK, selection=selection)
    assert everything((found,)) == wanted
    assert (found.verdicts[1], found.verdicts[3]) == ("collapsed", "plateau")
    if "ND203" in wanted:
        assert finding(found, 3, "ND203").cause == "ND201"  # also where that is not reported


def test_a_code_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="ND9"):
        Selection(select=("ND9",))
    with pytest.raises(UsageError, match="bogus"):
        thresholds({"bogus": 1.0})


def test_thresholds_can_be_changed() -> None:
    one = layer(dormancy=at(3, 0.2, 1.0))
    assert "ND204" not in codes(judged(one)[0], 3)
    assert "ND204" in codes(judged(one, selection=Selection(thresholds={"dormancy": 0.3}))[0], 3)


def test_every_threshold_is_used_by_a_rule_and_every_use_is_listed() -> None:
    named = {name for rule in EVERY_RULE for name in rule.thresholds}
    assert {threshold.name for threshold in THRESHOLDS} == named


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.code)
def test_every_rule_explains_itself(rule) -> None:  # type: ignore[no-untyped-def]
    for text in (rule.doc.meaning, rule.doc.measured, rule.doc.why, rule.doc.do, rule.doc.harmless):
        assert text.endswith(".")
        assert "  " not in text
    assert all(name in rule.doc.measured for name in rule.thresholds)


def test_weights_alone() -> None:
    (found,) = judged(layer(weight_norm=at(3, 0, 1.0)), level=Level.WEIGHTS)
    assert codes(found, 3) == ["ND102"]
    assert found.verdicts[3] == "collapsed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_norm": np.array([1e-9] * 8 + [1.0] * 2)}, "their incoming weights have collapsed (ND102)"),
        (
            {
                "active_fraction": np.array([0.0] * 8 + [0.5] * 2), "output_range": np.array([0.0] * 8 + [2.0] * 2),
                "bias": np.array([-5.1] * 8 + [0.0] * 2),
            },
            "their biases ran away (ND201)",
        ),
        (
            {
                "active_fraction": np.array([0.0] * 8 + [0.5] * 2), "output_range": np.array([0.0] * 8 + [2.0] * 2),
                "bias": np.array([-5.1] * 4 + [-4.9] * 4 + [0.0] * 2),
            },
            "they never fire (ND201)",
        ),
    ],
)  # fmt: skip
def test_a_layer_whose_nodes_share_a_cause_names_it(changes: dict[str, np.ndarray], words: str) -> None:
    (found,) = judged(layer(**changes))
    (one,) = (finding for finding in found.findings if finding.code == "ND252")
    assert one.message.endswith(words)


def test_a_layer_of_many_causes_names_none() -> None:
    (found,) = judged(
        layer(
            weight_norm=np.array([1e-9] * 4 + [1.0] * 6),
            active_fraction=np.array([0.5] * 4 + [0.0] * 4 + [0.5] * 2),
            output_range=np.array([2.0] * 4 + [0.0] * 4 + [2.0] * 2),
        )
    )
    (one,) = (finding for finding in found.findings if finding.code == "ND252")
    assert "shared_cause" not in one.evidence


def test_what_an_exploded_node_drowns_names_it() -> None:
    exploded = layer("1", weight_norm=at(3, 1e4, 1.0))
    head = layer("0", is_output=True, duplicates={"outputs": ((4, 1),)})  # made first, and run last
    later = layer("2", dormancy=at(5, 0.01, 1.0), output_reach=at(5, 1e-6, 0.8))
    before = layer("a", dormancy=at(5, 0.01, 1.0), output_reach=at(5, 1e-6, 0.8))
    first, drowned, middle, last = judged(before, head, exploded, later)
    assert [f.cause for f in drowned.by_node[4]] == ["ND103"]
    assert [f.cause for f in last.by_node[5] if f.code == "ND204"] == ["ND103"]
    assert "layer 1 before it has 1 node whose weights have exploded" in last.by_node[5][-1].message
    assert [f.cause for f in first.by_node[5] if f.code == "ND204"] == [None]
    assert [f.cause for f in middle.by_node[3]] == [None]


def test_a_dormant_unit_that_matters_is_a_note() -> None:
    silent = at(3, 0.01, 1.0)
    for reach, severity in ((0.8 * 0.011, "info"), (0.8 * 0.009, "warning")):
        found = judged(layer(dormancy=silent, output_std=0.5, output_reach=at(3, reach, 0.8)))[0]
        assert finding(found, 3, "ND204").severity == severity


def test_a_dormant_unit_is_judged_by_what_it_does_when_it_fires() -> None:
    rare = {"active_fraction": at(3, 0.005, 0.5), "output_std": 0.5, "dormancy": at(3, 0.01, 1.0)}
    usual = 0.8 * (0.005 / 0.5) ** 0.5  # the same derivative as the others', on fewer samples
    for reach, severity in ((usual * 0.011, "info"), (usual * 0.009, "warning")):
        found = judged(layer(output_reach=at(3, reach, 0.8), **rare))[0]
        assert finding(found, 3, "ND204").severity == severity


def test_a_rare_unit_that_moves_the_output_when_it_fires_is_on_no_plateau() -> None:
    kernel = 1.1e-4 * 3.0 * (0.005 / 0.5)  # a little above the edge on the samples on which it fires
    rare = {"active_fraction": at(3, 0.005, 0.5), "lambda_max": at(3, 0.0, 1.0)}
    assert "ND401" not in codes(judged(layer(tangent_kernel=at(3, kernel, 3.0), **rare))[0], 3)
    assert "ND401" in codes(judged(layer(tangent_kernel=at(3, kernel / 2, 3.0), **rare))[0], 3)


SILENT = {"active_fraction": at(3, 0, 0.5), "output_range": at(3, 0, 2.0)}


@pytest.mark.parametrize(
    ("samples", "rate", "steady", "enough"),
    [
        (8, 0.5, False, 59),  # of eight samples nothing is proved
        (20, 0.5, True, None),
        (100, 0.02, False, 1497),  # a unit like the others would be silent with 13 %
        (150, 0.02, True, None),  # and here with 4.8 %
    ],
)
def test_silence_counts_by_the_samples_and_by_how_often_the_layer_fires(
    samples: int, rate: float, steady: bool, enough: int | None
) -> None:
    one = without(layer(active_fraction=at(3, 0, rate), output_range=at(3, 0, 2.0)), "open_count")
    (found,) = judged(one, samples=samples)
    seen = finding(found, 3, "ND201")
    assert (found.verdicts[3], found.steady[3], seen.severity) == ("plateau", steady, "warning")
    assert seen.evidence.get("samples_enough") == enough
    assert ("proves little" in seen.message) == (not steady)
    assert enough is None or f"{enough:,} samples would rule out" in seen.message
    assert all(found.steady[i] for i in range(NODES) if i != 3)


def test_every_position_of_a_sample_counts_where_others_fire_in_few() -> None:
    counts = np.full((4, NODES), 0.02 * 64 * 25.0)  # of 100 samples with 64 positions each
    counts[:, 3] = 0
    dead = layer(active_fraction=at(3, 0, 0.02), output_range=at(3, 0, 2.0), per_fold={"open_count": counts})
    assert judged(dead, samples=100)[0].steady[3]


def test_collapsed_weights_need_no_samples_to_be_steady() -> None:
    (found,) = judged(layer(weight_norm=at(3, 1e-9, 1.0), **SILENT), samples=8)
    assert (found.verdicts[3], found.steady[3]) == ("collapsed", True)
