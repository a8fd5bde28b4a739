"""Probes of language models: text into tokens, and what is to be predicted where the data do not say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from nndiag.errors import InputError, UsageError
from nndiag.probe.labels import IGNORED
from nndiag.probe.named import TARGETS, Named
from nndiag.probe.takes import Takes
from nndiag.probe.tokens import Array, Tokenizer, Tokens, hide

BLOCK = 128
"""Tokens of a sample where nobody says how many, and the model takes as many."""
BLOCKS = 256
"""Samples that are taken from a text where nobody says how many."""
LARGEST = 256 * 2**20
"""Bytes of a text file."""
MODELLING = ("causal_lm", "masked_lm")


def read_text(path: Path, limit: int | None, seed: int, takes: Takes) -> tuple[Named, str]:
    """Return blocks of tokens of a text file with what is to be predicted of them, and a note of what was taken.

    Raises:
        UsageError: the loss is none of a language model.
        InputError: the file or the tokenizer is missing or damaged.
    """
    if takes.loss not in MODELLING:
        why = "plain text says only which tokens follow each other"
        do = f"add --loss {' or '.join(MODELLING)}"
        if takes.loss is not None:
            do = f"for {takes.loss} give rows of text and label, as .jsonl or .parquet"
        raise UsageError(f"--data {path}", why, do)
    tokenizer, length = _tokenizer(takes), block_length(takes)
    if path.stat().st_size > LARGEST:
        raise InputError(path, f"is larger than {LARGEST // 2**20} MiB", "give a part of it")
    text = path.read_text(encoding="utf-8", errors="replace")
    wanted = BLOCKS if limit is None else limit
    text = text[: wanted * length * 16]
    tokens = tokenizer.blocks(text, length)
    tokens = Tokens(tokens.ids[:wanted], tokens.mask[:wanted], tokens.special[:wanted])
    note = f"probe: {len(tokens.ids)} blocks of up to {length} tokens taken from {path.name}"
    if limit is None and len(tokens.ids) == BLOCKS:
        note += "; --limit takes more"
    return _predicting(tokens, tokenizer, seed, takes), note


def from_columns(columns: Mapping[str, object], seed: int, takes: Takes) -> Named | None:
    """Return samples of a table with a column ``text``, with its labels, or ``None`` where it has none.

    Raises:
        InputError: the text is none, or the labels are no numbers.
    """
    if "text" not in columns or any(name in columns for name in (*takes.names, "x", "x0")):
        return None
    texts = columns["text"]
    if not isinstance(texts, list):
        raise InputError("probe", "its column text holds no text", "give file.py:callable")
    tokenizer = _tokenizer(takes)
    tokens = tokenizer.rows(texts, block_length(takes))
    if takes.loss in MODELLING:
        return _predicting(tokens, tokenizer, seed, takes)
    target = next((name for name in TARGETS if name in columns), None)
    labels = None if target is None else columns[target]
    if isinstance(labels, list):
        raise InputError("probe", f"its column {target} holds text", "number the classes from 0")
    others = [name for name in columns if name not in ("text", target)]
    return _named(tokens.ids, tokens.mask, labels, takes, ", ".join(others)[:200])  # type: ignore[arg-type]


def with_targets(named: Named, seed: int, takes: Takes) -> Named:
    """Return tokens that came without labels with what a language model is to predict of them; else as they are."""
    ids = named.tensors.get("input_ids")
    if ids is None or takes.loss not in MODELLING or named.targets is not None:
        return named
    if ids.dim() != 2 or ids.is_floating_point():
        return named
    mask = torch.ones_like(ids) if named.mask is None else named.mask
    if mask.shape != ids.shape:
        raise InputError("probe", "its attention_mask has another shape than its input_ids", "save it again")
    mask = mask.long()
    if takes.loss == "causal_lm":
        return Named(
            {**named.tensors, "y": ids.long().masked_fill(mask == 0, IGNORED)}, named.left_out, named.names
        )
    tokenizer = _tokenizer(takes)
    tokens = Tokens(ids.long().numpy(), mask.numpy(), (mask == 0).long().numpy())
    shown, labels = _hidden(tokens, tokenizer, seed)
    changed = {"input_ids": torch.from_numpy(shown), "y": torch.from_numpy(labels)}
    return Named({**named.tensors, **changed}, named.left_out, named.names)


def block_length(takes: Takes) -> int:
    """Return how many tokens a sample of text has.

    Raises:
        UsageError: more are asked for than the model takes, or none.
    """
    if takes.block is None:
        return min(BLOCK, takes.longest or BLOCK)
    if takes.block < 2:
        raise UsageError(f"--block-size {takes.block}", "is too small", "give at least 2")
    if takes.longest is not None and takes.block > takes.longest:
        why = f"the model takes {takes.longest} tokens"
        raise UsageError(f"--block-size {takes.block}", why, f"give at most {takes.longest}")
    return takes.block


def _tokenizer(takes: Takes) -> Tokenizer:
    if takes.tokenizer is None:
        raise UsageError("--data", "text needs a model that reads it", "add --model")
    return Tokenizer(takes.tokenizer)


def _predicting(tokens: Tokens, tokenizer: Tokenizer, seed: int, takes: Takes) -> Named:
    """Return tokens with the labels of a language model."""
    if takes.loss == "masked_lm":
        shown, labels = _hidden(tokens, tokenizer, seed)
        return _named(shown, tokens.mask, labels, takes)
    labels = tokens.ids.copy()
    labels[tokens.mask == 0] = IGNORED
    return _named(tokens.ids, tokens.mask, labels, takes)


def _hidden(tokens: Tokens, tokenizer: Tokenizer, seed: int) -> tuple[Array, Array]:
    masking = tokenizer.masking
    if masking is None:
        raise InputError(
            "--loss masked_lm", "the tokenizer has no token that hides others", "give data with labels"
        )
    return hide(tokens, masking, tokenizer.vocabulary, seed)


def _named(ids: Array, mask: Array, labels: Array | None, takes: Takes, left_out: str = "") -> Named:
    """Return tokens by the names that the model takes them under, or as ``x`` where it knows none of them."""
    by_name = "input_ids" in takes.names
    tensors = {"input_ids" if by_name else "x": torch.from_numpy(ids)}
    if "attention_mask" in takes.names:
        tensors["attention_mask"] = torch.from_numpy(mask)
    names = tuple(tensors) if by_name else ()
    if labels is not None:
        tensors["y"] = torch.from_numpy(labels)
    return Named(tensors, left_out, names)
