"""Hugging Face directories: indices that lead elsewhere, and configurations that name code."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nndiag
from tests.cli.support import clean_environment, run_process
from tests.hf import library, saved
from tests.security.conftest import Program

Refused = Callable[..., str]
WEIGHTS = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}
INDEX = "model.safetensors.index.json"


def sharded(folder: Path, shard: object) -> None:
    """An index that says that all tensors lie in one shard."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(WEIGHTS, shard)}))


def test_harmless_index(run: Path, scan: Program) -> None:
    save_file(WEIGHTS, run / "one.safetensors")
    sharded(run, "one.safetensors")
    for place in (".", INDEX):
        assert scan(place, "--quiet").code == 0


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "{outside}", "./../secret.safetensors", "y/../../secret.safetensors", "link",
             "..\\secret.safetensors", "C:\\secret", "\\\\host\\share", "y/link"],
)  # fmt: skip
def test_shards_that_leave_the_directory(run: Path, tmp_path: Path, refused: Refused, name: str) -> None:
    outside = tmp_path / "secret.safetensors"
    save_file(WEIGHTS, outside)
    (run / "y").mkdir()
    (run / "link").symlink_to(outside)
    (run / "y/link").symlink_to("../../secret.safetensors")
    name = name.format(outside=outside)
    sharded(run, name)
    if "\\" not in name:
        assert load_file(run / name)  # where the stock loader would go
    for place in (".", INDEX):
        line = refused(place)
        assert "lies outside of it" in line or "is a link that leaves" in line


def test_stock_loader_leaves_the_directory(run: Path, tmp_path: Path) -> None:
    """``from_pretrained`` reads whatever file an index names, and says nothing."""
    stock = saved("bert", run)
    (run / "model.safetensors").rename(tmp_path / "secret.safetensors")
    names = load_file(tmp_path / "secret.safetensors")
    (run / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "../secret.safetensors")})
    )
    found = type(stock).from_pretrained(run)
    assert torch.equal(found.classifier.weight, stock.classifier.weight)


@pytest.mark.parametrize(
    "shard", ["", ".", "y", "\0", "x" * 5000, "nothing.safetensors", INDEX, 7, None, [], {}, ["one.safetensors"], True,
              "\x1b[2J\n::error::", "\ud800"],
)  # fmt: skip
def test_shards_that_are_none(run: Path, refused: Refused, shard: object) -> None:
    (run / "y").mkdir()
    sharded(run, shard)
    for place in (".", INDEX):
        refused(place)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000, '{"weight_map": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' * 100_000, "[]", "null", "7",
        '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": null}', "{", "\ufeff{}",
        '{"weight_map": {"a": 1e999}}',
        '{"weight_map": {"a": ' + "9" * 10_000 + "}}", "NaN", '{"weight_map": "../x"}',
    ],
    ids=range(15),
)  # fmt: skip
def test_indices_that_are_none(run: Path, refused: Refused, text: str) -> None:
    (run / INDEX).write_text(text)
    refused(INDEX)
    refused(".")


def test_index_of_gigabytes(run: Path, refused: Refused) -> None:
    with (run / INDEX).open("wb") as file:
        file.write(b'{"weight_map": {')
        file.truncate(1 << 40)
    assert "has more than 100000000 bytes" in refused(INDEX)


def test_index_full_of_brackets(run: Path, refused: Refused) -> None:
    """Two bytes each would become an object of sixty."""
    (run / INDEX).write_text('{"weight_map": {"a": [' + "[]," * 3_000_000 + "[]]}}")
    assert "more brackets than such a file has" in refused(INDEX)


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json", "config.json", "model.safetensors"])
def test_links_in_the_directory_of_a_trainer(run: Path, tmp_path: Path, scan: Program, name: str) -> None:
    save_file(WEIGHTS, run / "model.safetensors")
    (run / "config.json").write_text("{}")
    (run / "trainer_state.json").write_text('{"global_step": 3}')
    torch.save({"state": {}, "param_groups": [{"lr": 0.25, "params": []}]}, run / "optimizer.pt")
    secret = tmp_path / "secret"
    (run / name).rename(secret)
    (run / name).symlink_to(secret)
    ended = scan(".", "--format", "json")
    assert ended.code in (0, 3)
    if ended.code == 0 and name != "config.json":  # which is not read for the weights alone
        assert "is a link that leaves its directory" in ended.err


CODE = "import os\nos.mkdir({marker!r})\nfrom transformers import BertConfig as C, BertForSequenceClassification as M\n"
DEEP = ("--model", "hf", "--data", "random:tokens:8", "--level", "activations", "--quiet")


@pytest.fixture
def bert(run: Path, marker: Path) -> Path:
    saved("bert", run)
    (run / "evil.py").write_text(CODE.format(marker=str(marker)))
    return run


