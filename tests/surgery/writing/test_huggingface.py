"""Directories of transformers: what comes out loads with from_pretrained, and its Trainer goes on from it."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.checkpoint import open_checkpoint
from nndiag.model.fit import fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import Written, write
from tests import hf
from tests.surgery.writing.networks import healed, pruned, trained, written

LIVING = torch.tensor([index for index in range(24) if index not in (3, 7, 11, 20)])
FEED = "bert.encoder.layer.0.intermediate.dense"
BACK = "bert.encoder.layer.0.output.dense"


def smaller(model: nn.Module) -> Edits:
    """Take four nodes out of the one hidden layer of a BERT."""
    state = model.state_dict()
    values = {
        f"{FEED}.weight": state[f"{FEED}.weight"][LIVING],
        f"{FEED}.bias": state[f"{FEED}.bias"][LIVING],
        f"{BACK}.weight": state[f"{BACK}.weight"][:, LIVING],
    }
    kept = {f"{FEED}.weight": (LIVING, None), f"{FEED}.bias": (LIVING,), f"{BACK}.weight": (None, LIVING)}
    return Edits(values, kept)


def fresh(model: nn.Module) -> Edits:
    """Let one node of it start afresh."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state[f"{FEED}.weight"][5] = 0.1
    state[f"{BACK}.weight"][:, 5] = 0.0
    values = {name: state[name] for name in (f"{FEED}.weight", f"{BACK}.weight")}
    reset = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in values.items()}
    reset[f"{FEED}.weight"][5] = True
    reset[f"{BACK}.weight"][:, 5] = True
    return Edits(values, reset=reset)


def write_with_config(source: Path, model: nn.Module, edits: Edits, target: Path) -> Written:
    """Write with a configuration of the new width."""
    config = json.loads((source / "config.json").read_text())
    config["intermediate_size"] = 20
    opened = open_checkpoint(source)
    given = {"config.json": json.dumps(config).encode()} if edits.kept else {}
    return write(opened, fit(model, opened.places), edits, target, model=model, surroundings=given)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "4KB"])
def test_what_comes_out_loads_with_from_pretrained(tmp_path: Path, safe: bool, shard: str) -> None:
    library = hf.library()
    model = hf.tiny("bert").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "a", safe_serialization=safe, max_shard_size=shard)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    (tmp_path / "a" / "1_Pooling").mkdir()
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text("[]")
    for change in (smaller, fresh):
        edits, target = change(model), tmp_path / change.__name__
        assert write_with_config(tmp_path / "a", model, edits, target).notes == ()
        one = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*")}
        assert {str(path.relative_to(target)) for path in target.rglob("*")} == one
        again, report = library.BertForSequenceClassification.from_pretrained(
            target, output_loading_info=True
        )
        assert not any(report.values())
        wanted = {**model.state_dict(), **edits.values}
        assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())
        assert again.config.intermediate_size == (20 if edits.kept else 24)


def test_tied_weights_load_tied(tmp_path: Path) -> None:
    library = hf.library()
    model = hf.tiny("gpt2").eval()
    model.save_pretrained(tmp_path / "a")
    new = torch.randn(model.lm_head.weight.shape)
    written(tmp_path / "a", Edits({"lm_head.weight": new}), tmp_path / "b", model)
    again = library.GPT2LMHeadModel.from_pretrained(tmp_path / "b")
    assert torch.equal(again.transformer.wte.weight, new)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert (tmp_path / "b" / "generation_config.json").exists()


def test_names_of_old_stay_as_the_file_has_them(tmp_path: Path) -> None:
    model = hf.tiny("bert").eval()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.state_dict().items()
    }
    torch.save(old, tmp_path / "a.bin")
    name = "bert.embeddings.LayerNorm.weight"
    written(tmp_path / "a.bin", Edits({name: torch.full((16,), 3.0)}), tmp_path / "b.bin", model)
    found = torch.load(tmp_path / "b.bin", weights_only=True)
    assert list(found) == list(old)
    assert torch.equal(found["bert.embeddings.LayerNorm.gamma"], torch.full((16,), 3.0))


