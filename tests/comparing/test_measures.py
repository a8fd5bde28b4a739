"""Motion, decline, changes, matching: against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from nndiag.comparing.assigning import assignment
from nndiag.comparing.matching import matched
from nndiag.comparing.motion import smoothed
from nndiag.comparing.reading import run_of
from nndiag.comparing.run import mean_between
from nndiag.config.policy import Limits, Policy
from nndiag.errors import InputError
from nndiag.measures.sketch import NodeRows, sketch
from nndiag.records.packed import pack, unpack
from tests.comparing.runs import along, compared, diagnosis, layer


def test_motion_is_what_its_definition_says() -> None:
    first = diagnosis(
        layer("h", norms=2.0, biases=0.5, directions=[[1.0, 0.0]], curvatures=4.0, fan_in=2), step=0
    )
    second = diagnosis(
        layer("h", norms=3.0, biases=0.25, directions=[[0.0, 1.0]], curvatures=8.0, fan_in=2), step=10
    )
    (node,) = compared(first, second, all_nodes=True).nodes
    before, after = math.hypot(2, 0.5), math.hypot(3, 0.25)
    assert node.measures["rho"] == (None, pytest.approx(after / before, rel=1e-6))
    assert node.measures["norm_growth"] == (1.0, pytest.approx(after / before, rel=1e-6))
    assert node.measures["direction_change"] == (None, pytest.approx(math.sqrt(2), rel=1e-3))
    assert node.measures["bias_drift"] == (0.0, -0.25)
    assert node.measures["lambda_smoothed"][-1] == pytest.approx(8 - 4 * math.exp(-10))


def test_smoothing_does_not_depend_on_the_number_of_checkpoints() -> None:
    few, many = np.linspace(0, 1, 5), np.linspace(0, 1, 33)
    step = lambda t: np.where(t < 0.5, 1.0, 3.0)[:, None]  # noqa: E731
    wanted = 3 - 2 * math.exp(-0.5 / 0.2)
    assert smoothed(step(many), many, 0.2)[-1, 0] == pytest.approx(wanted, rel=0.02)
    assert smoothed(step(few), few, 0.2)[-1, 0] == pytest.approx(wanted, rel=0.15)


def test_gaps_keep_the_mean() -> None:
    values = np.array([[1.0], [math.nan], [2.0]])
    assert smoothed(values, np.arange(3.0), 0.0)[:, 0].tolist() == [1.0, 1.0, 2.0]


def test_means_over_time_weigh_the_gaps() -> None:
    times, values = np.array([0.0, 1.0, 4.0]), np.array([0.0, 1.0, 4.0])
    assert mean_between(values, times, 0, 4) == pytest.approx(2.0)
    assert mean_between(values, times, 2, 3) == pytest.approx(2.5)


def test_half_life_and_crossing_of_an_exponential_decline() -> None:
    rate, nodes = 1.2, 4096
    run = []
    for place in range(9):
        dead = round(nodes * (1 - math.exp(-rate * place / 8)))
        run.append(diagnosis(layer("d" * dead + "h" * (nodes - dead), fan_in=1, directions=np.ones((nodes, 1))),
                             step=100 * place))  # fmt: skip
    found = compared(*run, policy=Policy(Limits(max_degenerate_fraction=0.8)))
    fall = found.layers[0].decline
    assert fall is not None
    assert fall.half_life == pytest.approx(800 * math.log(2) / rate, rel=0.01)
    assert not fall.crossed
    assert fall.crosses_at == pytest.approx(800 * math.log(5) / rate, rel=0.02)
    assert 0 < fall.crosses_error < 100
    crossed = compared(*run, policy=Policy(Limits(max_degenerate_fraction=0.1))).layers[0].decline
    assert crossed is not None
    assert (crossed.crossed, crossed.crosses_at, crossed.crosses_error) == (True, 50.0, 50.0)


def test_the_half_life_of_what_dies_at_once_is_when_it_did() -> None:
    dead = [0, 0, 2, 2, 3, 80, 100, 100, 100]
    run = [diagnosis(layer("d" * n + "h" * (100 - n), fan_in=1, directions=np.ones((100, 1))), step=10 * i)
           for i, n in enumerate(dead)]  # fmt: skip
    fall = compared(*run).layers[0].decline
    assert fall is not None
    assert (fall.half_life, fall.half_life_error) == (35.0, 5.0)  # between 40 and 50, from 10 on


def test_a_layer_that_loses_nothing_does_not_decline() -> None:
    assert compared(*along(5, ["hd"])).layers[0].decline is None


def test_transitions_from_first_to_last_and_step_by_step() -> None:
    found = compared(*(diagnosis(layer(s), step=i) for i, s in enumerate(["hhh", "dhh", "dhc"]))).layers[0]
    assert found.transitions == {"healthy->collapsed": 1, "healthy->plateau": 1}
    assert [(step.to, step.transitions) for step in found.steps] == [
        (1, {"healthy->plateau": 1}), (2, {"healthy->collapsed": 1}),
    ]  # fmt: skip
    assert (found.degenerate, found.dead) == ((0, 1, 2), (0, 1, 1))


def test_better_and_worse() -> None:
    first = diagnosis(
        layer("hd", effective_rank=2.0, stability_margin_max=0.5, torque_ratio_mean=0.9), step=0
    )
    last = diagnosis(
        layer("hh", effective_rank=1.0, stability_margin_max=0.9, torque_ratio_mean=0.91), step=1
    )
    found = {name: one.trend for name, one in compared(first, last).layers[0].change.items()}
    assert found == {"degenerate_fraction": "better", "effective_rank": "worse", "torque_ratio_mean": "same",
                     "stability_margin_max": "same"}  # fmt: skip


COSTS = {
    "random": lambda g, n: g.random((n, n)), "ties": lambda g, n: g.integers(0, 3, (n, n)).astype(float),
    "equal": lambda g, n: np.ones((n, n)), "far apart": lambda g, n: 10.0 ** g.integers(-9, 9, (n, n)),
}  # fmt: skip


@pytest.mark.parametrize("kind", COSTS)
def test_assignment_against_all_permutations(kind: str) -> None:
    generator = np.random.default_rng(0)
    for n in (1, 2, 3, 3, 5, 5, 6, 6):
        cost = COSTS[kind](generator, n)
        best = min(sum(cost[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
        found = assignment(n, cost.__getitem__)
        assert sorted(found.columns) == list(range(n))
        assert cost[np.arange(n), found.columns].sum() == pytest.approx(best)


@pytest.mark.parametrize("kind", COSTS)
def test_what_is_not_exact_says_how_far_it_may_be_off(kind: str) -> None:
    generator = np.random.default_rng(1)
    above = []
    for _ in range(20):
        cost = COSTS[kind](generator, 60)
        rough, best = (assignment(60, cost.__getitem__, exact) for exact in (0, 60))
        assert sorted(rough.columns) == list(range(60))
        sums = [cost[np.arange(60), one.columns].sum() for one in (rough, best)]
        assert sums[1] <= sums[0] * (1 + 1e-12)
        assert (sums[0] - sums[1]) / max(sums[0], 1e-300) <= rough.excess + 1e-12
        assert best.excess == 0.0
        above.append(rough.excess)
    assert (max(above) > 0) == (kind != "equal")


def test_a_permuted_network_is_found_again() -> None:
    generator = np.random.default_rng(1)
    norms, biases = generator.random(32) + 0.5, generator.normal(size=32)
    curvatures, order = generator.random(32), generator.permutation(32)
    states = "".join(generator.choice(list("hhhd"), 32))
    u = generator.normal(size=(32, 8))
    first = layer(states, norms, biases, u / np.linalg.norm(u, axis=1, keepdims=True), curvatures)
    moved = layer("".join(states[i] for i in order), norms[order], biases[order], generator.normal(size=(32, 8)),
                  curvatures[order], name="2")  # fmt: skip
    first["name"] = "2"
    run = run_of(
        [diagnosis(layer("h", name="0"), first, step=0), diagnosis(layer("h", name="0"), moved, step=1)]
    )
    assert (run.layers[1].states[0] != run.layers[1].states[1]).any()
    again = matched(run).run.layers[1]
    assert (again.states[0] == again.states[1]).all()
    assert again.norms[0] == pytest.approx(again.norms[1])


def test_a_wide_layer_that_was_permuted_is_found_again_too() -> None:
    generator = np.random.default_rng(2)
    norms, order = generator.random(300) + 0.5, generator.permutation(300)
    first = layer("h", name="0")
    run = run_of(
        [diagnosis(first, layer("h" * 300, n, name="2"), step=i) for i, n in enumerate((norms, norms[order]))]
    )
    found = matched(run, exact=10)
    assert found.excess == {"2": 0.0}
    assert found.run.layers[1].norms[0] == pytest.approx(found.run.layers[1].norms[1])


@pytest.mark.parametrize("fixed", [{"kind": "Embedding"}, {"is_output": True}])
def test_nodes_that_mean_the_same_in_both_keep_their_order(fixed: dict[str, object]) -> None:
    norms = np.array([1.0, 2.0, 3.0])
    run = run_of([diagnosis(layer("hhh", n) | fixed, step=i) for i, n in enumerate((norms, norms[::-1]))])
    assert matched(run).run.layers[0].norms[0] == pytest.approx(norms)


def direction_sketch(rows: torch.Tensor, weights: int) -> np.ndarray:
    return sketch(NodeRows.split(rows, weights)).directions.numpy().astype(np.float16)


@pytest.mark.parametrize("size", [1, 7, 16, 17, 100, 576])
def test_sketches_keep_distances(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(2000, size, generator=generator) for _ in range(2))
    extra = torch.randn(2000, 1, generator=generator)
    one, two = (direction_sketch(torch.cat([w, extra], 1), size).astype(float) for w in (a, b))
    true = (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).norm(dim=1).numpy()
    found = np.linalg.norm(one - two, axis=1)
    if size <= 16:
        assert found == pytest.approx(true, abs=3e-3)
    else:
        assert np.mean(found**2 / true**2) == pytest.approx(1, abs=0.03)
        assert np.std(found / true) < 0.21


def test_parts_and_tiles_make_one_sketch() -> None:
    rows = torch.randn(3, 40_007, generator=torch.Generator().manual_seed(0))
    whole = sketch(NodeRows((rows,))).directions
    parts = sketch(NodeRows((rows[:, :7], rows[:, 7:20_000], rows[:, 20_000:]))).directions
    assert torch.allclose(whole, parts, atol=1e-6)


def test_a_direction_that_is_none() -> None:
    rows = torch.tensor([[0.0, 0.0], [math.inf, 1.0], [3.0, 4.0]])
    found = direction_sketch(rows, 2)
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx([0.6, 0.8], abs=1e-3)


def test_packed_arrays_come_back() -> None:
    values = np.array([1.5, math.nan, -math.inf, 0.0])
    assert unpack(pack(values), 4) == pytest.approx(values, nan_ok=True)
    assert unpack(pack(np.ones((3, 5)), "<f2"), 3, "<f2").shape == (3, 5)
    for text, nodes in (("!", 1), (pack(values), 3), ("", 2)):
        with pytest.raises(ValueError, match=r"is not base64|holds"):
            unpack(text, nodes)


def test_damage_is_one_line() -> None:
    broken = diagnosis(layer("hh"), step=0)
    broken["layers"][0]["every_node"]["weight_norm"] = "AAAA"
    with pytest.raises(InputError, match="damaged: every_node"):
        run_of([broken, diagnosis(layer("hh"), step=1)])
    with pytest.raises(InputError, match=r"has 3 nodes in e0.pt and 2 in e1.pt"):
        run_of([diagnosis(layer("hhh"), step=0), diagnosis(layer("hh"), step=1)])


def test_networks_without_a_layer_in_common_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"e0.pt: and e1.pt have no layer in common"):
        run_of([diagnosis(layer("hh", name="a"), step=0), diagnosis(layer("hh", name="b"), step=1)])


def test_a_layer_that_comes_later_is_absent_before() -> None:
    found = compared(diagnosis(layer("h"), step=0), diagnosis(layer("h"), layer("dd", name="new"), step=1))
    assert {one.name: one.degenerate for one in found.layers} == {"0": (0, 0), "new": (None, 2)}
    assert [n.verdicts for n in found.nodes if n.layer == "new"] in ([], [(None, "plateau")] * 2)
