"""Real checkpoint files to open, and ways to spoil them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nndiag.checkpoint import open_checkpoint
from nndiag.errors import InputError

FORMS = ("zip", "legacy")


def save(value: object, path: Path, form: str = "zip") -> Path:
    """Write with torch.save, in zip form or as before zip."""
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path


def network() -> nn.Module:
    """A network with weights, a buffer of integers, and running statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network after three steps of Adam."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.99))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two state dicts agree in names, dtypes and values."""
    return set(found) == set(expected) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def rezip(
    source: Path,
    target: Path,
    change: Callable[[bytes], bytes] = lambda pickled: pickled,
    compression: int = zipfile.ZIP_STORED,
    again: str | None = None,
) -> Path:
    """Copy a zip archive, with its pickle changed, its entries compressed, or one entry written again."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("/data.pkl") else content)
        if again is not None:
            with pytest.warns(UserWarning, match="Duplicate name"):
                new.writestr(again, b"other")
    return target


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A change of a pickle that must find what it changes."""

    def change(pickled: bytes) -> bytes:
        assert pickled.count(old) >= 1
        return pickled.replace(old, new)

    return change


def not_dense(kind: str) -> Tensor:
    """A tensor that no measure can use: ``"sparse"``, ``"quantised"`` or ``"meta"``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated, and in old files for ever
        return {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "meta": lambda: torch.ones(2, device="meta"),
        }[kind]()


class Payload:
    """Creates a file when it is unpickled without restriction."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def refusal(path: Path, *words: str) -> InputError:
    """Open a file that must be refused in one line that contains all of ``words``."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert caught.value.exit_code == 3
    assert len(line.splitlines()) == 1
    assert line.startswith(str(path))
    said = line.removeprefix(str(path))  # the name of a test is part of its path
    for word in words:
        assert word in said
    return caught.value
