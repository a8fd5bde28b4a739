"""Constants that a bias takes over exactly, and those that none can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.surgery.deploying.networks import (
    EXACT,
    After,
    all_end,
    constant,
    did,
    inputs,
    largest_difference,
    merge,
    prune,
    seeded,
    treated,
)


def test_a_constant_goes_into_the_next_bias() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3)))
    constant(model[0], [2, 5], 0.7)
    found = treated(model, inputs(12, 5), prune("0", [2, 5]))
    assert set(did(found).values()) == {"folded"}
    wanted = model[2].bias + torch.sigmoid(torch.tensor(0.7)).double() * model[2].weight[:, [2, 5]].sum(dim=1)
    assert torch.allclose(found.module[2].bias, wanted, rtol=0, atol=1e-7)
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT


def test_constants_of_several_layers_meet_in_one_bias() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(
                torch.cat([torch.tanh(self.a(x)), F.softplus(self.b(x))], dim=-1)[:, None]
            ).squeeze(1)

    model = seeded(Two)
    constant(model.a, [0], 0.3)
    constant(model.b, [7], -0.4)
    found = treated(model, inputs(12, 5), [*prune("a", [0]), *prune("b", [7])])
    assert set(did(found).values()) == {"folded"}
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT


def convolutions(**options: object) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3, **options), nn.Flatten()
    )


@pytest.mark.parametrize(
    "options", [{}, {"padding": 1, "padding_mode": "circular"}, {"stride": 2, "dilation": 2}]
)
def test_a_constant_channel_is_folded_where_no_zeros_are_read(options: dict[str, object]) -> None:
    model = seeded(convolutions(**options))
    constant(model[0], [4], 0.5)
    all_end("folded", model, inputs(9, 3, 9, 9), "0", [4], inputs(20, 3, 9, 9, seed=2))


def test_padding_with_zeros_keeps_a_constant_channel_and_says_why() -> None:
    model = seeded(convolutions(padding=1))
    constant(model[0], [4], 0.5)
    model[0].weight.data[4] = 1e-30  # not zero, but of no effect
    found = all_end("zeroed", model, inputs(9, 3, 9, 9), "0", [4], inputs(20, 3, 9, 9, seed=2))
    assert "beyond the borders" in found.done[0].why
    # removing it would have shown: a bias cannot be right inside and at the borders
    dense = F.conv2d(torch.sigmoid(model[0](inputs(2, 3, 9, 9))), model[2].weight, model[2].bias, padding=1)
    inside = torch.sigmoid(torch.tensor(0.5, dtype=torch.float64)) * model[2].weight[:, 4].sum((1, 2))
    rest = [0, 1, 2, 3, 5]
    shorter = F.conv2d(
        torch.sigmoid(model[0](inputs(2, 3, 9, 9)))[:, rest],
        model[2].weight[:, rest],
        model[2].bias + inside,
        padding=1,
    )
    assert torch.allclose(dense[..., 1:-1, 1:-1], shorter[..., 1:-1, 1:-1])
    assert not torch.allclose(dense, shorter)


def test_explicit_padding_is_seen_too() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3))
    )
    constant(model[0], [4], 0.5)
    found = treated(model, inputs(9, 3, 9, 9), prune("0", [4]))
    assert did(found)["0", 4] in ("left", "zeroed")
    assert found.module[0].out_channels == 6


def test_without_a_bias_the_constant_stays() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=False)))
    constant(model[0], [2], 0.7)
    found = treated(model, inputs(12, 5), prune("0", [2]))
    assert "no bias of its own" in found.done[0].why
    assert found.module[0].out_features == 8


def test_a_batch_norm_takes_the_constant_of_a_convolution_without_a_bias() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh()
        )
    )
    constant(model[0], [1], 0.5)
    found = all_end("folded", model, inputs(9, 3, 7, 7), "0", [1], inputs(20, 3, 7, 7, seed=2))
    shift = torch.sigmoid(torch.tensor(0.5, dtype=torch.float64)) * model[2].weight[:, 1].sum((1, 2))
    assert torch.allclose(found.module[3].running_mean, model[3].running_mean - shift)


def test_a_bias_that_two_layers_share_takes_nothing() -> None:
    class SharedBias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(5, 3)
            self.c.bias = self.b.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sigmoid(self.a(x))) * self.c(x)

    model = seeded(SharedBias)
    constant(model.a, [2], 0.7)
    found = treated(model, inputs(12, 5), prune("a", [2]))
    assert did(found)["a", 2] != "folded"
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT


def test_a_layer_that_reads_in_a_loop_takes_a_constant_once() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.b(torch.sigmoid(self.a(x + i))) for i in range(3))

    model = seeded(Loop)
    constant(model.a, [2], 0.7)
    all_end("folded", model, inputs(12, 5), "a", [2], inputs(40, 5, seed=2))


def test_nothing_listens_to_a_unit_whose_outgoing_weights_are_zero() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
    model[2].weight.data[:, 6] = 0.0
    all_end("removed", model, inputs(12, 5), "0", [6], inputs(40, 5, seed=2))


def test_twins_are_merged_with_sign_and_shift() -> None:
    """``tanh`` is odd, so a mirrored row gives the negative; a sigmoid's is one minus it."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3))
    )
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[3], model[0].bias[3]
        model[0].weight[7], model[0].bias[7] = -model[0].weight[3], -model[0].bias[3]
        model[2].weight[4], model[2].bias[4] = -model[2].weight[1], -model[2].bias[1]
    found = treated(model, inputs(30, 5), [merge("0", 5, 3), merge("0", 7, 5), merge("2", 4, 1)])
    assert set(did(found).values()) == {"merged"}
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT
    column = model[2].weight[:, 3] + model[2].weight[:, 5] - model[2].weight[:, 7]
    assert torch.allclose(found.module[2].weight[:, 3], column[[0, 1, 2, 3, 5]])


def test_scaled_channels_are_merged_through_pooling_and_flattening() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        )
    )
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = 2.5 * model[0].weight[2], 2.5 * model[0].bias[2]
    found = treated(model, inputs(30, 3, 4, 4), [merge("0", 4, 2)])
    assert did(found) == {("0", 4): "merged"}
    assert largest_difference(model, found, inputs(40, 3, 4, 4, seed=2)) <= EXACT


def test_units_that_are_no_twins_stay() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():  # mirror images differ behind a rectifier
        model[0].weight[5], model[0].bias[5] = -model[0].weight[3], -model[0].bias[3]
    found = treated(model, inputs(30, 5), [merge("0", 5, 3), merge("0", 6, 1)])
    assert did(found) == {("0", 5): "left", ("0", 6): "left"}
    assert "no multiple of its partner" in found.done[0].why
    assert not found.edits


def test_two_twins_of_each_other_do_not_both_go() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[3], model[0].bias[3]
    found = treated(model, inputs(30, 5), [merge("0", 5, 3), merge("0", 3, 5)])
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT
    assert found.module[0].out_features in (7, 8)


def test_after_a_norm_of_all_units_nothing_is_folded() -> None:
    model = seeded(lambda: After(nn.LayerNorm(8)))
    constant(model.a, [2], 0.7)
    found = treated(model, inputs(12, 5), prune("a", [2]))
    assert "LayerNorm" in found.done[0].why
    assert found.module.a.out_features == 8
