"""Files of torch.save: training dicts of every kind, shared storages, and what cannot be unpickled safely."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nndiag.checkpoint import Permission, open_checkpoint
from nndiag.errors import InputError
from nndiag.model.fit import fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import write
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

FORMS = (True, False)


def saved(tmp_path: Path, value: object, zipped: bool = True) -> Path:
    """Write with torch.save."""
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    return tmp_path / "a.pt"


def records(path: Path) -> dict[str, bytes]:
    """Return the entries of an archive without the folder's name."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("zipped", FORMS)
@pytest.mark.parametrize("change", [healed, pruned])
def test_plain_state_dicts(tmp_path: Path, zipped: bool, change: Callable[[nn.Module], Edits]) -> None:
    model, _ = trained()
    edits = change(model)
    written(saved(tmp_path, model.state_dict(), zipped), edits, tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert same(found, expected(model, edits))
    assert found._metadata == model.state_dict()._metadata
    network(4 if edits.kept else 6).load_state_dict(found)


@pytest.mark.parametrize("zipped", FORMS)
def test_nothing_but_the_values_changes_where_no_shape_does(tmp_path: Path, zipped: bool) -> None:
    model, optimizer = trained()
    value = {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    written(saved(tmp_path, value, zipped), healed(model), tmp_path / "b.pt", model)
    if not zipped:
        assert (tmp_path / "a.pt").stat().st_size == (tmp_path / "b.pt").stat().st_size
        return
    before, after = records(tmp_path / "a.pt"), records(tmp_path / "b.pt")
    assert list(before) == list(after)
    assert before["data.pkl"] == after["data.pkl"]
    differing = {name for name in before if before[name] != after[name]}
    assert all(name.startswith(("data/", ".data/")) for name in differing)
    assert 0 < len(differing) < len(before)


@pytest.mark.parametrize("zipped", FORMS)
def test_no_edits_give_the_same_file(tmp_path: Path, zipped: bool) -> None:
    model, optimizer = trained()
    source = saved(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, zipped)
    written(source, Edits(), tmp_path / "b.pt", model)
    if zipped:
        assert records(source) == records(tmp_path / "b.pt")
    else:
        assert source.read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("zipped", FORMS)
@pytest.mark.parametrize("change", [healed, pruned])
def test_training_goes_on_from_a_training_checkpoint(
    tmp_path: Path, zipped: bool, change: Callable[[nn.Module], Edits]
) -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    value = {
        "epoch": 7,
        "best": 0.25,
        "args": {"width": 6, "tags": ["a", "ä"], "none": None, "pair": (1, 2.5)},
        "net": OrderedDict((f"module.{name}", tensor) for name, tensor in model.state_dict().items()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
    }
    edits = change(model)
    made = written(saved(tmp_path, value, zipped), edits, tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert made.notes == ()
    assert list(found) == list(value)
    for key in ("epoch", "best", "args", "scheduler"):
        assert found[key] == value[key]
    assert torch.equal(found["rng"], value["rng"])
    again = network(4 if edits.kept else 6)
    again.load_state_dict({name.removeprefix("module."): tensor for name, tensor in found["net"].items()})
    assert same(again.state_dict(), expected(model, edits))
    resumed = adam(again)
    resumed.load_state_dict(found["optimizer"])
    before = again[0].weight.detach().clone()
    step(again, resumed)
    assert not torch.equal(before, again[0].weight)
    assert int(resumed.state[again[0].weight]["step"]) == 4


@pytest.mark.parametrize("zipped", FORMS)
def test_moments_follow_the_entries_that_remain(tmp_path: Path, zipped: bool) -> None:
    model, optimizer = trained()
    source = saved(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, zipped)
    written(source, pruned(model), tmp_path / "b.pt", model)
    written(source, healed(model), tmp_path / "c.pt", model)
    before = optimizer.state_dict()["state"]
    after = torch.load(tmp_path / "b.pt", weights_only=True)["optimizer"]["state"]
    assert torch.equal(after[0]["exp_avg_sq"], before[0]["exp_avg_sq"][LIVING])
    assert torch.equal(after[4]["exp_avg"], before[4]["exp_avg"][:, LIVING])
    assert torch.equal(after[5]["exp_avg"], before[5]["exp_avg"])
    fresh = torch.load(tmp_path / "c.pt", weights_only=True)["optimizer"]["state"]
    assert torch.equal(fresh[0]["exp_avg"][LIVING], before[0]["exp_avg"][LIVING])
    assert not fresh[0]["exp_avg"][HEALED].any()
    assert not fresh[4]["exp_avg"][:, HEALED].any()


def test_tied_tensors_stay_one_storage(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    source = saved(tmp_path, model.state_dict())
    smaller = torch.ones(2, 3)
    for number, value in enumerate((torch.eye(3), smaller)):
        target = tmp_path / f"{number}.pt"
        written(source, Edits({"1.weight": value}), target, model)
        found = torch.load(target, weights_only=True)
        assert torch.equal(found["0.weight"], value)
        assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()


@pytest.mark.parametrize("zipped", FORMS)
def test_views_of_one_storage_do_not_change_each_other(tmp_path: Path, zipped: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False))
    flat = torch.arange(40.0)
    whole: dict[str, Tensor] = {
        "0.weight": flat[6:12].view(3, 2), "0.bias": flat[20:40:7], "1.weight": flat[12:18].view(3, 2).T,
    }  # fmt: skip
    source = saved(tmp_path, {"model": whole, "flat": flat[:6], "ema": [flat[20:24]]}, zipped)
    weight, bias = torch.full((3, 2), -1.0), torch.full((3,), -2.0)
    written(source, Edits({"0.weight": weight, "0.bias": bias}), tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(found["model"]["0.weight"], weight)
    assert torch.equal(found["model"]["0.bias"], bias)
    assert torch.equal(found["model"]["1.weight"], whole["1.weight"])
    assert found["model"]["1.weight"].stride() == (1, 2)
    assert torch.equal(found["flat"], flat[:6])
    assert torch.equal(found["ema"][0], flat[20:24])
    # what lay by itself in the storage still does, what others had a share in does not
    assert (
        found["model"]["0.weight"].untyped_storage().data_ptr() == found["flat"].untyped_storage().data_ptr()
    )
    assert found["model"]["0.bias"].untyped_storage().data_ptr() != found["flat"].untyped_storage().data_ptr()


def test_a_copy_under_another_key_stays(tmp_path: Path) -> None:
    model, _ = trained()
    state = model.state_dict()
    source = saved(tmp_path, {"model": state, "best": {"weights": dict(state)}})
    found_before = torch.load(source, weights_only=True)["best"]["weights"]

    opened = open_checkpoint(source)
    fitted = fit(model, opened.places, weights_key="model")
    (note,) = write(opened, fitted, healed(model), tmp_path / "b.pt", model=model).notes
    assert note == '"best.weights" holds other weights of the same names, which were left as they were'
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert same(found["best"]["weights"], found_before)
    assert same(found["model"], expected(model, healed(model)))


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    model, _ = trained()
    source = saved(tmp_path, {name: nn.Parameter(value) for name, value in model.named_parameters()}
                   | dict(model.named_buffers()))  # fmt: skip
    for change in (healed, pruned):
        target = tmp_path / f"{change.__name__}.pt"
        written(source, change(model), target, model)
        found = torch.load(target, weights_only=True)
        assert isinstance(found["0.weight"], nn.Parameter)
        assert found["0.weight"].requires_grad
        assert torch.equal(found["0.weight"], change(model).values["0.weight"])


def test_objects_of_classes_that_the_user_admits_stay_without_being_made(tmp_path: Path) -> None:
    model, _ = trained()
    args = argparse.Namespace(width=6, nested=argparse.Namespace(names={"a", "b"}, place=Path("x")))
    args.nested.place = complex(1, 2)
    source = saved(tmp_path, {"args": args, "model": model.state_dict()})
    allowed = Permission.of(names=["argparse.Namespace"])
    written(source, pruned(model), tmp_path / "b.pt", model, allowed)
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["args"] == args


class Tripwire(nn.Module):
    """A module that notices when it is unpickled."""

    unpickled = 0

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found

    def __setstate__(self, state: dict[str, object]) -> None:
        type(self).unpickled += 1
        super().__setstate__(state)


@pytest.mark.parametrize("zipped", FORMS)
def test_pickled_modules_are_healed_without_being_unpickled_again(tmp_path: Path, zipped: bool) -> None:

    model = Tripwire()
    source = saved(tmp_path, {"net": model, "epoch": 2}, zipped)
    opened = open_checkpoint(source, Permission(trust=True))
    edits = healed(model.layers)
    fitted = fit(network(), opened.places, strip_prefix="layers")
    counted = Tripwire.unpickled
    write(opened, fitted, edits, tmp_path / "b.pt", model=network())
    with pytest.raises(InputError, match="decides its shapes"):
        write(opened, fitted, pruned(model.layers), tmp_path / "c.pt", model=network())
    assert Tripwire.unpickled == counted
    found = torch.load(tmp_path / "b.pt", weights_only=False)["net"]
    assert torch.equal(found.layers[0].weight, edits.values["0.weight"])
    assert torch.equal(found.layers[1].running_mean, edits.values["1.running_mean"])


@pytest.mark.parametrize("zipped", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_of_the_file_stay(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    model, _ = trained()
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    source = saved(tmp_path, state, zipped)
    for change in (healed, pruned):
        target = tmp_path / f"{change.__name__}.pt"
        written(source, change(model), target, model)
        found = torch.load(target, weights_only=True)
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in state.items()}
        assert torch.equal(found["3.weight"], change(model).values["3.weight"].to(dtype))


def test_types_without_a_storage_class_of_their_own(tmp_path: Path) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("ticks", torch.tensor([1, 2, 3], dtype=torch.uint16))
    source = saved(tmp_path, model.state_dict())
    edits = Edits({"ticks": torch.tensor([7, 8], dtype=torch.uint16)})
    written(source, edits, tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["ticks"].dtype is torch.uint16
    assert found["ticks"].tolist() == [7, 8]


def test_the_pickle_is_protocol_two_still(tmp_path: Path) -> None:
    model, _ = trained()
    written(saved(tmp_path, model.state_dict()), pruned(model), tmp_path / "b.pt", model)
    pickled = records(tmp_path / "b.pt")["data.pkl"]
    assert pickled[:2] == pickle.PROTO + b"\x02"


@pytest.mark.parametrize("zipped", FORMS)
def test_the_same_edits_give_the_same_bytes(tmp_path: Path, zipped: bool) -> None:
    model, optimizer = trained()
    source = saved(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, zipped)
    for name in "bc":
        written(source, pruned(model), tmp_path / name, model)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_keys_with_dots_in_them_are_found(tmp_path: Path) -> None:
    model, _ = trained()
    value = {"a": {"note": 1}, "a.b": {"c": {"d.e": model.state_dict(), "f": 2}}}
    written(saved(tmp_path, value), healed(model), tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert same(found["a.b"]["c"]["d.e"], expected(model, healed(model)))


def test_an_entry_with_a_hostile_name_is_said_harmlessly(tmp_path: Path) -> None:
    model, _ = trained()
    state = model.state_dict()
    value = {"model": state, "\x1b[31m##[command]": dict(state)}
    opened = open_checkpoint(saved(tmp_path, value))
    fitted = fit(model, opened.places, weights_key="model")
    (note,) = write(opened, fitted, healed(model), tmp_path / "b.pt", model=model).notes
    assert note.startswith('"\\x1b[31m\\x23#[command]" holds')


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    """As an optimiser of one flat buffer leaves them."""
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(200)])
    flat, state, at = torch.randn(1200), {}, 0
    for name, parameter in model.named_parameters():
        state[name] = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    edits = Edits({name: torch.full_like(value, 7.0) for name, value in list(state.items())[::2]})
    written(saved(tmp_path, state), edits, tmp_path / "b.pt", model)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert same(found, {**state, **edits.values})
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 1


class Settings:
    """What a training script of someone's own keeps beside its weights."""

    def __init__(self) -> None:
        self.width = 6


def test_objects_of_a_trusted_file_stay_when_shapes_change(tmp_path: Path) -> None:
    model, optimizer = trained()
    value = {"cfg": Settings(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    source = saved(tmp_path, value)
    edits = pruned(model)
    assert written(source, edits, tmp_path / "b.pt", model, Permission(trust=True)).notes == ()
    found = torch.load(tmp_path / "b.pt", weights_only=False)
    assert vars(found["cfg"]) == {"width": 6}
    assert same(found["model"], expected(model, edits))
    assert found["optimizer"]["state"][0]["exp_avg"].shape == (4, 4)
