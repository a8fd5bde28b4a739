"""Tables of which a few bytes would become gigabytes, or a dead process: what pyarrow makes of them, and nndiag."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoint.files import save
from tests.security.conftest import Program
from tests.security.stock import in_child

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from pyarrow import json as lines  # noqa: E402
from pyarrow import parquet  # noqa: E402

Refused = Callable[..., str]
ROWS = 1 << 22
DEEP = 300_000


@pytest.fixture
def network(run: Path) -> Path:
    save({"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}, run / "x.pt")
    (run / "nndiag.toml").write_text('[model]\nsequential = [["Linear", 4, 3]]\n')
    return run


def zeros() -> Any:
    """A table of 64 MiB."""
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * ROWS, np.float32)), 4)})


def test_parquet_that_unpacks_to_a_thousand_times_its_size(network: Path, refused: Refused) -> None:
    parquet.write_table(zeros(), network / "p.parquet", compression="zstd", row_group_size=ROWS)
    assert parquet.read_table(network / "p.parquet").nbytes > 1000 * (network / "p.parquet").stat().st_size
    assert "times its size" in refused("x.pt", "--data", "p.parquet")


def test_parquet_of_a_word_that_repeats(network: Path, refused: Refused) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, np.int32)), ["a" * (1 << 16)])
    parquet.write_table(pa.table({"x": words}), network / "p.parquet", compression="zstd")
    plain = parquet.ParquetFile(network / "p.parquet").iter_batches(columns=["x"])
    assert sum(batch.cast(pa.schema({"x": pa.large_string()})).nbytes for batch in plain) > 250 << 20
    assert "x repeats long texts" in refused("x.pt", "--data", "p.parquet")


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_that_is_compressed(network: Path, refused: Refused, kind: Callable[..., Any]) -> None:
    table = zeros()
    with kind(
        network / "p.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_table(table)
    with pa.OSFile(str(network / "p.arrow")) as file:
        opened = pa.ipc.open_stream(file) if kind is pa.ipc.new_stream else pa.ipc.open_file(file)
        assert opened.read_all().nbytes > 1000 * (network / "p.arrow").stat().st_size
    assert "its batches are compressed" in refused("x.pt", "--data", "p.arrow")


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_of_either_kind_is_read(network: Path, scan: Program, kind: Callable[..., Any]) -> None:
    table = pa.table(
        {"x": [[1.0, 2.0, 3.0, 4.0]] * 5, "word": pa.array(["a", "b"] * 2 + ["a"]).dictionary_encode()}
    )
    with kind(network / "p.arrow", table.schema) as stream:
        stream.write_table(table)
    ended = scan("x.pt", "--data", "p.arrow", "--format", "json", "--quiet")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["checkpoints"][0]["probe"]["samples"] == 5


def test_lines_of_other_names_each(network: Path, refused: Refused) -> None:
    path = network / "p.jsonl"
    path.write_text("\n".join(json.dumps({"x": [0.0] * 4, f"k{row}": 1}) for row in range(4000)))

    stock = in_child(lambda: lines.read_json(path).nbytes, 4 << 30)
    assert stock.value is not None, stock.raised
    assert stock.value > 500 * path.stat().st_size  # type: ignore[operator]
    assert "times its size" in refused("x.pt", "--data", "p.jsonl")


@pytest.mark.parametrize(
    "text", ['{"x": ' + "[" * DEEP + "]" * DEEP + "}", '{"x":' * DEEP + "0" + "}" * DEEP], ids=range(2)
)
def test_lines_that_are_deep(network: Path, refused: Refused, text: str) -> None:
    """The library's parser takes a part of the stack for each bracket, and more than there is."""
    path = network / "p.jsonl"
    path.write_text(text)
    assert in_child(lambda: bool(lines.read_json(path))).signal == signal.SIGSEGV
    assert "too deep in each other" in refused("x.pt", "--data", "p.jsonl")


def test_lines_whose_brackets_are_text(network: Path, scan: Program) -> None:
    row = {"x": [1.0, 2.0, 3.0, 4.0], "note": "[" * 500 + '"\\' + '{"a":' * 500}
    (network / "p.jsonl").write_text("\n".join([json.dumps(row)] * 5))
    assert scan("x.pt", "--data", "p.jsonl", "--quiet", "--level", "activations").code == 0


def test_one_long_sample_among_many_short_ones(network: Path, refused: Refused) -> None:
    """Padded to one length they would be 16 GB, of a file of 300 kB."""
    save({"0.weight": torch.ones(4, 3)}, network / "x.pt")
    (network / "nndiag.toml").write_text('[model]\nsequential = [["Embedding", 4, 3]]\n')
    rows = [{"input_ids": [1]}] * 20_000 + [{"input_ids": [1] * 100_000}]
    (network / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert refused("x.pt", "--data", "p.jsonl")


@pytest.mark.parametrize("names", [["a.arrow"] * 1000, ["link.arrow"], ["../a.arrow"], [], [7]])
def test_folder_that_names_odd_files(
    network: Path, tmp_path: Path, refused: Refused, names: list[object]
) -> None:
    folder = network / "set"
    folder.mkdir()
    table = pa.table({"x": [[1.0, 2.0, 3.0, 4.0]]})
    for path in (folder / "a.arrow", tmp_path / "a.arrow"):
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    (folder / "link.arrow").symlink_to(tmp_path / "a.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    refused("x.pt", "--data", "set")


def test_folder_whose_list_is_of_gigabytes(network: Path, refused: Refused) -> None:
    (network / "set").mkdir()
    with (network / "set/state.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "has more than 100000000 bytes" in refused("x.pt", "--data", "set")
