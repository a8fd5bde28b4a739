"""Directories of torch.distributed.checkpoint: what comes out loads with its own loader, and training goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)

from nndiag.checkpoint import open_checkpoint
from nndiag.surgery.edits import Edits
from tests.surgery.writing.networks import (
    HEALED,
    LIVING,
    adam,
    expected,
    healed,
    network,
    pruned,
    same,
    step,
    trained,
    written,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Note:
    """A value of some class, which must not be built to be copied."""

    def __init__(self) -> None:
        self.text = "kept"


def saved(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, nested: bool) -> Path:
    """Write a checkpoint in one of the two forms that are in use."""
    if nested:
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optim": state, "step": 3, "note": Note()}, checkpoint_id=folder)
    else:
        flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
        dcp.save({**get_model_state_dict(model), "optimizer": flat}, checkpoint_id=folder)
    return folder


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, nested: bool) -> None:
    """Load a checkpoint as training scripts do."""
    options = None if nested else FLAT
    weights, state = get_state_dict(model, optimizer, options=options)
    target: dict[str, Any] = {"model": weights, "optim": state} if nested else {**weights, "optimizer": state}
    dcp.load(target, checkpoint_id=folder)
    loaded = target["model"] if nested else {name: target[name] for name in weights}
    moments = target["optim"] if nested else target["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=loaded, optim_state_dict=moments, options=options)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("change", [healed, pruned])
def test_what_comes_out_loads_with_the_loader_of_torch(
    tmp_path: Path, nested: bool, change: Callable[[nn.Module], Edits]
) -> None:
    model, optimizer = trained()
    edits = change(model)
    made = written(saved(tmp_path / "a", model, optimizer, nested), edits, tmp_path / "b", model)
    assert made.notes == ()
    again = network(4 if edits.kept else 6)
    resumed = adam(again)
    load(tmp_path / "b", again, resumed, nested)
    assert same(again.state_dict(), expected(model, edits))
    before = optimizer.state_dict()["state"][0]["exp_avg"]
    after = resumed.state_dict()["state"][0]["exp_avg"]
    if edits.kept:
        assert torch.equal(after, before[LIVING])
    else:
        assert torch.equal(after[LIVING], before[LIVING])
        assert not after[HEALED].any()
    step(again, resumed)
    assert int(resumed.state[again[0].weight]["step"]) == 4


def test_our_own_reader_sees_the_same_names_and_steps(tmp_path: Path) -> None:
    model, optimizer = trained()
    written(saved(tmp_path / "a", model, optimizer, True), healed(model), tmp_path / "b", model)
    one, two = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert (one.step, [place.key for place in one.places]) == (two.step, [place.key for place in two.places])
    assert list(one.places[0].tensors) == list(two.places[0].tensors)
    assert one.optimizers[0].groups == two.optimizers[0].groups


def test_other_values_are_copied_and_not_built(tmp_path: Path) -> None:
    model, optimizer = trained()
    written(saved(tmp_path / "a", model, optimizer, True), healed(model), tmp_path / "b", model)
    target = {"note": io.BytesIO()}
    dcp.load(target, checkpoint_id=tmp_path / "b", planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    assert target["note"].text == "kept"  # type: ignore[attr-defined]


def test_the_same_edits_give_the_same_bytes(tmp_path: Path) -> None:
    model, optimizer = trained()
    source = saved(tmp_path / "a", model, optimizer, True)
    (source / "meta.json").write_text("{}")
    for name in "bc":
        written(source, pruned(model), tmp_path / name, model)
    found = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "bc"]
    assert found[0] == found[1]
    assert set(found[0]) == {".metadata", "__0_0.distcp", "meta.json"}


def test_parts_of_an_earlier_save_are_not_copied_over_the_new_ones(tmp_path: Path) -> None:
    model, optimizer = trained()
    source = saved(tmp_path / "a", model, optimizer, True)
    clean = written(source, pruned(model), tmp_path / "clean", model)
    assert clean.notes == ()
    rewritten = (source / ".metadata").read_bytes().replace(b"__0_0.distcp", b"__7_0.distcp")
    (source / "__0_0.distcp").rename(source / "__7_0.distcp")
    (source / ".metadata").write_bytes(rewritten)
    for stale in ("__0_0.distcp", "__3_1.distcp"):  # what a save by other ranks left there
        (source / stale).write_bytes(b"old")
    made = written(source, pruned(model), tmp_path / "b", model)
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == [".metadata", "__0_0.distcp"]
    assert (tmp_path / "b" / "__0_0.distcp").read_bytes() == (
        tmp_path / "clean" / "__0_0.distcp"
    ).read_bytes()
    assert made.notes == (
        "not copied, since it holds the old weights, is another checkpoint or leads elsewhere: "
        "__0_0.distcp, __3_1.distcp",
    )
