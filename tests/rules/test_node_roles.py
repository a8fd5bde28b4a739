"""Nodes that are no sums over inputs: rows, single numbers, norm channels, layers that start at zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures
from nndiag.rules.base import CHANNEL, ELSEWHERE, LAYER_TO_MEND
from nndiag.rules.nodes import multiplies, scales_units, starts_at_zero
from tests.rules.diagnosing import NODES, at, codes, everything, finding, judged, layer, without

OUTPUTS = ("output_mean", "output_std", "output_range", "preactivation_std", "dormancy", "active_fraction")
CUT = ("output_reach", "gradient_reach", "lambda_max", "tangent_kernel")


def norm(name: str = "1", **changes: object) -> LayerMeasures:
    """Return a norm: one scale and one shift a channel, no outputs of its own."""
    one = replace(layer(name, fan_in=1, activation=None, **changes), kind="BatchNorm2d", per_layer={})
    return without(one, *OUTPUTS, "open_count")


def raw(name: str = "token", fan_in: int = 1, **changes: object) -> LayerMeasures:
    return replace(without(norm(name, **changes), "bias"), kind="Parameter", fan_in=fan_in)


def table(seen: np.ndarray | None = None, **changes: object) -> LayerMeasures:
    """Return an embedding; what ``seen`` leaves out was never looked up."""
    one = replace(raw("embed", 8, **changes), kind="Embedding")
    if seen is None:
        return one
    known = ("weight_norm", "parameter_norm", "nonfinite_parameters")
    node = {k: v if k in known else np.where(seen, v, np.nan) for k, v in one.per_node.items()}
    folds = {k: np.where(seen, v, np.nan) for k, v in one.per_fold.items()}
    return replace(one, per_node={**node, "lookups": seen * 3.0}, per_fold=folds, observed=seen)


def test_what_multiplies_its_inputs() -> None:
    assert multiplies(layer())
    assert multiplies(norm())
    assert multiplies(replace(layer(), kind="Embedding"))  # also the decoder: it has outputs of its own
    assert not multiplies(table())
    assert not multiplies(raw(fan_in=8))
    assert [scales_units(one) for one in (norm(), layer(), layer(fan_in=1), raw(), table())] == [
        True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "one", [raw(weight_norm=0.0), raw(fan_in=8, weight_norm=0.0), table(weight_norm=0.0)]
)
@pytest.mark.parametrize("level", [Level.WEIGHTS, Level.CURVATURE])
def test_rows_and_parameters_by_themselves_may_be_zero(one: LayerMeasures, level: Level) -> None:
    (found,) = judged(one, level=level)
    assert everything((found,)) == set()
    (some,) = judged(replace(one, per_node={**one.per_node, "weight_norm": at(3, 0, 1.0)}), level=level)
    assert everything((some,)) == set()


@pytest.mark.parametrize(("size", "there"), [(0.9e-6, True), (1.1e-6, False)])
def test_one_number_may_pass_through_zero(size: float, there: bool) -> None:
    _, found = judged(layer("0"), norm(weight_norm=at(3, size, 1.0)))
    assert ("ND102" in codes(found, 3)) == there
    assert found.verdicts[3] == ("collapsed" if there else "healthy")


def test_numbers_without_a_bias_have_no_initial_scale() -> None:
    tiny = without(norm(weight_norm=1e-9), "bias")
    assert everything(judged(tiny)) == set()
    assert "ND102" in everything(judged(norm(weight_norm=1e-9)))


def test_numbers_that_multiply_nothing_explode_never() -> None:
    assert "ND103" in everything(judged(norm(weight_norm=at(3, 200, 1.0))))
    assert "ND103" in everything(judged(table(weight_norm=at(3, 200, 1.0))))
    assert "ND103" not in everything(judged(raw(weight_norm=at(3, 200, 1.0))))
    (few,) = judged(table(weight_norm=np.array([0.0] * 7 + [1.0, 1.1, 1.2])))
    assert everything((few,)) == set()


def test_a_table_is_no_yardstick_for_a_pair_of_rescaled_layers() -> None:
    assert "ND102" in everything(judged(table(weight_norm=1e6), layer("0", weight_norm=1e-6)))


SEEN = np.arange(NODES) != 3


def test_a_row_that_was_never_looked_up_is_unknown_and_fine() -> None:
    (found,) = judged(table(SEEN))
    assert [n for n in range(NODES) if found.verdicts[n] != "healthy"] == [3]
    assert found.verdicts[3] == "unknown"
    assert everything((found,)) == set()
    assert all(found.steady)


def test_what_its_weights_say_of_it_is_said() -> None:
    (broken,) = judged(table(SEEN, nonfinite_parameters=at(3, 1, 0)))
    assert codes(broken, 3) == ["ND101"]
    (large,) = judged(table(SEEN, weight_norm=at(3, 200, 1.0)))
    assert codes(large, 3) == ["ND103"]
    assert {broken.verdicts[3], large.verdicts[3]} == {"unknown"}


@pytest.mark.parametrize(("seen", "severity"), [(SEEN, "info"), (np.arange(NODES) != 5, "warning")])
def test_rows_that_repeat_each_other(seen: np.ndarray, severity: str) -> None:
    (found,) = judged(replace(table(seen), duplicates={"weights": ((3, 1),), "negated_weights": ((4, 1),)}))
    assert everything((found,)) == {"ND104"}
    assert codes(found, 4) == []
    seen_there = finding(found, 3, "ND104")
    assert (seen_there.severity, seen_there.evidence["rows"]) == (severity, True)
    assert "bias" not in seen_there.message


def zeros(name: str, **changes: object) -> LayerMeasures:
    return norm(name, weight_norm=0.0, **changes)


def cut_off(name: str, **changes: object) -> LayerMeasures:
    return layer(name, **(dict.fromkeys(CUT, 0.0) | changes))


def test_a_branch_that_starts_at_zero_is_shut_and_well() -> None:
    behind = {"output_std": 0.0, "output_range": 0.0, "dormancy": 0.0, "effective_rank": 0.0}
    stem, inner, start = judged(layer("stem"), cut_off("inner", activation=None, **behind), zeros("bn"))
    assert everything((stem,)) == set()
    every = [f for one in (inner, start) for node in (None, *range(NODES))
             for f in (one.findings if node is None else one.by_node[node])]  # fmt: skip
    assert {f.severity for f in every} == {"info"}
    assert {f.code for f in every} >= {"ND102", "ND203", "ND301", "ND401", "ND251"}
    assert set(start.verdicts) == {"healthy"}
    assert set(inner.verdicts) == {"unknown"}
    seen = finding(inner, 0, "ND203")
    assert (seen.cause, seen.evidence[LAYER_TO_MEND]) == ("ND102", "bn")
    assert seen.evidence[ELSEWHERE] == "layer bn after it starts at zero"


def test_a_layer_as_good_as_zero_that_the_next_step_moves_starts_there() -> None:
    found = judged(layer("stem"), layer("head", weight_norm=1e-9, gradient_norm=0.1, is_output=True))[-1]
    assert {finding(found, node, "ND102").severity for node in range(NODES)} == {"info"}
    assert set(found.verdicts) == {"healthy"}


def test_what_is_dead_inside_a_shut_branch_is_dead() -> None:
    dead = {"active_fraction": at(3, 0, 0.5), "output_range": at(3, 0, 2.0)}
    _, inner, _ = judged(layer("stem"), cut_off("inner", **dead), zeros("bn"))
    assert finding(inner, 3, "ND201").severity == "warning"
    assert [n for n in range(NODES) if inner.verdicts[n] == "plateau"] == [3]


@pytest.mark.parametrize(
    "layers",
    [
        (cut_off("0"), zeros("bn")),  # nothing gets around it
        (layer("stem"), zeros("bn", tangent_kernel=0.0)),  # no step moves it
        (layer("stem"), norm("bn", weight_norm=1e-12, gradient_norm=1e-13)),  # it has shrunk
        (layer("stem"), layer("head", weight_norm=1e-4, gradient_norm=1.0)),  # it is not as good as zero
        (layer("stem"), without(zeros("bn"), "tangent_kernel")),  # nobody knows
    ],
)
def test_and_everything_else_that_is_zero_has_collapsed(layers: tuple[LayerMeasures, ...]) -> None:
    last = judged(*layers)[-1]
    assert finding(last, 0, "ND102").severity == "warning"
    assert set(last.verdicts) == {"collapsed"}
    assert finding(last, None, "ND252").severity == "error"


def test_a_layer_of_raw_scales_that_starts_at_zero_shuts_what_it_scales() -> None:
    scale = raw("block.ls.gamma", weight_norm=0.0)
    assert starts_at_zero(scale)
    _, other, inner, found = judged(layer("stem"), cut_off("unused"), cut_off("block.fc2"), scale)
    assert everything((found,)) == set()
    assert {f.severity for fs in inner.by_node.values() for f in fs} == {"info"}
    assert {f.severity for fs in other.by_node.values() for f in fs} == {"warning"}


def shut(**changes: object) -> LayerMeasures:
    """Return units of which number 3 puts out a constant and gets no gradient."""
    usual = {"output_std": 0.6, "output_range": 2.0, "output_reach": 0.8, "gradient_reach": 0.2, "lambda_max": 1.0,
             "tangent_kernel": 3.0}  # fmt: skip
    return layer("0", **({name: at(3, 0, value) for name, value in usual.items()} | changes))


def test_a_channel_of_zero_is_the_cause_in_the_unit_that_it_scales() -> None:
    far, unit, channel = judged(layer("far"), shut(), norm("bn", weight_norm=at(3, 0, 1.0)))
    assert everything((far,)) == set()
    assert codes(channel, 3) == ["ND102"]
    seen = finding(unit, 3, "ND203")
    assert (seen.cause, seen.evidence[LAYER_TO_MEND], seen.evidence[CHANNEL]) == ("ND102", "bn", True)
    assert seen.message.endswith("its channel in layer bn after it has collapsed")
    assert [n for n in range(NODES) if unit.by_node.get(n)] == [3]


def test_also_where_the_unit_is_dead_for_it() -> None:
    unit, _ = judged(shut(active_fraction=at(3, 0, 0.5)), norm("bn", weight_norm=at(3, 0, 1.0)))
    assert finding(unit, 3, "ND201").cause == "ND102"


def test_a_dead_unit_is_the_cause_in_its_channel() -> None:
    still = {name: at(3, 0, usual) for name, usual in (("output_reach", 0.8), ("gradient_reach", 0.2),
                                                       ("lambda_max", 1.0), ("tangent_kernel", 3.0))}  # fmt: skip
    unit, channel = judged(shut(active_fraction=at(3, 0, 0.5)), norm("bn", **still))
    assert finding(unit, 3, "ND201").cause is None
    seen = finding(channel, 3, "ND301")
    assert (seen.cause, seen.evidence[LAYER_TO_MEND]) == ("ND201", "0")
    assert seen.message.endswith("its unit in layer 0 before it is dead")
    assert channel.verdicts[3] == "plateau"


def test_all_channels_of_a_dead_layer_follow_from_it() -> None:
    dead = cut_off("0", active_fraction=0.0, output_range=0.0, output_std=0.0)
    unit, channels = judged(dead, norm("bn", **dict.fromkeys(CUT, 0.0)))
    assert finding(unit, None, "ND252").cause is None
    assert finding(channels, None, "ND252").cause == "ND201"


def test_units_that_are_well_are_not_blamed() -> None:
    unit, channel = judged(layer("0"), norm("bn", weight_norm=at(3, 0, 1.0)))
    assert everything((unit,)) == set()
    assert codes(channel, 3) == ["ND102"]