def test_weights_of_the_base_alone_stay_without_its_name(tmp_path: Path) -> None:
    model = hf.tiny("gpt2").eval()
    base = {**model.transformer.state_dict(), "other.part": torch.ones(2)}
    torch.save(base, tmp_path / "a.bin")
    new = torch.full((16,), 3.0)
    written(tmp_path / "a.bin", Edits({"transformer.ln_f.weight": new}), tmp_path / "b.bin", model)
    found = torch.load(tmp_path / "b.bin", weights_only=True)
    assert list(found) == list(base)
    assert [name for name in base if not torch.equal(found[name], base[name])] == ["ln_f.weight"]
    assert torch.equal(found["ln_f.weight"], new)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Trainer's run of four steps, and what goes on from a checkpoint of it."""
    library = hf.library()
    pytest.importorskip("accelerate", reason="the extra frameworks is not installed")
    folder = tmp_path_factory.mktemp("run")
    samples = [{"input_ids": torch.randint(0, 40, (8,)), "labels": torch.tensor(i % 3)} for i in range(64)]

    def go_on(model: Any, source: Path | None, steps: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = library.TrainingArguments(
                str(folder), per_device_train_batch_size=8, max_steps=steps, save_steps=4, logging_steps=2,
                learning_rate=1e-3, weight_decay=0.01, report_to=[], use_cpu=True, disable_tqdm=True,
            )  # fmt: skip
            trainer = library.Trainer(model, arguments, train_dataset=samples)
            trainer.train(resume_from_checkpoint=None if source is None else str(source))
        return trainer

    go_on(hf.tiny("bert"), None, 4)
    return folder / "checkpoint-4", go_on


@pytest.mark.parametrize("change", [smaller, fresh])
def test_the_trainer_goes_on(run: tuple[Path, Any], tmp_path: Path, change: Any) -> None:
    source, go_on = run
    library = hf.library()
    model = library.BertForSequenceClassification.from_pretrained(source)
    edits = change(model)
    target = tmp_path / "checkpoint-4"
    assert write_with_config(source, model, edits, target).notes == ()
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    for name in ("training_args.bin", "trainer_state.json", "scheduler.pt", "rng_state.pth"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    again = library.BertForSequenceClassification.from_pretrained(target)
    trainer = go_on(again, target, 6)
    assert trainer.state.global_step == 6
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    weight = dict(again.named_parameters())[f"{FEED}.weight"]
    assert int(inner.state[weight]["step"]) == 6
    assert inner.state[weight]["exp_avg"].shape == weight.shape == edits.values[f"{FEED}.weight"].shape


def directory(folder: Path) -> nn.Module:
    """Write a directory that needs no library, with much beside the weights."""
    model, optimizer = trained()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin", "tf_model.h5", "vocab.txt"):
        (folder / name).write_text("{}")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "training_args.bin").write_bytes(b"a pickle of who knows what")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / ".git").mkdir()
    (folder / "checkpoint-2").mkdir()
    save_file(model.state_dict(), folder / "checkpoint-2" / "model.safetensors")
    (folder / "checkpoint-2" / "config.json").write_text("{}")
    return model


def test_old_weights_other_checkpoints_and_links_out_are_not_copied(tmp_path: Path) -> None:
    model = directory(tmp_path / "a")
    (tmp_path / "secret").write_text("of another place")
    (tmp_path / "a" / "notes.txt").symlink_to(tmp_path / "secret")
    (made,) = written(tmp_path / "a", pruned(model), tmp_path / "b", model).notes
    assert made.endswith("checkpoint-2, notes.txt, pytorch_model.bin, tf_model.h5")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "config.json", "model.safetensors", "optimizer.pt", "tokenizer.json", "trainer_state.json",
        "training_args.bin", "vocab.txt",
    ]  # fmt: skip


def test_a_snapshot_of_links_becomes_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    model = directory(blobs)
    for name in ("model.safetensors", "config.json", "vocab.txt"):
        (snapshot / name).symlink_to(os.path.join("..", "..", "blobs", name))
    written(snapshot, healed(model), tmp_path / "b", model)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "config.json", "model.safetensors", "vocab.txt",
    ]  # fmt: skip
    assert not any(path.is_symlink() for path in (tmp_path / "b").iterdir())


def test_an_optimiser_that_cannot_be_read_is_left_out_where_shapes_change(tmp_path: Path) -> None:
    model = directory(tmp_path / "a")
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"damaged")
    assert (written(tmp_path / "a", healed(model), tmp_path / "b", model)).notes[0].startswith("not copied")
    notes = written(tmp_path / "a", pruned(model), tmp_path / "c", model).notes
    assert (tmp_path / "b" / "optimizer.pt").read_bytes() == b"damaged"
    assert not (tmp_path / "c" / "optimizer.pt").exists()
    assert any("optimizer.pt was not read and is left out" in note for note in notes)
