"""Zip archives that are more than they seem: compressed, doubled, encrypted, unpacking without end."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.files import FORMS, not_dense, rezip, save, swap
from tests.security.conftest import Program
from tests.security.stock import in_child

WEIGHTS = {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.ones(3)}
Refused = Callable[..., str]
CONFIG = '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "probe.npz"\n'


def test_compressed_entries(run: Path, refused: Refused) -> None:
    source = save({"0.weight": torch.zeros(1 << 20)}, run / "good.pth_")
    path = rezip(source, run / "x.pt", compression=zipfile.ZIP_DEFLATED)
    source.unlink()
    assert path.stat().st_size < 20_000
    assert torch.load(path, weights_only=True)["0.weight"].nbytes == 4 << 20  # torch unpacks it
    assert "its zip entries are compressed" in refused("x.pt")
    assert "its zip entries are compressed" in refused(".")


@pytest.mark.parametrize("again", ["good/data/0", "good/DATA/0"])
def test_duplicate_entries(run: Path, refused: Refused, again: str) -> None:
    """The stock loader takes the second silently, under a name that other readers tell from the first too."""
    source = save(WEIGHTS, run / "good.pth_")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(run / "x.pt", "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name stands twice
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr(again, struct.pack("<12f", *[9] * 12))
    stock = torch.load(run / "x.pt", weights_only=True)["0.weight"]
    assert torch.equal(stock, torch.full((3, 4), 9.0))
    for place in ("x.pt", "."):
        assert "names an entry twice" in refused(place)


def test_encrypted_entries(run: Path, refused: Refused) -> None:
    """The stock loader refuses them too, in words about its own insides."""
    content = bytearray(save(WEIGHTS, run / "x.pt").read_bytes())
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + 8] |= 1
        entry = content.find(b"PK\x01\x02", entry + 1)
    (run / "x.pt").write_bytes(content)
    with pytest.raises(RuntimeError, match="unsupported encryption"):
        torch.load(run / "x.pt", weights_only=True)
    for place in ("x.pt", "."):
        assert "encrypted" in refused(place)


def bomb(path: Path, numbers: int, shape: tuple[int, ...] | None = None) -> Path:
    """An ``.npz`` of zeros, a thousandth of what it unpacks to."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape or (numbers // 4, 4)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header.getvalue())
        for _ in range(numbers >> 20):
            stream.write(bytes(4 << 20))
    return path


def test_probe_that_unpacks_to_a_thousand_times_its_size(run: Path, refused: Refused) -> None:
    save(WEIGHTS, run / "x.pt")
    path = bomb(run / "probe.npz", 1 << 26)
    with np.load(path) as stock:
        assert stock["x"].nbytes > 500 * path.stat().st_size
    assert "unpacks to" in refused("x.pt", "--data", "probe.npz")
    (run / "nndiag.toml").write_text(CONFIG)
    assert "unpacks to" in refused(".")


