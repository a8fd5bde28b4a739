"""Probe files: what they may hold, and one line for everything else."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nndiag.errors import InputError, NndiagError, UsageError
from nndiag.probe.data import load_data
from nndiag.probe.npz import LARGEST

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


def save_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def save_compressed(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **{name: np.asarray(value) for name, value in arrays.items()})


def save_tensors(path: Path, **arrays: Tensor) -> None:
    save_file(arrays, path)


def save_pt(path: Path, **arrays: Any) -> None:
    torch.save(arrays, path)


def save_legacy(path: Path, **arrays: Any) -> None:
    torch.save(arrays, path, _use_new_zipfile_serialization=False)


WRITERS = [
    ("p.npz", save_npz),
    ("p.npz", save_compressed),
    ("p.safetensors", save_tensors),
    ("p.pt", save_pt),
    ("p.pt", save_legacy),
]
every_format = pytest.mark.parametrize(("name", "save"), WRITERS)
Save = Callable[..., None]


def problem(folder: Path, name: str = "p.npz", kind: type[NndiagError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        load_data(name, folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    return line


@every_format
def test_inputs_and_targets_are_read(tmp_path: Path, name: str, save: Save) -> None:
    save(tmp_path / name, x=X, y=Y)
    data = load_data(name, tmp_path)
    assert len(data.inputs) == 1
    assert torch.equal(data.inputs[0], X)
    assert data.targets is not None
    assert torch.equal(data.targets, Y)
    assert (data.samples, data.source, data.notes) == (6, name, ())
    assert data.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@every_format
def test_several_inputs_keep_their_order(tmp_path: Path, name: str, save: Save) -> None:
    save(tmp_path / name, **{f"x{i}": torch.full((3,), float(i)) for i in (10, 2, 0, 1, *range(3, 10))})
    data = load_data(name, tmp_path)
    assert [float(tensor[0]) for tensor in data.inputs] == list(range(11))
    assert data.targets is None


@every_format
def test_limit_keeps_the_first_samples(tmp_path: Path, name: str, save: Save) -> None:
    save(tmp_path / name, x=X, y=Y)
    data = load_data(name, tmp_path, limit=2)
    assert torch.equal(data.inputs[0], X[:2])
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1]
    assert load_data(name, tmp_path, limit=99).samples == 6


@every_format
def test_types_stay_and_bytes_are_noted(tmp_path: Path, name: str, save: Save) -> None:
    kinds = (torch.uint8, torch.float64, torch.float16, torch.int64, torch.bool)
    save(tmp_path / name, **{f"x{i}": torch.ones(3, 2, dtype=kind) for i, kind in enumerate(kinds)})
    data = load_data(name, tmp_path)
    assert tuple(tensor.dtype for tensor in data.inputs) == kinds
    assert data.notes == ("probe: x0 holds whole numbers 0 to 255 (uint8); scale them if training did",)


@every_format
def test_arrays_without_an_x_are_listed(tmp_path: Path, name: str, save: Save) -> None:
    save(tmp_path / name, obs=X, returns=Y)
    assert problem(tmp_path, name) == (
        f"{name}: holds obs, returns; give --model, whose inputs may have these names, or save the inputs as x"
    )
    save(tmp_path / name, x=X, obs=X.clone())
    assert load_data(name, tmp_path).notes == ("probe: obs not used",)


@every_format
def test_what_cannot_be_a_probe(tmp_path: Path, name: str, save: Save) -> None:
    path = tmp_path / name
    save(path, x=torch.tensor(3.0))
    assert "x is a single number" in problem(tmp_path, name)
    save(path, x=X, y=Y[:4])
    assert "the numbers of samples differ: x has 6, y has 4" in problem(tmp_path, name)
    save(path, x=torch.ones(0, 3))
    assert problem(tmp_path, name) == f"{name}: holds no samples; give at least one"
    save(path, x=X, x0=X.clone())
    assert "holds both x and x0" in problem(tmp_path, name)
    save(path, x0=X, x2=X.clone())
    assert "holds x0, x2; number the inputs from x0 without a gap" in problem(tmp_path, name)


@every_format
def test_values_that_are_not_finite_are_counted(tmp_path: Path, name: str, save: Save) -> None:
    bad = X.clone()
    bad[4] = torch.tensor([float("nan"), float("-inf")])
    save(tmp_path / name, x=bad)
    assert "x holds 2 values that are not finite" in problem(tmp_path, name)
    assert load_data(name, tmp_path, limit=4).samples == 4
    save(tmp_path / name, x=X, y=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, float("inf")]))
    assert "y holds 1 value that is not finite" in problem(tmp_path, name)


@every_format
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_one_line(tmp_path: Path, name: str, save: Save, part: float) -> None:
    path = tmp_path / name
    save(path, x=torch.ones(40, 30), y=torch.zeros(40))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert problem(tmp_path, name).startswith(f"{path}: ")


@every_format
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, name: str, save: Save) -> None:
    path = tmp_path / name
    save(path, x=X, y=Y)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_data(name, tmp_path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(line.isprintable() for line in refused)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.marker, "w"))


def test_python_objects_are_refused_and_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "p.npz", x=np.array([Payload(marker)], dtype=object))
    assert "is refused: x holds Python objects" in problem(tmp_path)
    for save in (save_pt, save_legacy):
        save(tmp_path / "p.pt", x=X, y=Payload(marker))
        assert "is refused: its pickle names" in problem(tmp_path, "p.pt")
    assert not marker.exists()
    np.savez(tmp_path / "p.npz", x=np.ones((2, 2)), meta=np.array([Payload(marker)], dtype=object))
    assert load_data("p.npz", tmp_path).samples == 2
    assert not marker.exists()


def test_text_and_other_byte_orders(tmp_path: Path) -> None:
    save_npz(tmp_path / "p.npz", x=np.array(["a", "b"]))
    assert "x holds <U1" in problem(tmp_path)
    save_npz(tmp_path / "p.npz", x=np.arange(6, dtype=">f4").reshape(2, 3))
    assert load_data("p.npz", tmp_path).inputs[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    save_npz(tmp_path / "p.npz", x=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert load_data("p.npz", tmp_path).inputs[0].is_contiguous()


def npy(shape: tuple[int, ...]) -> bytes:
    """The header of an array of doubles, and no data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_an_array_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("x.npy", npy((10**11, 10)))
    assert "is refused: x claims 8,000,000,000,000 bytes" in problem(tmp_path)
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("x.npy", npy((-4, -4)) + b"\0" * 128)
    assert problem(tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        archive.writestr(info, npy((1,)))
        info.file_size = LARGEST + 1
    assert "is refused: it unpacks to 64 GiB" in problem(tmp_path)


def test_names_twice_and_compressed_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("x.npy", npy((0,)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy((0,)))
    assert "holds a name twice" in problem(tmp_path)
    save_pt(tmp_path / "stored.pt", x=X)
    stored = zipfile.ZipFile(tmp_path / "stored.pt")
    with stored, zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert "is refused: its zip entries are compressed" in problem(tmp_path, "p.pt")


def test_strides_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    save_pt(tmp_path / "p.pt", x=torch.ones(1).expand(10**9))
    assert "is refused: its tensors claim 4000000000 bytes" in problem(tmp_path, "p.pt")


def test_a_header_of_safetensors_that_lies_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "p.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert "is truncated or damaged" in problem(tmp_path, "p.safetensors")
    (tmp_path / "p.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "is truncated or damaged" in problem(tmp_path, "p.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.ones(3), "holds an object of type Tensor, not a dict"),
        ({"x": [1, 2]}, "x is of type list"),
        ({"x": torch.ones(3).to_sparse()}, "holds a sparse tensor"),
        ({}, "holds no arrays; save the inputs as x"),
    ],
)
def test_other_contents_of_pt(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "p.pt")
    assert said in problem(tmp_path, "p.pt")


