"""What cannot go: nodes whose removal would show, and what is done about them instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiag.surgery.deploying import cost, deploy
from nndiag.surgery.deploying.planning import ATTENTION
from tests.surgery.deploying.networks import (
    EXACT,
    After,
    Gated,
    Grouped,
    Residual,
    all_end,
    constant,
    did,
    inputs,
    kill,
    largest_difference,
    prune,
    seeded,
    treated,
)


def test_a_place_of_a_residual_stream_stays_while_another_layer_writes_to_it() -> None:
    model = seeded(Residual)
    kill(model.second, [1, 4])
    found = all_end("zeroed", model, inputs(20, 5), "second", [1, 4], inputs(40, 5, seed=2))
    assert "shares its place with units of first" in found.done[0].why
    assert not bool(found.module.second.weight[[1, 4]].any() or found.module.second.bias[[1, 4]].any())


def test_it_goes_where_all_that_write_to_it_are_dead() -> None:
    model = seeded(Residual)
    kill(model.second, [1, 4])
    kill(model.first, [1])
    found = treated(model, inputs(20, 5), [*prune("second", [1, 4]), *prune("first", [1])])
    assert did(found) == {("first", 1): "removed", ("second", 1): "removed", ("second", 4): "zeroed"}
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT
    assert found.module.second.weight.shape == (7, 7)


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (nn.LayerNorm(8), "LayerNorm"),
        (nn.RMSNorm(8), ""),
        (nn.Softmax(-1), "softmax"),
        (nn.GroupNorm(4, 8), "only with 1 more of its layer"),
        (lambda x: x - x.mean(-1, keepdim=True), "mean"),
        (lambda x: x.cumsum(-1), "cumsum"),
        (lambda x: x.sort(-1).values, "sort"),
        (lambda x: x * x[:, 1:2], "by itself"),
        (lambda x: x + torch.linspace(0, 1, 8, dtype=x.dtype), ""),
        (lambda x: torch.fft.rfft(x).real.repeat(1, 2)[:, :8], "not followed"),
        (lambda x: x[:, [7, 6, 5, 4, 3, 2, 1, 0]], "not followed"),
        (lambda x: x.view(-1, 4, 2).flip(1).flatten(1), ""),
    ],
    ids="layer-norm rms-norm softmax group-norm mean cumsum sort picked constant unknown indexed flipped".split(),
)
def test_units_that_are_put_together_stay_and_are_zeroed(
    between: Callable[[Tensor], Tensor], why: str
) -> None:
    model = seeded(lambda: After(between))
    kill(model.a, [1])
    found = all_end("zeroed", model, inputs(20, 5), "a", [1], inputs(40, 5, seed=2))
    assert why in found.done[0].why
    assert found.module.a.out_features == 8


def test_one_unit_of_a_group_stays() -> None:
    model = seeded(lambda: Grouped(2))
    kill(model.a, [1])
    all_end("zeroed", model, inputs(9, 3, 8, 8), "a", [1], inputs(20, 3, 8, 8, seed=2))


def test_a_gate_of_a_living_unit_that_is_open_stays() -> None:
    model = seeded(Gated)
    constant(model.a, [8 + 2], 1.0)
    found = treated(model, inputs(12, 5), prune("a", [8 + 2]))
    assert "reads values from" in found.done[0].why
    assert found.module.a.out_features == 16


def test_an_output_of_the_network_stays_untouched() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()))
    kill(model[2], [0])
    found = treated(model, inputs(12, 5), prune("2", [0]))
    assert [(one.did, one.why) for one in found.done] == [("left", "it is an output of the network")]
    assert not found.edits


def test_every_output_counts_and_not_the_first_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.actor, self.critic = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = F.relu(self.a(x))
            return {"actions": self.actor(y), "value": self.critic(y)}

    model = seeded(Two)
    model.actor.weight.data[:, 3] = 0.0  # only the critic listens to it
    found = treated(model, inputs(12, 5), [*prune("a", [3]), *prune("critic", [0])])
    assert did(found) == {("a", 3): "left", ("critic", 0): "left"}


def test_a_layer_never_becomes_empty() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    kill(model[0], [0, 1, 2, 3])
    found = treated(model, inputs(12, 5), prune("0", range(4)))
    assert did(found) == {("0", 0): "zeroed", **{("0", node): "removed" for node in (1, 2, 3)}}
    assert "cannot be empty" in found.done[0].why
    assert (found.module[0].out_features, found.module[2].in_features) == (1, 1)
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT


def test_of_layers_that_are_all_dead_one_constant_stays_that_nothing_reads() -> None:
    """Taken out and read again: what is left is no dead unit, and is left alone the second time."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    kill(model[0], [0, 1, 2, 3])
    kill(model[2], [0, 1, 2, 3, 4, 5])
    x = inputs(12, 5)
    found = treated(model, x, [*prune("0", range(4)), *prune("2", range(6))])
    assert [found.module[i].out_features for i in (0, 2)] == [1, 1]
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT
    for layer in (0, 2):
        assert not bool(found.module[layer].weight.any())
        assert float(found.module[layer].bias.detach()) == 1.0
        assert not bool(found.module[layer + 2].weight.any())
    again = treated(found.module, x, [*prune("0", [0]), *prune("2", [0])])
    assert set(did(again).values()) == {"left"}
    assert not again.edits


