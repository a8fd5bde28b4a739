"""Safetensors: what is written is what was read, but for what changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint
from nndiag.errors import ModelError
from nndiag.model.fit import Fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import write
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


def test_a_parameter_that_the_file_has_no_place_for_is_refused_and_a_buffer_is_the_models_own(
    tmp_path: Path,
) -> None:
    model = nn.BatchNorm1d(2)
    stored = {name: value for name, value in model.state_dict().items() if name != "num_batches_tracked"}
    save_file(stored, tmp_path / "a.safetensors")
    source = open_checkpoint(tmp_path / "a.safetensors")
    (place,) = source.places
    fitted = Fit(dict(place.tensors), place.key, "", 0, "", tuple(place.tensors))
    more = nn.BatchNorm1d(2)
    more.register_parameter("slope", nn.Parameter(torch.ones(2)))
    with pytest.raises(ModelError, match="slope: changed, and the checkpoint has no place for it"):
        write(source, fitted, Edits({"slope": torch.zeros(2)}), tmp_path / "b.safetensors", model=more)
    assert not (tmp_path / "b.safetensors").exists()
    edits = Edits({"bias": torch.ones(2), "num_batches_tracked": torch.tensor(7)})
    write(source, fitted, edits, tmp_path / "b.safetensors", model=model)
    found = load_file(tmp_path / "b.safetensors")
    assert found.keys() == stored.keys()
    assert torch.equal(found["bias"], torch.ones(2))


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
