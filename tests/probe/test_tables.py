"""Columns of Arrow, Parquet and JSON-lines files, and folders as the datasets library saves them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nndiag.errors import InputError, UsageError
from nndiag.probe.data import load_data
from nndiag.probe.takes import Takes

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
BERT = Takes(names=("input_ids", "attention_mask", "token_type_ids"), main="input_ids")
ROWS = {
    "input_ids": [[5, 6, 7], [8, 9, 3], [4, 4, 4]],
    "attention_mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
    "label": [0, 2, 1],
    "idx": [10, 11, 12],
}


def write(path: Path, rows: dict[str, Any]) -> Path:
    table = pa.table(rows)
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_columns_go_to_the_arguments_of_their_names(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"probe{suffix}", ROWS)
    data = load_data(path.name, tmp_path, takes=BERT)
    assert data.names == ("input_ids", "attention_mask")
    assert [x.tolist() for x in data.inputs] == [ROWS["input_ids"], ROWS["attention_mask"]]
    assert data.inputs[0].dtype == torch.int64
    assert data.targets is not None
    assert data.targets.tolist() == ROWS["label"]
    assert data.notes == ("probe: idx not used",)
    assert load_data(path.name, tmp_path, 2, takes=BERT).samples == 2


def test_rows_of_tokens_are_padded_and_their_padding_does_not_count(tmp_path: Path) -> None:
    rows = {"input_ids": [[5, 6, 7], [8]], "attention_mask": [[1, 1, 1], [1]], "labels": [[5, 6, 7], [8]]}
    data = load_data(write(tmp_path / "p.parquet", rows).name, tmp_path, takes=BERT)
    assert [x.tolist() for x in data.inputs] == [[[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]]
    assert data.targets is not None
    assert data.targets.tolist() == [[5, 6, 7], [8, -100, -100]]


def test_nested_lists_are_arrays_of_more_axes(tmp_path: Path) -> None:
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    write(tmp_path / "p.parquet", {"pixel_values": images.tolist(), "labels": [0, 1]})
    data = load_data("p.parquet", tmp_path, takes=Takes(names=("pixel_values",)))
    assert torch.equal(data.inputs[0].float(), images)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"x": [[1.0], [2.0, 3.0]]}, "the samples of x differ in length, from 1 to 2"),
        ({"x": [1.0, None]}, "x has empty entries"),
        ({"x": [{"bytes": b"png", "path": None}]}, "not numbers"),
        ({"x": ["a", "b"]}, "x is of type list"),
        (
            {"z": [1.0]},
            "holds z (the model takes input_ids, attention_mask, token_type_ids); name the inputs as the model does",
        ),
        ({"x": pa.array([], pa.float32())}, "holds no samples"),
    ],
)
def test_columns_that_are_no_probe_are_said(rows: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", rows)
    with pytest.raises(InputError) as caught:
        load_data("p.parquet", tmp_path, takes=BERT)
    assert said in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_a_damaged_file_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"p{suffix}", ROWS)
    held = path.read_bytes()
    for cut in (0, 7, len(held) // 2, len(held) - 5):
        path.write_bytes(held[:cut])
        with pytest.raises(InputError, match=r"damaged|holds no samples|differ"):
            load_data(path.name, tmp_path, takes=BERT)


def test_a_folder_of_the_datasets_library(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets", reason="datasets is not installed", exc_type=ImportError)
        whole = datasets.Dataset.from_dict(ROWS)
        whole.save_to_disk(tmp_path / "one", num_shards=2)
        datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "two")
    data = load_data("one", tmp_path, takes=BERT)
    assert data.inputs[0].tolist() == ROWS["input_ids"]
    with pytest.raises(UsageError, match=r"several splits; name one: --data \S+test or --data \S+train"):
        load_data("two", tmp_path, takes=BERT)
    assert load_data("two/test", tmp_path, takes=BERT).samples == 3


def test_a_folder_may_name_no_file_outside(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(tmp_path / "other.arrow", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../other.arrow"}]}))
    with pytest.raises(InputError, match=r"it names \.\./other\.arrow, outside its folder"):
        load_data("set", tmp_path, takes=BERT)


def test_a_folder_of_files_of_one_kind(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for part in ("b", "a"):
        write(folder / f"{part}.parquet", {"x": [float(ord(part))], "y": [0]})
    assert load_data("set", tmp_path).inputs[0].tolist() == [97.0, 98.0]
    write(folder / "c.jsonl", {"x": [1.0], "y": [0]})
    with pytest.raises(InputError, match="files of several kinds"):
        load_data("set", tmp_path)
