"""Text into tokens, by the ``tokenizer.json`` beside the checkpoint, which is data and no code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nndiag.checkpoint.confine import require_inside
from nndiag.config.callables import reason
from nndiag.errors import InputError, NndiagError, UsageError
from nndiag.probe.labels import IGNORED
from nndiag.probe.tables import padded
from nndiag.probe.tokenizer_file import require_modest

TOKENIZER = "tokenizer.json"
LARGEST_TOKENIZER = 256 * 2**20
LARGEST_SETTINGS = 8 * 2**20
_PADS, _MASKS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>"), ("[MASK]", "<mask>")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tokens:
    """Tokens of samples, ``(samples, positions)``, and ``mask``, 1 where a position is no padding.

    ``special`` is 1 at the positions of marks such as ``[CLS]``, which are nothing to predict, and at padding.
    """

    ids: Array
    mask: Array
    special: Array


class Tokenizer:
    """The tokenizer of a checkpoint.

    Args:
        folder: where the checkpoint lies.

    Raises:
        UsageError: the tokenizers library is not installed.
        InputError: there is none in the folder, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENIZER
        if not self._path.is_file():
            why = "there is no tokenizer to read text with"
            raise InputError(
                self._path, why, "save it there with tokenizer.save_pretrained, or give tokens as data"
            )
        require_inside(folder, self._path)
        if self._path.stat().st_size > LARGEST_TOKENIZER:
            raise InputError(self._path, "is larger than 256 MiB", "give the model's own tokenizer")
        require_modest(self._path)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise UsageError(
                "--data", "the tokenizers library is not installed", 'pip install "nndiag[hf]"'
            ) from error
        with self._working():
            self._library = Library.from_file(str(self._path))
        self._library.no_padding()

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._library.get_vocab_size())

    @property
    def padding(self) -> int:
        """The token that fills up, 0 where there is none; it is masked out."""
        return self._named("pad_token", _PADS) or 0

    @property
    def masking(self) -> int | None:
        """The token that hides another, where there is one."""
        return self._named("mask_token", _MASKS)

    def blocks(self, text: str, length: int) -> Tokens:
        """Cut one text into samples of ``length`` tokens, the last of which may be shorter and is padded."""
        with self._working():
            self._library.enable_truncation(length)
            first = self._library.encode(text)
        return self._together([first, *first.overflowing])

    def rows(self, texts: Sequence[str], length: int) -> Tokens:
        """Turn every text into one sample of at most ``length`` tokens."""
        with self._working():
            self._library.enable_truncation(length)
            return self._together(self._library.encode_batch(list(texts)))

    def _together(self, encodings: Sequence[Any]) -> Tokens:
        rows = [np.array(one.ids, dtype=np.int64) for one in encodings]
        if not max((len(row) for row in rows), default=0):
            raise InputError("probe", "the text holds no token", "give more text")
        marks = [np.array(one.special_tokens_mask, dtype=np.int64) for one in encodings]
        mask = padded([np.ones_like(row) for row in rows], 0)
        return Tokens(padded(rows, self.padding), mask, padded(marks, 1))

    def _named(self, role: str, usual: Sequence[str]) -> int | None:
        """Return the token of a role: as the files beside the tokenizer name it, else under a usual name."""
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            said = _json(self._path.parent / name).get(role)
            word = said.get("content") if isinstance(said, dict) else said
            if isinstance(word, str) and (found := self._library.token_to_id(word)) is not None:
                return int(found)
        known = (self._library.token_to_id(word) for word in usual)
        return next((int(token) for token in known if token is not None), None)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Turn what a damaged tokenizer does, panics of its library included, into one line."""
        try:
            yield
        except (NndiagError, MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            why = f"is damaged, or no tokenizer ({reason(error)[:120]})"
            raise InputError(self._path, why, "save it again") from error


def hide(tokens: Tokens, masking: int, vocabulary: int, seed: int) -> tuple[Array, Array]:
    """Hide 15 % of the tokens for a masked language model, as BERT was trained (Devlin et al. 2019, §3.1).

    Of the positions chosen 80 % show the masking token, 10 % a random one, and 10 % stay; marks and padding are never
    chosen. The same seed chooses the same.

    Returns:
        The tokens to show, and the labels: the token at positions chosen, ``IGNORED`` at all others.
    """
    generator = np.random.default_rng(seed)
    fate, lot = (np.asarray(generator.random(tokens.ids.shape)) for _ in range(2))
    other = generator.integers(0, vocabulary, tokens.ids.shape)
    open_ = tokens.special == 0
    chosen = open_ & (fate < 0.15)
    if not chosen.any() and open_.any():
        chosen = open_ & (fate == fate[open_].min())
    shown = np.where(chosen & (lot < 0.8), masking, tokens.ids)
    shown = np.where(chosen & (lot >= 0.9), other, shown)
    return shown, np.where(chosen, tokens.ids, IGNORED)


def _json(path: Path) -> dict[str, object]:
    """Return a settings file beside the tokenizer, nothing where it is missing or damaged."""
    try:
        if path.stat().st_size > LARGEST_SETTINGS:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
