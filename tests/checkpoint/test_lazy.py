"""Tensors that are read when they are asked for, and the hash beside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nndiag.checkpoint import mapped, open_checkpoint, torch_file
from nndiag.checkpoint.lazy import LazyTensors, renamed, spec, specs_of
from nndiag.checkpoint.source import Watched
from nndiag.errors import InputError

from .files import network, same_tensors, save

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


def test_mapped_tensors_are_let_go_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_file, "LARGE", 1)
    monkeypatch.setattr(mapped, "_LARGE", 1)
    state = {name: tensor.repeat(64, 1) for name, tensor in STATE.items()}
    path = save({"model": state}, tmp_path / "w.pt")
    tensors = open_checkpoint(path).places[0].tensors
    first = tensors["layer.1.weight"]
    for _ in range(2):
        assert same_tensors(dict(tensors), state)
    assert torch.equal(first, state["layer.1.weight"])


def test_a_foreign_byte_order_is_never_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
