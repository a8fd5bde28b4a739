"""``timm:NAME``: the library's own name and nothing else, and no weights fetched."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag import ScanSettings, scan
from nndiag.errors import UsageError
from nndiag.model.timm_model import build_timm
from nndiag.records.level import Level


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """A stand-in for timm that remembers how it was called: the library itself needs torchvision."""
    calls: list[tuple[str, dict[str, object]]] = []

    def create_model(name: str, **keywords: object) -> nn.Module:
        calls.append((name, keywords))
        return nn.Linear(4, int(keywords.get("num_classes", 2)))  # type: ignore[call-overload]

    library = SimpleNamespace(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18"], create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", library)
    return calls


def test_a_name_is_built_without_weights_of_its_own(called: list[tuple[str, dict[str, object]]]) -> None:
    before = torch.get_rng_state()
    one, other = (build_timm("timm:resnet18", {"num_classes": 3}) for _ in range(2))
    assert called == [("resnet18", {"pretrained": False, "num_classes": 3})] * 2
    assert torch.equal(one.weight, other.weight)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        ("timm:resnet81", {}, 'did you mean "resnet18"'),
        ("timm:hf-hub:someone/evil", {}, "is no name of a timm model"),
        ("timm:local-dir:/tmp/x", {}, "is no name of a timm model"),
        ("timm:", {}, "is no name of a timm model"),
        ("timm:resnet18", {"pretrained": True}, "pretrained would fetch weights"),
        ("timm:resnet18", {"checkpoint_path": "x"}, "checkpoint_path would fetch weights"),
    ],
)
def test_what_would_fetch_or_is_no_name_is_refused(
    spec: str, arguments: dict[str, object], said: str, called: list[tuple[str, dict[str, object]]]
) -> None:
    with pytest.raises(UsageError, match=said):
        build_timm(spec, arguments)
    assert called == []


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm cannot be imported"):
        build_timm("timm:resnet18", {})


def test_the_library_itself() -> None:
    try:
        import timm  # noqa: F401
    except Exception:
        pytest.skip("timm is not installed, or its torchvision does not fit this torch")
    model = build_timm("timm:resnet10t", {"num_classes": 3, "in_chans": 1})
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


class Named(type(nn.Module)):  # type: ignore[misc]
    """A class of which every further name is just that: members of an enumeration."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class Stub(ModuleType):
    """A part of torchvision in which every name is a class that nothing is an instance of."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (nn.Module,), {})


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real timm. It imports torchvision, whose builds do not load beside a CPU torch, and builds without it."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    parts = ("ops", "ops.misc", "transforms", "transforms.functional", "datasets", "utils", "models",
             "models.feature_extraction")  # fmt: skip
    stubs = {name: Stub(name) for name in ("torchvision", *(f"torchvision.{part}" for part in parts))}
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
        owner, _, last = name.rpartition(".")
        if owner:
            setattr(stubs[owner], last, stub)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("vit_tiny_patch16_224", 224), ("mobilenetv3_small_050", 64)]
)
def test_networks_of_the_library_are_scanned_with_weights_of_their_own(
    tmp_path: Path, name: str, size: int
) -> None:
    model = build_timm(f"timm:{name}", {"num_classes": 3})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    settings = ScanSettings(
        model=f"timm:{name}", model_args={"num_classes": 3}, data=f"random:3x{size}x{size}", limit=2,
        level=Level.ACTIVATIONS,
    )  # fmt: skip
    (found,) = scan(tmp_path / "w.safetensors", settings).report.checkpoints
    assert found.level == "activations"
    assert found.checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(UsageError, match="timm knows no such model"):
        build_timm("timm:resnet81", {})
