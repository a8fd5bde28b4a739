"""Nodes started anew: the function stays, and every one of them fires and gets a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nndiag.probe.probe import Probe
from nndiag.replay.kinds import Layer
from nndiag.surgery.training import reinitialising
from nndiag.surgery.training.evidence import look_closely
from nndiag.surgery.training.initial import fresh
from nndiag.surgery.training.sorting import sort_restarts
from nndiag.surgery.training.treating import treat
from nndiag.surgery.training.trial import Limit
from nndiag.surgery.training.ward import Ward
from tests.surgery.training.networks import anew, apart, network, outputs, treated, ward

DEAD = {"mlp": ("0", "0.bias"), "cnn": ("0", "1.bias"), "odd": ("stem", "stem.bias"), "columns": ("gate", "gate.bias"),
        "residual": ("first", "first.bias")}  # fmt: skip
NODES = [1, 4]


def killed(name: str) -> tuple[nn.Module, Probe, str]:
    model, probe = network(name)
    layer, bias = DEAD[name]
    with torch.no_grad():
        dict(model.named_parameters())[bias][NODES] = -100.0
    return model, probe, layer


def alive(place: Ward, layer: str, nodes: list[int]) -> bool:
    evidence = look_closely(place, [layer], place.replay(gradients=True).gradients)
    own = [evidence.gradient(place.layers[layer], node) for node in nodes]
    out = [evidence.outgoing(place, layer, node) for node in nodes]
    firing = [evidence.firing(layer, node) for node in nodes]
    return (
        all(map(bool, own))
        and all(map(bool, out))
        and all(share is not None and share > 0.1 for share in firing)
    )


@pytest.mark.parametrize("name", DEAD)
def test_dead_nodes_live_and_the_function_stays(name: str) -> None:
    model, probe, layer = killed(name)
    before, place = outputs(model, probe), ward(model, probe)
    assert not alive(place, layer, NODES)
    found = treated(place, anew(layer, NODES))
    assert [(done.promise, done.treatment.index) for done in found.done] == [("unchanged", n) for n in NODES]
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert alive(place, layer, NODES)


def test_large_seeds_draw_numbers_of_their_own_too() -> None:
    drawn = set()
    for seed in (0, 1, 2**62 - 1):
        model, probe, layer = killed("mlp")
        place = Ward(model, probe, seed)
        assert treated(place, anew(layer, NODES)).done
        drawn.add(float(model[0].weight.detach()[NODES[0], 0]))
    assert len(drawn) == 3


def test_whether_nodes_are_heard_at_all_takes_one_drawing_of_each_layer_that_may_hear_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[2].weight[:, :5] = 0.0
    drawn: list[str] = []

    def counted(model: nn.Module, layer: Layer, *rest: Any) -> dict[str, torch.Tensor]:
        drawn.append(layer.name)
        return fresh(model, layer, *rest)

    monkeypatch.setattr(reinitialising, "fresh", counted)
    found = sort_restarts(ward(model, probe), anew("0", range(8), "ND304"), finite=True)
    assert [left.treatment.index for left in found.left] == list(range(5))
    assert [case.node for _, case in found.measured] == [5, 6, 7]
    assert drawn == ["2", "4"]


class Held(nn.Module):
    """Units whose weights are one raw matrix, and whose shift is no part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.zeros(12))
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(x @ self.matrix + self.shift))


def test_a_node_that_something_else_holds_down_is_left() -> None:
    probe, model = network("mlp")[1], Held()
    with torch.no_grad():
        model.shift[[1, 11]] = -100.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = treated(ward(model, probe), anew("matrix", [1, 11]))
    assert not found.done
    assert {left.reason.partition(":")[0] for left in found.left} == {
        "it would not fire either if it started anew"
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_node_that_fires_a_little_and_would_not_at_all_started_anew_is_left() -> None:
    probe, model = network("mlp")[1], Held()
    with torch.no_grad():
        model.matrix[:, 1] *= 40.0
        model.shift[1] = -100.0
    assert 0 < int((probe.inputs[0] @ model.matrix + model.shift)[:, 1].gt(0).sum()) < 32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = treated(ward(model, probe), anew("matrix", [1], "ND204"), share=1e9)
    assert not found.done
    assert "it would not fire either" in found.left[0].reason
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_units_of_a_matrix_outside_of_any_layer_are_what_its_product_has() -> None:
    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.last = nn.Parameter(torch.randn(6, 12)), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(x @ self.matrix))

    probe, model = network("mlp")[1], Matrix()
    with torch.no_grad():
        model.matrix[:, [1, 11]] = 0.0
    before, old = outputs(model, probe), model.matrix.detach().clone()
    place = ward(model, probe)
    found = treated(place, anew("matrix", [1, 11], "ND102"))
    assert [done.promise for done in found.done] == ["unchanged"] * 2
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert alive(place, "matrix", [1, 11])
    changed = (model.matrix.detach() != old).any(dim=0).nonzero().flatten().tolist()
    assert changed == [1, 11]