def test_a_unit_that_is_alive_stays_as_it_is() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    found = treated(model, inputs(12, 5), prune("0", [2]))
    assert did(found) == {("0", 2): "left"}
    assert not found.edits
    assert found.output_change == 0.0


def test_sizes_that_code_holds_are_found_by_running_it() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            return self.out(y.view(-1, 4, 2).tanh().view(-1, 8))

    model = seeded(Fixed)
    kill(model.a, [1])
    kill(model.b, [4, 5])
    found = treated(model, inputs(12, 5), [*prune("a", [1]), *prune("b", [4, 5])])
    assert did(found) == {("a", 1): "removed", ("b", 4): "zeroed", ("b", 5): "zeroed"}
    assert "its code fails with fewer units" in found.done[1].why
    assert largest_difference(model, found, inputs(40, 5, seed=2)) <= EXACT


def test_what_the_probe_never_runs_is_left() -> None:
    class Sleeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.spare = nn.Linear(5, 3), nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    model = seeded(Sleeping)
    found = treated(model, inputs(12, 5), prune("spare", [0, 99]))
    assert [one.why for one in found.done] == ["the probe never runs it", "the model has no such node"]


def test_rows_that_inputs_name_stay() -> None:
    model = seeded(lambda: nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(24, 3)))
    tokens = torch.randint(0, 9, (12, 3), generator=torch.Generator().manual_seed(1))
    found = deploy(model, [(tokens,)], prune("0", [4]))
    assert did(found) == {("0", 4): "left"}


def test_a_constant_before_a_norm_is_set_to_that_constant() -> None:
    """A saturated unit in front of a LayerNorm: its weights go, its value stays."""

    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.out = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(torch.tanh(self.a(x))))

    model = seeded(Saturated)
    model.a.bias.data[3] = 60.0
    found = treated(model, inputs(12, 5), prune("a", [3]))
    assert did(found) == {("a", 3): "zeroed"}
    assert not bool(found.module.a.weight[3].any())
    assert float(found.module.a.bias.detach()[3]) > 50.0
    again = treated(found.module, inputs(12, 5), prune("a", [3]))
    assert did(again) == {("a", 3): "left"}
    assert not again.edits


def test_random_functions_are_compared_with_the_same_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x))) + torch.randn(len(x), 3, dtype=x.dtype)

    model = seeded(Noisy)
    kill(model.a, [2])
    found = treated(model, inputs(12, 5), prune("a", [2]))
    assert did(found) == {("a", 2): "removed"}
    assert found.output_change <= EXACT


def test_a_weight_that_two_modules_share_is_zeroed_in_both() -> None:
    class SharedStream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + F.relu(self.a(x)) + F.relu(self.b(-x)))

    model = seeded(SharedStream)
    kill(model.a, [2])
    found = treated(model, inputs(12, 8), prune("a", [2]))
    assert did(found) == {("a", 2): "zeroed"}
    assert found.module.b.weight is found.module.a.weight
    assert torch.equal(found.edits.values["a.weight"], found.edits.values["b.weight"])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(dim=1))


def test_a_head_of_torchs_own_attention_that_nothing_hears_is_silenced_and_the_reason_is_named() -> None:
    model = seeded(Attending)
    values = model.encoder.layers[0].self_attn
    with torch.no_grad():
        values.out_proj.weight[:, 4:] = 0.0
    rows = [*range(4, 8), *range(12, 16), *range(20, 24)]
    found = all_end(
        "zeroed", model, inputs(20, 5, 8), "encoder.layers.0.self_attn", rows, inputs(9, 5, 8, seed=2)
    )
    assert {done.why for done in found.done} == {ATTENTION}
    assert not found.module.encoder.layers[0].self_attn.in_proj_weight[rows].any()


def test_a_unit_of_one_of_several_recurrent_layers_is_silenced() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 6, 2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    model = seeded(Stacked)
    with torch.no_grad():
        model.head.weight[:, 3] = 0.0
        model.rnn.weight_hh_l1[:, 3] = 0.0
    found = all_end("zeroed", model, inputs(20, 5, 4), "rnn.l1", [3], inputs(9, 5, 4, seed=2))
    assert "shares its place with units of rnn.l0" in found.done[0].why


def test_operations_inside_of_fused_layers_are_counted() -> None:
    attending = seeded(Attending)
    found = cost(attending, (inputs(6, 5, 8),))
    projections = 2 * 5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 12)
    scores = 2 * 2 * 5 * 5 * 8
    assert found.flops == projections + scores + 2 * 8 * 3
    recurrent = seeded(lambda: nn.LSTM(4, 6, batch_first=True))
    assert cost(recurrent, (inputs(6, 5, 4),)).flops == 2 * 5 * 4 * 6 * (4 + 6)
    assert torch.backends.mha.get_fastpath_enabled()