def configured(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


AUTO_MAP = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M", "AutoModel": "evil.M"}


STOCK = """
from transformers import AutoModelForSequenceClassification as Auto
Auto.from_pretrained(".", trust_remote_code=True)
"""


def test_configuration_that_names_code(bert: Path, marker: Path, refused: Refused, scan: Program) -> None:
    assert scan(".", *DEEP).code in (0, 2, 3)
    configured(bert, auto_map=AUTO_MAP, model_type="evil")
    run_process(
        cwd=bert, launcher=("-c", STOCK), HF_MODULES_CACHE=str(bert.parent / "modules"), HF_HUB_OFFLINE="1"
    )
    marker.rmdir()  # that is what the library does when it is told to, or when somebody says "y"
    configured(bert, model_type="bert")
    for trust in ((), ("--trust",)):
        assert "is refused: its auto_map names code to run" in refused(".", *DEEP, *trust)
    configured(bert, auto_map={}, text_config={"auto_map": AUTO_MAP})
    assert "auto_map" in refused(".", *DEEP)


@pytest.mark.parametrize(
    "key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
)
@pytest.mark.parametrize(
    "value", ["evil/kernel", "evil/kernel@v1:f", {"": "evil/kernel"}, "flash_attention_2|evil/x"]
)
def test_attention_that_would_be_fetched(bert: Path, refused: Refused, key: str, value: object) -> None:
    configured(bert, **{key: value})
    assert f"{key} names code to fetch" in refused(".", *DEEP)
    configured(bert, **{key: "eager"}, text_config={key: value})
    assert f"{key} names code to fetch" in refused(".", *DEEP)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"vocab_size": 2**30, "hidden_size": 2**20}, ""),
        ({"num_labels": 10**9}, ""),
        ({"id2label": {str(i): "x" for i in range(100_000)}}, ""),
        ({"architectures": ["os.system"]}, "knows no class"),
        ({"architectures": ["../evil.M"]}, "knows no class"),
        ({"architectures": ["PreTrainedModel"]}, "knows no class"),
        ({"model_type": "../evil"}, "knows no model_type"),
        ({"model_type": "\x1b[2J\n::error::"}, "knows no model_type"),
        ({"hidden_act": "os.system"}, ""),
        ({"torch_dtype": "__import__('os')", "hidden_act": 7}, ""),
        ({"quantization_config": {"quant_method": "evil"}, "hidden_size": -1}, ""),
        ({"intermediate_size": "16"}, ""),
        ({"num_attention_heads": 0}, ""),
    ],
)
def test_configurations_that_are_absurd(
    bert: Path, refused: Refused, values: dict[str, Any], words: str
) -> None:
    library()
    configured(bert, **values)
    line = refused(".", *DEEP)
    assert words in line
    assert "memory" not in line
    assert len(line) < 1500


@pytest.mark.parametrize(
    "text", ["[" * 1_000_000, '{"a":' * 100_000, "[]", "{", '{"model_type": {}}'], ids=range(5)
)
def test_configurations_that_are_no_json(bert: Path, scan: Program, text: str) -> None:
    library()
    (bert / "config.json").write_text(text)
    ended = scan(".", *DEEP)
    ended.failed(ended.code)
    assert ended.code in (2, 3)
    assert "internal error" not in ended.err


WATCHED = """
import builtins, socket, sys

def tell(*arguments, **keywords):
    print("NETWORK OR PROMPT", arguments, file=sys.stderr)
    raise SystemExit(9)

socket.socket.connect = socket.getaddrinfo = socket.create_connection = tell
builtins.input = tell
from nndiag.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "values", [{}, {"auto_map": AUTO_MAP}, {"_name_or_path": "evil/model", "tokenizer_class": "E"}]
)
def test_no_network_and_no_question(bert: Path, marker: Path, values: dict[str, object]) -> None:
    """transformers asks on standard input whether to run code, and looks on the hub for what it misses."""
    library()
    configured(bert, **values)
    kept = {name: value for name, value in clean_environment().items() if "OFFLINE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "scan", ".", *DEEP], cwd=bert, env=kept, input="y\ny\ny\n", text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert "NETWORK OR PROMPT" not in done.stderr
    assert done.returncode == (3 if "auto_map" in values else 0), done.stderr
    assert not marker.exists()
    assert not (bert / os.devnull).is_file()


WATCHED_STOCK = """
import os, sys
from transformers import AutoModelForSequenceClassification as Auto
from transformers.integrations import hub_kernels

def fetched(name, revision=None):
    print("FETCHED", name)

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        print("NETWORK", flush=True)
        os._exit(0)

hub_kernels._kernels_available, hub_kernels.get_kernel = True, fetched  # where its library kernels is installed
sys.addaudithook(watch)
for folder in ("attention", "code", "elsewhere"):
    print(folder)
    try:
        Auto.from_pretrained(folder)
    except Exception as error:
        print(type(error).__name__)
"""


def test_stock_loader_asks_and_fetches(bert: Path, tmp_path: Path, marker: Path) -> None:
    """Whoever says "y" to its question runs the code; what is said to lie elsewhere is looked for there."""
    for name in ("attention", "code", "elsewhere"):
        shutil.copytree(bert, tmp_path / name)
    configured(tmp_path / "attention", _attn_implementation="evil/kernel")
    configured(tmp_path / "code", auto_map=AUTO_MAP, model_type="evil")
    away = {name: value.replace("evil", "evil/model--evil") for name, value in AUTO_MAP.items()}
    configured(tmp_path / "elsewhere", auto_map=away, model_type="evil")
    kept = {name: value for name, value in clean_environment().items() if "OFFLINE" not in name}
    kept |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_ENDPOINT": "http://localhost:9"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_STOCK], cwd=tmp_path, env=kept, input="y\n" * 9, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    _, attention, code, elsewhere = re.split("attention\n|code\n|elsewhere\n", done.stdout)
    assert "FETCHED evil/kernel" in attention, done.stderr
    assert "Do you wish to run the custom code? [y/N]" in code
    assert "NETWORK" in elsewhere
    marker.rmdir()


LOADERS = (".from_pretrained", ".from_config", ".load_dataset")


def test_trust_remote_code_is_always_false() -> None:
    said = []
    for file in Path(nndiag.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                said.append(isinstance(node.value, ast.Constant) and node.value.value is False)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(LOADERS):
                assert "trust_remote_code=False" in ast.unparse(node), f"{file}: {ast.unparse(node)}"
    assert said
    assert all(said)
