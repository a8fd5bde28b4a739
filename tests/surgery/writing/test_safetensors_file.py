"""Safetensors: what is written is what was read, but for what changed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nndiag.surgery.edits import Edits
from tests.surgery.writing.networks import expected, healed, network, pruned, same, trained, written


def header(path: Path) -> dict[str, object]:
    """Return the header as it stands there."""
    content = path.read_bytes()
    found: dict[str, object] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return found


def test_values_change_and_all_else_stays(tmp_path: Path) -> None:
    model, _ = trained()
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt", "note": "größer"})
    edits = healed(model)
    made = written(tmp_path / "a.safetensors", edits, tmp_path / "b.safetensors", model)
    found, before = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "a.safetensors")
    assert made.notes == made.beside == ()
    assert set(found) == set(before)
    assert all(torch.equal(found[name], value) for name, value in expected(model, edits).items())
    assert header(tmp_path / "b.safetensors") == header(tmp_path / "a.safetensors")
    assert list(header(tmp_path / "b.safetensors")) == list(header(tmp_path / "a.safetensors"))


def test_no_edits_give_the_same_tensors_to_the_byte(tmp_path: Path) -> None:
    model, _ = trained()
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    written(tmp_path / "a.safetensors", Edits(), tmp_path / "b.safetensors", model)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_smaller_shapes_load_into_the_smaller_network(tmp_path: Path) -> None:
    model, _ = trained()
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"step": "3"})
    edits = pruned(model)
    written(tmp_path / "a.safetensors", edits, tmp_path / "b.safetensors", model)
    smaller = network(4)
    smaller.load_state_dict(load_file(tmp_path / "b.safetensors"))
    assert same(smaller.state_dict(), expected(model, edits))
    with safe_open(tmp_path / "b.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"step": "3"}


def test_types_of_the_file_stay_although_the_model_has_others(tmp_path: Path) -> None:
    model, _ = trained()
    half = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(half, tmp_path / "a.safetensors")
    edits = healed(model)
    written(tmp_path / "a.safetensors", edits, tmp_path / "b.safetensors", model)
    found = load_file(tmp_path / "b.safetensors")
    assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in half.items()}
    assert torch.equal(found["0.weight"], edits.values["0.weight"].bfloat16())


def test_prefixes_and_other_entries_stay(tmp_path: Path) -> None:
    model, _ = trained()
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    save_file({**prefixed, "other": torch.ones(5)}, tmp_path / "a.safetensors")
    edits = pruned(model)
    written(tmp_path / "a.safetensors", edits, tmp_path / "b.safetensors", model)
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found.pop("other"), torch.ones(5))
    assert set(found) == set(prefixed)
    assert torch.equal(found["module.3.weight"], edits.values["3.weight"])


def test_a_layer_may_get_a_bias_and_lose_its_neighbour(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    edits = Edits({"0.bias": torch.tensor([1.0, 2.0])}, dropped=("1.weight", "1.bias"))
    written(tmp_path / "a.safetensors", edits, tmp_path / "b.safetensors", model)
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == {"0.weight", "0.bias"}
    assert torch.equal(found["0.bias"], torch.tensor([1.0, 2.0]))


def test_one_tensor_under_two_names_changes_under_both(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    written(tmp_path / "a.safetensors", Edits({"0.weight": torch.eye(3)}), tmp_path / "b.safetensors", model)
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["0.weight"], torch.eye(3))
    assert torch.equal(found["1.weight"], torch.eye(3))


def test_the_optimiser_beside_it_follows(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "a.optimizer.safetensors")
    made = written(tmp_path / "a.safetensors", pruned(model), tmp_path / "b.safetensors", model)
    assert made.beside == (tmp_path / "b.optimizer.safetensors",)
    with made.beside[0].open("rb") as file:  # torch.load goes by such a suffix where it is given a path
        assert torch.load(file, weights_only=True)["state"][0]["exp_avg"].shape == (4, 4)
