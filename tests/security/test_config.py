"""The nndiag.toml of a scanned directory: data, never code, and never more work than its checkpoint is worth."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.security.conftest import Program

Refused = Callable[..., str]
PROBE = '\n[probe]\ndata = "probe.safetensors"\nloss = "mse"\n'


@pytest.fixture
def files(run: Path) -> Path:
    save_file({"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}, run / "net.safetensors")
    save_file({"x": torch.ones(2, 4), "y": torch.ones(2, 3)}, run / "probe.safetensors")
    return run


def say(run: Path, text: str) -> None:
    (run / "nndiag.toml").write_text(text)


PAYLOAD = "import os\nos.mkdir({marker!r})\ndef build(*a): ...\n"


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nfactory = "evil.py:build"',
        '[model]\nfactory = "./evil.py:build"\nkwargs = {a = 1}',
        '[model]\nfactory = "evil:build"',
        '[model]\nfactory = "os:mkdir"\nkwargs = {path = "../ran"}',
        '[model]\nfactory = "/proc/self/cwd/evil.py:build"',
        '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "evil.py:build"',
        '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "evil:build"',
        '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "probe.safetensors"\nloss = "evil.py:build"',
        '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "probe.safetensors"\nloss = "evil:build"',
    ],
)
def test_code_that_the_directory_brings(
    files: Path, marker: Path, refused: Refused, scan: Program, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "evil.py").write_text(PAYLOAD.format(marker=str(marker)))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    say(files, text)
    for place in (".", "net.safetensors"):
        line = refused(place)
        assert "is code that the scanned directory brings" in line
        assert "--trust" in line
    scan(".", "--trust")
    assert marker.exists()  # it is the missing word that held it back


@pytest.mark.parametrize("table", ["model]\nfactory = ", "probe]\ndata = "])
def test_code_of_a_project_file_in_the_directory(
    files: Path, marker: Path, refused: Refused, table: str
) -> None:
    """A ``pyproject.toml`` that came with the run is the run's, also where the user stands in the directory."""
    (files / "evil.py").write_text(PAYLOAD.format(marker=str(marker)))
    (files / "pyproject.toml").write_text(f'[tool.nndiag.{table}"evil.py:build"\n')
    for place in (".", "net.safetensors", str(files)):
        assert "is code that the scanned directory brings" in refused(place)


@pytest.mark.parametrize(
    "layer",
    [
        '["Module"]', '["__import__"]', '["os.system", "mkdir ../ran"]', '["../evil.py:build"]', '["nn.Linear", 4, 3]',
        '["Sequential", ["Linear", 4, 3]]', '["ModuleList"]', '["LazyLinear", 3]', '["Transformer"]', '["LSTM", 4, 3]',
        '["Linear", 4, 3, {device = "cuda"}]', '["Linear", 4, 3, {dtype = "float16"}]',
        '["Linear", 4, 3, {__class__ = 1}]',
        '["Linear", "4", "3"]', '["Linear", 4]', '["Linear", 4, -3]', '["Linear", 4, 0]', '["Linear", 4.5, 3]',
        '["Linear", true, 3]', '["Linear", [4], 3]', '["Linear", {a = {b = 1}}]', '[]', '[["Linear", 4, 3]]', '[1, 2]',
        '["GELU", "os.system"]', '["Softmax", "x"]', '["\\u001b[2J"]', '["Linear", nan, inf]', '["Flatten", 10, 1]',
        '["Conv2d", 1, 3, 3, {padding_mode = "__class__"}]',
    ],
)  # fmt: skip
def test_layers_that_are_none(files: Path, marker: Path, scan: Program, layer: str) -> None:
    say(files, f'[model]\nsequential = [{layer}, ["Linear", 4, 3]]{PROBE}')
    ended = scan(".")
    assert ended.code in (2, 3)
    assert ended.failed(ended.code).isprintable()
    assert "internal error" not in ended.err
    assert not marker.exists()


