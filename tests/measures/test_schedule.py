"""The schedule holds its budget, misses nothing, and keeps what it can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nndiag.errors import UsageError
from nndiag.measures.schedule import Form, Need, Part, Passing, Schedule, Setting, make_schedule

MB = 10**6


def need(
    layer: str = "a", form: Form = "outer", per_sample: float = 1000.0, nodes: int = 64, size: int = 200,
    summing: float = float("inf"), dense: bool = False, groups: int = 1,
) -> Need:  # fmt: skip
    return Need(layer, nodes, size, 4, form, per_sample, summing, 0.0, dense, groups)


def setting(samples: int = 10_000, batch_size: int = 100, per_sample: float = 1000.0) -> Setting:
    return Setting(
        samples, 4, batch_size, "lanczos", Passing(1000, per_sample, 0.0, 0.0, 10.0), replaying=1e5
    )


def parts(schedule: Schedule) -> list[Part]:
    return [part for one in schedule.rounds for part in one.parts]


def test_everything_is_kept_at_once_where_it_fits() -> None:
    schedule = make_schedule([need("a"), need("b", "whole")], setting(), 10**9)
    (only,) = schedule.rounds
    assert not only.streamed
    assert [part.form for part in only.parts] == ["outer", "whole"]
    assert schedule.batch_size == 100
    assert schedule.workspace is None
    assert schedule.bytes == schedule.wanted <= 10**9


def test_layers_that_fit_one_by_one_take_rounds() -> None:
    schedule = make_schedule([need(name) for name in "abcd"], setting(), 50 * MB)
    assert [[part.layer for part in one.parts] for one in schedule.rounds] == [["a", "b"], ["c", "d"]]
    assert not any(one.streamed for one in schedule.rounds)
    assert schedule.batch_size == 100


def test_a_layer_that_does_not_fit_is_streamed() -> None:
    schedule = make_schedule([need("a", per_sample=1e5), need("b")], setting(), 50 * MB)
    assert [(one.streamed, [part.layer for part in one.parts]) for one in schedule.rounds] == [
        (False, ["b"]),
        (True, ["a"]),
    ]


def test_a_layer_whose_sums_are_cheap_and_small_is_summed() -> None:
    schedule = make_schedule([need("a", per_sample=1e5, size=50, summing=1.0)], setting(), 50 * MB)
    assert [part.form for part in parts(schedule)] == ["whole"]


def test_some_nodes_of_a_layer_are_not_summed_where_their_solver_starts_from_all() -> None:
    one = need("a", per_sample=1e7, nodes=2000, size=50, summing=1.0)
    assert {part.form for part in parts(make_schedule([one], setting(), 20 * MB))} == {"streamed"}
    few = replace(one, form="implicit")
    assert {part.form for part in parts(make_schedule([few], setting(), 20 * MB))} == {"whole"}


def test_what_is_solved_densely_is_never_streamed() -> None:
    schedule = make_schedule([need("a", per_sample=1e6, dense=True)], setting(), 20 * MB)
    assert {part.form for part in parts(schedule)} == {"whole"}
    assert len(schedule.rounds) > 1


def test_many_rounds_are_more_than_one_stream() -> None:
    schedule = make_schedule([need(str(i), per_sample=900.0, nodes=8) for i in range(60)], setting(), 40 * MB)
    assert any(one.streamed for one in schedule.rounds)
    assert sum(16 if one.streamed else 1 for one in schedule.rounds) < 30


def test_a_large_layer_is_streamed_in_parts() -> None:
    schedule = make_schedule([need("a", nodes=2000, per_sample=1e9)], setting(), 20 * MB)
    assert len(schedule.rounds) > 1
    assert all(one.streamed for one in schedule.rounds)


def test_batches_are_cut_where_passes_alone_are_too_much() -> None:
    schedule = make_schedule([need("a", per_sample=1.0)], setting(per_sample=MB), 40 * MB)
    assert 1 <= schedule.batch_size < 40


@pytest.mark.parametrize("asked", [True, False])
def test_the_least_is_enough_and_less_is_refused(asked: bool) -> None:
    needs, given_ = [need("a"), need("b", dense=True, groups=8)], setting()
    least = make_schedule(needs, given_, 10**9).least
    assert make_schedule(needs, given_, least, asked).bytes <= least
    with pytest.raises(UsageError) as caught:
        make_schedule(needs, given_, least - 1, asked)
    assert caught.value.what.startswith("--memory-budget" if asked else "memory")


NEEDS = st.builds(
    need,
    form=st.sampled_from(["outer", "implicit", "rows", "whole"]),
    per_sample=st.floats(1, 1e5),
    nodes=st.sampled_from([1, 8, 24, 96]),
    size=st.integers(1, 300),
    summing=st.floats(1, 1e9),
    dense=st.booleans(),
    groups=st.sampled_from([1, 8]),
).filter(lambda one: one.nodes % one.groups == 0)


@given(st.lists(NEEDS, min_size=1, max_size=12), st.floats(0, 1))
def test_every_node_is_treated_once_and_the_budget_is_held(drawn: list[Need], share: float) -> None:
    needs = [
        Need(str(i), n.nodes, n.size, 4, n.form, n.per_sample, n.summing, 0.0, n.dense, n.groups)
        for i, n in enumerate(drawn)
    ]
    roomy = make_schedule(needs, setting(), 10**15)
    budget = int(roomy.least + share * (roomy.wanted - roomy.least))
    schedule = make_schedule(needs, setting(), budget)
    assert schedule.bytes <= budget
    for one in needs:
        own = sorted((part.start, part.stop) for part in parts(schedule) if part.layer == one.layer)
        assert [a for a, _ in own] == [0, *(b for _, b in own[:-1])]
        assert own[-1][1] == one.nodes
        forms = {part.form for part in parts(schedule) if part.layer == one.layer}
        assert len(forms) == 1
        assert not (one.dense and forms == {"streamed"})
        per_group = one.nodes // one.groups
        if forms == {"whole"}:  # a part lies in one group or covers whole ones
            assert all(
                a // per_group == (b - 1) // per_group or a % per_group == b % per_group == 0 for a, b in own
            )
