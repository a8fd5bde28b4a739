"""A valid input of every format, small, with the command that scans it."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from nndiag.checkpoint import ahead, stored, torch_file

CONFIG = """
[model]
sequential = [["Linear", 4, 6], ["BatchNorm1d", 6], ["ReLU"], ["Linear", 6, 3, {bias = true}]]
[checkpoints]
include = "*.safetensors"
[probe]
data = "probe.npz"
loss = "cross_entropy"
batch_size = 8
[optimizer]
name = "adam"
lr = 1e-3
betas = [0.9, 0.999]
"""


@dataclass(frozen=True)
class Format:
    """``write`` fills an empty folder; ``damaged`` are the patterns of the files to damage; ``words`` scan it.

    ``codes`` are the exit codes that the damage may end in, ``whole`` is that of the valid files. ``parts`` is how many
    files lie packed in a damaged one. ``needs`` are the libraries that both sides use. ``large`` files are read as if
    they were: tensor by tensor, chunk by chunk. ``often`` is below one where a case takes long.
    """

    write: Callable[[Path], object]
    damaged: tuple[str, ...]
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0, 3)
    whole: int = 0
    parts: int = 1
    needs: tuple[str, ...] = ()
    large: bool = False
    often: float = 1.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the files be read as large ones, where they are meant to be."""
        with pytest.MonkeyPatch.context() as patch:
            if self.large:
                patch.setattr(torch_file, "LARGE", 1)
                patch.setattr(stored, "SMALL", 0)
                patch.setattr(ahead, "CHUNK", 256)
            yield


def network() -> nn.Sequential:
    """Return the network of ``CONFIG``."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def training() -> dict[str, object]:
    """Return what a training loop saves: weights, optimiser state, where it was."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return {
        "epoch": 3,
        "global_step": 40,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.01]}],
        "hyper_parameters": {"width": 6, "names": ["a", "b"], "rate": 0.5},
    }


def samples() -> dict[str, Tensor]:
    """Return a probe."""
    torch.manual_seed(1)
    return {"x": torch.randn(8, 4), "y": torch.randint(0, 3, (8,))}


def _run(folder: Path) -> None:
    save_file(dict(network().state_dict()), folder / "epoch_1.safetensors", {"step": "7", "format": "pt"})
    np.savez(folder / "probe.npz", **{name: tensor.numpy() for name, tensor in samples().items()})
    (folder / "nndiag.toml").write_text(CONFIG)


def _mixed_types(folder: Path) -> None:
    types = (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.bool,
        torch.complex64,
    )
    torch.save({str(kind): torch.ones(3, 2, dtype=kind) for kind in types}, folder / "x.pt")


def _probe(folder: Path, name: str) -> None:
    _run(folder)
    arrays = {key: tensor.numpy() for key, tensor in samples().items()}
    if name.endswith(".npz"):
        (np.savez_compressed if name.startswith("packed") else np.savez)(folder / name, **arrays)
    elif name.endswith(".safetensors"):
        save_file(samples(), folder / name)
    else:
        torch.save(samples(), folder / name)


def _table(folder: Path, name: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    _run(folder)
    rows = {key: tensor.tolist() for key, tensor in samples().items()}
    table = pa.table(rows)
    if name.endswith(".parquet"):
        parquet.write_table(table, folder / name)
    elif name.endswith(".jsonl"):
        lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    else:
        (folder / name).mkdir()
        with pa.ipc.new_stream(folder / name / "data.arrow", table.schema) as stream:
            stream.write_table(table)
        state = {"_data_files": [{"filename": "data.arrow"}], "_split": None}
        (folder / name / "state.json").write_text(json.dumps(state))


WORDS = "[PAD] [UNK] [MASK] [CLS] the cat sat on a mat while birds sang".split()


def text_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (folder / "text.txt").write_text(" ".join(WORDS[4:] * 5))
    model = nn.Sequential(nn.Embedding(len(WORDS), 4), nn.Linear(4, len(WORDS)))
    save_file(dict(model.state_dict()), folder / "x.safetensors")
    (folder / "nndiag.toml").write_text(
        f'[model]\nsequential = [["Embedding", {len(WORDS)}, 4], ["Linear", 4, {len(WORDS)}]]\n'
    )


def _gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)


def _sharded(folder: Path) -> None:
    state = dict(network().state_dict())
    halves = {"a.safetensors": dict(list(state.items())[:3]), "b.safetensors": dict(list(state.items())[3:])}
    for name, half in halves.items():
        save_file(half, folder / name)
    weight_map = {key: name for name, half in halves.items() for key in half}
    index = {"metadata": {"total_size": 300}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _trainer(folder: Path) -> None:
    _sharded(folder)
    content = training()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    torch.save(content["optimizer_states"][0], folder / "optimizer.pt")  # type: ignore[index]
    torch.save({"last_epoch": 2, "_last_lr": [1e-3]}, folder / "scheduler.pt")
    rows = [{"epoch": 0.5, "loss": 0.7, "learning_rate": 1e-3, "step": 1}, {"eval_loss": 0.6, "step": 2}]
    state = {"global_step": 2, "epoch": 1.0, "log_history": rows, "best_metric": None}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def _distributed(folder: Path) -> None:
    content = training()
    state = {"model": content["state_dict"], "optim": content["optimizer_states"][0], "step": 7}  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed_checkpoint.save(state, checkpoint_id=folder / "dcp", no_dist=True)


def _agent(folder: Path) -> None:
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        content = training()
        inside = {"policy": content["state_dict"], "policy.optimizer": content["optimizer_states"][0]}  # type: ignore[index]
        for name, value in inside.items():
            packed = io.BytesIO()
            torch.save(value, packed)
            archive.writestr(f"{name}.pth", packed.getvalue())
        archive.writestr(
            "data", json.dumps({"gamma": 0.9, "policy_class": {":type:": "x", ":serialized:": "gAWV"}})
        )
        archive.writestr("pytorch_variables.pth", b"")


def _exported(folder: Path) -> None:
    example = (torch.ones(2, 4),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network().eval(), example), folder / "x.pt2")


