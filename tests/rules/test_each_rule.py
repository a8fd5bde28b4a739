"""Every rule on hand-made layers: where it holds, and the nearest place where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, OptimizerFacts
from tests.rules.diagnosing import NODES, at, codes, everything, finding, judged, layer, without

SGD = OptimizerFacts(name="sgd", lr=0.1, horizon=1000.0)
ROW = 3**-0.5

Layers = tuple[LayerMeasures, ...]


def dead_at(index: int, **more: object) -> LayerMeasures:
    values: dict[str, object] = {
        "active_fraction": at(index, 0, 0.5),
        "output_range": at(index, 0, 2.0),
        "output_std": at(index, 0, 0.6),
        "output_mean": at(index, 0, 0.4),
    }
    return layer(**(values | more))


def stepping(residual: float) -> LayerMeasures:
    """A layer of which one node's next step leaves so much of this one."""
    found = layer()
    more = {"step_residual": at(3, residual, 1.9), "step_return": at(3, -1.0, 0.9)}
    return replace(found, per_node={**found.per_node, **more})


NODE_CASES: dict[str, tuple[str, Layers, Layers]] = {
    "non-finite": ("ND101", (layer(nonfinite_parameters=at(3, 1, 0)),), (layer(),)),
    "collapsed beside its layer": (
        "ND102", (layer(weight_norm=at(3, 0.9e-3, 1.0)),), (layer(weight_norm=at(3, 1.1e-3, 1.0)),),
    ),
    "collapsed with its layer": (
        "ND102", (layer(weight_norm=0.9e-3 * ROW),), (layer(weight_norm=1.1e-3 * ROW),),
    ),
    "collapsed, not one of a rescaled pair": (
        "ND102",
        (layer("0", weight_norm=1e-5), layer("2", weight_norm=2.0)),
        (layer("0", weight_norm=1e-5), layer("2", weight_norm=1e5)),
    ),
    "exploded": ("ND103", (layer(weight_norm=at(3, 101, 1.0)),), (layer(weight_norm=at(3, 99, 1.0)),)),
    "exploded, though most have collapsed": (
        "ND103",
        (layer(weight_norm=np.array([200.0, 1.0, 1.0, 1.0, *[1e-7] * 6])),),
        (layer(weight_norm=np.array([1.0, 1.0, 1.0, 1.0, *[1e-7] * 6])),),
    ),
    "repeated weights": ("ND104", (layer(duplicates={"weights": ((3, 1),)}),), (layer(duplicates={"outputs": ()}),)),
    "turned weights": (
        "ND104", (layer(duplicates={"negated_weights": ((3, 1),)}),),
        (layer(duplicates={"negated_weights": ((3, 1),)}, is_output=True),),
    ),
    "dead": ("ND201", (dead_at(3),), (dead_at(3, active_fraction=at(3, 1 / 400, 0.5)),)),
    "dead at one end of a clipped activation": (
        "ND201",
        (dead_at(3, activation="hardtanh"),),
        (dead_at(3, activation="hardtanh", output_range=at(3, 2.0, 2.0)),),
    ),
    "dead is not saturated": ("ND201", (dead_at(3),), (dead_at(3, activation="tanh"),)),
    "saturated": (
        "ND202", (dead_at(3, activation="tanh"),), (dead_at(3, activation="tanh", active_fraction=at(3, 1e-3, 1)),),
    ),
    "a switch of a clipped activation": (
        "ND202",
        (dead_at(3, activation="hardtanh", output_range=at(3, 2.0, 2.0)),),
        (dead_at(3, activation="hardtanh"),),
    ),
    "constant": ("ND203", (layer(output_std=at(3, 0.9e-5, 1.0)),), (layer(output_std=at(3, 1.1e-5, 1.0)),)),
    "dormant": ("ND204", (layer(dormancy=at(3, 0.025, 1.0)),), (layer(dormancy=at(3, 0.026, 1.0)),)),
    "dormant needs an activation": (
        "ND204", (layer(dormancy=at(3, 0.01, 1.0)),), (layer(dormancy=at(3, 0.01, 1.0), activation=None),),
    ),
    "always on": ("ND205", (layer(active_fraction=at(3, 1, 0.5)),), (layer(active_fraction=at(3, 0.999, 0.5)),)),
    "always on is for rectifiers": (
        "ND205", (layer(active_fraction=at(3, 1, 0.5)),), (layer(active_fraction=at(3, 1, 0.5), activation="gelu"),),
    ),
    "repeated output": ("ND206", (layer(duplicates={"outputs": ((3, 1),)}),), (layer(),)),
    "no gradient": (
        "ND301",
        (layer(gradient_reach=at(3, 0, 0.2), output_reach=at(3, 0, 0.8)),),
        (layer(gradient_reach=at(3, 1e-6, 0.2), output_reach=at(3, 0, 0.8)),),
    ),
    "no gradient is not a loss at its floor": (
        "ND301",
        (layer(gradient_reach=at(3, 0, 0.2), output_reach=at(3, 0, 0.8)),),
        (layer(gradient_reach=at(3, 0, 0.2)),),
    ),
    "no gradient of an output": (
        "ND301",
        (layer(gradient_reach=at(3, 0, 0.2), is_output=True),),
        (layer(gradient_reach=at(3, 1e-12, 0.2), is_output=True),),
    ),
    "no torque": ("ND302", (layer(torque_ratio=at(3, 0.009, 0.9)),), (layer(torque_ratio=at(3, 0.011, 0.9)),)),
    "no torque of a gradient that matters": (
        "ND302",
        (layer(torque_ratio=at(3, 0.001, 0.9), gradient_norm=at(3, 0.011, 0.1)),),
        (layer(torque_ratio=at(3, 0.001, 0.9), gradient_norm=at(3, 0.009, 0.1)),),
    ),
    "no torque of a gradient that is no noise": (
        "ND302",
        (layer(torque_ratio=at(3, 0.001, 0.9), gradient_signal=at(3, 0.11, 0.5)),),
        (layer(torque_ratio=at(3, 0.001, 0.9), gradient_signal=at(3, 0.09, 0.5)),),
    ),
    "no torque in the plane": (
        "ND302", (layer(torque_ratio=at(3, 0.001, 0.9), fan_in=3),), (layer(torque_ratio=at(3, 0.001, 0.9), fan_in=2),),
    ),
    "no influence": (
        "ND304", (layer(output_reach=at(3, 0, 0.8)),), (layer(output_reach=at(3, 1e-6, 0.8)),),
    ),
    "no influence is not deadness": (
        "ND304", (layer(output_reach=at(3, 0, 0.8)),), (dead_at(3, output_reach=at(3, 0, 0.8)),),
    ),
    "no influence is not a switch": (
        "ND304",
        (layer(output_reach=at(3, 0, 0.8)),),
        (layer(output_reach=at(3, 0, 0.8), active_fraction=at(3, 0, 0.5), activation="hardtanh"),),
    ),
    "plateau": (
        "ND401",
        (layer(lambda_max=at(3, 0.9e-6, 1.0), tangent_kernel=at(3, 0, 3.0)),),
        (layer(lambda_max=at(3, 1.1e-6, 1.0), tangent_kernel=at(3, 0, 3.0)),),
    ),
    "plateau is not nothing left to learn": (
        "ND401",
        (layer(lambda_max=at(3, 0, 1.0), tangent_kernel=at(3, 0.9e-4 * 3, 3.0)),),
        (layer(lambda_max=at(3, 0, 1.0), tangent_kernel=at(3, 1.1e-4 * 3, 3.0)),),
    ),
    "plateau by the horizon": (
        "ND401",
        (layer(relaxation_steps=at(3, 1001, 10.0), tangent_kernel=at(3, 0, 3.0)),),
        (layer(relaxation_steps=at(3, 999, 10.0), tangent_kernel=at(3, 0, 3.0)),),
    ),
    "exploding gradient": (
        "ND303",
        (layer(gradient_reach=at(3, 21.0, 0.2)),),
        (layer(gradient_reach=at(3, 19.0, 0.2)),),
    ),
    "exploding gradient beside the other layers": (
        "ND303",
        (layer(gradient_reach=at(3, 21.0, 0.2)), layer("2"), layer("4")),
        (layer(gradient_reach=at(3, 21.0, 0.2)), layer("2", gradient_reach=2.0), layer("4", gradient_reach=2.0)),
    ),
    "flip by the next step": ("ND404", (stepping(0.24),), (stepping(0.26),)),
    "flip by its eigenvalue": (
        "ND404", (layer(stability_margin=at(3, 0.991, 0.2)),), (layer(stability_margin=at(3, 0.989, 0.2)),),
    ),
    "source": ("ND402", (layer(stability_margin=at(3, 1.01, 0.2)),), (layer(stability_margin=at(3, 0.99, 0.2)),)),
}  # fmt: skip


