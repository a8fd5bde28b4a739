"""The real timm. It imports torchvision; where that is missing or does not fit this torch, as its usual builds do not
beside a torch for CPUs, a stand-in is there while timm is imported: its networks are built without torchvision.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from torch import nn

PARTS = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".utils", ".models",
         ".models.feature_extraction")  # fmt: skip


def library() -> Any:
    """Import timm, or skip the test and say so."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("timm")  # RuntimeError: operator torchvision::nms does not exist
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        for part in PARTS:
            patch.setitem(sys.modules, f"torchvision{part}", Stub(f"torchvision{part}"))
        return import_module("timm")


class Named(type(nn.Module)):  # type: ignore[misc]
    """A class of which every further name is just that: members of an enumeration."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class Stub(ModuleType):
    """A part of torchvision in which every name is a part that is there, or a class that nothing is an instance of."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or Named(name, (nn.Module,), {})
