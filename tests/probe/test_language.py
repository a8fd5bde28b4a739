"""Text into tokens: blocks, padding that does not count, and what a masked model is to predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nndiag.errors import InputError, UsageError
from nndiag.probe.data import Data, load_data
from nndiag.probe.takes import Takes

library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
WORDS = "the cat sat on a mat while birds sang in old trees over green hills".split()
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = ("input_ids", "attention_mask")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of whole words that marks the ends of a sample, and a text of 45 words."""
    vocabulary = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.add_special_tokens(MARKS)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 3))
    return tmp_path


def load(folder: Path, loss: str | None, spec: str = "text.txt", seed: int = 0, **facts: object) -> Data:
    takes = Takes(names=NAMES, tokenizer=folder, loss=loss, **{"block": 12, **facts})  # type: ignore[arg-type]
    return load_data(spec, folder, seed=seed, takes=takes)


def test_a_text_is_cut_into_blocks_and_nothing_else_is_predicted(folder: Path) -> None:
    data = load(folder, "causal_lm")
    ids, mask = data.inputs
    assert data.names == NAMES
    assert tuple(ids.shape) == (5, 12)
    inside = (mask == 1) & (ids > 4)
    assert [MARKS[0], *WORDS][1:] * 3 == [[*MARKS, *WORDS][token] for token in ids[inside].tolist()]
    assert mask.sum() == 45 + 2 * 5
    assert data.targets is not None
    assert data.targets[mask == 0].unique().tolist() == [-100]
    assert data.targets[mask == 1].tolist() == ids[mask == 1].tolist()
    assert data.notes == ("probe: 5 blocks of up to 12 tokens taken from text.txt",)


def test_a_masked_model_predicts_what_was_hidden_and_the_seed_decides(folder: Path) -> None:
    (folder / "text.txt").write_text(" ".join(WORDS * 100))
    plain, hidden = load(folder, "causal_lm").inputs[0], load(folder, "masked_lm")
    shown, labels = hidden.inputs[0], hidden.targets
    assert labels is not None
    chosen = labels != -100
    assert labels[chosen].tolist() == plain[chosen].tolist()
    assert shown[~chosen].tolist() == plain[~chosen].tolist()
    assert (plain[chosen] > 4).all()
    words = int((plain > 4).sum())
    assert int(chosen.sum()) / words == pytest.approx(0.15, abs=0.04)
    assert int((shown[chosen] == 4).sum()) / int(chosen.sum()) == pytest.approx(0.8, abs=0.1)
    again, other = load(folder, "masked_lm"), load(folder, "masked_lm", seed=1)
    assert (again.sha256, again.inputs[0].tolist()) == (hidden.sha256, shown.tolist())
    assert other.inputs[0].tolist() != shown.tolist()


def test_rows_of_text_with_labels(folder: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows = [{"text": "the cat sat", "label": 1}, {"text": "a mat", "label": 0}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(folder, "cross_entropy", "rows.jsonl")
    assert data.inputs[1].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert data.inputs[0][1].tolist() == [2, 9, 10, 3, 0]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0]


def test_tokens_without_labels_are_what_is_to_be_predicted(folder: Path) -> None:
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]])
    np.savez(folder / "p.npz", input_ids=ids, attention_mask=(ids > 0).astype("int8"))
    causal = load(folder, "causal_lm", "p.npz").targets
    assert causal is not None
    assert causal.tolist() == [[2, 5, 6, 3], [2, 7, 3, -100]]
    masked = load(folder, "masked_lm", "p.npz").targets
    assert masked is not None
    assert (masked != -100).any()
    assert load(folder, "mse", "p.npz").targets is None


@pytest.mark.parametrize(
    ("loss", "facts", "kind", "said"),
    [
        (None, {}, UsageError, "add --loss causal_lm or masked_lm"),
        ("cross_entropy", {}, UsageError, "for cross_entropy give rows of text and label"),
        ("causal_lm", {"block": 99, "longest": 16}, UsageError, "the model takes 16 tokens"),
        ("causal_lm", {"tokenizer": Path("nowhere")}, InputError, "no tokenizer to read text with"),
        ("causal_lm", {"tokenizer": None}, UsageError, "text needs a model"),
    ],
)
def test_what_text_needs_is_said(
    folder: Path, loss: str | None, facts: dict[str, object], kind: type[Exception], said: str
) -> None:
    takes = Takes(**{"names": NAMES, "tokenizer": folder, "loss": loss, **facts})  # type: ignore[arg-type]
    with pytest.raises(kind, match=said):
        load_data("text.txt", folder, takes=takes)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Evil"}}', "\x00" * 50])
def test_a_damaged_tokenizer_is_one_line(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="is damaged, or no tokenizer"):
        load(folder, "causal_lm")


def test_no_word_at_all_is_said(folder: Path) -> None:
    library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text("")
    with pytest.raises(InputError, match="holds no token"):
        load(folder, "causal_lm")