@pytest.mark.parametrize("name", DEAD)
def test_the_optimiser_forgets_what_was_drawn_anew_and_nothing_else(name: str) -> None:
    model, probe, layer = killed(name)
    place = ward(model, probe)
    edits = treated(place, anew(layer, NODES)).edits
    tensors = place.tensors()
    marked = {(slot.parameter, node) for slot in place.layers[layer].slots for node in range(slot.nodes)
              if slot.rows(edits.reset[slot.parameter])[node].all()}  # fmt: skip
    assert marked == {(slot.parameter, node) for slot in place.layers[layer].slots for node in NODES}
    for outlet in place.paths[layer].outlets:
        wanted = torch.zeros_like(tensors[outlet.weight], dtype=torch.bool)
        for node in NODES:
            outlet.outgoing(wanted, node).fill_(True)
        assert torch.equal(edits.reset[outlet.weight], wanted)
    for name_, mask in edits.reset.items():
        assert mask.shape == tensors[name_].shape


def test_rows_and_columns_of_other_nodes_are_not_touched() -> None:
    model, probe, layer = killed("mlp")
    place = ward(model, probe)
    before = place.state()
    treated(place, anew(layer, NODES))
    after = place.tensors()
    others = [node for node in range(12) if node not in NODES]
    assert torch.equal(before["0.weight"][others], after["0.weight"][others])
    assert torch.equal(before["2.weight"][:, others], after["2.weight"][:, others])
    assert all(torch.equal(before[name], after[name]) for name in ("2.bias", "4.weight", "4.bias"))


def test_a_whole_dead_layer_lives_again() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    before, place = outputs(model, probe), ward(model, probe)
    every = list(range(9))
    found = treated(place, anew("2", every))
    assert len(found.done) == 9
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert alive(place, "2", every)
    evidence = look_closely(place, [], place.replay(gradients=True).gradients)
    assert all(evidence.gradient(place.layers["0"], node) for node in range(12))


def test_the_channel_of_a_norm_is_started_with_the_unit_that_it_scales() -> None:
    model, probe = network("cnn")
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0.0, -1.0
    place = ward(model, probe)
    found = treated(place, anew("1", [2], "ND102"))
    assert [done.promise for done in found.done] == ["unchanged"]
    assert alive(place, "0", [2])
    z = model[0](probe.inputs[0])[:, 2]
    torch.testing.assert_close(model[1].running_mean[2], z.mean().detach())
    torch.testing.assert_close(model[1].running_var[2], z.var(correction=0).detach(), rtol=1e-3, atol=0)
    others = [0, 1, 3, 4, 5]
    assert torch.isclose(model[1].weight[2], model[1].weight[others].abs().median())


def test_a_constant_goes_into_the_bias_after_it() -> None:
    model, probe = network("smooth")
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, 20.0  # tanh gives one
    before, place = outputs(model, probe), ward(model, probe)
    moved = model[2].bias.detach() + model[2].weight[:, 3].detach()
    found = treated(place, anew("0", [3], "ND202"))
    assert [done.promise for done in found.done] == ["unchanged"]
    assert apart(before, outputs(model, probe)) <= 1e-6
    torch.testing.assert_close(model[2].bias.detach(), moved)
    assert alive(place, "0", [3])


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_a_twin_takes_over_what_a_repeated_node_did(factor: float) -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = factor * model[0].weight[2], factor * model[0].bias[2]
    before, place = outputs(model, probe), ward(model, probe)
    wanted = model[2].weight[:, 2].detach() + factor * model[2].weight[:, 5].detach()
    found = treated(place, anew("0", [5], "ND104", twin=2))
    assert [done.promise for done in found.done] == ["unchanged"]
    assert "node 2" in found.done[0].detail
    assert apart(before, outputs(model, probe)) <= 1e-6
    torch.testing.assert_close(model[2].weight[:, 2].detach(), wanted, rtol=1e-4, atol=1e-6)
    assert alive(place, "0", [5])


def test_a_node_that_still_did_something_is_measured_and_may_cost_no_more_than_is_allowed() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[2].weight[:, 4] *= 1e-2
    place = ward(model, probe)
    loss = place.replay().loss
    found = treated(place, anew("0", [4], "ND204"), share=0.5)
    assert [done.promise for done in found.done] == ["measured"]
    after = place.replay().loss
    assert loss is not None
    assert after is not None
    assert loss < after <= 1.5 * loss or after <= loss


def test_one_that_would_cost_too_much_is_left_exactly_as_it_was() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[2].weight[:, 4] *= 50
        model[4].weight *= 20
    place = ward(model, probe)
    before = place.state()
    found = treated(place, anew("0", [4], "ND204"), share=0.0)
    if found.done:
        pytest.fail("the network is better without the node: choose another")
    assert "raise the loss" in found.left[0].reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())
    assert not found.edits


