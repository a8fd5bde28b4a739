"""Weights in several files: shards and their index, by themselves and in directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint
from nndiag.surgery.edits import Edits
from tests.surgery.writing.networks import expected, healed, pruned, trained, written


def shards(folder: Path, model: nn.Module, form: str) -> Path:
    """Write a network into two shards with an index, and return the index."""
    folder.mkdir()
    state = model.state_dict()
    stem = "model" if form == "safetensors" else "pytorch_model"
    parts = [[n for n in state if n.startswith(("0.", "1."))], [n for n in state if n.startswith("3.")]]
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"{stem}-{number:05}-of-00002.{form}"
        part = {name: state[name] for name in names}
        if form == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(names, file)
    size = sum(value.numel() * value.element_size() for value in state.values())
    index = folder / f"{stem}.{form}.index.json"
    described = {"metadata": {"total_parameters": 66, "total_size": size}, "weight_map": weight_map}
    index.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    return index


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a directory, by the index in it."""
    (index,) = folder.glob("*.index.json")
    found = {}
    for name, file in json.loads(index.read_text())["weight_map"].items():
        part = (
            load_file(folder / file) if file.endswith("s") else torch.load(folder / file, weights_only=True)
        )
        found[name] = part[name]
    return found


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("change", [healed, pruned])
@pytest.mark.parametrize("whole", [True, False])
def test_shards_and_counts_follow(
    tmp_path: Path, form: str, change: Callable[[nn.Module], Edits], whole: bool
) -> None:
    model, _ = trained()
    index = shards(tmp_path / "a", model, form)
    (tmp_path / "a" / "config.json").write_text('{"width": 6}')
    edits = change(model)
    written(index.parent if whole else index, edits, tmp_path / "b", model)
    found, wanted = loaded(tmp_path / "b"), expected(model, edits)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    counts = json.loads((tmp_path / "b" / index.name).read_text())["metadata"]
    assert counts["total_size"] == sum(value.numel() * value.element_size() for value in wanted.values())
    assert counts["total_parameters"] - 66 == sum(v.numel() for v in wanted.values()) - sum(
        v.numel() for v in model.state_dict().values()
    )
    names = {file.name for file in (tmp_path / "a").iterdir()} - (set() if whole else {"config.json"})
    assert {file.name for file in (tmp_path / "b").iterdir()} == names
    assert open_checkpoint(tmp_path / "b" / index.name).places[0].tensors.keys() == wanted.keys()


def test_shards_without_a_change_are_the_same_files(tmp_path: Path) -> None:
    model, _ = trained()
    index = shards(tmp_path / "a", model, "safetensors")
    written(index, Edits({"3.bias": torch.ones(3)}), tmp_path / "b", model)
    same = [
        (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
        for file in sorted((tmp_path / "b").iterdir())
    ]
    assert same == [True, False, True]  # the first shard, the one with the bias, the index
