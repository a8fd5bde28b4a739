"""Files made to do harm, or harmed themselves: each ends in one line, and nothing in them runs."""

from __future__ import annotations

import builtins
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.errors import InputError

from .files import FORMS, Payload, network, not_dense, refusal, rezip, save, swap

WEIGHTS = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)}


@pytest.mark.parametrize("form", FORMS)
def test_payload_does_not_run(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    path = save({"w": torch.ones(2), "x": Payload(marker)}, tmp_path / "x.pt", form)
    refusal(path, "posix.mkdir", "state_dict()")
    assert find_checkpoints(tmp_path) == (path,)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the payload works where nothing stops it


@pytest.mark.parametrize("form", FORMS)
def test_payload_of_a_sibling_does_not_run(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    path = save(WEIGHTS, tmp_path / "policy.pth")
    save({"state": {}, "param_groups": [Payload(marker)]}, tmp_path / "policy.optimizer.pth", form)
    opened = open_checkpoint(path)
    assert "posix.mkdir" in opened.notes[0]
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickled_module_names_its_class(tmp_path: Path, form: str) -> None:
    path = save(nn.Linear(2, 2), tmp_path / "x.pt", form)
    refusal(path, "torch.nn.modules.linear.Linear", "save model.state_dict() instead")


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.getattr", "torch.load", "torch.hub.load", "torch.storage._load_from_bytes"],
)
def test_names_that_are_not_allowed(tmp_path: Path, name: str) -> None:
    module, _, last = name.rpartition(".")
    source = save(WEIGHTS, tmp_path / "good.pt")
    path = rezip(
        source, tmp_path / "x.pt", swap(b"ccollections\nOrderedDict\n", f"c{module}\n{last}\n".encode())
    )
    refusal(path, name)


def crafted(path: Path, body: bytes, **records: bytes) -> Path:
    """A zip archive with a pickle made of opcodes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + body + b".")
        for name, content in records.items():
            archive.writestr(f"x/data/{name}", content)
        archive.writestr("x/version", b"3\n")
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"cbuiltins\nbytearray\n" + number(1 << 60) + b"\x85R", "impossible arguments"),
        (b"ctorch\nTensor\n" + number(1 << 60) + b"\x85R", "names torch.Tensor"),
        (b"ctorch\nTensor\n" + number(1 << 60) + b"\x85\x81", "names torch.Tensor"),
        (b"c_codecs\nencode\n" + text("a") + text("zlib_codec") + b"\x86R", "impossible arguments"),
        (
            b"ctorch.storage\nUntypedStorage\n" + number(1 << 60) + b"\x85R",
            "names torch.storage.UntypedStorage",
        ),
        (number(3) + b")R", "no function"),
    ],
    ids=["bytearray", "Tensor", "Tensor.__new__", "codec", "UntypedStorage", "number"],
)
def test_calls_that_would_exhaust_the_machine(tmp_path: Path, body: bytes, words: str) -> None:
    refusal(crafted(tmp_path / "x.pt", body), words)


def test_set_state_of_a_tensor_is_refused(tmp_path: Path) -> None:
    tensor = io.BytesIO()
    torch.save(torch.ones(2), tensor)
    with zipfile.ZipFile(tensor) as archive:
        pickled = archive.read("archive/data.pkl")
    refusal(crafted(tmp_path / "x.pt", pickled[2:-1] + b"}b", **{"0": bytes(8)}), "truncated or damaged")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_truncated_torch_file(tmp_path: Path, form: str, share: float) -> None:
    whole = save(network().state_dict(), tmp_path / "whole.pt", form).read_bytes()
    path = tmp_path / "x.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(path, "is truncated or damaged")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 14, 15, 30])
def test_first_bytes_of_a_torch_file(tmp_path: Path, form: str, length: int) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(save(WEIGHTS, tmp_path / "whole.pt", form).read_bytes()[:length])
    refusal(path, "is truncated or damaged")


@pytest.mark.parametrize("length", [1, 7, 8, 9, 20, 100, -20, -1])
def test_truncated_safetensors(tmp_path: Path, length: int) -> None:
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:length])
    refusal(path, "is truncated or damaged")


@pytest.mark.parametrize("length", [1 << 40, 99_999_999, (1 << 64) - 1])
def test_safetensors_header_of_absurd_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"w":' + bytes(100))
    refusal(path, "is truncated or damaged")


def test_safetensors_offsets_beyond_the_file(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refusal(path, "is truncated or damaged")


def test_compressed_entries(tmp_path: Path) -> None:
    source = save({"w": torch.zeros(100_000)}, tmp_path / "good.pt")
    path = rezip(source, tmp_path / "x.pt", compression=zipfile.ZIP_DEFLATED)
    assert torch.load(path, weights_only=True)["w"].numel() == 100_000  # torch would unpack it
    refusal(path, "compressed")


@pytest.mark.parametrize("again", ["good/data/0", "good/data.pkl", "good/DATA/0"])
def test_duplicate_entries(tmp_path: Path, again: str) -> None:
    path = tmp_path / "x.pt"
    source = save(WEIGHTS, tmp_path / "good.pt")
    if "DATA" in again:  # another name to Python, the same to torch
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
            new.writestr(again, b"other")
    else:
        rezip(source, path, again=again)
    refusal(path, "names an entry twice")


def test_encrypted_entries(tmp_path: Path) -> None:
    content = bytearray(save(WEIGHTS, tmp_path / "good.pt").read_bytes())
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + 8] |= 1
        entry = content.find(b"PK\x01\x02", entry + 1)
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt", "encrypted")


def resize(content: bytearray, packed: int | None, unpacked: int) -> None:
    """Change the sizes that a zip directory gives for the storages."""
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        length = struct.unpack_from("<H", content, entry + 28)[0]
        if b"/data/" in content[entry + 46 : entry + 46 + length]:
            struct.pack_into("<I", content, entry + 24, unpacked)
            if packed is not None:
                struct.pack_into("<I", content, entry + 20, packed)
        entry = content.find(b"PK\x01\x02", entry + 1)


def test_overlapping_entries(tmp_path: Path) -> None:
    content = bytearray(save(WEIGHTS, tmp_path / "good.pt").read_bytes())
    resize(content, len(content), len(content))
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt", "overlap")


def test_stored_entries_that_would_grow(tmp_path: Path) -> None:
    content = bytearray(save(WEIGHTS, tmp_path / "good.pt").read_bytes())
    resize(content, None, 1 << 31)
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt", "compressed")


def test_storage_that_claims_more_than_its_record(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt")
    path = rezip(source, tmp_path / "x.pt", swap(b"K\x0ctq", b"K\x7ftq"))
    mapped = torch.load(path, weights_only=True, mmap=True)["w"]
    assert mapped.untyped_storage().nbytes() == 4 * 127  # torch reads beyond the record
    refusal(path, "storage 0 claims 508 bytes and its record holds 48")


def test_storage_without_a_record(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt")
    refusal(rezip(source, tmp_path / "x.pt", swap(text("0"), text("7"))), "storage 7 is missing")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x03K\x04\x86", b"K\x7fK\x04\x86"),  # size
        (b"K\x04K\x01\x86", b"K\x40K\x01\x86"),  # stride
        (b"QK\x00K\x03K\x04", b"QK\x01K\x03K\x04"),  # offset
    ],
    ids=["size", "stride", "offset"],
)
def test_tensor_that_claims_more_than_its_storage(tmp_path: Path, form: str, old: bytes, new: bytes) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt", form)
    path = tmp_path / "x.pt"
    if form == "zip":
        rezip(source, path, swap(old, new))
    else:
        path.write_bytes(swap(old, new)(source.read_bytes()))
    refusal(path, "a tensor claims", "of a storage that holds 48")


def test_tensor_of_a_newer_type_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    source = save({"w": torch.ones(3, 4, dtype=torch.uint16)}, tmp_path / "good.pt")
    path = rezip(source, tmp_path / "x.pt", swap(b"K\x03K\x04\x86", b"K\x04K\x04\x86"))
    refusal(path, "a tensor claims 32 bytes of a storage that holds 24")


@pytest.mark.parametrize("form", FORMS)
def test_expansion_without_end(tmp_path: Path, form: str) -> None:
    path = save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt", form)
    assert path.stat().st_size < 10_000
    refusal(path, "tensors claim", "contiguous")


def test_negative_sizes(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt")
    path = rezip(source, tmp_path / "x.pt", swap(b"K\x03K\x04\x86", b"J\xff\xff\xff\xffK\x04\x86"))
    refusal(path, "impossible shape")


def test_legacy_storage_that_is_not_listed_would_be_uninitialised(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt", "legacy").read_bytes()
    start = source.rindex(b"\x80\x02]")
    (tmp_path / "x.pt").write_bytes(source[:start] + b"\x80\x02].")
    refusal(tmp_path / "x.pt", "list of storages does not match")


def test_legacy_storage_views_are_refused(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt", "legacy").read_bytes()
    view = text("v") + number(0) + number(3) + b"\x87"
    (tmp_path / "x.pt").write_bytes(swap(b"K\x0cNt", b"K\x0c" + view + b"t")(source))
    refusal(tmp_path / "x.pt", "storage views of torch before 0.4")


def test_legacy_storage_that_ends_beyond_the_file(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt", "legacy").read_bytes()
    (tmp_path / "x.pt").write_bytes(source[:-1])
    refusal(tmp_path / "x.pt", "ends beyond the file")


@pytest.mark.parametrize("claim", [b"K\x7fNt", b"\x8a\x06\x00\x00\x00\x00\x00\x10Nt"])
def test_legacy_storage_that_claims_more_than_the_file(tmp_path: Path, claim: bytes) -> None:
    source = save(WEIGHTS, tmp_path / "good.pt", "legacy").read_bytes()
    (tmp_path / "x.pt").write_bytes(swap(b"K\x0cNt", claim)(source))
    refusal(tmp_path / "x.pt", "storage", "claims")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
def test_tensors_that_are_not_dense(tmp_path: Path, form: str, kind: str) -> None:
    refusal(save({"w": not_dense(kind)}, tmp_path / "x.pt", form), f"holds a {kind} tensor")


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({f"w{index}": torch.ones(1) for index in range(12)}, tmp_path / "x.pt")
    assert len(open_checkpoint(path).places[0].tensors) == 12
    monkeypatch.setattr("nndiag.checkpoint.inventory.MAX_TENSORS", 11)
    refusal(path, "more than 11 tensors")
    save_file({f"w{index}": torch.ones(1) for index in range(12)}, tmp_path / "x.safetensors")
    monkeypatch.setattr("nndiag.checkpoint.safetensors_file.MAX_TENSORS", 11)
    refusal(tmp_path / "x.safetensors", "more than 11 tensors")


@pytest.mark.parametrize("form", FORMS)
def test_pickle_of_absurd_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = save(WEIGHTS, tmp_path / "x.pt", form)
    for module in ("pickle_walk", "torch_zip"):
        monkeypatch.setattr(f"nndiag.checkpoint.{module}.MAX_PICKLE", 100)
    refusal(path, "a pickle of more than 100 bytes")


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_end_in_one_line(tmp_path: Path, form: str) -> None:
    whole = save(network().state_dict(), tmp_path / "whole.pt", form).read_bytes()
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "x.pt"
    lines: list[str] = []
    for _ in range(150):
        content = bytearray(whole)
        for place in torch.randint(0, len(whole), (3,), generator=generator).tolist():
            content[place] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
        path.write_bytes(content)
        try:
            open_checkpoint(path)
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_attributes_of_dicts_do_not_replace_their_methods(tmp_path: Path) -> None:
    state = OrderedDict(WEIGHTS)
    state.jtems = 1  # type: ignore[attr-defined]
    source = save({"model": state}, tmp_path / "good.pt")
    path = rezip(source, tmp_path / "x.pt", swap(text("jtems"), text("items")))
    assert torch.load(path, weights_only=True)["model"].items == 1
    opened = open_checkpoint(path)
    assert list(opened.places[0].tensors) == ["w", "b"]


def test_names_of_tensors_are_kept_and_errors_escape_them(tmp_path: Path) -> None:
    name = "a\x1b[31m\n::error::"
    opened = open_checkpoint(save({name: torch.ones(2)}, tmp_path / "x.pt"))
    assert list(opened.places[0].tensors) == [name]


def test_zip_entry_that_readers_name_differently(tmp_path: Path) -> None:
    """Without its UTF-8 flag a name is one thing to Python and another to torch."""
    renamed = swap(b"good/byteorder", "good/byteoré!".encode())
    content = bytearray(renamed(save(WEIGHTS, tmp_path / "good.pt").read_bytes()))
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + 9] &= 0xF7
        entry = content.find(b"PK\x01\x02", entry + 1)
    (tmp_path / "x.pt").write_bytes(content)
    refusal(tmp_path / "x.pt", "ambiguous")


def test_archive_behind_another(tmp_path: Path) -> None:
    good = save(WEIGHTS, tmp_path / "good.pt").read_bytes()
    other = save({"w": torch.zeros(3, 4)}, tmp_path / "other.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(other + good)
    refusal(tmp_path / "x.pt")


def test_out_of_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(WEIGHTS, tmp_path / "x.pt")

    def exhaust(*_: object, **__: object) -> None:
        raise builtins.MemoryError

    monkeypatch.setattr(torch, "load", exhaust)
    refusal(path, "does not fit into memory")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF])
def test_legacy_pickle_with_strings_of_gigabytes(tmp_path: Path, length: int) -> None:
    """Python sets as much memory aside as a read asks for, before it finds that the file is shorter."""
    source = save(WEIGHTS, tmp_path / "good.pt", "legacy").read_bytes()
    (tmp_path / "x.pt").write_bytes(swap(text("w"), b"X" + struct.pack("<I", length) + b"w")(source))
    tracemalloc.start()
    try:
        refusal(tmp_path / "x.pt", "breaks off")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
