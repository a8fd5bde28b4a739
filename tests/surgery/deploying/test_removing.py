"""Dead nodes go with all that depends on them: sizes written by hand, outputs compared on samples never seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.surgery.deploying.networks import (
    EXACT,
    Columns,
    Flat,
    Gated,
    Grouped,
    Joined,
    Raw,
    ResNet,
    Shared,
    Tied,
    Transformer,
    all_end,
    did,
    inputs,
    kill,
    largest_difference,
    prune,
    seeded,
    treated,
)


def all_gone(model: nn.Module, x: Tensor, layer: str, nodes: list[int], unseen: Tensor) -> nn.Module:
    return all_end("removed", model, x, layer, nodes, unseen).module


def test_units_of_a_chain_go_with_their_inputs_in_the_next_layer() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    )
    kill(model[0], [1, 4])
    smaller = all_gone(model, inputs(20, 5), "0", [1, 4], inputs(50, 5, seed=2))
    assert (smaller[0].out_features, smaller[2].in_features, smaller[2].out_features) == (6, 6, 6)
    kept = [0, 2, 3, 5, 6, 7]
    assert torch.equal(smaller[0].weight, model[0].weight[kept])
    assert torch.equal(smaller[2].weight, model[2].weight[:, kept])
    assert torch.equal(smaller[2].bias, model[2].bias)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.flatten(1),
        lambda x: x.view(len(x), -1),
        lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1),
        lambda x: x.transpose(1, 3).contiguous().flatten(1),
        lambda x: x.flatten(2).mT.flatten(1),
    ],
    ids=["flatten", "view", "channels last", "transposed", "positions first"],
)
def test_a_channel_takes_its_norm_and_its_places_after_flattening(
    flatten: Callable[[Tensor], Tensor],
) -> None:
    model = seeded(lambda: Flat(flatten))
    with torch.no_grad():
        model.norm.weight[[1, 4]] = 0.0
        model.norm.bias[[1, 4]] = -1.0
    smaller = all_gone(model, inputs(9, 3, 4, 4), "conv", [1, 4], inputs(30, 3, 4, 4, seed=2))
    assert smaller.conv.weight.shape == (4, 3, 3, 3)
    assert smaller.norm.num_features == len(smaller.norm.running_var) == 4
    assert smaller.out.in_features == 4 * 16


def test_concatenations_lose_the_places_of_a_branch_wherever_it_stands() -> None:
    model = seeded(Joined)
    kill(model.b, [0, 5])
    kill(model.a, [3])
    x, unseen = inputs(12, 5), inputs(40, 5, seed=2)
    found = treated(model, x, [*prune("b", [0, 5]), *prune("a", [3])])
    assert set(did(found).values()) == {"removed"}
    assert largest_difference(model, found, unseen) <= EXACT
    stay = [i for i in range(20) if i not in (0, 5, 6 + 3, 14 + 0, 14 + 5)]
    assert torch.equal(found.module.out.weight, model.out.weight[:, stay])


def test_a_convolution_of_a_channel_each_goes_with_its_channel() -> None:
    model = seeded(lambda: Grouped(8))
    kill(model.a, [1, 4])
    kill(model.g, [1, 4])
    smaller = all_gone(model, inputs(9, 3, 8, 8), "a", [1, 4], inputs(20, 3, 8, 8, seed=2))
    assert (smaller.g.groups, smaller.g.in_channels, smaller.g.out_channels) == (6, 6, 6)
    assert smaller.b.in_channels == 6


def test_several_outputs_of_each_channel_go_together() -> None:
    model = seeded(lambda: Grouped(8, outputs=16))
    kill(model.a, [2])
    kill(model.g, [4, 5])
    smaller = all_gone(model, inputs(9, 3, 8, 8), "a", [2], inputs(20, 3, 8, 8, seed=2))
    assert (smaller.g.groups, smaller.g.out_channels, smaller.b.in_channels) == (7, 14, 14)


def test_a_group_goes_when_all_of_it_is_dead() -> None:
    model = seeded(lambda: Grouped(4))
    kill(model.g, [2, 3])
    smaller = all_gone(model, inputs(9, 3, 8, 8), "g", [2, 3], inputs(20, 3, 8, 8, seed=2))
    assert (smaller.g.groups, smaller.a.out_channels, smaller.b.in_channels) == (3, 6, 6)


@pytest.mark.parametrize("make", [Tied, Shared, Raw])
def test_shared_weights_and_raw_parameters_shrink_wherever_they_are_used(
    make: Callable[[], nn.Module],
) -> None:
    model = seeded(make)
    layer = "code" if make is Tied else "a"
    with torch.no_grad():
        model.get_submodule(layer).weight[[1, 6]] = 0.0
        model.get_submodule(layer).bias[[1, 6]] = -1.0
    size = model.get_submodule(layer).in_features
    smaller = all_gone(model, inputs(12, size), layer, [1, 6], inputs(40, size, seed=2))
    assert smaller.get_submodule(layer).out_features == 6
    if make is Shared:
        assert smaller.b.weight is smaller.a.weight
    if make is Raw:
        assert smaller.scale.shape == (6,)
        assert smaller.matrix.shape == (6, 3)


def test_units_of_a_matrix_outside_of_any_layer_are_what_its_product_has() -> None:
    model = seeded(Columns)
    with torch.no_grad():
        model.shift[[1, 7]] = -1e6
    smaller = all_gone(model, inputs(12, 5), "matrix", [1, 7], inputs(40, 5, seed=2))
    assert (smaller.matrix.shape, smaller.shift.shape, smaller.out.in_features) == ((5, 6), (6,), 6)


def test_a_unit_goes_with_its_gate() -> None:
    model = seeded(Gated)
    kill(model.a, [8 + 2])
    smaller = all_gone(model, inputs(12, 5), "a", [8 + 2], inputs(40, 5, seed=2))
    assert smaller.a.out_features == 14
    assert smaller.out.in_features == 7


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_a_recurrent_unit_goes_with_its_rows_in_every_gate(kind: str, gates: int) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(nn, kind)(5, 8, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(x)[0][:, -1])

    model = seeded(Recurrent)
    with torch.no_grad():
        for parameter in model.cell.parameters():
            parameter.view(gates, 8, -1)[:, 2] = 0.0
    smaller = all_gone(model, inputs(9, 6, 5), "cell", [2], inputs(20, 4, 5, seed=2))
    assert smaller.cell.hidden_size == 7
    assert smaller.cell.weight_hh_l0.shape == (7 * gates, 7)


def test_the_function_may_be_called_in_any_way() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.einsum("ni,hi->nh", x, self.a.weight).add_(self.a.bias).clamp(min=0)
            x = torch.stack([x, 2 * x], dim=1).sum(dim=1).unsqueeze(-1).squeeze(-1)
            return torch.addmm(self.b.bias, x, self.b.weight.mT)

    model = seeded(Odd)
    kill(model.a, [0, 7])
    assert all_gone(model, inputs(9, 5), "a", [0, 7], inputs(20, 5, seed=2)).a.out_features == 6


def test_a_resnet_loses_what_is_inside_its_blocks() -> None:
    model = seeded(ResNet)
    with torch.no_grad():
        for block in (0, 3):
            model.blocks[block].bn1.weight[[1, 5]] = 0.0
            model.blocks[block].bn1.bias[[1, 5]] = -1.0
        model.blocks[1].bn2.weight[3] = 0.0
        model.blocks[1].bn2.bias[3] = 0.0
    treatments = [
        *prune("blocks.0.conv1", [1, 5]),
        *prune("blocks.3.conv1", [1, 5]),
        *prune("blocks.1.conv2", [3]),
    ]
    found = treated(model, inputs(9, 3, 16, 16), treatments)
    assert largest_difference(model, found, inputs(6, 3, 16, 16, seed=2)) <= EXACT
    assert did(found)["blocks.1.conv2", 3] == "zeroed"
    assert found.module.blocks[0].conv1.out_channels == found.module.blocks[0].conv2.in_channels == 6
    assert found.module.blocks[3].bn1.num_features == 14
    assert not bool(found.module.blocks[1].conv2.weight[3].any())


def test_a_transformer_loses_units_of_its_mlp_and_a_head() -> None:
    model = seeded(Transformer)
    with torch.no_grad():
        model.blocks[0].f2.weight[:, [3, 50]] = 0.0
        values = slice(64 + 8, 64 + 16)  # of the second head of the second block
        model.blocks[1].att.qkv.weight[values] = 0.0
        model.blocks[1].att.qkv.bias[values] = 0.25
    tokens = torch.randint(0, 20, (12, 7), generator=torch.Generator().manual_seed(1))
    treatments = [*prune("blocks.0.f1", [3, 50]), *prune("blocks.1.att.qkv", range(72, 80))]
    found = treated(model, tokens, treatments)
    assert {*did(found).values()} == {"removed", "folded"}
    unseen = torch.randint(0, 20, (30, 7), generator=torch.Generator().manual_seed(2))
    assert largest_difference(model, found, unseen) <= EXACT
    assert found.module.blocks[0].f1.out_features == 126
    attention = found.module.blocks[1].att
    assert (attention.num_heads, attention.qkv.out_features, attention.proj.in_features) == (3, 72, 24)
    assert found.module.head.weight is found.module.table.weight


def test_the_network_given_is_left_as_it_is() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))).train()
    kill(model[0], [1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found = treated(model, inputs(9, 5), prune("0", [1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].out_features == 8
    assert all(module.training for module in (*model.modules(), *found.module.modules()))
    assert all(p.requires_grad for p in found.module.parameters())


def test_functional_relu_and_inputs_that_are_overwritten_are_no_matter() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x.sub_(1.0)
            return self.b(F.relu_(self.a(x)))

    model = seeded(Overwriting)
    kill(model.a, [2])
    x = inputs(9, 5)
    before = x.clone()
    found = treated(model, x, prune("a", [2]))
    assert did(found) == {("a", 2): "removed"}
    assert torch.equal(x, before)
    with torch.no_grad():
        assert torch.equal(found.module(x.clone()), model(x.clone()))


def test_units_that_only_meet_zeros_go_with_them() -> None:
    """A sum over the products of two layers' units: where one side is zero, the other may do what it likes."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).view(-1, 1, 8), F.relu(self.b(x)).view(-1, 8, 1)
            return self.out((left @ right).flatten(1).expand(-1, 9))

    model = seeded(Products)
    kill(model.b, [2, 6])
    found = treated(model, inputs(12, 5), prune("b", [2, 6]))
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT
    assert "its code fails with fewer units" in found.done[0].why  # it says 8

    class AnyNumber(Products):
        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).unsqueeze(1), F.relu(self.b(x)).unsqueeze(2)
            return self.out((left @ right).flatten(1).expand(-1, 9))

    model = seeded(AnyNumber)
    kill(model.b, [2, 6])
    smaller = all_gone(model, inputs(12, 5), "b", [2, 6], inputs(40, 5, seed=2))
    assert (smaller.a.out_features, smaller.b.out_features) == (6, 6)


def test_channels_that_padding_adds_stay_beside_those_that_go() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(9, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.pad(F.relu(self.a(x)), (0, 0, 0, 0, 1, 2))).flatten(1)

    model = seeded(Padded)
    kill(model.a, [1, 4])
    smaller = all_gone(model, inputs(9, 3, 8, 8), "a", [1, 4], inputs(20, 3, 8, 8, seed=2))
    assert torch.equal(smaller.b.weight, model.b.weight[:, [0, 1, 3, 4, 6, 7, 8]])