def test_units_in_a_sum_are_not_shut_and_a_dead_one_has_its_bias_raised() -> None:
    model, probe = network("residual")
    with torch.no_grad():
        model.stem.bias[3] = -100.0
    place = ward(model, probe)
    found = treated(place, [*anew("stem", [3]), *anew("second", [1], "ND102")], share=1.0)
    assert [(done.treatment.layer, done.promise) for done in found.done] == [("stem", "measured")]
    assert "bias raised" in found.done[0].detail
    assert 0 < float((model.stem(probe.inputs[0])[:, 3] > 0).float().mean()) <= 0.1
    assert "no outgoing weight is its own" in found.left[0].reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nodes_that_are_not_finite_are_drawn_anew_and_the_function_is_finite(bad: float) -> None:
    model, probe = network("cnn")
    with torch.no_grad():
        model[0].weight[2] = bad
        model[3].weight[5, 1] = bad
        model[1].running_mean[2] = bad
    place = ward(model, probe)
    assert not place.replay().finite
    found = treated(place, [*anew("0", [2], "ND101"), *anew("3", [5], "ND101")])
    assert {done.promise for done in found.done} == {"finite"}
    assert place.replay().finite
    assert alive(place, "0", [2])
    assert alive(place, "3", [5])


def test_a_node_whose_outgoing_weights_are_a_whisper_already_is_left() -> None:
    model, probe, layer = killed("mlp")
    place = ward(model, probe)
    treated(place, anew(layer, NODES))
    before = place.state()
    found = treated(place, anew(layer, NODES, "ND304"))
    assert not found.done
    assert all("as good as zero already" in left.reason for left in found.left)
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())


def test_what_is_drawn_depends_on_the_seed_and_the_layer_alone() -> None:
    def after(nodes: list[int], seed: int) -> torch.Tensor:
        model, probe, layer = killed("mlp")
        place = Ward(model, probe, seed)
        treated(place, anew(layer, nodes))
        return place.tensors()["0.weight"].clone()

    assert torch.equal(after(NODES, 0), after(NODES, 0))
    assert not torch.equal(after(NODES, 0)[1], after(NODES, 1)[1])
    one, both = after([1], 0)[1], after(NODES, 0)[1]
    assert torch.nn.functional.cosine_similarity(one, both, dim=0) > 1 - 1e-6


def test_weights_are_as_large_as_those_of_the_living() -> None:
    model, probe, layer = killed("mlp")
    with torch.no_grad():
        model[0].weight *= 5
    place = ward(model, probe)
    treated(place, anew(layer, NODES))
    norms = place.tensors()["0.weight"].norm(dim=1)
    others = [node for node in range(12) if node not in NODES]
    assert all(1 / 3 <= float(norms[n] / norms[others].median()) <= 3 for n in NODES)


def test_values_are_those_that_the_file_can_hold() -> None:
    model, probe, layer = killed("mlp")
    names = dict.fromkeys(dict(model.named_parameters()), torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    before, place = outputs(model, probe), ward(model, probe, dtypes=names)
    found = treated(place, anew(layer, NODES))
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert all(torch.equal(v, v.bfloat16().float()) for v in found.edits.values.values())


@pytest.mark.parametrize("name", ["kaiming_normal", "xavier_uniform", "orthogonal"])
def test_another_initialiser_may_be_named(name: str) -> None:
    model, probe, layer = killed("cnn")
    place = ward(model, probe, initialiser=name)
    before = outputs(model, probe)
    treated(place, anew(layer, NODES))
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert alive(place, layer, NODES)


def test_a_node_that_nothing_varied_reaches_is_left() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias[NODES] = -100.0
    place = ward(model, probe)
    before = place.state()
    found = treated(place, anew("2", NODES))
    assert not found.done
    assert {left.reason for left in found.left} == {"what reaches it is constant on the probe"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.tensors().items())


def test_of_a_whole_dead_network_every_layer_lives_again() -> None:
    model, probe = network("mlp")
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias.fill_(-100.0)
    before, place = outputs(model, probe), ward(model, probe)
    treated(place, [*anew("0", range(12)), *anew("2", range(9))])
    assert apart(before, outputs(model, probe)) <= 1e-6
    assert alive(place, "0", list(range(12)))
    assert alive(place, "2", list(range(9)))


def test_each_node_has_its_price_where_that_is_asked_for() -> None:
    model, probe = network("mlp")
    place = ward(model, probe)
    limit = Limit(place.replay(), 1e9, 0.0)
    found = treat(place, anew("0", range(12), "ND204"), limit)
    loss = place.replay().loss
    assert loss is not None
    assert limit.before.loss is not None
    assert loss <= limit.before.loss
    assert len(found.done) + len(found.left) == 12
