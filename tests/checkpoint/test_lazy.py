"""Tensors that are read when they are asked for, and the hash beside."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint, stored, torch_file
from nndiag.checkpoint.lazy import LazyTensors, renamed, spec, specs_of
from nndiag.checkpoint.source import Watched
from nndiag.errors import InputError
from nndiag.model.fit import fit
from nndiag.model.optimizer import match_optimizer

from .files import network, same_tensors, save, trained

STATE = {f"layer.{i}.weight": torch.full((64, 32), float(i)) for i in range(5)}


def test_only_what_is_asked_for_is_read() -> None:
    read: list[str] = []

    def reading(name: str) -> torch.Tensor:
        read.append(name)
        return torch.ones(2, 3)

    tensors = LazyTensors({"a": spec(torch.float32, (2, 3)), "b": spec(torch.int8, (4,))}, reading)
    seen = renamed(tensors, {"x": "a", "y": "b"})
    assert (list(tensors), len(tensors), "a" in tensors, "c" in tensors) == (["a", "b"], 2, True, False)
    assert {name: (tuple(t.shape), t.dtype) for name, t in specs_of(seen).items()} == {
        "x": ((2, 3), torch.float32),
        "y": ((4,), torch.int8),
    }
    assert read == []
    assert torch.equal(seen["x"], torch.ones(2, 3))
    assert read == ["a"]
    with pytest.raises(KeyError):
        seen["a"]


def test_safetensors_are_opened_without_their_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    read: list[int] = []
    original = Watched.tensor

    def counting(self: Watched, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        read.append(offset)
        return original(self, offset, dtype, shape)

    monkeypatch.setattr(Watched, "tensor", counting)
    opened = open_checkpoint(tmp_path / "w.safetensors")
    tensors = opened.places[0].tensors
    assert (list(tensors), len(read)) == (list(STATE), 0)
    assert torch.equal(tensors["layer.3.weight"], STATE["layer.3.weight"])
    assert len(read) == 1


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file count as large, and every tensor with a dimension."""
    monkeypatch.setattr(torch_file, "LARGE", 1)
    monkeypatch.setattr(stored, "SMALL", 0)


@pytest.mark.usefixtures("large")
def test_tensors_of_a_large_archive_are_read_when_asked_for(tmp_path: Path) -> None:
    path = save({"model": STATE, "epoch": torch.tensor(3)}, tmp_path / "w.pt")
    opened = open_checkpoint(path)
    tensors = opened.places[0].tensors
    assert isinstance(tensors, LazyTensors)
    assert all(tensor.is_meta for tensor in tensors.specs.values())
    assert tensors.fill_part is not None
    for _ in range(2):
        assert same_tensors(dict(tensors), STATE)
    tensors.fill_part("layer.3.weight", 5, part := torch.empty(7))
    assert part.tolist() == [3.0] * 7
    assert opened.epoch == 3


@pytest.mark.usefixtures("large")
def test_views_ties_and_odd_tensors_of_a_large_archive_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {
        "a": base, "turned": base.t(), "part": base[1:3, 2:4], "b": nn.Parameter(torch.randn(3, 2).bfloat16()),
        "empty": torch.empty(0, 4), "one": torch.tensor(2.5), "kept": base.clone().expand(2, 4, 6),
    }  # fmt: skip
    tensors = open_checkpoint(save(state, tmp_path / "w.pt")).places[0].tensors
    assert isinstance(tensors, LazyTensors)
    assert tensors.fill_part is None  # not all lie in order
    assert same_tensors(dict(tensors), {name: tensor.detach() for name, tensor in state.items()})


@pytest.mark.usefixtures("large")
def test_an_optimiser_in_a_large_archive_is_that_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    path = save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "w.pt")
    late, states = open_checkpoint(path), []
    monkeypatch.undo()
    for opened in (late, open_checkpoint(path)):
        state, note = match_optimizer(model, fit(model, opened.places), opened.optimizers)
        assert (state is not None, note) == (True, "")
        states.append(state)
    assert states[0].facts == states[1].facts
    assert states[0].step == states[1].step
    assert len(states[0].second_moments) == len(list(model.parameters()))
    assert same_tensors(dict(states[0].second_moments), dict(states[1].second_moments))
    assert isinstance(next(iter(late.optimizers[0].state.values())), stored.StoredState)


@pytest.mark.usefixtures("large")
def test_an_archive_in_another_order_is_read_whole(tmp_path: Path) -> None:
    """torch works out where records lie from the order of the pickle; here it would take one for another."""
    state = {f"{i}.weight": torch.full((4, 4), float(i)) for i in range(4)}
    with zipfile.ZipFile(save(state, tmp_path / "honest.pt")) as honest:
        parts = {entry.filename: honest.read(entry) for entry in honest.infolist()}
    names = sorted(parts, key=lambda name: -int(name.rpartition("/")[2]) if "/data/" in name else -99)
    path = tmp_path / "turned.pt"
    with zipfile.ZipFile(path, "w") as turned:
        for name in names:
            turned.writestr(name, parts[name])
    assert same_tensors(dict(open_checkpoint(path).places[0].tensors), state)


@pytest.mark.usefixtures("large")
def test_a_large_archive_cut_short_after_it_was_opened_is_said(tmp_path: Path) -> None:
    path = save({name: tensor.repeat(64, 1) for name, tensor in STATE.items()}, tmp_path / "w.pt")
    tensors = open_checkpoint(path).places[0].tensors
    os.truncate(path, 5000)
    with pytest.raises(InputError, match="changed while it was read"):
        dict(tensors)


def test_a_foreign_byte_order_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # its values are turned round in memory, and would be lost with the pages
    monkeypatch.setattr(torch_file, "LARGE", 1)
    monkeypatch.setattr("sys.byteorder", "big")
    path = save({"w": torch.arange(6.0)}, tmp_path / "w.pt")
    monkeypatch.undo()
    monkeypatch.setattr(torch_file, "LARGE", 1)
    opened = open_checkpoint(path).places[0].tensors
    assert opened["w"].shape == (6,)
    assert not isinstance(opened, LazyTensors)


def test_a_file_cut_short_after_it_was_opened_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    opened = open_checkpoint(path)
    assert opened.sha256
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(InputError, match="changed while it was read"):
        opened.places[0].tensors["layer.4.weight"]


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_a_file_that_changes_before_it_is_hashed_is_said(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w"
    save_file(STATE, path) if form == "safetensors" else save(STATE, path)
    opened = open_checkpoint(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="changed while it was read"):
        _ = opened.sha256


def test_hash_of_several_files_is_that_of_the_lines_of_sha256sum(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(dict(network().state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    line = f"{hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()}  model.safetensors\n"
    assert open_checkpoint(folder).sha256 == hashlib.sha256(line.encode()).hexdigest()
