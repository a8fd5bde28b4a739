"""Names out of a checkpoint in the formats that build machines read: entries of ours, and none of theirs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from nndiag.report import CHECK_FORMATS
from tests.checkpoint.files import save
from tests.security.conftest import Program
from tests.security.test_names import HARMLESS, NAMES


def scanned(scan: Program, run: Path, name: str, form: str) -> str:
    save({f"{name}.weight": torch.tensor([[0.0, 0.0], [1, 1], [1, 1], [1e9, 2]])}, run / "x.pt")
    ended = scan("x.pt", "--format", form)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


@pytest.mark.parametrize("form", CHECK_FORMATS)
@pytest.mark.parametrize("kind", NAMES)
def test_names_add_nothing(scan: Program, run: Path, kind: str, form: str) -> None:
    out, twin = scanned(scan, run, NAMES[kind], form), scanned(scan, run, HARMLESS, form)
    assert out.replace("\n", "").replace("\t", "").isprintable()
    assert out.count("\n") == twin.count("\n")
    assert not re.search(r"##\w*\[", out)
    if form == "junit":
        assert shape(ET.fromstring(out)) == shape(ET.fromstring(twin))
    elif form == "sarif":
        assert len(json.loads(out)["runs"][0]["results"]) == len(json.loads(twin)["runs"][0]["results"])
    else:
        assert [line.split(" ")[0] for line in out.splitlines()] == [
            line.split(" ")[0] for line in twin.splitlines()
        ]


def shape(element: ET.Element) -> object:
    return element.tag, sorted(element.attrib), [shape(child) for child in element]


def test_stock_loader_offers_whatever_a_file_names(run: Path, scan: Program, marker: Path) -> None:
    """Its error tells the user to allow the payload's function, and who does so runs it."""

    class Copied:
        def __reduce__(self) -> object:
            return shutil.copytree, (str(run.parent / "empty"), str(marker))

    (run.parent / "empty").mkdir()
    path = save({"w": torch.ones(2, 2), "x": Copied()}, run / "x.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"add_safe_globals\(\[shutil.copytree\]\)"):
        torch.load(path, weights_only=True)
    with torch.serialization.safe_globals([shutil.copytree]):
        torch.load(path, weights_only=True)
    marker.rmdir()
    line = scan("x.pt").failed(3)
    assert "shutil.copytree" in line
    assert "--allow-global" not in line
    assert scan("x.pt", "--allow-global", "shutil.copytree").failed(2).isprintable()
    assert not marker.exists()


def test_extra_global(run: Path, scan: Program, marker: Path) -> None:
    """A harmless class is admitted by name; nothing that can run code is, by whatever name."""
    import argparse

    save({"state_dict": {"w": torch.ones(2, 2)}, "args": argparse.Namespace(width=3)}, run / "x.pt")
    line = scan("x.pt").failed(3)
    assert "--allow-global argparse.Namespace" in line
    assert scan("x.pt", "--allow-global", "argparse.Namespace", "--quiet").code == 0
    for name in (
        "os.mkdir",
        "posix.mkdir",
        "builtins.eval",
        "torch.load",
        "subprocess.Popen",
        "no.such",
        "x",
        "os",
        "",
    ):
        assert scan("x.pt", "--allow-global", name).failed(2).isprintable()
    assert not marker.exists()
