from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from .files import network, refusal


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x08\x07\x12\x07pytorch" + bytes(100), "ONNX"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "NumPy"),
        (b"these are my notes about the run\n", "neither a safetensors nor a torch.save file"),
        (b"\n<!DOCTYPE html>\n<html><title>404</title>", "web page"),
        (b'{"model_type": "gpt2"}', "JSON text"),
        (b"\xef\xbb\xbf[1, 2]", "JSON text"),
        (b"if(true){ return 1 }\n", "neither a safetensors nor a torch.save file"),
        (bytes(1000), "neither a safetensors nor a torch.save file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    refusal(path, words)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickle(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"w": [1.0]}, protocol))
    refusal(path, "plain pickle", "state_dict()")


@pytest.mark.parametrize(
    ("name", "words"), [("sys_info", "before 2017"), ("weights.pt", "tar archive; unpack it")]
)
def test_tar(tmp_path: Path, name: str, words: str) -> None:
    with tarfile.open(tmp_path / "model.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refusal(tmp_path / "model.pth", words)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    refusal(tmp_path / "model.pt", "TorchScript", "state_dict()")


def zip_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(1000))
    return path


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("m/data/weights/weight_0", "m/models/model.json", "m/archive_format"), "torch.export"),
        (("data", "pytorch_variables.pth", "policy.pth", "policy.optimizer.pth"), "compressed"),
        (("metadata.json", "config.json", "model.weights.h5"), "Keras"),
        (("readme.txt", "a/b.txt"), "torch.save did not write"),
    ],
)
def test_other_zip_archives_are_named(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    refusal(zip_of(tmp_path / "model.pt", *names), words)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    refusal(tmp_path / "x.npz", ".npz", "--data")


@pytest.mark.parametrize("protocol", [4, 5])
def test_torch_save_with_another_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pt"
    torch.save(network().state_dict(), path, pickle_protocol=protocol)
    refusal(path, f"protocol {protocol}", "default pickle_protocol")
