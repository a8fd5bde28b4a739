"""Columns of Arrow, Parquet and JSON-lines files, and of folders that the datasets library saved, through pyarrow.

Only columns that are asked for become arrays. Sequences of tokens that differ in length are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nndiag.checkpoint.confine import require_inside
from nndiag.checkpoint.json_file import read_object
from nndiag.config.callables import reason
from nndiag.errors import InputError, NndiagError, UsageError
from nndiag.probe.labels import IGNORED
from nndiag.probe.npz import DENSEST, FREE, Lazy
from nndiag.probe.table_files import read_file

SUFFIXES = (".parquet", ".jsonl", ".arrow")
PADDING: Mapping[str, int] = {
    "input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "decoder_input_ids": 0, "labels": IGNORED, "y": IGNORED,
}  # fmt: skip
"""What sequences that are shorter than the longest are filled up with, by the name of the column."""
TOKENS, MASK = "input_ids", "attention_mask"
_SPLITS = "dataset_dict.json"
_STATE = "state.json"


def read_table(path: Path, limit: int | None) -> Mapping[str, object]:
    """Return the columns of a file, or of a folder: saved by ``datasets``, or holding files of one kind.

    A column becomes an array when it is looked up; text becomes a list of strings. Tokens that are filled up come with
    a mask of what is none of that, where the table has none.

    Args:
        path: a ``.parquet``, ``.jsonl`` or ``.arrow`` file, or a folder.
        limit: how many rows to keep, from the first.

    Raises:
        UsageError: pyarrow is not installed, or a folder of several splits does not say which.
        InputError: it is missing, damaged, or no table.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UsageError(f"--data {path}", "pyarrow is not installed", 'pip install "nndiag[hf]"') from error
    with _reading(path):
        tables = [read_file(pa, file, limit) for file in _files(path)]
        table = pa.concat_tables(tables).unify_dictionaries()
        table = table if limit is None else table.slice(0, limit)
        table.validate(full=True)
    if not table.num_rows:
        raise InputError(path, "holds no samples", "give at least one")
    names = tuple(table.column_names)
    if not _is_filled_up(pa, table):
        return Lazy(names, lambda name: _column(pa, path, name, table.column(name)))

    def read(name: str) -> object:
        if name != MASK:
            return _column(pa, path, name, table.column(name))
        lengths = table.column(TOKENS).combine_chunks().value_lengths().to_pylist()
        return padded([np.ones(length, dtype=np.int64) for length in lengths], PADDING[MASK])

    return Lazy((*names, MASK), read)


def _is_filled_up(pa: Any, table: Any) -> bool:
    """Return whether the tokens of a table differ in length, and no column says which of them are padding."""
    if TOKENS not in table.column_names or MASK in table.column_names:
        return False
    tokens = table.column(TOKENS)
    if not (pa.types.is_list(tokens.type) or pa.types.is_large_list(tokens.type)) or tokens.null_count:
        return False
    return len(tokens.combine_chunks().value_lengths().unique()) > 1


def _files(path: Path) -> list[Path]:
    """Return the files of a table, in order."""
    if not path.is_dir():
        return [path]
    if (path / _STATE).is_file():
        return _listed_in(path / _STATE)
    if (path / _SPLITS).is_file():
        splits = sorted(inner.name for inner in path.iterdir() if (inner / _STATE).is_file())
        named = " or ".join(f"--data {path / split}" for split in splits[:4])
        raise UsageError(f"--data {path}", "holds several splits", f"name one: {named}")
    found = {suffix: sorted(path.glob(f"*{suffix}")) for suffix in SUFFIXES}
    kinds = [files for files in found.values() if files]
    if len(kinds) != 1:
        what = "files of several kinds" if kinds else "no dataset that is known"
        raise InputError(
            path,
            f"holds {what}",
            "give a folder that save_to_disk wrote, or .parquet, .jsonl or .arrow files",
        )
    return kinds[0]


def _listed_in(state: Path) -> list[Path]:
    """Return the files that ``save_to_disk`` listed; none may lie elsewhere."""
    content = read_object(state)
    entries = content.get("_data_files")
    names = [entry["filename"] for entry in entries] if isinstance(entries, list) else []
    if len(set(map(str, names))) < len(names) or not names:
        raise InputError(state, "names no files, or one of them twice", "save the dataset again")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                state, f"is refused: it names {str(name)[:80]}, outside its folder", "save it again"
            )
        require_inside(state.parent, state.parent / name)
    return [state.parent / name for name in names]


def _column(pa: Any, path: Path, name: str, column: Any) -> object:
    """Return a column as an array, padded where it holds sequences of tokens, or as a list of strings."""
    with _reading(path):
        values = column.combine_chunks()
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        kind = values.type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            if kind is not values.type:
                _require_few_words(path, name, values)
            return [text or "" for text in values.to_pylist()]
        return _array(pa, path, name, values)


def _require_few_words(path: Path, name: str, values: Any) -> None:
    """Refuse words that are long, and repeat so often that together they are far more than what holds them."""
    import pyarrow.compute as compute

    lengths = compute.binary_length(values.dictionary).take(values.indices)
    if (compute.sum(lengths).as_py() or 0) > FREE + DENSEST * values.nbytes:
        raise InputError(path, f"is refused: {name} repeats long texts", "leave the repetitions out")


def _array(pa: Any, path: Path, name: str, values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if values.null_count:
        raise InputError(path, f"{name} has empty entries", "fill them in, or leave the rows out")
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list:
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            why = f"{name} holds {str(kind)[:80]}, not numbers"
            raise InputError(path, why, "give images and the like through file.py:callable")
        return np.array(values.to_numpy(zero_copy_only=False))
    lengths = np.asarray(values.value_lengths().to_numpy(zero_copy_only=False))
    inner = _array(pa, path, name, values.flatten())
    if len(set(lengths.tolist())) == 1:
        return inner.reshape(len(lengths), int(lengths[0]), *inner.shape[1:])
    if name not in PADDING or inner.ndim > 1:
        why = f"the samples of {name} differ in length, from {lengths.min()} to {lengths.max()}"
        raise InputError(path, why, "pad them to one length")
    return padded(np.split(inner, np.cumsum(lengths)[:-1]), PADDING[name])


def padded(rows: list[np.ndarray[Any, Any]], filling: int) -> np.ndarray[Any, Any]:
    """Return rows of different lengths as one array, filled up at their ends.

    Raises:
        InputError: that would be more than a hundred times as many numbers, and many.
    """
    longest, held = max(map(len, rows)), sum(map(len, rows))
    if len(rows) * longest > FREE // 8 + DENSEST * held:
        why = f"{len(rows)} samples of up to {longest} tokens hold only {held}"
        raise InputError("probe", why, "leave the long ones out, or cut them")
    found = np.full((len(rows), longest), filling, dtype=np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file does to its reader into one line."""
    try:
        yield
    except (NndiagError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(path, "there is no such file", "check the path") from error
    except Exception as error:
        raise InputError(
            path, f"is truncated or damaged ({reason(error)[:120]})", "save the probe again"
        ) from error
