"""Repeated rows: equal, with the sign turned, nearly so, and those that repeat nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint
from nndiag.checkpoint.lazy import LazyTensors
from nndiag.measures import bands
from nndiag.measures.duplicates import Pairs, duplicate_rows
from nndiag.measures.sketch import NodeRows
from nndiag.measures.weights import weight_measures
from nndiag.pipeline.weights import count_parameters, measure_weights


def rows() -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def repeated(table: torch.Tensor, groups: int = 1) -> tuple[Pairs, Pairs]:
    return duplicate_rows(NodeRows.split(table, table.shape[1] - 1), groups)


def test_pairs_name_the_first_row_that_is_repeated() -> None:
    table = rows()
    table[3], table[5], table[6] = table[1], -table[1], table[1]
    assert repeated(table) == (((3, 1), (6, 1)), ((5, 1),))


def test_a_row_that_repeats_one_row_and_mirrors_another_repeats() -> None:
    table = rows()
    table[3], table[5] = -table[1], table[3].neg()
    table[5] = table[1]
    assert repeated(table) == (((5, 1),), ((3, 1),))


@pytest.mark.parametrize(("shift", "repeats"), [(1e-8, True), (1e-5, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_no_difference(shift: float, repeats: bool, sign: int) -> None:
    table = rows()
    table[3] = sign * table[1] + shift * table[2]
    assert any(repeated(table)) == repeats


def test_a_multiple_is_no_repetition() -> None:
    table = rows()
    table[3] = 1.001 * table[1]
    assert repeated(table) == ((), ())


def test_zeros_and_what_is_not_finite_repeat_nothing() -> None:
    table = rows()
    table[2:4] = 0
    table[5:7] = torch.nan
    assert repeated(table) == ((), ())


def test_norms_are_with_and_without_the_bias() -> None:
    table = rows()
    table[2, 1] = torch.inf
    found = weight_measures(NodeRows.split(table, table.shape[1] - 1))
    np.testing.assert_allclose(found["weight_norm"][:2], table[:2, :-1].norm(dim=1).numpy())
    np.testing.assert_allclose(found["parameter_norm"][:2], table[:2].norm(dim=1).numpy())
    np.testing.assert_array_equal(found["bias"], table[:, -1].numpy())
    assert found["nonfinite_parameters"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert "bias" not in weight_measures(NodeRows.split(table, table.shape[1]))


def by_comparing_all(table: torch.Tensor, groups: int) -> tuple[Pairs, Pairs]:
    """The definition: every row against every earlier one of its group."""
    table, equal, turned = table.double(), [], []
    for i in range(len(table)):
        for sign, found in ((1, equal), (-1, turned)):
            for j in range(i):
                same_group = i * groups // len(table) == j * groups // len(table)
                distance = (table[i] - sign * table[j]).norm() / table[j].norm()
                if same_group and distance < 1e-6:
                    found.append((i, j))
                    break
    repeats = {node for node, _ in equal}
    return tuple(equal), tuple(pair for pair in turned if pair[0] not in repeats)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kinds", [2, 9, 64])
def test_many_repetitions_are_those_of_the_definition(kinds: int, dtype: torch.dtype, groups: int) -> None:
    generator = torch.Generator().manual_seed(kinds)
    table = torch.randn(kinds, 7, generator=generator)[torch.randint(kinds, (64,), generator=generator)]
    table *= torch.randint(0, 2, (64, 1), generator=generator) * 2 - 1
    table = table.to(dtype)
    assert repeated(table, groups) == by_comparing_all(table, groups)


def test_rows_alike_in_everything_but_order_repeat_nothing() -> None:
    table = torch.stack([torch.arange(1.0, 9).roll(shift) for shift in range(8)])
    assert repeated(table) == ((), ())


def test_wide_rows_and_many_rows_are_summed_tile_by_tile() -> None:
    wide = torch.randn(3, (1 << 14) + 5, generator=torch.Generator().manual_seed(0))
    wide[2] = wide[0]
    wide[1, -1] = torch.nan
    found = weight_measures(NodeRows.split(wide, wide.shape[1]))
    np.testing.assert_allclose(found["weight_norm"][[0, 2]], wide[[0, 2]].double().norm(dim=1), rtol=1e-7)
    assert found["nonfinite_parameters"].tolist() == [0, 1, 0]
    assert repeated(wide) == (((2, 0),), ())
    tall = torch.randn(1 << 15, 17, generator=torch.Generator().manual_seed(0))
    found = weight_measures(NodeRows.split(tall, 17))
    np.testing.assert_allclose(found["weight_norm"], tall.double().norm(dim=1), rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1.0, 1e25, 1e37])
@pytest.mark.parametrize("width", [9, 64, 4096])
def test_norms_and_repetitions_hold_at_every_scale(width: int, scale: float) -> None:
    table = scale * torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    table[4], table[5] = table[1], -table[2]
    table[3, width // 2] = torch.inf
    found = weight_measures(NodeRows((table,)))
    finite = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(found["weight_norm"][finite], table[finite].double().norm(dim=1), rtol=1e-7)
    assert found["nonfinite_parameters"].tolist() == [0, 0, 0, 1, 0, 0]
    assert duplicate_rows(NodeRows((table,))) == (((4, 1),), ((5, 2),))


def test_rows_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(5, (1 << 14) + 9, generator=generator)
    wide[4] = wide[1]
    state = {"a.weight": wide.bfloat16(), "a.bias": torch.ones(5), "b.weight": torch.randn(40, 3, 2, 2)}
    save_file(state, tmp_path / "w.safetensors")
    stored = open_checkpoint(tmp_path / "w.safetensors").places[0].tensors
    read: list[str] = []

    class Watching(LazyTensors):
        def __getitem__(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().__getitem__(name)

    assert isinstance(stored, LazyTensors)
    watching = Watching(stored.specs, stored.__getitem__, stored.fill_part)
    found, expected = measure_weights(watching), measure_weights(LazyTensors(state, state.__getitem__))
    assert read == []
    in_order = sorted(expected.layers, key=lambda layer: list(stored).index(f"{layer.name}.weight"))
    for layer, same in zip(found.layers, in_order, strict=True):
        assert layer.duplicates == same.duplicates
        for name, values in same.per_node.items():
            np.testing.assert_array_equal(layer.per_node[name], values)
    assert {layer.name: layer.duplicates["weights"] for layer in found.layers} == {"a": ((4, 1),), "b": ()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [64, 96, 65])
def test_tiles_and_rows_out_of_the_ordinary_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int
) -> None:
    monkeypatch.setattr(bands, "TILE", 3 * 64)
    monkeypatch.setattr(bands, "_TILES", 2)
    table = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    table[4], table[9], table[13], table[14, 5] = 0.0, table[9] * 1e-17, table[13] * 1e18, torch.nan
    state = {"a.weight": table.to(dtype)}
    save_file(state, tmp_path / "w.safetensors")
    stored = open_checkpoint(tmp_path / "w.safetensors").places[0].tensors
    expected = state["a.weight"].double().norm(dim=1)
    for tensors in (stored, state):
        node = measure_weights(tensors).layers[0].per_node
        np.testing.assert_allclose(node["weight_norm"], expected, rtol=1e-7)
        assert np.flatnonzero(node["nonfinite_parameters"]).tolist() == [14]
        monkeypatch.setattr(bands, "_WIDEST", 32)  # now rows are cut as well


def test_a_vector_speaks_where_it_is_not_finite_alone() -> None:
    state = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.LayerNorm(3)).state_dict()
    assert [layer.name for layer in measure_weights(state).layers] == ["0"]
    state["1.running_var"][1], state["2.weight"][2] = torch.inf, torch.nan
    found = {layer.name: layer for layer in measure_weights(state).layers}
    assert list(found) == ["0", "1.running_var", "2"]
    assert found["1.running_var"].per_node["nonfinite_parameters"].tolist() == [0, 1, 0]
    assert found["2"].per_node["nonfinite_parameters"].tolist() == [0, 0, 1]


def test_what_is_no_floating_point_number_is_named_and_buffers_are_no_parameters() -> None:
    state = {
        "a.weight": torch.ones(2, 3), "fft": torch.ones(2, 3, dtype=torch.complex64), "mask": torch.ones(2, 2) > 0,
        "b.qweight": torch.ones(4, 4, dtype=torch.int32), "ids": torch.arange(6).view(2, 3),
        "bn.running_mean": torch.ones(7), "bn.weight": torch.ones(7).to(torch.float8_e5m2),
    }  # fmt: skip
    assert measure_weights(state).unmeasured == (
        ("fft", "complex numbers"), ("b.qweight", "whole numbers, as packed weights are"),
    )  # fmt: skip
    assert count_parameters(state) == 6 + 6 + 7


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert.embeddings.word_embeddings.weight", "Embedding"), ("wte.weight", "Embedding"),
        ("model.embed_tokens.weight", "Embedding"), ("encoder.embedding.weight", "Embedding"),
        ("embeddings.projection.weight", "matrix"), ("embed.0.weight", "matrix"),
    ],
)  # fmt: skip
def test_tables_that_are_looked_up_are_known_by_their_names(name: str, kind: str) -> None:
    (layer,) = measure_weights({name: torch.eye(3)}).layers
    assert layer.kind == kind
    with_bias = {name: torch.eye(3), name.replace("weight", "bias"): torch.ones(3)}
    assert measure_weights(with_bias).layers[0].kind == "matrix"