def test_probe_that_compresses_well_is_read(run: Path, scan: Program) -> None:
    save(WEIGHTS, run / "x.pt")
    np.savez_compressed(run / "probe.npz", x=np.zeros((100_000, 4), np.float32))
    (run / "nndiag.toml").write_text(CONFIG)
    ended = scan(".", "--level", "activations", "--quiet")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1 << 40, 4), "<f4"),
        ((-1, 4), "<f4"),
        ((1 << 62, 1 << 62), "<f4"),
        ((2, 4), "|O"),
        ((1 << 60,), "|V0"),
    ],
)
def test_probe_whose_header_lies(run: Path, refused: Refused, shape: tuple[int, ...], dtype: str) -> None:
    save(WEIGHTS, run / "x.pt")
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32)
    with zipfile.ZipFile(run / "probe.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    (run / "nndiag.toml").write_text(CONFIG)
    refused(".")


def test_probe_header_that_lies_costs_the_stock_loader_what_it_says(run: Path, refused: Refused) -> None:
    save(WEIGHTS, run / "x.pt")
    bomb(run / "probe.npz", 0, (1 << 29, 4))  # 8 GiB, in 300 bytes
    stock = in_child(lambda: np.load(run / "probe.npz")["x"].shape)
    assert "Unable to allocate 8.00 GiB" in stock.raised
    assert "x" in refused("x.pt", "--data", "probe.npz")


def test_probe_header_of_gigabytes(run: Path, refused: Refused) -> None:
    """Of the length that is claimed, both readers set nothing aside."""
    save(WEIGHTS, run / "x.pt")
    with zipfile.ZipFile(run / "probe.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1) + b"{")
    with np.load(run / "probe.npz") as stock, pytest.raises(ValueError, match="reading array header"):
        stock["x"]
    (run / "nndiag.toml").write_text(CONFIG)
    refused(".")


def test_probe_of_python_objects(run: Path, marker: Path, refused: Refused) -> None:
    class Bad:
        def __reduce__(self) -> object:
            return Path.mkdir, (marker,)

    save(WEIGHTS, run / "x.pt")
    np.savez(run / "probe.npz", x=np.array([Bad(), 1], dtype=object))
    assert np.load(run / "probe.npz", allow_pickle=True)["x"].shape == (2,)
    marker.rmdir()
    (run / "nndiag.toml").write_text(CONFIG)
    assert "x holds Python objects" in refused(".")


def test_storage_that_claims_more_than_its_record(run: Path, refused: Refused) -> None:
    source = save(WEIGHTS, run / "good.pth_")
    path = rezip(source, run / "x.pt", swap(b"K\x0ctq", b"K\x7ftq"))
    stock = torch.load(path, weights_only=True, mmap=True)["0.weight"]
    assert stock.untyped_storage().nbytes() == 4 * 127  # torch reads beyond the record
    for place in ("x.pt", "."):  # read whole, and glanced at
        assert "storage 0 claims 508 bytes and its record holds 48" in refused(place)


def test_tensor_that_shows_what_lies_behind_its_record(run: Path, refused: Refused) -> None:
    """Storage and shape lie alike: the stock loader maps the file, and shows the archive's directory as weights."""
    source = save(WEIGHTS, run / "good.pth_")
    grown = swap(b"K\x0ctq", b"K\x7ftq"), swap(b"K\x03K\x04\x86", b"K\x1fK\x04\x86")
    path = rezip(source, run / "x.pt", lambda pickled: grown[1](grown[0](pickled)))
    stock = torch.load(path, weights_only=True, mmap=True)["0.weight"]
    assert stock.shape == (31, 4)
    assert b"good/" in stock[3:].numpy().tobytes()
    for place in ("x.pt", "."):
        assert "storage 0 claims 508 bytes and its record holds 48" in refused(place)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x03K\x04\x86", b"K\x7fK\x04\x86"),
        (b"K\x04K\x01\x86", b"K\x40K\x01\x86"),
        (b"QK\x00K\x03K\x04", b"QK\x01K\x03K\x04"),
    ],
    ids=["size", "stride", "offset"],
)
def test_tensor_that_claims_more_than_its_storage(
    run: Path, refused: Refused, form: str, old: bytes, new: bytes
) -> None:
    """The stock loader refuses such a tensor too, in words about storages that cannot be resized."""
    source = save(WEIGHTS, run / "good.pth_", form)
    if form == "zip":
        rezip(source, run / "x.pt", swap(old, new))
    else:
        (run / "x.pt").write_bytes(swap(old, new)(source.read_bytes()))
    with pytest.raises(RuntimeError, match=r"not resizable|wrong byte size"):
        torch.load(run / "x.pt", weights_only=True)
    for place in ("x.pt", "."):
        assert "of a storage that holds 48" in refused(place)


@pytest.mark.parametrize("form", FORMS)
def test_strides_of_nothing_claim_terabytes(run: Path, refused: Refused, form: str) -> None:
    path = save({"0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, run / "x.pt", form)
    assert torch.load(path, weights_only=True)["0.weight"].numel() == 1 << 40
    assert "save contiguous copies" in refused("x.pt")


def sparse_with_bad_indices(path: Path) -> Path:
    indices = torch.tensor([[0, 1 << 40]])
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        bad = torch.sparse_coo_tensor(indices, torch.ones(2), (3,), check_invariants=False)
    torch.save({"0.weight": bad}, path)
    return path


def test_sparse_tensor_with_bad_indices(run: Path, refused: Refused) -> None:
    """The stock loader does not look at the indices: a value of 1 is lost, or written where it does not belong."""
    path = sparse_with_bad_indices(run / "x.pt")

    def stock() -> list[float]:
        loaded = torch.load(path, weights_only=True)["0.weight"]
        assert loaded._indices().max() == 1 << 40
        return loaded.to_dense().tolist()

    did = in_child(stock)
    assert did.signal or did.value == [1, 0, 0]
    for place in ("x.pt", "."):
        assert "holds a sparse tensor" in refused(place)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
def test_tensors_that_are_not_dense(run: Path, refused: Refused, form: str, kind: str) -> None:
    save({"0.weight": not_dense(kind)}, run / "x.pt", form)
    assert f"holds a {kind} tensor" in refused("x.pt")
