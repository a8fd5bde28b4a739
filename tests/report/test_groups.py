from __future__ import annotations

import pytest

from nndiag.records.report import Finding, Report
from nndiag.report.groups import advise, gather
from nndiag.report.phrases import hence
from tests.report import synthetic
from tests.report.builder import diagnosis, finding, layer, node, report


def chain(*links: tuple[str, str | None]) -> list[Finding]:
    return [finding(code, code.lower(), "m", cause=cause) for code, cause in links]


def one_layer(*links: tuple[str, str | None]) -> Report:
    return report(diagnosis([layer("0", 4, plateau=1)], [node("0", 2, findings=chain(*links))]))


def test_consequences_are_folded_under_their_first_cause() -> None:
    (group,) = gather(one_layer(("ND401", "ND301"), ("ND301", "ND201"), ("ND201", None)).checkpoints[0])
    assert group.code == "ND201"
    assert [one.code for one in group.consequences] == ["ND301", "ND401"]


def test_a_cause_that_is_not_there_makes_a_finding_its_own() -> None:
    groups = gather(
        one_layer(
            ("ND401", "ND999"),
        ).checkpoints[0]
    )
    assert [(one.code, one.cause) for one in groups] == [("ND401", "ND999")]


def test_causes_in_a_circle_are_shown_once_each() -> None:
    groups = gather(one_layer(("ND201", "ND301"), ("ND301", "ND201")).checkpoints[0])
    shown = [one.code for group in groups for one in (group, *group.consequences)]
    assert sorted(shown) == ["ND201", "ND301"]


def test_a_cause_in_another_layer_is_found_and_named() -> None:
    far = diagnosis(
        [layer("0", 4), layer("2", 4, plateau=4)],
        [node("0", 1, findings=chain(("ND301", "ND201"))), node("2", 0, findings=chain(("ND201", None)))],
    )
    (group,) = gather(far)
    assert (group.layer, hence(group)) == ("2", "ND301 nd301 in layer 0 (1)")


def test_the_worst_comes_first_and_a_grave_consequence_makes_its_cause_grave() -> None:
    last = synthetic.dying().checkpoints[-1]
    groups = gather(last)
    assert [(one.code, one.layer, one.gravity) for one in groups] == [
        ("ND201", "2", 0), ("ND201", "0", 1), ("ND250", "2", 1),
    ]  # fmt: skip
    assert "ND252 layer-degenerate (error)" in hence(groups[0])
    assert groups[0].nodes == tuple(range(64))


def test_every_finding_is_in_exactly_one_group() -> None:
    for name, made in synthetic.ALL.items():
        for one in made().checkpoints[-1:]:
            groups = [part for group in gather(one) for part in (group, *group.consequences)]
            nodes = sum(len(group.nodes) for group in groups)
            assert nodes == sum(len(node.findings) for node in one.nodes), name


def test_actions_are_grouped_by_kind_and_layer_with_their_reasons_counted() -> None:
    advice = advise(synthetic.cnn().checkpoints[0])
    assert [(one.kind, one.layer, len(one.nodes)) for one in advice] == [
        ("prune", "layer2.1.conv1", 15), ("merge", "layer1.0.conv1", 1), ("lower_lr", "layer2.1.conv1", 1),
    ]  # fmt: skip
    assert advice[0].reasons == (("dead on all 4,000 samples", 12), ("its weights are zero", 3))


@pytest.mark.parametrize("name", ["healthy", "unknown"])
def test_where_nothing_is_found_there_is_nothing_to_do(name: str) -> None:
    one = synthetic.ALL[name]().checkpoints[0]
    assert gather(one) == ()
    assert advise(one) == ()
