"""Where samples are not apart along the first axis, what rests on single samples is left out, and only there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.replay.networks import layer, measured
from torch import Tensor, nn

from nndiag.records.level import Level

PER_SAMPLE = ("gradient_reach", "output_reach", "tangent_kernel", "gradient_spread", "lambda_max", "trace")


class SequenceFirst(nn.Module):
    """Samples first outside, positions first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x.transpose(0, 1)).relu()
        return self.head(hidden.mean(dim=0))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x)
        return self.head((hidden - hidden.mean(dim=0)).relu())


class MinusTheFirst(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x)
        return self.head((hidden - hidden[:1]).relu())


class Flattened(SequenceFirst):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x.reshape(-1, 4)).relu()
        return self.head(hidden.reshape(len(x), -1, 6).mean(dim=1))


class FlattenedTheOtherWay(SequenceFirst):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x.transpose(0, 1).reshape(-1, 4)).relu()
        return self.head(hidden.reshape(x.shape[1], len(x), 6).mean(dim=0))


class Apart(SequenceFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(x).relu().mean(dim=1))


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("kind", [Mixing, MinusTheFirst])
def test_layers_whose_samples_are_not_apart_say_so(kind: type[nn.Module]) -> None:
    found = measured(build(kind), inputs(7, 4), Level.CURVATURE)
    inside, head = layer(found, "inside"), layer(found, "head")
    assert ("inside", "samples of a batch influence each other there") in found.unmeasured
    assert not any(name in inside.per_node for name in PER_SAMPLE)
    assert inside.curvature_kind is None
    assert inside.per_fold == {}
    assert "dead_data_fraction" not in inside.per_layer
    assert "gradient_norm" in inside.per_node  # of the mean loss: needs no samples apart
    assert "head" not in dict(found.unmeasured)
    assert all(name in head.per_node for name in PER_SAMPLE)


@pytest.mark.parametrize("kind", [SequenceFirst, Flattened, FlattenedTheOtherWay])
@pytest.mark.parametrize("shape", [(7, 5, 4), (3, 3, 4), (6, 3, 4), (2, 8, 4)])
def test_samples_are_found_where_they_are(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    truth = measured(build(Apart), inputs(*shape), Level.CURVATURE)
    found = measured(build(kind), inputs(*shape), Level.CURVATURE)
    assert found.unmeasured == ()
    for name in PER_SAMPLE:
        for where in ("inside", "head"):
            np.testing.assert_allclose(
                layer(found, where).per_node[name],
                layer(truth, where).per_node[name],
                rtol=1e-6,
                err_msg=name,
            )


@pytest.mark.parametrize("kind", [SequenceFirst, Flattened])
def test_activity_is_counted_over_all_rows_all_the_same(kind: type[nn.Module]) -> None:
    x = inputs(7, 5, 4)
    truth = layer(measured(build(Apart), x, Level.CURVATURE), "inside")
    for level in (Level.ACTIVATIONS, Level.CURVATURE):
        found = layer(measured(build(kind), x, level), "inside")
        assert found.activation == "relu"
        for name in ("active_fraction", "output_mean", "output_std", "dormancy"):
            np.testing.assert_allclose(found.per_node[name], truth.per_node[name], rtol=1e-9)
        assert "open_count" not in found.per_fold
        assert "dead_data_fraction" not in found.per_layer
    assert "dead_data_fraction" in truth.per_layer


def test_layers_that_are_apart_are_measured_as_ever() -> None:
    found = measured(build(Apart), inputs(7, 5, 4), Level.CURVATURE)
    assert found.unmeasured == ()


def test_one_sample_is_apart_from_nothing() -> None:
    found = measured(build(Apart), inputs(1, 5, 4), Level.CURVATURE)
    assert found.unmeasured == ()
    assert all("lambda_max" in one.per_node for one in found.layers)
