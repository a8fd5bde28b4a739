"""Archives of torch.export: a program, and pickles that the stock loader runs."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoint.files import Payload
from tests.security.conftest import Program

Refused = Callable[..., str]


def export(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = ({0: torch.export.Dim("rows")},)
        program = torch.export.export(nn.Linear(4, 3).eval(), (torch.ones(2, 4),), dynamic_shapes=rows)
        torch.export.save(program, path)
    return path


def with_payload(path: Path, marker: Path) -> Path:
    """Say of the weights that they are pickled, and put a payload in their place."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    config = next(name for name in entries if name.endswith("model_weights_config.json"))
    described = json.loads(entries[config])
    packed = io.BytesIO()
    torch.save(Payload(marker), packed)
    for entry in described["config"].values():
        entry["use_pickle"] = True
        entries[f"{config.rpartition('/')[0]}/{entry['path_name']}"] = packed.getvalue()
    entries[config] = json.dumps(described).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["x.pt2", "x.pt", "x.zip"])
def test_program_needs_trust(run: Path, refused: Refused, scan: Program, name: str) -> None:
    export(run / name)
    assert "is a torch.export archive (.pt2), which is code; give --trust" in refused(name)
    assert scan(name, "--trust", "--level", "weights", "--quiet").code == 0


def test_payload_in_an_exported_program(run: Path, marker: Path, refused: Refused) -> None:
    path = with_payload(export(run / "x.pt2"), marker)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=r".*"):  # what it got is no weight; it has run by then
            torch.export.load(path)
    marker.rmdir()
    for place in ("x.pt2", "."):
        assert "is code" in refused(place)
