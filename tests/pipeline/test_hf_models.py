"""Networks from ``config.json``: losses as the library has them, the deepest level, and what is refused."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nndiag
from nndiag.errors import InputError, ModelError, NndiagError, UsageError
from nndiag.model.hf import OFFLINE, build_hf
from nndiag.model.hf_config import find_config, read_config
from nndiag.records.level import Level
from nndiag.records.report import Diagnosis
from tests import hf


def scanned(folder: Path, **options: object) -> Diagnosis:
    settings = nndiag.ScanSettings(data=str(folder / "probe.safetensors"), curvature="ggn", **options)
    (found,) = nndiag.scan(folder / "model.safetensors", settings).report.checkpoints
    return found


def prepared(kind: str, folder: Path, count: int = 9) -> object:
    model = hf.saved(kind, folder)
    save_file(hf.samples(kind, count), folder / "probe.safetensors")
    return model


@pytest.mark.parametrize("kind", ["bert", "bert_lm", "gpt2", "llama", "vit", "t5"])
def test_the_loss_is_the_librarys_own_and_the_level_the_deepest(kind: str, tmp_path: Path) -> None:
    model = prepared(kind, tmp_path)
    given = hf.samples(kind)
    if "attention_mask" in given:
        given["attention_mask"] = given["attention_mask"].long()
    with torch.no_grad():
        expected = float(model(**given).loss)  # type: ignore[operator]
    found = scanned(tmp_path)
    assert found.level == "curvature"
    assert found.model.loss == pytest.approx(expected, rel=1e-5)
    assert found.checkpoint.parameters == sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    assert found.curvature is not None
    assert found.unmeasured == ()


def test_a_tied_head_may_be_missing_and_a_missing_head_is_refused(tmp_path: Path) -> None:
    prepared("gpt2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    assert scanned(tmp_path, level=Level.ACTIVATIONS).level == "activations"
    prepared("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"2 missing \(classifier.weight, classifier.bias\)"):
        scanned(tmp_path)


@pytest.mark.parametrize(("kind", "base"), [("gpt2", "transformer"), ("bert_lm", "bert"), ("llama", "model")])
def test_weights_saved_as_the_base_alone_fit_where_the_head_is_tied_or_there(
    kind: str, base: str, tmp_path: Path
) -> None:
    prepared(kind, tmp_path)
    expected = scanned(tmp_path, level=Level.GRADIENTS).model.loss
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name.removeprefix(f"{base}."): tensor for name, tensor in weights.items()},
        tmp_path / "model.safetensors",
    )
    assert scanned(tmp_path, level=Level.GRADIENTS).model.loss == expected


def test_a_part_that_the_class_lacks_is_left_out_and_a_further_layer_is_not(tmp_path: Path) -> None:
    prepared("bert_lm", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    second_head = {"cls.seq_relationship.weight": torch.ones(2, 16), "bert.pooler.dense.bias": torch.ones(16)}
    save_file(weights | second_head, tmp_path / "model.safetensors")
    assert scanned(tmp_path, level=Level.ACTIVATIONS).level == "activations"
    for name in ("bert.encoder.layer.1.output.dense.weight", "cls.predictions.decoder.scale"):
        save_file(weights | {name: torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=rf"1 unexpected \({name}\); correct .*config.json"):
            scanned(tmp_path)


def test_twins_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    prepared("gpt2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="differ, and are one tensor in the model"):
        scanned(tmp_path)


def test_entries_that_the_library_calls_unused_are_left_out(tmp_path: Path) -> None:
    prepared("gpt2", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, tmp_path / "model.safetensors")
    assert scanned(tmp_path, level=Level.ACTIVATIONS).level == "activations"


def test_old_names_of_a_layer_norm_are_known(tmp_path: Path) -> None:
    prepared("bert", tmp_path)
    expected = scanned(tmp_path, level=Level.GRADIENTS).model.loss
    weights = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, before in old.items():
        weights = {name.replace(new, before): tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    assert scanned(tmp_path, level=Level.GRADIENTS).model.loss == expected


def test_a_configuration_that_is_a_link_out_of_the_directory_is_not_read(tmp_path: Path) -> None:
    prepared("bert", tmp_path / "model")
    (tmp_path / "model" / "config.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert find_config(tmp_path / "model") is None
    with pytest.raises(UsageError, match=r"there is no config\.json"):
        scanned(tmp_path / "model", model="hf")


def test_plain_x_goes_to_the_main_input(tmp_path: Path) -> None:
    prepared("gpt2", tmp_path)
    named = hf.samples("gpt2")
    by_name = scanned(tmp_path, level=Level.GRADIENTS).model.loss
    positions = {"x0": named["input_ids"], "x1": named["attention_mask"].long(), "y": named["labels"]}
    save_file(positions, tmp_path / "probe.safetensors")
    assert scanned(tmp_path, level=Level.GRADIENTS).model.loss == by_name
    save_file({**positions, "x2": positions["x1"].clone()}, tmp_path / "probe.safetensors")
    with pytest.raises(UsageError, match="name them as the model does: input_ids"):
        scanned(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"auto_map": {"AutoModel": "evil.py--Model"}}, "auto_map names code"),
        ({"text_config": {"auto_map": {"AutoModel": "a.B"}}}, "auto_map names code"),
        ({"_attn_implementation": "someone/kernel"}, "_attn_implementation names code"),
        ({"attn_implementation": {"text": "someone/kernel:f"}}, "attn_implementation names code"),
        ({"architectures": ["os.system"]}, 'knows no class "os.system"'),
        ({"architectures": ["BertModel", "GPT2Model"]}, "not the one class"),
        ({"architectures": None}, "not the one class"),
        ({"model_type": "../../evil"}, "knows no model_type"),
        ({"model_type": 3}, 'has no "model_type"'),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"hidden_size": "wide"}, "refuses it"),
    ],
)
def test_a_configuration_that_names_code_or_absurdities_is_refused(
    values: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared("bert", tmp_path)
    hf.configure(tmp_path, **values)
    asked = io.StringIO("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", asked)
    with pytest.raises(NndiagError) as caught:
        build_hf(tmp_path / "config.json", lambda model: None)
    assert caught.value.exit_code == 3
    assert said in str(caught.value) or isinstance(caught.value, ModelError)
    assert asked.tell() == 0


def test_a_model_larger_than_its_checkpoint_is_never_built(tmp_path: Path) -> None:
    prepared("bert", tmp_path)
    hf.configure(tmp_path, vocab_size=2**30, hidden_size=2**20, num_attention_heads=2)
    with pytest.raises(ModelError, match="do not fit the model"):
        scanned(tmp_path)


def test_only_a_config_of_such_a_model_is_taken_without_asking(tmp_path: Path) -> None:
    assert find_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"width": 3}')
    assert find_config(tmp_path) is None
    with pytest.raises(InputError, match="has no"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert find_config(tmp_path) is None
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(tmp_path / "config.json")


def test_hf_without_a_config_is_said(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"there is no config\.json"):
        nndiag.scan(tmp_path / "model.safetensors", nndiag.ScanSettings(model="hf"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        nndiag.scan(tmp_path / "model.safetensors", nndiag.ScanSettings(model="hf"))


def test_the_network_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("gpt2", tmp_path)
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert scanned(tmp_path, level=Level.ACTIVATIONS).level == "activations"
    assert {name: os.environ[name] for name in OFFLINE} == OFFLINE


def test_trust_remote_code_is_false_even_with_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("gpt2", tmp_path)
    asked: list[object] = []
    from transformers import AutoModelForPreTraining as Auto  # the first table that knows the class

    original = Auto.from_config.__func__

    def from_config(kind: type, config: object, **keywords: object) -> object:
        asked.append((keywords["trust_remote_code"], keywords["attn_implementation"]))
        return original(kind, config, **keywords)

    monkeypatch.setattr(Auto, "from_config", classmethod(from_config))
    scanned(tmp_path, level=Level.ACTIVATIONS, trust=True)
    assert asked == [(False, "eager"), (False, "eager")]
    (tmp_path / "model.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n")
    hf.configure(tmp_path, auto_map={"AutoModelForCausalLM": "model.Evil"})
    with pytest.raises(InputError, match="auto_map names code"):
        scanned(tmp_path, trust=True)
    assert not (tmp_path / "marker").exists()


def test_without_the_library_it_is_said_and_the_weights_can_still_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared("gpt2", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r'pip install "nndiag\[hf\]"'):
        scanned(tmp_path)
    assert scanned(tmp_path, level=Level.WEIGHTS).level == "weights"