@pytest.mark.parametrize(
    "layer",
    [
        '["Linear", 1000000000, 1000000000]', '["Linear", 9223372036854775807, 2]', '["Embedding", 10000000000, 4]',
        '["Conv3d", 1000, 1000, 1000]', '["Conv2d", 1, 1, 100000]', '["LayerNorm", [100000, 100000]]',
        '["BatchNorm1d", 4611686018427387904]', '["PReLU", 4611686018427387904]', '["Linear", 40000, 40000]',
        '["Linear", 1000000, 1000]',
    ],
)  # fmt: skip
def test_layers_larger_than_their_checkpoint(files: Path, scan: Program, layer: str) -> None:
    """Such a layer cannot fit the weights: it is refused before memory is set aside for it."""
    say(files, f"[model]\nsequential = [{layer}]{PROBE}")
    before = peak()
    ended = scan(".")
    assert "sizes" in ended.failed(2)
    assert peak() - before < 256 << 20


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "layers",
    [
        '["Unflatten", 1, [1, 4]], ["AdaptiveAvgPool1d", 2000000000]',
        '["Unflatten", 1, [1, 4]], ["AdaptiveMaxPool1d", 2000000000], ["ReLU"]',
        '["Unflatten", 1, [1, 2, 2]], ["AdaptiveAvgPool2d", [50000, 50000]]',
        '["Unflatten", 1, [1, 4]], ["ConvTranspose1d", 1, 1, 1, {stride = 1000000000, bias = false}]',
        '["Unflatten", 1, [1, 4]], ["Conv1d", 1, 1, 1, {padding = 2000000000, bias = false}]',
    ],
)
def test_layers_whose_output_is_absurd(files: Path, scan: Program, layers: str) -> None:
    """A few bytes of configuration would have the forward pass set gigabytes aside for each sample."""
    weights = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4)}
    if "Conv" in layers:
        weights["2.weight"] = torch.ones(1, 1, 1)
    save_file(weights, files / "net.safetensors")
    say(files, f'[model]\nsequential = [["Linear", 4, 4], {layers}]{PROBE}')
    before = peak()
    assert "numbers for one sample" in scan(".").failed(2)
    assert peak() - before < 256 << 20


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 400 + "]" * 400,
        "a." * 50_000 + "a = 1",
        "[" + "a." * 50_000 + "a]",
        "[model]\nsequential = " + "[" * 300 + "]" * 300,
        "a = " + "1." * 300_000,
        "a = '" + "b." * 300 + "'",
        "[model]\nkwargs = {a = " + "{a = " * 300 + "1" + "}" * 301,
        "[[model]]\n" * 100_000,
        "a = " + "9" * 500_000,
        "[optimizer]\nlr = " + "9" * 4000,
        "[probe]\nlimit = 1e400",
        "a = '''" + "x" * (1 << 20) + "'''",
        "\x00",
        "\ufeff[model]",
        "[model]\nfactory = '\x1b[2J'",
        "[model]\nsequential = " + str([["ReLU"]] * 50_000),
    ],
    ids=range(17),
)
def test_text_that_is_absurd(files: Path, scan: Program, text: str) -> None:
    say(files, text)
    ended = scan(".")
    line = ended.failed(ended.code)
    assert ended.code in (2, 3)
    assert "out of memory" not in line
    assert line.isprintable()
    assert len(line) < 1000
    assert "internal error" not in line


def test_text_of_gigabytes(files: Path, refused: Refused) -> None:
    with (files / "nndiag.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert "is larger than 1024 KiB" in refused(".", code=2)


@pytest.mark.parametrize(
    "include", ["**/*.safetensors", "*" * 5000, "[" * 5000, "../../**", "/**/*", "a/../../*"]
)
def test_patterns(files: Path, scan: Program, include: str) -> None:
    say(files, f'[checkpoints]\ninclude = "{include}"\n')
    ended = scan(".")
    assert ended.code in (0, 2, 3)
    assert ended.code == 0 or ended.failed(ended.code).isprintable()
    assert "internal error" not in ended.err