def test_names_in_the_file_cannot_steer_a_terminal(tmp_path: Path) -> None:
    save_tensors(tmp_path / "p.safetensors", **{"\x1b[2J\n::error": X})
    assert r"holds \x1b[2J\n::error;" in problem(tmp_path, "p.safetensors")
    save_tensors(tmp_path / "p.safetensors", **{"x": X, "\x1b[2J\n::error": X.clone()})
    assert load_data("p.safetensors", tmp_path).notes == (r"probe: \x1b[2J\n::error not used",)
    save_npz(tmp_path / "p.npz", **{f"array{i}": X for i in range(20)})
    assert "array15 and 12 more; " in problem(tmp_path)


def test_a_missing_file_and_a_wrong_spec(tmp_path: Path) -> None:
    assert problem(tmp_path, "gone.npz") == (
        f"{tmp_path / 'gone.npz'}: there is no such file; "
        "check the path; it counts from where the spec stands"
    )
    save_npz(tmp_path / "probe.npz", x=X)
    assert problem(tmp_path, "prob.npz").endswith('did you mean "probe.npz"?')
    (tmp_path / "folder.npz").mkdir()
    assert "there is no such file" in problem(tmp_path, "folder.npz")
    line = problem(tmp_path, "probe.csv", UsageError)
    assert line == (
        "--data probe.csv: is no kind of probe that is known; "
        "give .safetensors, .npz, .pt, .txt, .parquet, .jsonl, .arrow, a folder or file.py:callable"
    )
    with pytest.raises(UsageError, match="--limit: is 0; give at least 1"):
        load_data("probe.npz", tmp_path, limit=0)
