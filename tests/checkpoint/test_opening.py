from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint

from .files import FORMS, network, refusal, same_tensors, save, trained


@pytest.mark.parametrize(("form", "name"), [("zip", "torch"), ("legacy", "torch-legacy")])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".th", ".safetensors", ""])
def test_state_dict_comes_back_whatever_its_name(tmp_path: Path, form: str, name: str, suffix: str) -> None:
    state = network().state_dict()
    path = save(state, tmp_path / f"weights{suffix}", form)
    opened = open_checkpoint(path)
    assert opened.path == path
    assert opened.format == name
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (place,) = opened.places
    assert place.key == ""
    assert list(place.tensors) == list(state)
    assert same_tensors(dict(place.tensors), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_safetensors_come_back(tmp_path: Path, suffix: str) -> None:
    state = network().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path, metadata={"step": "12", "epoch": "3", "note": "x"})
    opened = open_checkpoint(path)
    assert opened.format == "safetensors"
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (opened.step, opened.epoch) == (12, 3)
    assert same_tensors(dict(opened.places[0].tensors), state)


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64],
)
def test_dtypes_are_kept(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    state = {"w": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.zeros(0, 3, dtype=dtype)}
    path = tmp_path / "w.pt"
    save_file(state, path) if form == "safetensors" else save(state, path, form)
    assert same_tensors(dict(open_checkpoint(path).places[0].tensors), state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16])
def test_dtypes_without_a_storage_class_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.arange(6).reshape(2, 3).to(dtype)}
    found = open_checkpoint(save(state, tmp_path / "w.pt")).places[0].tensors["w"]
    assert found.dtype == dtype
    assert torch.equal(found.to(torch.float32), state["w"].to(torch.float32))


def test_protocol_3_is_read_without_a_warning(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "w.pt", pickle_protocol=3)
    assert same_tensors(dict(open_checkpoint(tmp_path / "w.pt").places[0].tensors), state)


def test_views_keep_their_strides_and_share(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"base": base, "tail": base[2:], "turned": base.t(), "wide": torch.ones(1).expand(5)}
    found = dict(open_checkpoint(save(state, tmp_path / "w.pt")).places[0].tensors)
    assert same_tensors(found, state)
    assert found["turned"].stride() == (1, 6)
    assert found["tail"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_parameters_become_plain_tensors(tmp_path: Path, form: str) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    marked = nn.Parameter(torch.zeros(2))
    marked.numel = 7  # type: ignore[assignment, method-assign]
    tagged = torch.ones(3)
    tagged.tag = "x"  # type: ignore[attr-defined]
    found = open_checkpoint(save({"a": parameter, "b": marked, "c": tagged}, tmp_path / "w.pt", form)).places[
        0
    ]
    for tensor in found.tensors.values():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert not vars(tensor)
    assert found.tensors["b"].numel() == 2


@pytest.mark.parametrize("form", FORMS)
def test_training_dict(tmp_path: Path, form: str) -> None:
    model, optimizer = trained()
    content = {
        "epoch": 7,
        "global_step": torch.tensor(3),
        "loss": torch.tensor(0.5),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "raw": bytes(range(256)),
        "tags": {"a", "b"},
    }
    opened = open_checkpoint(save(content, tmp_path / "run.pt", form))
    (place,) = opened.places
    assert place.key == "model_state_dict"
    assert same_tensors(dict(place.tensors), model.state_dict())
    assert (opened.step, opened.epoch) == (3, 7)
    (saved,) = opened.optimizers
    assert saved.key == "optimizer_state_dict"
    assert saved.groups[0]["lr"] == 0.01
    assert saved.groups[0]["betas"] == (0.8, 0.99)
    assert saved.groups[0]["params"] == (0, 1, 2, 3, 4, 5)
    assert saved.state[0]["step"] == 3
    average = saved.state[0]["exp_avg"]
    assert isinstance(average, torch.Tensor)
    assert torch.equal(average, optimizer.state_dict()["state"][0]["exp_avg"])


def test_lightning_dict(tmp_path: Path) -> None:
    model, optimizer = trained()
    content = {
        "epoch": 2,
        "global_step": 645,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {"w": torch.ones(2)}}},
        "callbacks": {"ema": {"w": torch.ones(2)}},
        "optimizer_states": [optimizer.state_dict(), optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [0.1]}],
        "hyper_parameters": {
            "width": 8,
            "lr": 0.1,
            "dims": [1, 2],
            "nested": {"a": None},
            "x": torch.ones(2),
        },
    }
    opened = open_checkpoint(save(content, tmp_path / "last.ckpt"))
    assert [place.key for place in opened.places] == ["state_dict"]
    assert [saved.key for saved in opened.optimizers] == ["optimizer_states.0", "optimizer_states.1"]
    assert (opened.step, opened.epoch) == (645, 2)
    assert opened.hyper_parameters == {"width": 8, "lr": 0.1, "dims": (1, 2), "nested": {"a": None}}


