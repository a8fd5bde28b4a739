"""Samples of different lengths: their padding counts in no mean, as if each had been alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import nndiag
from tests import hf

LENGTHS = (8, 3, 5, 8, 2)


@pytest.mark.parametrize("masked", [True, False], ids=["mask given", "mask left out"])
@pytest.mark.parametrize(("kind", "loss"), [("gpt2", "causal_lm"), ("bert_lm", "masked_lm")])
def test_rows_of_tokens(tmp_path: Path, kind: str, loss: str, masked: bool) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    model = hf.saved(kind, tmp_path)
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, hf.VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    labels = [row.clone() for row in rows]
    if loss == "masked_lm":
        for row in labels:
            row[1:-1:2] = -100
    lines = [
        {"input_ids": row.tolist(), "labels": label.tolist()}
        | ({"attention_mask": [1] * len(row)} if masked else {})
        for row, label in zip(rows, labels, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    total, count = 0.0, 0
    with torch.no_grad():
        for row, label in zip(rows, labels, strict=True):  # alone, so that nothing is filled up
            logits = model(row[None]).logits[0]
            logits, wanted = (logits[:-1], label[1:]) if loss == "causal_lm" else (logits, label)
            total += float(F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
            count += int((wanted != -100).sum())
    settings = nndiag.ScanSettings(model="hf", data=str(tmp_path / "rows.jsonl"), loss=loss)
    (found,) = nndiag.scan(tmp_path, settings).report.checkpoints
    assert found.model.loss == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_takes_no_mask_predicts_no_padding(tmp_path: Path) -> None:
    """Tokens without labels: what follows is to be predicted, and what is filled up follows nothing."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from nndiag.probe.data import load_data
    from nndiag.probe.takes import Takes

    rows = [[3, 1, 4, 1], [5, 9], [2, 6, 5]]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))
    data = load_data("rows.jsonl", tmp_path, takes=Takes(names=("input_ids",), loss="causal_lm"))
    assert data.targets is not None
    assert data.targets.tolist() == [row + [-100] * (4 - len(row)) for row in rows]
    assert data.names == ("input_ids",)
