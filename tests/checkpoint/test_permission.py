"""Globals that the user lets in by name."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from nndiag.checkpoint import Permission, open_checkpoint
from nndiag.errors import UsageError

from .files import FORMS, Payload, refusal, save

WEIGHTS = {"w": torch.ones(2, 2)}


def allowing(*names: str) -> Permission:
    return Permission.of(names=names)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("value", "names"),
    [
        (argparse.Namespace(lr=0.1, sizes=[1, 2]), ("argparse.Namespace",)),
        (PurePosixPath("a/b"), ("pathlib.PurePosixPath",)),
        (np.float64(3), ("numpy._core.multiarray.scalar", "numpy.dtype", "numpy.dtypes.Float64DType")),
    ],
)
def test_what_is_named_is_let_in(tmp_path: Path, form: str, value: object, names: tuple[str, ...]) -> None:
    path = save({"model": WEIGHTS, "extra": value}, tmp_path / "x.pt", form)
    refusal(path, f"--allow-global {names[0]}")
    assert torch.equal(open_checkpoint(path, allowing(*names)).places[0].tensors["w"], WEIGHTS["w"])


@pytest.mark.parametrize("form", FORMS)
def test_another_name_is_not(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    content = {"model": WEIGHTS, "args": argparse.Namespace(), "x": Payload(marker)}
    path = save(content, tmp_path / "x.pt", form)
    with pytest.raises(Exception, match=r"posix\.mkdir") as caught:
        open_checkpoint(path, allowing("argparse.Namespace"))
    assert "--allow-global" not in str(caught.value)  # no way out
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.Tensor",
        "pickle.loads",
    ],
)
def test_what_runs_code_is_never_let_in(name: str) -> None:
    with pytest.raises(UsageError, match="is not data"):
        allowing(name)


@pytest.mark.parametrize(
    "name", ["", "Namespace", "argparse.", "argparse.Name space", "nowhere.Thing", "argparse.PARSER"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        allowing(name)