def _legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


_WEIGHTS = ("--quiet", "--format", "json", "--level", "weights")
_DEEP = ("--quiet", "--format", "json", "--level", "activations")

_LM = ("--loss", "causal_lm", "--block-size", "8")

_ALL: dict[str, Format] = {
    "safetensors": Format(
        lambda folder: save_file(dict(network().state_dict()), folder / "x.safetensors", {"step": "7"}),
        ("x.safetensors",), ("x.safetensors", *_WEIGHTS),
    ),
    "zip": Format(
        lambda folder: torch.save(network().state_dict(), folder / "x.pt"), ("x.pt",), ("x.pt", *_WEIGHTS)
    ),
    "zip-large": Format(
        lambda folder: torch.save(network().state_dict(), folder / "x.pt"), ("x.pt",), ("x.pt", *_WEIGHTS), large=True
    ),
    "training-large": Format(
        lambda folder: torch.save(training(), folder / "x.ckpt"), ("x.ckpt",), ("x.ckpt", *_WEIGHTS), large=True
    ),
    "training": Format(lambda folder: torch.save(training(), folder / "x.ckpt"), ("x.ckpt",), ("x.ckpt", *_WEIGHTS)),
    "types": Format(_mixed_types, ("x.pt",), ("x.pt", *_WEIGHTS)),
    "legacy": Format(lambda folder: _legacy(training(), folder / "x.pt"), ("x.pt",), ("x.pt", *_WEIGHTS)),
    "sharded": Format(
        _sharded, ("*.json", "*.safetensors"), ("model.safetensors.index.json", *_WEIGHTS)
    ),
    "trainer": Format(_trainer, ("*.json", "optimizer.pt", "scheduler.pt"), (".", *_WEIGHTS), often=0.5),
    "dcp": Format(_distributed, (".metadata", "*.distcp"), ("dcp", *_WEIGHTS)),
    "agent": Format(_agent, ("agent.zip",), ("agent.zip", *_WEIGHTS), parts=3),
    "pt2": Format(_exported, ("x.pt2",), ("x.pt2", *_WEIGHTS), whole=3),
    "pt2-trusted": Format(_exported, ("x.pt2",), ("x.pt2", "--trust", *_WEIGHTS)),
    "npz": Format(
        lambda folder: _probe(folder, "stored.npz"), ("stored.npz",), (".", "--data", "stored.npz", *_DEEP)
    ),
    "npz-packed": Format(
        lambda folder: _probe(folder, "packed.npz"), ("packed.npz",), (".", "--data", "packed.npz", *_DEEP)
    ),
    "probe-pt": Format(
        lambda folder: _probe(folder, "probe.pt"), ("probe.pt",), (".", "--data", "probe.pt", *_DEEP)
    ),
    "probe-safetensors": Format(
        lambda folder: _probe(folder, "p.safetensors"), ("p.safetensors",), (".", "--data", "p.safetensors", *_DEEP)
    ),
    "parquet": Format(
        lambda folder: _table(folder, "p.parquet"), ("p.parquet",), (".", "--data", "p.parquet", *_DEEP),
        needs=("pyarrow",),
    ),
    "jsonl": Format(
        lambda folder: _table(folder, "p.jsonl"), ("p.jsonl",), (".", "--data", "p.jsonl", *_DEEP), needs=("pyarrow",)
    ),
    "dataset": Format(
        lambda folder: _table(folder, "d"), ("d/*",), (".", "--data", "d", *_DEEP), needs=("pyarrow",)
    ),
    "text": Format(
        text_model, ("tokenizer.json", "tokenizer_config.json", "text.txt"), (".", *_LM, "--data", "text.txt", *_DEEP),
        needs=("tokenizers",), often=0.5,
    ),
    "hf-config": Format(
        _gpt2, ("config.json",), (".", "--model", "hf", *_LM, "--data", "random:tokens:8", *_DEEP), (0, 2, 3),
        needs=("transformers",), often=0.5,
    ),
    "run": Format(_run, ("epoch_1.safetensors", "probe.npz"), (".", *_DEEP)),
    "config": Format(_run, ("nndiag.toml",), (".", *_DEEP), (0, 2, 3)),
}  # fmt: skip
FORMATS = {
    name: form for name, form in _ALL.items() if all(importlib.util.find_spec(need) for need in form.needs)
}
"""By the name that ``--format`` of the long run takes; those of which the libraries are here."""
