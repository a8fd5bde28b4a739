"""Tiny networks of the transformers library, made here from random configurations; nothing is fetched."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VOCABULARY = 40
LENGTH = 8


def library() -> Any:
    """Import transformers, or skip the test and say so."""
    from nndiag.model.hf import OFFLINE

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        return pytest.importorskip("transformers", reason="transformers is not installed")


def tiny(kind: str, **options: Any) -> Any:
    """Return a random network: ``bert``, ``bert_lm``, ``gpt2``, ``llama``, ``vit`` or ``t5``."""
    t = library()
    torch.manual_seed(0)
    words = {"vocab_size": VOCABULARY}
    made = {
        "bert": lambda: t.BertForSequenceClassification(
            t.BertConfig(**words, max_position_embeddings=16, num_labels=3, **SIZES, **options)
        ),
        "bert_lm": lambda: t.BertForMaskedLM(
            t.BertConfig(**words, max_position_embeddings=16, **SIZES, **options)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(**words, n_positions=16, n_embd=16, n_layer=1, n_head=2, **options)
        ),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**words, max_position_embeddings=16, num_key_value_heads=1, **SIZES, **options)
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZES, **options)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(**words, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
    }  # fmt: skip
    return made[kind]()


def saved(kind: str, folder: Path, **options: Any) -> Any:
    """Write a random network as a Hugging Face directory, and return it in eval mode."""
    model = tiny(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return model.eval()


def samples(kind: str, count: int = 9) -> dict[str, Tensor]:
    """Return a probe with the names that the network's own library gives inputs and targets."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 3, (count,), generator=generator)
    if kind == "vit":
        return {"pixel_values": torch.randn(count, 3, 8, 8, generator=generator), "labels": classes}
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::3, 5:] = 0
    labels = classes if kind == "bert" else tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask.to(torch.int8), "labels": labels}


def configure(folder: Path, **values: object) -> None:
    """Change some values of the ``config.json`` of a directory; ``None`` removes one."""
    file = folder / "config.json"
    held = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
