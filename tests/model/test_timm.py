"""``timm:NAME``: the library's own name and nothing else, and no weights fetched."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tests.timm_library import library
from torch import nn

from nndiag import ScanSettings, scan
from nndiag.errors import ModelError, UsageError
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


@pytest.mark.parametrize(
    ("name", "arguments", "level"),
    [
        ("resnet10t", {"in_chans": 1}, Level.CURVATURE),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, Level.CURVATURE),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, Level.CURVATURE),
        ("mobilenetv3_small_050", {}, Level.CURVATURE),
        ("efficientnet_b0", {}, Level.ACTIVATIONS),
    ],
)
def test_networks_of_the_library_are_scanned_with_weights_of_their_own(
    tmp_path: Path, name: str, arguments: dict[str, object], level: Level
) -> None:
    timm = library()
    kwargs = {"num_classes": 3, **arguments}
    torch.manual_seed(7)
    model = timm.create_model(name, **kwargs)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    x = torch.randn(3, int(str(arguments.get("in_chans", 3))), 32, 32)
    save_file({"x": x, "y": torch.arange(3)}, tmp_path / "probe.safetensors")
    settings = ScanSettings(
        model=f"timm:{name}", model_args=kwargs, data=str(tmp_path / "probe.safetensors"), level=level,
        loss="cross_entropy", curvature="ggn",
    )  # fmt: skip
    (found,) = scan(tmp_path / "w.safetensors", settings).report.checkpoints
    assert found.level == level.label
    assert found.checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.unmeasured == ()
    if level == Level.CURVATURE:
        with torch.no_grad():
            expected = float(nn.functional.cross_entropy(model.eval()(x), torch.arange(3)))
        assert found.model.loss == pytest.approx(expected, rel=1e-5)


def test_sizes_that_differ_say_how_to_give_them(tmp_path: Path) -> None:
    timm = library()
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"2 of another shape \(fc.weight: file 3x512, .*--model-arg num_classes=10"
    ):
        scan(tmp_path / "w.safetensors", ScanSettings(model="timm:resnet10t"))
    with pytest.raises(UsageError, match="timm knows no such model"):
        build_timm("timm:resnet81", {})
