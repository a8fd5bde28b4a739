"""What a hostile file costs: memory of a few times its own size, and time that grows no faster than it does."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from nndiag.checkpoint import open_checkpoint
from nndiag.errors import InputError
from tests.checkpoint.files import save
from tests.security.conftest import Program
from tests.security.stock import in_child

Refused = Callable[..., str]
SIZE = 100_000
OPENED = """
import pathlib, resource, sys
from safetensors import safe_open
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
with safe_open(sys.argv[1], "numpy") as file:
    print(len(file.keys()), resident() - before)
"""
"""Opens a file with the stock library in a process that holds nothing yet, and says what that took."""


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x/data.pkl", pickled)
        packed.writestr("x/version", "3\n")
    return path


BODIES = {
    "lists in a list": b"]" + b"]a" * (SIZE // 2),
    "lists": b"]" * SIZE,
    "dicts": b"}" * SIZE,
    "marks": b"(" * SIZE,
    "tuples in tuples": b"N" + b"\x85" * SIZE,
    "ordered dicts": b"]ccollections\nOrderedDict\nq\x000" + b"h\x00)Ra" * (SIZE // 5),
    "numbers": b"](" + b"K\x07" * (SIZE // 2) + b"e",
    "dicts in dicts": b"}" + b"X\x01\x00\x00\x00a}" * (SIZE // 7) + b"s" * (SIZE // 7),
    "a string": b"X" + struct.pack("<I", SIZE) + b"a" * SIZE,
    "a name": b"c" + b"a" * SIZE,
    "memos": b"N" + b"".join(b"r" + struct.pack("<I", index * 3001) for index in range(SIZE // 5)),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_memory_of_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: str) -> None:
    """An opcode of one byte makes an object of sixty: what a pickle may make is bounded by its length."""
    monkeypatch.setattr("nndiag.checkpoint.pickle_walk.SPARE_OBJECTS", 1000)
    open_checkpoint(save({"w": torch.ones(1)}, tmp_path / "good.pt", form))
    pickled = b"\x80\x02" + BODIES[kind] + b"."
    if form == "zip":
        path = archive(tmp_path / "x.pt", pickled)
    else:
        path = save({"w": torch.ones(1)}, tmp_path / "x.pt", "legacy")
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"}q\x00X\x01")] + pickled[2:])
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            open_checkpoint(path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 45 * SIZE


def string_of_gigabytes(content: bytes) -> bytes:
    name = b"X\x01\x00\x00\x00w"
    assert name in content
    return content.replace(name, b"X\xff\xff\xff\xffw")


def storage_of_gigabytes(content: bytes) -> bytes:
    count = b"K\x0cNt"
    assert count in content
    return content.replace(count, b"\x8a\x05" + struct.pack("<Q", 1 << 31)[:5] + b"Nt")


@pytest.mark.parametrize("lie", [string_of_gigabytes, storage_of_gigabytes])
def test_claims_of_gigabytes(run: Path, refused: Refused, lie: Callable[[bytes], bytes]) -> None:
    """The stock loader asks for the memory first, and finds that the file has 400 bytes afterwards."""
    path = save({"w": torch.ones(12)}, run / "x.pt", "legacy")
    path.write_bytes(lie(path.read_bytes()))
    stock = in_child(lambda: torch.load(path, weights_only=True))
    assert "MemoryError" in stock.raised or "can't allocate memory" in stock.raised
    for place in ("x.pt", "."):
        refused(place)


def test_memory_that_a_pickle_asks_for(run: Path, refused: Refused) -> None:
    """The stock loader makes a ``bytearray`` as long as 300 bytes say, before anybody sees it."""
    archive(run / "x.pt", b"\x80\x02cbuiltins\nbytearray\nJ" + struct.pack("<i", 1 << 26) + b"\x85R.")
    assert len(torch.load(run / "x.pt", weights_only=True)) == 1 << 26
    assert "impossible arguments" in refused("x.pt")


def header(path: Path, entries: dict[str, object], body: int = 0) -> Path:
    text = json.dumps(entries, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    return path


def test_more_than_a_million_tensors(run: Path, refused: Refused) -> None:
    of_nothing(run / "x.safetensors", 1_100_002)
    assert "holds more than 1000000 tensors" in refused("x.safetensors")


def of_nothing(path: Path, count: int) -> Path:
    """A file of empty tensors."""
    entry = b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(b'"%d' % index + entry for index in range(count)) + b"}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def test_tensors_cost_the_stock_loader_many_times_their_bytes(tmp_path: Path) -> None:
    """It takes as many as there are: a million, in a file of 57 MB, would have cost it a gigabyte."""
    path = of_nothing(tmp_path / "x.safetensors", 30_000)
    fresh = subprocess.run([sys.executable, "-c", OPENED, path], capture_output=True, check=True)
    count, taken = map(int, fresh.stdout.split())
    assert count == 30_000
    assert taken > 5 * path.stat().st_size


def test_thousands_of_tensors(run: Path, scan: Program) -> None:
    """Nothing is done with each tensor that looks at all the others: this would take minutes."""
    entries = {
        f"{index}.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * index, 4 * index + 4]}
        for index in range(5_000)
    }
    header(run / "x.safetensors", entries, 4 * 5_000)
    assert scan("x.safetensors", "--quiet", "--format", "json").code == 0


def test_dicts_in_dicts(run: Path, refused: Refused) -> None:
    nested: object = {}
    for _ in range(300):
        nested = {"a": nested}
    save({"w": torch.ones(2, 2), "x": nested}, run / "x.pt")
    deep = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 200_000 + b"}" + b"s" * 200_000 + b"."
    archive(run / "y.pt", deep)
    refused("y.pt")


def test_header_of_gigabytes(run: Path, refused: Refused) -> None:
    """The stock loader has the same bound of 100 MB, and refuses the header too."""
    for length in (1 << 32, 99_000_000):
        with (run / "x.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", length) + b'{"a":')
            file.truncate(5 << 30)
        with pytest.raises(SafetensorError):
            safe_open(run / "x.safetensors", "pt")
        refused("x.safetensors")


@pytest.mark.parametrize(
    "text",
    [b"[" * 10_000_000, b'{"a":' * 2_000_000, b'{"__metadata__":{' + b'"a":"b",' * 1_000_000],
    ids=range(3),
)
def test_header_of_brackets(run: Path, refused: Refused, text: bytes) -> None:
    (run / "x.safetensors").write_bytes(struct.pack("<Q", len(text) + 1) + b"{" + text)
    refused("x.safetensors")
