"""Weights in several files, as transformers writes them, and what an index must not name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nndiag import ScanSettings, scan
from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.errors import InputError

from .files import Payload, refusal, same_tensors, save

FIRST, SECOND = {"a.weight": torch.ones(2, 3)}, {"b.weight": torch.zeros(4), "b.bias": torch.arange(3)}


def sharded(folder: Path, names: tuple[object, object] | None = None) -> Path:
    """A directory with two shards and their index."""
    folder.mkdir()
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file(FIRST, folder / one)
    save_file(SECOND, folder / two)
    here, there = names or (one, two)
    weight_map = dict.fromkeys(FIRST, here) | dict.fromkeys(SECOND, there)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_directory_and_index_open_alike(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    whole = FIRST | SECOND
    by_folder, by_index = open_checkpoint(tmp_path / "model"), open_checkpoint(index)
    assert (by_folder.format, by_index.format) == ("huggingface", "sharded")
    assert by_folder.sha256 == by_index.sha256 != ""
    for opened in (by_folder, by_index):
        assert list(opened.places[0].tensors) == list(whole)
        assert same_tensors(dict(opened.places[0].tensors), whole)
    assert find_checkpoints(tmp_path / "model") == (tmp_path / "model",)
    assert find_checkpoints(tmp_path) == (tmp_path / "model",)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    refusal(index, "misses 1 of its 2 shards (model-00002-of-00002.safetensors)")


def test_shard_without_a_tensor_that_the_index_names(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", ("model-00002-of-00002.safetensors",) * 2)
    refusal(index, "does not hold a.weight")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "C:\\x", "..\\x"]
)
def test_index_does_not_leave_its_directory(tmp_path: Path, name: str) -> None:
    save_file(FIRST, tmp_path / "secret.safetensors")
    refusal(
        sharded(tmp_path / "model", (name, "model-00002-of-00002.safetensors")),
        "lies outside of its directory",
    )


@pytest.mark.parametrize("name", [None, 3, ["x"], ""])
def test_index_names_files(tmp_path: Path, name: object) -> None:
    index = sharded(tmp_path / "model")
    content = json.loads(index.read_text())
    content["weight_map"]["a.weight"] = name
    index.write_text(json.dumps(content))
    refusal(index, "no file")


def test_shard_that_is_a_link_to_elsewhere(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "secret.safetensors")
    shard.symlink_to(tmp_path / "secret.safetensors")
    refusal(index.parent, "leaves its directory")


def test_links_inside_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    sharded(snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    assert same_tensors(dict(open_checkpoint(snapshot).places[0].tensors), FIRST | SECOND)
    assert find_checkpoints(snapshot) == (snapshot,)
    # but no further than the repository
    (tmp_path / "elsewhere").write_bytes((blobs / "0").read_bytes())
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    (snapshot / "model-00001-of-00002.safetensors").symlink_to(Path("..", "..", "..", "elsewhere"))
    refusal(snapshot, "leaves its directory")


def test_shards_of_torch_save(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save(FIRST, folder / "pytorch_model-00001-of-00002.bin")
    save(SECOND, folder / "pytorch_model-00002-of-00002.bin")
    weight_map = dict.fromkeys(FIRST, "pytorch_model-00001-of-00002.bin")
    weight_map |= dict.fromkeys(SECOND, "pytorch_model-00002-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_tensors(dict(open_checkpoint(folder).places[0].tensors), FIRST | SECOND)
    marker = tmp_path / "ran"
    save({"a.weight": torch.ones(2), "x": Payload(marker)}, folder / "pytorch_model-00001-of-00002.bin")
    refusal(folder, "posix.mkdir")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", ["{", '{"weight_map": 3}', '{"weight_map": {}}', '{"metadata": {}}', "[" * 10**5]
)
def test_damaged_index(tmp_path: Path, content: str) -> None:
    index = sharded(tmp_path / "model")
    index.write_text(content)
    refusal(tmp_path / "model", "truncated or damaged")


def test_shards_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra frameworks is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    for size in ("20KB", "1GB"):
        folder = tmp_path / size
        model.save_pretrained(folder, max_shard_size=size)
        assert (folder / "model.safetensors.index.json").exists() == (size == "20KB")
        opened = open_checkpoint(folder)
        expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        assert opened.format == "huggingface"
        assert same_tensors(dict(opened.places[0].tensors), expected)
    os.remove(tmp_path / "20KB" / "model-00001-of-00002.safetensors")
    refusal(tmp_path / "20KB", "misses 1 of its 2 shards")


@pytest.mark.parametrize(
    ("config", "of"), [({"base_model_name_or_path": "org/base\n"}, " of org/base\n"), ({}, ""), ([], "")]
)
def test_an_adapter_alone_says_what_to_do(tmp_path: Path, config: object, of: str) -> None:
    save_file({"q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).notes == (
        f"the directory holds an adapter alone, without the weights{of} that it changes; "
        "for the whole network save model.merge_and_unload() of peft and give that",
    )
    assert scan(tmp_path).report.checkpoints[0].level == "weights"
    with pytest.raises(InputError, match=r"is an adapter alone, .*; save model.merge_and_unload"):
        scan(tmp_path, ScanSettings(data="random:tokens:4"))
