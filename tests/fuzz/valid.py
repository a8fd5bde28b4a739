"""A valid input of every format, small, with the command that scans it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

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

    ``codes`` are the exit codes that the damage may end in.
    """

    write: Callable[[Path], object]
    damaged: tuple[str, ...]
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0, 3)


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
    else:
        torch.save(samples(), folder / name)


def _legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


_WEIGHTS = ("--quiet", "--format", "json", "--level", "weights")
_DEEP = ("--quiet", "--format", "json", "--level", "activations")

FORMATS: dict[str, Format] = {
    "safetensors": Format(
        lambda folder: save_file(dict(network().state_dict()), folder / "x.safetensors", {"step": "7"}),
        ("x.safetensors",), ("x.safetensors", *_WEIGHTS),
    ),
    "zip": Format(
        lambda folder: torch.save(network().state_dict(), folder / "x.pt"), ("x.pt",), ("x.pt", *_WEIGHTS)
    ),
    "training": Format(lambda folder: torch.save(training(), folder / "x.ckpt"), ("x.ckpt",), ("x.ckpt", *_WEIGHTS)),
    "types": Format(_mixed_types, ("x.pt",), ("x.pt", *_WEIGHTS)),
    "legacy": Format(lambda folder: _legacy(training(), folder / "x.pt"), ("x.pt",), ("x.pt", *_WEIGHTS)),
    "npz": Format(
        lambda folder: _probe(folder, "stored.npz"), ("stored.npz",), (".", "--data", "stored.npz", *_DEEP)
    ),
    "npz-packed": Format(
        lambda folder: _probe(folder, "packed.npz"), ("packed.npz",), (".", "--data", "packed.npz", *_DEEP)
    ),
    "probe-pt": Format(
        lambda folder: _probe(folder, "probe.pt"), ("probe.pt",), (".", "--data", "probe.pt", *_DEEP)
    ),
    "run": Format(_run, ("epoch_1.safetensors", "probe.npz"), (".", *_DEEP)),
    "config": Format(_run, ("nndiag.toml",), (".", *_DEEP), (0, 2, 3)),
}  # fmt: skip
"""By the name that ``--format`` of the long run takes."""
