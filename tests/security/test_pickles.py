"""Pickles that would run code, wherever a run directory may hold one. The stock loader runs each of them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoint.files import FORMS, Payload, save
from tests.security.conftest import Program

WEIGHTS = {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}
Refused = Callable[..., str]


def stock_runs_it(path: Path, marker: Path) -> None:
    """Show that the payload works where nothing stops it, and remove its trace."""
    torch.load(path, weights_only=False)
    assert marker.is_dir()
    marker.rmdir()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content",
    [
        lambda bad: bad,
        lambda bad: {**WEIGHTS, "extra": bad},
        lambda bad: {"state_dict": WEIGHTS, "hyper_parameters": {"width": bad}},
        lambda bad: {"model": WEIGHTS, "optimizer": {"state": {0: {"step": bad}}, "param_groups": []}},
        lambda bad: {"model": WEIGHTS, bad: 1},
    ],
    ids=["alone", "beside weights", "hyper-parameters", "optimizer", "key"],
)
def test_payload_in_a_checkpoint(
    run: Path, marker: Path, refused: Refused, form: str, content: Callable[..., object]
) -> None:
    path = save(content(Payload(marker)), run / "x.pt", form)
    stock_runs_it(path, marker)
    for place in ("x.pt", "."):
        assert "is refused: its pickle names posix.mkdir, which would have to run as code" in refused(place)


@pytest.mark.parametrize("form", FORMS)
def test_payload_in_the_file_of_an_optimizer(run: Path, marker: Path, scan: Program, form: str) -> None:
    save(WEIGHTS, run / "policy.pth")
    path = save({"state": {}, "param_groups": [Payload(marker)]}, run / "policy.optimizer.pth", form)
    stock_runs_it(path, marker)
    ended = scan(".")
    assert ended.code == 0
    assert "policy.optimizer.pth was not used: is refused: its pickle names posix.mkdir" in ended.err
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_payload_in_a_probe(run: Path, marker: Path, refused: Refused, form: str) -> None:
    save(WEIGHTS, run / "x.pth")
    path = save({"x": torch.ones(2, 4), "y": Payload(marker)}, run / "probe.pt", form)
    stock_runs_it(path, marker)
    assert "posix.mkdir" in refused("x.pth", "--data", "probe.pt")
    (run / "nndiag.toml").write_text('[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "probe.pt"\n')
    assert "posix.mkdir" in refused(".")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin", "x.ckpt", "x.pkl"])
def test_plain_pickle(run: Path, marker: Path, refused: Refused, protocol: int, name: str) -> None:
    content = pickle.dumps({"w": Payload(marker)}, protocol)
    pickle.loads(content)
    marker.rmdir()
    (run / name).write_bytes(content)
    refused(name)


def test_model_that_was_pickled_whole(run: Path, refused: Refused) -> None:
    path = save(nn.Linear(4, 3), run / "x.pt")
    assert isinstance(torch.load(path, weights_only=False), nn.Linear)
    assert "state_dict()" in refused("x.pt")


def test_torchscript_is_code(run: Path, refused: Refused) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in old files for ever
        torch.jit.script(nn.Linear(4, 3)).save(str(run / "x.pt"))
    assert "is a TorchScript archive, which is code" in refused("x.pt")


@pytest.mark.parametrize("name", ["data.pkl", "x/data.pkl", "x/y/data.pkl", "../data.pkl", "/data.pkl"])
def test_payload_in_a_crafted_archive(run: Path, marker: Path, refused: Refused, name: str) -> None:
    with zipfile.ZipFile(run / "x.pt", "w") as archive:
        archive.writestr(name, pickle.dumps({"w": Payload(marker)}, 2))
        archive.writestr("x/version", "3\n")
    refused("x.pt")


def test_harmless_twin_is_scanned(run: Path, scan: Program) -> None:
    """What makes the files above be refused is the payload and nothing else."""
    save({**WEIGHTS, "extra": 1}, run / "x.pt")
    assert scan("x.pt").code == 0