def test_step_of_the_optimizer_counts_where_the_file_says_none(tmp_path: Path) -> None:
    model, optimizer = trained()
    content = {"model": model.state_dict(), "optim": optimizer.state_dict()}
    assert open_checkpoint(save(content, tmp_path / "step-9.pt")).step == 3


@pytest.mark.parametrize("form", FORMS)
def test_optimizer_in_a_sibling_is_attached(tmp_path: Path, form: str) -> None:
    model, optimizer = trained()
    path = save(model.state_dict(), tmp_path / "policy.pth", form)
    save(optimizer.state_dict(), tmp_path / "policy.optimizer.pth", form)
    opened = open_checkpoint(path)
    assert [saved.key for saved in opened.optimizers] == ["policy.optimizer.pth"]
    assert opened.optimizers[0].groups[0]["lr"] == 0.01
    assert opened.step == 3
    assert opened.notes == ()


def test_sibling_does_not_replace_the_files_own_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "policy.pth")
    save(optimizer.state_dict(), tmp_path / "policy.optimizer.pth")
    assert [saved.key for saved in open_checkpoint(path).optimizers] == ["optim"]


@pytest.mark.parametrize(
    ("content", "why"), [(b"PK\x03\x04 cut off", "truncated or damaged"), (b"", "empty")]
)
def test_damaged_sibling_costs_a_note(tmp_path: Path, content: bytes, why: str) -> None:
    path = save(network().state_dict(), tmp_path / "policy.pth")
    (tmp_path / "policy.optimizer.pth").write_bytes(content)
    opened = open_checkpoint(path)
    assert opened.optimizers == ()
    (note,) = opened.notes
    assert note.startswith("policy.optimizer.pth was not used: ")
    assert why in note


def test_sibling_without_optimizer_costs_a_note(tmp_path: Path) -> None:
    path = save(network().state_dict(), tmp_path / "policy.pth")
    save(network().state_dict(), tmp_path / "policy.optimizer.pth")
    assert open_checkpoint(path).notes == ("policy.optimizer.pth was not used: it holds no optimiser state",)


def test_sibling_that_links_elsewhere_is_not_read(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    path = save(network().state_dict(), inside / "policy.pth")
    save(trained()[1].state_dict(), tmp_path / "elsewhere.pth")
    (inside / "policy.optimizer.pth").symlink_to(tmp_path / "elsewhere.pth")
    opened = open_checkpoint(path)
    assert opened.optimizers == ()
    assert "leaves its directory" in opened.notes[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(3), "single tensor"),
        (nn.Parameter(torch.ones(3)), "single tensor"),
        ([torch.ones(3)], "type list"),
        (7, "type int"),
        ({"loss": torch.tensor(0.1)}, "no dict of named tensors"),
        ({"losses": [1.0, 2.0]}, "no dict of named tensors"),
        ({0: torch.ones(3)}, "no dict of named tensors"),
    ],
)
def test_files_without_weights(tmp_path: Path, form: str, content: object, words: str) -> None:
    refusal(save(content, tmp_path / "x.pt", form), words, "state_dict()")


def test_optimizer_alone(tmp_path: Path) -> None:
    refusal(
        save(trained()[1].state_dict(), tmp_path / "x.pt"), "optimiser state and no weights", "belongs to"
    )
