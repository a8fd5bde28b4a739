"""``config.json`` of a Hugging Face model: found, read as data, and refused where it names code.

It comes with the checkpoint, so that it is anyone's: no name in it is imported, no path in it is followed, and numbers
that would make building endless are refused before anything is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nndiag.checkpoint.confine import is_inside
from nndiag.errors import InputError

CONFIG_FILE = "config.json"
LARGEST_FILE = 8 * 2**20
"""Bytes of a configuration: the longest there are list some ten thousand labels."""
MOST_LAYERS = 2048
LARGEST_NUMBER = 2**31
_LAYER_COUNT = re.compile(
    r"(num_|n_)?(hidden_|encoder_|decoder_)*(layers?|depths?|blocks?)(_list)?", re.IGNORECASE
)
MOST_PARTS = 2**16
MOST_LABELS = 10**6
_PART_COUNT = re.compile(r"(num|n)_(?!ctx|positions|embd|inner|vocab|embeddings|labels)\w+", re.IGNORECASE)
_UNUSED = ("dtype", "torch_dtype", "quantization_config")
"""Keys that say how the weights are kept; here the checkpoint itself says that."""


@dataclass(frozen=True)
class HfConfig:
    """What a ``config.json`` says: the kind of model, and the class that was trained.

    ``values`` are those of the file, without what only says how the weights are kept.
    """

    path: Path
    model_type: str
    architecture: str
    values: Mapping[str, object] = field(repr=False)


def find_config(path: Path) -> Path | None:
    """Return the ``config.json`` in a directory or beside a file, ``None`` where there is none of a Hugging Face model,
    or it is a link out of there.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE
    if not file.is_file() or not is_inside(folder, file) or file.stat().st_size > LARGEST_FILE:
        return None
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return file if isinstance(content, dict) and "model_type" in content else None


def require_readable(path: Path) -> None:
    """Refuse a ``config.json`` in a directory or beside a file that ``find_config`` could not read.

    Raises:
        InputError: it is there, and damaged or without a kind of model.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / CONFIG_FILE
    if file.is_file() and is_inside(folder, file):
        read_config(file)


def read_config(path: Path) -> HfConfig:
    """Read and check a ``config.json``.

    Raises:
        InputError: it is damaged, names code (``auto_map``, an attention implementation to be fetched), says not which
            class was trained, or asks for absurdly many layers.
    """
    content = _parsed(path)
    for key, value in _entries(content):
        _refuse(path, key, value)
    kind, classes = content.get("model_type"), content.get("architectures")
    if not isinstance(kind, str):
        raise InputError(path, 'has no "model_type"', "give --model file.py:callable")
    if not (isinstance(classes, list) and len(classes) == 1 and isinstance(classes[0], str)):
        why = f'"architectures" is {json.dumps(classes)[:80]}, not the one class that was trained'
        raise InputError(path, why, "correct it, or give --model file.py:callable")
    values = {
        key: value
        for key, value in content.items()
        if key not in _UNUSED and "attn_implementation" not in key
    }
    return HfConfig(path, kind, classes[0], values)


def _parsed(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(path, f"is larger than {LARGEST_FILE // 2**20} MiB", "give the model's own file")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "make it readable") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "is not valid JSON", "save the configuration again") from error
    if not isinstance(content, dict):
        raise InputError(path, "is not a JSON object", "save the configuration again")
    return content


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Yield every key with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _refuse(path: Path, key: str, value: object) -> None:
    own = "give --model file.py:callable, code of your own"
    if key == "auto_map" and value:
        raise InputError(path, "is refused: its auto_map names code to run", own)
    if "attn_implementation" in key and "/" in json.dumps(value):
        raise InputError(path, f"is refused: {key} names code to fetch", own)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        most = _most(key)
        if isinstance(number, int) and abs(number) > most:
            raise InputError(
                path, f"is refused: {key} is {str(number)[:30]}, more than {most:,}", "correct it"
            )


def _most(key: str) -> int:
    """Return the largest number that may stand there: what is made one by one takes time and memory for each."""
    if _LAYER_COUNT.fullmatch(key):
        return MOST_LAYERS
    if key == "num_labels":
        return MOST_LABELS
    return MOST_PARTS if _PART_COUNT.fullmatch(key) else LARGEST_NUMBER