@pytest.mark.parametrize("case", NODE_CASES)
def test_a_node_has_the_finding_and_its_nearest_neighbour_not(case: str) -> None:
    code, there, not_there = NODE_CASES[case]
    assert code in codes(judged(*there, optimizer=SGD)[0], 3 if case != _FIRST else 0)
    assert code not in codes(judged(*not_there, optimizer=SGD)[0], 3 if case != _FIRST else 0)


_FIRST = "exploded, though most have collapsed"


@pytest.mark.parametrize("case", NODE_CASES)
def test_only_that_node_has_it(case: str) -> None:
    code, there, _ = NODE_CASES[case]
    if case == "collapsed with its layer" or case.startswith("collapsed, not"):
        assert all(code in codes(judged(*there)[0], node) for node in range(NODES))
        return
    found = judged(*there, optimizer=SGD)[0]
    assert sum(code in codes(found, node) for node in range(NODES)) == 1


def test_a_healthy_layer_has_nothing() -> None:
    assert everything(judged(layer("0"), layer("2"), optimizer=SGD)) == set()


LAYER_CASES: dict[str, tuple[str, Layers, Layers]] = {
    "dead data": ("ND250", (layer(dead_data_fraction=0.051),), (layer(dead_data_fraction=0.049),)),
    "dead data of a narrow layer": (
        "ND250",
        (layer(nodes=2, dead_data_fraction=0.51),),
        (layer(nodes=2, dead_data_fraction=0.49),),
    ),
    "rank of a first layer": ("ND251", (layer(effective_rank=1.4),), (layer(effective_rank=1.6),)),
    "rank of a toy's inputs": (
        "ND251", (layer(effective_rank=1.4, fan_in=8),), (layer(effective_rank=1.4, fan_in=2),),
    ),
    "half of the nodes": (
        "ND252",
        (layer(weight_norm=np.array([1e-9] * 6 + [1.0] * 4)),),
        (layer(weight_norm=np.array([1e-9] * 5 + [1.0] * 5)),),
    ),
    "low torque": ("ND350", (layer(torque_ratio=0.09),), (layer(torque_ratio=0.11),)),
    "low torque of noise": (
        "ND350", (layer(torque_ratio=0.01),), (layer(torque_ratio=0.01, gradient_signal=0.09),),
    ),
    "low torque of one small node": (
        "ND350", (layer(nodes=1, torque_ratio=0.05, fan_in=9),), (layer(nodes=1, torque_ratio=0.05, fan_in=8),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYER_CASES)
def test_a_layer_has_the_finding_and_its_nearest_neighbour_not(case: str) -> None:
    code, there, not_there = LAYER_CASES[case]
    assert code in codes(judged(*there)[0], None)
    assert code not in codes(judged(*not_there)[0], None)


@pytest.mark.parametrize(
    ("margin", "other", "lr", "sharp"),
    [(0.51, 0.05, 0.1, True), (0.49, 0.01, 0.1, False), (0.6, 0.061, 0.1, False), (0.51, 0.05, None, False)],
)
def test_a_layer_is_sharp_by_itself_and_beside_the_others(
    margin: float, other: float, lr: float | None, sharp: bool
) -> None:
    layers = (
        layer("0", stability_margin=at(3, margin, 0.01)),
        layer("2", stability_margin=other),
        layer("4", stability_margin=other),
    )
    found = judged(*layers, optimizer=OptimizerFacts(name="sgd", lr=lr))
    assert ("ND450" in codes(found[0], None)) == sharp
    assert "ND450" not in codes(found[1], None)


def test_a_low_rank_is_a_collapse_only_below_the_layers_before() -> None:
    low = layer("2", effective_rank=1.4)
    assert "ND251" in codes(judged(layer("0", effective_rank=2.9), low)[1], None)
    assert "ND251" not in codes(judged(layer("0", effective_rank=2.7), low)[1], None)


def test_one_logit_needs_one_dimension() -> None:
    head = layer("4", nodes=1, is_output=True, activation=None)
    assert "ND251" not in codes(judged(layer("0", effective_rank=1.1), head)[0], None)
    assert "ND251" in codes(judged(layer("0", effective_rank=0.0), head)[0], None)
    wide = replace(head, nodes=3)
    assert "ND251" in codes(judged(layer("0", effective_rank=1.1), wide)[0], None)


NEEDS: dict[str, tuple[str, ...]] = {
    "ND201": ("active_fraction",), "ND203": ("output_std",), "ND204": ("dormancy",), "ND301": ("gradient_reach",),
    "ND302": ("torque_ratio",), "ND304": ("output_reach",), "ND401": ("lambda_max",),
}  # fmt: skip


@pytest.mark.parametrize("code", NEEDS)
def test_what_was_not_measured_is_not_judged(code: str) -> None:
    case = next(there for name, there, _ in NODE_CASES.values() if name == code)
    assert code in everything(judged(*case, optimizer=SGD))
    blind = tuple(without(one, *NEEDS[code]) for one in case)
    assert code not in everything(judged(*blind, optimizer=SGD))


@pytest.mark.parametrize("level", list(Level))
def test_a_level_reports_nothing_of_deeper_ones(level: Level) -> None:
    sick = layer(
        weight_norm=at(1, 0, 1.0), active_fraction=at(2, 0, 0.5), output_range=at(2, 0, 2.0),
        output_reach=at(4, 0, 0.8), lambda_max=at(5, 0, 1.0), tangent_kernel=at(5, 0, 3.0),
    )  # fmt: skip
    found = everything(judged(sick, level=level))
    assert {int(code[2]) for code in found} == set(range(1, int(level) + 1))


def test_nothing_is_judged_by_gradients_where_no_sample_has_any() -> None:
    still = layer(gradient_reach=0.0, gradient_norm=0.0, torque_ratio=np.nan, gradient_signal=np.nan)
    assert everything(judged(still)) == set()


MESSAGES: dict[str, Callable[[], LayerMeasures]] = {
    "ND102": lambda: layer(weight_norm=np.linspace(1e-6, 2e-6, NODES)),
    "ND103": lambda: layer(weight_norm=np.array([1.0] * 6 + [300.0, 400.0, 500.0, 600.0])),
    "ND104": lambda: layer(duplicates={"weights": ((3, 1), (4, 2))}),
    "ND201": lambda: layer(active_fraction=0.0, output_range=0.0),
    "ND202": lambda: layer(active_fraction=0.0, output_range=np.linspace(0, 0.01, NODES), activation="tanh"),
    "ND203": lambda: layer(output_std=0.0, output_mean=np.arange(10.0)),
    "ND204": lambda: layer(dormancy=np.linspace(0, 0.02, NODES)),
    "ND302": lambda: layer(torque_ratio=np.linspace(0.001, 0.002, NODES)),
    "ND401": lambda: layer(lambda_max=np.array([1.0] * 6 + [1e-8, 1e-9, 0, 0]), tangent_kernel=at(0, 3, 0.0)),
    "ND402": lambda: layer(stability_margin=np.linspace(1.1, 2.0, NODES)),
}


@pytest.mark.parametrize("code", MESSAGES)
def test_nodes_with_the_same_trouble_say_the_same(code: str) -> None:
    (found,) = judged(MESSAGES[code](), optimizer=SGD)
    messages = [finding(found, n, code).message for n in range(NODES) if code in codes(found, n)]
    assert len(messages) > 1
    assert len(set(messages)) == 1


def test_the_evidence_of_a_source_names_the_largest_stable_rate() -> None:
    (found,) = judged(layer(stability_margin=at(3, 4.0, 0.5)), optimizer=SGD)
    seen = finding(found, 3, "ND402")
    assert seen.evidence["largest_stable_lr"] == pytest.approx(0.025)
    assert "0.025" in seen.message


def test_few_samples_say_what_would_be_enough() -> None:
    few, many = (finding(judged(dead_at(3), samples=n)[0], 3, "ND201") for n in (8, 400))
    assert "59 samples would rule out 5 %" in few.message
    assert "would rule out" not in many.message
    assert few.evidence["rate_below"] == pytest.approx(1 - 0.05 ** (1 / 8))
