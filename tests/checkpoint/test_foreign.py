"""Files and directories of other frameworks: one line names each and says the way out."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from nndiag.checkpoint import Permission, find_checkpoints, open_checkpoint
from nndiag.errors import InputError

from .files import FORMS, Payload, network, refusal, rezip, same_tensors, save, swap


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_to_fp32.py", ("DeepSpeed", "zero_to_fp32.py")),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", ("DeepSpeed", "zero_to_fp32.py")),
        ("mp_rank_00_model_states.pt", ("DeepSpeed", "zero_to_fp32.py")),
        ("_CHECKPOINT_METADATA", ("orbax", "safetensors")),
        ("manifest.ocdbt", ("orbax", "safetensors")),
        ("saved_model.pb", ("TensorFlow", "safetensors")),
    ],
)
def test_directories_of_other_frameworks_are_named(tmp_path: Path, name: str, words: tuple[str, str]) -> None:
    folder = tmp_path / "run" / "step_10"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"x")
    refusal(folder, *words)
    save(network().state_dict(), tmp_path / "run" / "epoch_1.pt")
    said: list[str] = []
    assert find_checkpoints(tmp_path / "run", note=said.append) == (tmp_path / "run" / "epoch_1.pt",)
    assert len(said) == 1
    assert said[0].endswith("step_10")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"GGUF\x03\0\0\0", "GGUF"), (b"\x89HDF\r\n\x1a\n", "Keras"), (b"\x08\x08\x12\x07pytorch", "ONNX")],
)
def test_files_of_other_frameworks_are_named_and_left_out_of_a_run(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / {"GGUF": "m.gguf", "Keras": "m.keras", "ONNX": "m.onnx"}[words]
    path.write_bytes(content)
    refusal(path, words, "give the checkpoint" if words != "Keras" else "safetensors")
    save(network().state_dict(), tmp_path / "epoch_1.pt")
    said: list[str] = []
    assert find_checkpoints(tmp_path, note=said.append) == (tmp_path / "epoch_1.pt",)
    assert path.name in said[0]


def test_torchscript_is_refused_with_trust_too(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    refusal(tmp_path / "m.pt", "TorchScript", "state_dict()")
    with pytest.raises(Exception, match="TorchScript"):
        open_checkpoint(tmp_path / "m.pt", Permission(trust=True))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickled_module_is_let_in_by_trust_alone(tmp_path: Path, form: str) -> None:
    model = network()
    path = save({"model": model, "epoch": 3}, tmp_path / "m.pt", form)
    refusal(path, "--trust")
    opened = open_checkpoint(path, Permission(trust=True))
    assert (opened.format, opened.epoch) == ("pickled-module", 3)
    assert opened.places[0].key == "model"
    assert same_tensors(dict(opened.places[0].tensors), dict(model.state_dict()))
    whole = open_checkpoint(save(model, tmp_path / "whole.pt", form), Permission(trust=True))
    assert same_tensors(dict(whole.places[0].tensors), dict(model.state_dict()))


def test_trust_is_what_lets_code_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = save({"model": {"w": torch.ones(2, 2)}, "x": Payload(marker)}, tmp_path / "m.pt")
    refusal(path, "posix.mkdir")
    assert not marker.exists()
    open_checkpoint(path, Permission(trust=True))
    assert marker.exists()


def rank(stage: int) -> dict[str, object]:
    """What one rank of DeepSpeed ZeRO holds of the optimiser, as its engine saves it."""
    flat = [torch.ones(10)]
    state: dict[str, object] = {
        "zero_stage": stage,
        "partition_count": [2],
        "loss_scaler": 1.0,
        "ds_version": "0.17",
    }
    held = {"single_partition_of_fp32_groups": flat} if stage < 3 else {"fp32_flat_groups": flat}
    return {"optimizer_state_dict": {**state, **held, "base_optimizer_state": {}}, "ds_config": {"a": 1}}


def module_states(stage: int) -> dict[str, object]:
    whole = {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}
    shapes = [OrderedDict((name, tensor.shape) for name, tensor in whole.items())]
    module = {name: torch.empty(0) for name in whole} if stage == 3 else whole
    return {
        "module": module,
        "param_shapes": shapes,
        "optimizer": None,
        "ds_version": "0.17",
        "global_steps": 7,
    }


SHARD = ("is a DeepSpeed ZeRO checkpoint", "zero_to_fp32.py")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [rank(1), rank(2), rank(3), module_states(3)], ids=range(4))
def test_shards_of_deepspeed_are_told_by_content(tmp_path: Path, content: object, form: str) -> None:
    refusal(save(content, tmp_path / "x.pt", form), *SHARD)


def test_shards_of_deepspeed_that_name_its_classes(tmp_path: Path) -> None:
    """Its loss scaler is an object of a class that need not be installed here."""
    source = save({**rank(2), "x": OrderedDict()}, tmp_path / "good.pt_")
    scaler = swap(b"ccollections\nOrderedDict\n", b"cdeepspeed.runtime.fp16.loss_scaler\nLossScaler\n")
    path = rezip(source, tmp_path / "x.pt", scaler)
    refusal(path, *SHARD)
    with pytest.raises(InputError, match="DeepSpeed"):
        open_checkpoint(path, Permission(trust=True))


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_that_deepspeed_left_whole_are_opened(tmp_path: Path, stage: int) -> None:
    (place,) = open_checkpoint(save(module_states(stage), tmp_path / "mp_rank_00_model_states.pt")).places
    assert place.key == "module"
    assert place.tensors["0.weight"].shape == (3, 4)
