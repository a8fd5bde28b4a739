"""Archives of torch.export: refused without trust; their weights are read without running anything."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nndiag.checkpoint import Permission, is_pt2, open_checkpoint
from nndiag.errors import InputError

from .files import network, refusal, same_tensors, save

TRUST = Permission(trust=True)
CONFIG = "data/weights/model_weights_config.json"


def exported(path: Path) -> dict[str, torch.Tensor]:
    """Write the network as a program; return its state."""
    model = network().eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 4),)), path)
    return dict(model.state_dict())


def edited(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy an archive with the description of its weights changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(CONFIG):
                config = json.loads(content)
                change(config["config"])
                content = json.dumps(config).encode()
            new.writestr(entry.filename, content)
    return target


def test_weights_come_back_with_trust_alone(tmp_path: Path) -> None:
    state = exported(tmp_path / "m.pt2")
    refusal(tmp_path / "m.pt2", "torch.export", "--trust")
    opened = open_checkpoint(tmp_path / "m.pt2", TRUST)
    assert opened.format == "pt2"
    assert same_tensors(dict(opened.places[0].tensors), state)
    assert is_pt2(tmp_path / "m.pt2")
    assert not is_pt2(save(state, tmp_path / "w.pt"))
    assert not is_pt2(tmp_path)


def no_such_record(config: Any) -> None:
    config["0.weight"]["path_name"] = "../../secret"


def too_large(config: Any) -> None:
    config["0.weight"]["tensor_meta"]["sizes"] = [{"as_int": 10**9}, {"as_int": 10**6}]


def a_view(config: Any) -> None:
    config["0.weight"]["tensor_meta"]["strides"] = [{"as_int": 10**6}, {"as_int": 1}]


def shifted(config: Any) -> None:
    config["0.weight"]["tensor_meta"]["storage_offset"] = {"as_int": 1}


def pickled(config: Any) -> None:
    config["0.weight"]["use_pickle"] = True


def not_described(config: Any) -> None:
    del config["0.weight"]["tensor_meta"]


@pytest.mark.parametrize("change", [no_such_record, too_large, a_view, shifted, pickled, not_described])
def test_impossible_descriptions_are_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    exported(tmp_path / "good.pt2")
    path = edited(tmp_path / "good.pt2", tmp_path / "m.pt2", change)
    with pytest.raises(InputError, match="truncated or damaged"):
        open_checkpoint(path, TRUST)
