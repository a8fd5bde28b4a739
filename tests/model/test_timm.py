"""``timm:NAME``: the library's own name and nothing else, and no weights fetched."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nndiag.errors import UsageError
from nndiag.model.timm_model import build_timm


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
