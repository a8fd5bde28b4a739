"""Networks of transformers: the smaller one is built by the library itself from the changed configuration."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nndiag.errors import NndiagError
from nndiag.model.calling import call_by_names
from nndiag.model.hf import build_hf
from nndiag.surgery.deploying import Deployed, deploy
from tests import hf
from tests.surgery.deploying.networks import did, prune

TOKENS = torch.randint(0, hf.VOCABULARY, (8, hf.LENGTH), generator=torch.Generator().manual_seed(1))
UNSEEN = torch.randint(0, hf.VOCABULARY, (20, hf.LENGTH), generator=torch.Generator().manual_seed(2))


def two_layers(kind: str, **options: Any) -> Any:
    """Return a random network of two layers, with heads of four entries, on plain token inputs."""
    t = hf.library()
    torch.manual_seed(0)
    common = {"vocab_size": hf.VOCABULARY, "attn_implementation": "eager", **options}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    if kind == "bert":
        config = t.BertConfig(max_position_embeddings=16, num_labels=3, **sizes, **common)
        return t.BertForSequenceClassification(config).eval()
    if kind == "gpt2":
        config = t.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=4, use_cache=False, **common)
        return t.GPT2LMHeadModel(config).eval()
    config = t.LlamaConfig(
        max_position_embeddings=16, num_key_value_heads=2, use_cache=False, **sizes, **common
    )
    return t.LlamaForCausalLM(config).eval()


def silence(model: Any, layer: str, rows: Iterable[int], columns: bool = False) -> None:
    """Let some outputs of a layer be zero on every input: those of an attention's values, or behind a GELU."""
    with torch.no_grad():
        module = model.get_submodule(layer)
        picked = list(rows)
        if columns:
            module.weight[:, picked] = 0.0
        else:
            module.weight[picked] = 0.0
        if module.bias is not None:
            module.bias[picked] = 0.0


def treated(model: Any, treatments: list[Any]) -> Deployed:
    call_by_names(model, ("input_ids",))
    return deploy(model, [(TOKENS,)], treatments, from_config=True)


def outputs(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def reopened(model: Any, found: Deployed, folder: Path) -> Any:
    """Write the directory by hand: the old configuration with what changed, and the new weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    assert found.config is not None
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **found.config}))
    state = {k: v.contiguous().clone() for k, v in found.module.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False) and "lm_head.weight" in state:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return type(model).from_pretrained(folder, attn_implementation="eager").eval()


def same(model: Any, found: Deployed, folder: Path) -> Any:
    """Open it with transformers and with nndiag; compare on tokens that surgery never saw; return it."""
    vars(model).pop("forward", None)  # its own again
    wanted = outputs(model, UNSEEN)
    again = reopened(model, found, folder)
    assert torch.allclose(outputs(again, UNSEEN), wanted, atol=1e-6, rtol=1e-5)
    built = build_hf(folder / "config.json", lambda empty: None).module
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in found.module.state_dict().items()
    }
    return again


def test_bert_gets_a_smaller_intermediate_size_and_loses_a_head(tmp_path: Path) -> None:
    model = two_layers("bert")
    wide, value = "bert.encoder.layer.{}.intermediate.dense", "bert.encoder.layer.1.attention.self.value"
    silence(model, wide.format(0), [1, 5, 9])
    silence(model, wide.format(1), [0, 23])
    silence(model, value, range(8, 12))
    treatments = [
        *prune(wide.format(0), [1, 5, 9]),
        *prune(wide.format(1), [0, 23]),
        *prune(value, range(8, 12)),
    ]
    found = treated(model, treatments)
    assert found.config == {"pruned_heads": {1: [2]}, "intermediate_size": 22}
    kinds = did(found)
    assert [kinds[wide.format(0), i] for i in (1, 5)] == ["removed", "removed"]
    assert "one width for all layers" in next(
        one.why for one in found.done if one.index == 9 and one.layer == wide.format(0)
    )
    again = same(model, found, tmp_path)
    assert again.bert.encoder.layer[1].attention.self.num_attention_heads == 3
    assert found.output_change <= 1e-6


def test_gpt2_names_its_inner_size_and_the_head_that_is_gone(tmp_path: Path) -> None:
    model = two_layers("gpt2")
    fused = "transformer.h.0.attn.c_attn"
    for layer in (0, 1):
        silence(model, f"transformer.h.{layer}.mlp.c_fc", [2, 40, 63], columns=True)
    silence(model, fused, range(32 + 4, 32 + 8), columns=True)
    treatments = [t for layer in (0, 1) for t in prune(f"transformer.h.{layer}.mlp.c_fc", [2, 40, 63])]
    found = treated(model, [*treatments, *prune(fused, range(36, 40))])
    assert found.config == {"pruned_heads": {0: [1]}, "n_inner": 61}
    assert set(did(found).values()) == {"removed"}
    assert same(model, found, tmp_path).transformer.h[0].attn.num_heads == 3


def test_llama_shrinks_evenly_and_keeps_heads_that_no_configuration_can_name(tmp_path: Path) -> None:
    model = two_layers("llama")
    for layer in (0, 1):
        silence(model, f"model.layers.{layer}.mlp.gate_proj", [3, layer + 5])
    value = "model.layers.1.self_attn.v_proj"
    silence(model, value, range(4))
    treatments = [t for layer in (0, 1) for t in prune(f"model.layers.{layer}.mlp.gate_proj", [3, layer + 5])]
    found = treated(model, [*treatments, *prune(value, range(4))])
    assert found.config == {"intermediate_size": 22}
    assert {did(found)[value, row] for row in range(4)} == {"left"}
    same(model, found, tmp_path)


def test_without_a_configuration_each_layer_is_as_narrow_as_it_can_be() -> None:
    model = two_layers("bert")
    silence(model, "bert.encoder.layer.0.intermediate.dense", [1, 5, 9])
    call_by_names(model, ("input_ids",))
    found = deploy(model, [(TOKENS,)], prune("bert.encoder.layer.0.intermediate.dense", [1, 5, 9]))
    assert found.config is None
    assert set(did(found).values()) == {"removed"}
    assert found.module.bert.encoder.layer[0].intermediate.dense.out_features == 21


def test_a_directory_with_pruned_heads_is_read_like_any_other(tmp_path: Path) -> None:
    t = hf.library()
    model = two_layers("bert")
    model.prune_heads({0: [1, 3]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    seen: list[tuple[int, ...]] = []
    name = "bert.encoder.layer.0.attention.self.query.weight"
    built = build_hf(
        tmp_path / "config.json", lambda empty: seen.append(tuple(empty.state_dict()[name].shape))
    )
    assert seen == [(8, 16)]
    assert tuple(built.module.state_dict()[name].shape) == (8, 16)
    assert t.AutoConfig.from_pretrained(tmp_path).pruned_heads == {0: [1, 3]}


@pytest.mark.parametrize("heads", [{"9": [0]}, {"0": [99]}, {"x": [0]}, {"0": "all"}, [1]])
def test_heads_that_are_not_there_are_refused_in_one_line(tmp_path: Path, heads: object) -> None:
    model = two_layers("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    hf.configure(tmp_path, pruned_heads=heads)
    with pytest.raises(NndiagError) as raised:
        build_hf(tmp_path / "config.json", lambda empty: None)
    assert "\n" not in str(raised.value)
