"""Directories of torch.distributed.checkpoint: the stock reader unpickles whatever they hold and follows any path."""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from nndiag.checkpoint import open_checkpoint
from tests.checkpoint.files import Payload
from tests.security.conftest import Program
from tests.security.stock import in_child

Refused = Callable[..., str]
WEIGHTS = {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.ones(3)}


def save(folder: Path, **extra: object) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process, which is meant
        dcp.save({"model": WEIGHTS, **extra}, checkpoint_id=folder, no_dist=True)
    return folder


def stock(folder: Path, *names: str) -> dict[str, Any]:
    """What the stock reader makes of it."""
    state: dict[str, Any] = dict.fromkeys(names, 0) or {
        "model": {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def change(folder: Path, edit: Callable[[Metadata], object]) -> None:
    """Rewrite ``.metadata`` as an attacker would."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def redirect(folder: Path, **fields: object) -> None:
    """Change where every part is said to lie."""

    def edit(metadata: Metadata) -> None:
        metadata.storage_data = {
            index: replace(info, **fields) for index, info in metadata.storage_data.items()
        }

    change(folder, edit)


def test_harmless_directory(run: Path, scan: Program) -> None:
    save(run / "step-5", step=5)
    assert torch.equal(stock(run / "step-5")["model"]["0.weight"], WEIGHTS["0.weight"])
    for place in ("step-5", "."):
        assert scan(place, "--quiet").code == 0


@pytest.mark.parametrize("protocol", range(6))
def test_metadata_that_is_a_payload(run: Path, marker: Path, refused: Refused, protocol: int) -> None:
    save(run / "x")
    (run / "x/.metadata").write_bytes(pickle.dumps(Payload(marker), protocol))
    with pytest.raises(CheckpointException):  # what it got is no metadata; it has run by then
        stock(run / "x")
    marker.rmdir()
    for place in ("x", "."):
        for trust in ((), ("--trust",)):
            assert "its pickle names posix.mkdir, which would have to run as code" in refused(place, *trust)


def test_payload_inside_of_metadata(run: Path, marker: Path, refused: Refused) -> None:
    save(run / "x")
    change(run / "x", lambda metadata: setattr(metadata, "planner_data", {"model": Payload(marker)}))
    stock(run / "x")
    marker.rmdir()
    assert "posix.mkdir" in refused("x")


@pytest.mark.parametrize("name", ["step", "epoch", "train_state", "optim", "anything"])
def test_payload_in_a_value(run: Path, marker: Path, scan: Program, name: str) -> None:
    """Such values are optional: they are left out, or the checkpoint is refused; they never run."""
    save(run / "x", **{name: Payload(marker)})
    stock(run / "x", name)
    marker.rmdir()
    for words in (("x",), (".",), ("x", "--trust")):
        ended = scan(*words)
        assert ended.code in (0, 3)
        assert not marker.exists()


def test_payload_in_the_bytes_of_a_tensor(run: Path, marker: Path, refused: Refused) -> None:
    save(run / "x")
    torch.save(Payload(marker), run / "x/evil.distcp")
    redirect(run / "x", relative_path="evil.distcp", offset=0, length=(run / "x/evil.distcp").stat().st_size)
    assert "posix.mkdir" in refused("x")


@pytest.mark.parametrize(
    "name", ["../secret.distcp", "{outside}", "./../secret.distcp", "y/../../secret.distcp", "link"]
)
def test_paths_that_leave_the_directory(run: Path, tmp_path: Path, refused: Refused, name: str) -> None:
    save(run / "x")
    (run / "x/y").mkdir()
    outside = tmp_path / "run/secret.distcp"
    shutil.move(run / "x/__0_0.distcp", outside)
    (run / "x/link").symlink_to(outside)
    redirect(run / "x", relative_path=name.format(outside=outside))
    assert torch.equal(stock(run / "x")["model"]["0.weight"], WEIGHTS["0.weight"])  # it goes there
    line = refused("x")
    assert "lies outside of it" in line or "is a link that leaves its directory" in line


def test_metadata_that_is_a_link(run: Path, tmp_path: Path, refused: Refused) -> None:
    save(run / "x")
    (run / "x/.metadata").rename(tmp_path / "elsewhere")
    (run / "x/.metadata").symlink_to(tmp_path / "elsewhere")
    assert "is a link that leaves its directory" in refused("x")


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "nothing", "y", "a\nb\x1b[2J", 7, None, ("a",)])
def test_paths_that_are_none(run: Path, refused: Refused, name: object) -> None:
    save(run / "x")
    (run / "x/y").mkdir()
    redirect(run / "x", relative_path=name)
    refused("x")


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 1 << 40}, {"length": 1 << 40}, {"length": 1 << 62, "offset": 1 << 61}, {"offset": -1},
        {"length": -1},
        {"length": 0}, {"offset": 1.5}, {"offset": True, "length": None},
    ],
)  # fmt: skip
def test_parts_that_lie_nowhere(run: Path, refused: Refused, fields: dict[str, object]) -> None:
    save(run / "x")
    redirect(run / "x", **fields)
    refused("x")


def cut_anew(
    metadata: Metadata, shape: tuple[int, ...], chunks: list[ChunkStorageMetadata], **stored: int
) -> None:
    """Let a tensor have another shape and other parts, all of them where its one part was."""
    name = "model.0.bias"
    (index,) = (index for index in metadata.storage_data if index.fqn == name)
    info = replace(metadata.storage_data.pop(index), **stored)
    old = metadata.state_dict_metadata[name]
    assert isinstance(old, TensorStorageMetadata)
    metadata.state_dict_metadata[name] = TensorStorageMetadata(old.properties, torch.Size(shape), chunks)
    for row, chunk in enumerate(chunks):
        metadata.storage_data[replace(index, offset=chunk.offsets, index=row)] = info


def test_tensor_of_terabytes(run: Path, refused: Refused) -> None:
    """Parts that all lie in the same few bytes would add up to any size."""
    save(run / "x")

    def edit(metadata: Metadata) -> None:
        rows, wide = 1000, 1 << 28
        chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([1, wide])) for row in range(rows)]
        cut_anew(metadata, (rows, wide), chunks, length=4 * wide)

    change(run / "x", edit)
    refused("x")


def everything(folder: Path) -> dict[str, Any]:
    """What the stock reader makes of all that the metadata says, as its converter to torch.save does."""
    state: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(state, FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state


def test_tensor_that_is_nowhere(run: Path, refused: Refused) -> None:
    """The stock reader sets the memory aside before it reads a part: 16 GiB for a directory of a few kB."""
    save(run / "x")
    change(run / "x", lambda metadata: cut_anew(metadata, (1 << 32,), whole(1 << 32)))
    assert "can't allocate memory" in in_child(lambda: everything(run / "x")).raised
    refused("x")


def whole(size: int) -> list[ChunkStorageMetadata]:
    return [ChunkStorageMetadata(torch.Size([0]), torch.Size([size]))]


def test_parts_that_overlap(run: Path, scan: Program) -> None:
    """They leave holes, which must not show what the memory held before."""
    save(run / "x")

    def edit(metadata: Metadata) -> None:
        chunks = [ChunkStorageMetadata(torch.Size([at]), torch.Size([3])) for at in (0, 2, 3)]
        cut_anew(metadata, (9,), chunks)

    change(run / "x", edit)
    assert everything(run / "x")["model"]["0.bias"].shape == (
        9,
    )  # torch.empty, of which three stay as they are
    assert scan("x").code in (0, 3)
    if scan("x").code == 0:
        bias = open_checkpoint(run / "x").places[0].tensors["0.bias"]
        assert bias.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_more_than_a_million_entries(run: Path, refused: Refused) -> None:
    save(run / "x")
    change(
        run / "x",
        lambda metadata: metadata.state_dict_metadata.update(
            dict.fromkeys(map(str, range(1_000_001)), metadata.state_dict_metadata["model.0.bias"])
        ),
    )
    assert "holds more than 1000000 entries" in refused("x")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"]" * 1000,
        b"\x80\x02]" + b"]a" * 1_000_000 + b".",
        b"(" * 100_000 + b".",
        b"\x80\x04" + b")\x85" * 100_000 + b".",
    ],
)
def test_metadata_that_is_nothing(run: Path, refused: Refused, content: bytes) -> None:
    save(run / "x")
    (run / "x/.metadata").write_bytes(content)
    refused("x")
