"""Directories of torch.distributed.checkpoint: written by two ranks, read by one process, and made to do harm."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from nndiag import ScanSettings, scan
from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.checkpoint.lazy import LazyTensors
from nndiag.errors import InputError

from .files import Payload, refusal, same_tensors

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote: ``nested``, ``flat`` and the whole state in ``whole.pt``."""
    return write_with_two_ranks(tmp_path_factory.mktemp("dcp"))


def write_with_two_ranks(out: Path) -> Path:
    """Let two processes train and write ``two_ranks.py``'s network into a folder, and return it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, *command, str(script), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("form", "key", "optimizer"), [("nested", "model", "optim"), ("flat", "", "optimizer")]
)
def test_weights_state_and_step_of_two_ranks_come_back_whole(
    written: Path, form: str, key: str, optimizer: str
) -> None:
    whole = torch.load(written / "whole.pt", weights_only=True)
    opened = open_checkpoint(written / form)
    assert (opened.format, opened.step) == ("dcp", 3)
    assert opened.epoch == (1 if form == "nested" else None)
    (place,) = opened.places
    assert place.key == key
    assert isinstance(place.tensors, LazyTensors)
    assert same_tensors(dict(place.tensors), whole["model"])
    (saved,) = opened.optimizers
    assert saved.key == optimizer
    (group,) = saved.groups
    assert (group["lr"], group["betas"], group["params"]) == (1e-2, (0.8, 0.99), tuple(whole["model"]))
    assert set(saved.state) == set(whole["optim"]["state"])
    for name, expected in whole["optim"]["state"].items():
        assert saved.state[name]["step"] == 3
        for moment in ("exp_avg", "exp_avg_sq"):
            found = saved.state[name][moment]
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found, expected[moment])


NETWORK = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
"""


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_a_scan_reaches_the_deepest_level(
    written: Path, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    draw = np.random.default_rng(0)
    np.savez("probe.npz", x=draw.normal(size=(64, 4)).astype("f4"), y=draw.integers(0, 3, 64))
    torch.save(torch.load(written / "whole.pt", weights_only=True)["model"], "whole.pt")
    settings = ScanSettings(model="net.py:build", data="probe.npz", loss="cross_entropy", all_nodes=True)
    (parts,) = scan(written / form, settings).report.checkpoints
    (whole,) = scan("whole.pt", settings).report.checkpoints
    assert parts.level == "curvature"
    assert parts.checkpoint.optimizer is not None
    assert (parts.checkpoint.optimizer["name"], parts.checkpoint.optimizer["lr"]) == ("adamw", 1e-2)
    for one, two in zip(parts.nodes, whole.nodes, strict=True):
        assert one.measures["lambda_max"] == two.measures["lambda_max"]
        assert "stability_margin" in one.measures
        assert "stability_margin" not in two.measures


def test_directories_are_found_in_a_run(written: Path) -> None:
    assert {path.name for path in find_checkpoints(written, "[nf]*")} == {"nested", "flat"}
    assert find_checkpoints(written / "flat") == (written / "flat",)


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """Return a copy of a checkpoint of which the metadata was changed."""

    def change(edit: Callable[[Any], object]) -> Path:
        copy = tmp_path / "run" / "step"
        shutil.copytree(written / "nested", copy)
        metadata = pickle.loads((copy / ".metadata").read_bytes())
        changed = edit(metadata)
        (copy / ".metadata").write_bytes(pickle.dumps(metadata if changed is None else changed))
        return copy

    return change


def read_by_torch(folder: Path) -> None:
    """Read it as the stock reader does."""
    with contextlib.suppress(dcp.CheckpointException):
        _load_state_dict({}, dcp.FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)


def test_payload_in_the_metadata_does_not_run(damaged: Any, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = damaged(lambda metadata: setattr(metadata, "planner_data", {"x": Payload(marker)}))
    refusal(folder, "posix.mkdir")
    assert find_checkpoints(folder.parent) == (folder,)
    assert not marker.exists()
    read_by_torch(folder)
    assert marker.exists()  # the payload works where nothing stops it


@pytest.mark.parametrize("key", ["step", "optim"])
def test_payload_in_a_value_does_not_run(tmp_path: Path, key: str) -> None:
    folder, marker = tmp_path / "step", tmp_path / "ran"
    value = Payload(marker) if key == "step" else {"param_groups": Payload(marker)}
    dcp_save({"model": {"w": torch.ones(2, 2)}, key: value}, folder)
    opened = open_checkpoint(folder)
    assert (opened.step, opened.optimizers) == (None, ())
    assert torch.equal(opened.places[0].tensors["w"], torch.ones(2, 2))
    assert not marker.exists()
    read_by_torch(folder)
    assert marker.exists()


def dcp_save(state: dict[str, Any], folder: Path) -> None:
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def every(metadata: Metadata, **changes: object) -> None:
    for info in metadata.storage_data.values():
        for name, value in changes.items():
            setattr(info, name, value)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret"])
def test_paths_do_not_leave_the_directory(damaged: Any, path: str) -> None:
    folder = damaged(lambda metadata: every(metadata, relative_path=path))
    (folder.parent / "secret").write_bytes((folder / "__0_0.distcp").read_bytes())
    refusal(folder, "lies outside of its directory")


def test_a_data_file_that_is_a_link_is_not_followed(damaged: Any) -> None:
    folder = damaged(lambda metadata: None)
    file = folder / "__0_0.distcp"
    file.rename(folder.parent / "secret")
    file.symlink_to(folder.parent / "secret")
    refusal(folder, "leaves its directory")


def enlarge(metadata: Any) -> None:
    described = metadata.state_dict_metadata["model.0.weight"]
    described.size = torch.Size([10**9, 10**6])


def enlarge_with_its_part(metadata: Any) -> None:
    described = metadata.state_dict_metadata["model.0.weight"]
    described.size = torch.Size([10**9, 4])
    described.chunks[0].sizes = torch.Size([10**9 - 4, 4])


def shift(metadata: Any) -> None:
    metadata.state_dict_metadata["model.0.weight"].chunks[1].offsets = torch.Size([10**18, 0])


def drop_a_part(metadata: Any) -> None:
    del metadata.state_dict_metadata["model.0.weight"].chunks[1]


@pytest.mark.parametrize("edit", [enlarge, enlarge_with_its_part, shift, drop_a_part])
def test_impossible_sizes_are_refused_before_anything_is_allocated(damaged: Any, edit: Any) -> None:
    refusal(damaged(edit), "truncated or damaged")


@pytest.mark.parametrize("length", [0, 10, 1 << 61])
def test_parts_that_are_not_where_they_are_said_to_be(damaged: Any, length: int) -> None:
    folder = damaged(lambda metadata: every(metadata, offset=length))
    with pytest.raises(InputError, match="truncated or damaged"):
        dict(open_checkpoint(folder).places[0].tensors)


def test_compressed_parts_are_refused(damaged: Any) -> None:
    refusal(damaged(lambda metadata: every(metadata, transform_descriptors=["zstd"])), "compressed")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x04.", pickle.dumps([1, 2]), b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02" + b"r\xff\xff\xff\x7f" * 3 + b".",  # a memo index that makes the C unpickler allocate 16 GB
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of a terabyte
    ],
)  # fmt: skip
def test_metadata_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / ".metadata").write_bytes(content)
    refusal(folder, "")


def test_a_pickle_cannot_change_the_classes_of_torch(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    attribute = (
        b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x04\x00\x00\x00evilK\x01s\x86b."
    )
    (folder / ".metadata").write_bytes(attribute)
    refusal(folder, "")
    assert not hasattr(Metadata, "evil")
