"""``scan --certificate``: in the document, on the screen, and where it is impossible."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import nndiag
from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL, samples

SCHEMA = json.loads((Path(nndiag.__file__).parent / "nndiag.schema.json").read_text())
XOR = Path(__file__).parents[2] / "sample_checkpoints" / "xor_abs1"


def test_the_document_holds_a_certificate_that_is_the_same_each_time(cli: Cli) -> None:
    words = ("scan", "net.safetensors", *FULL, "--certificate", "--dtype", "float64", "--format", "json")
    document = cli(*words).document()
    jsonschema.validate(document, SCHEMA)
    assert document["settings"]["certificate"] is True
    model = document["checkpoints"][0]["model"]
    certificate = model["certificate"]
    assert certificate["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert certificate["gradient_norm"] == pytest.approx(model["gradient_norm"], rel=1e-9)
    assert certificate["loss"] == pytest.approx(model["loss"], rel=1e-9)
    codes = {"not_stationary": ["ND505"], "saddle": ["ND506"]}.get(certificate["kind"], [])
    assert [one["code"] for one in model["findings"]] == codes
    assert cli(*words).document()["checkpoints"][0]["model"] == model


def test_without_the_option_there_is_none(cli: Cli) -> None:
    document = cli("scan", "net.safetensors", *FULL, "--format", "json").document()
    assert document["settings"]["certificate"] is False
    assert document["checkpoints"][0]["model"]["certificate"] is None


@pytest.mark.parametrize("format_", ["rich", "markdown"])
def test_people_read_it_too(cli: Cli, format_: str) -> None:
    ended = cli("scan", XOR / "point_1_local-minimum.safetensors", "--certificate", "--format", format_)
    assert ended.code == 0, ended.err
    words = " ".join(ended.out.split())
    assert "certificate: strict minimum · gradient 0 · Hessian from 2.00 to 2.00" in words
    assert "descent returns from within" in words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--certificate: it needs the model; add --model"),
        (WITH_MODEL, "--certificate: it needs data; add --data"),
        (FULL[:4], "--certificate: it needs a loss; add --loss"),
        (
            (*FULL, "--level", "gradients"),
            "--certificate: it needs the curvature level; leave out --level gradients",
        ),
        (
            (*WITH_MODEL, "--data", "inputs.safetensors", "--loss", "cross_entropy"),
            "--certificate: it needs targets; add targets y to the data",
        ),
    ],
)
def test_what_is_missing_is_named(cli: Cli, work: Path, words: tuple[str, ...], said: str) -> None:
    x = samples()["x"]
    save_file({"x": x}, work / "inputs.safetensors")
    if words == FULL[:4]:  # without targets no loss is taken for granted
        words = (*WITH_MODEL, "--data", "inputs.safetensors")
    assert said in cli("scan", "net.safetensors", *words, "--certificate").failed(2)


def test_a_checkpoint_that_is_not_finite_has_none(cli: Cli, work: Path) -> None:
    state = {name: torch.full_like(t, torch.nan) for name, t in load_file(work / "net.safetensors").items()}
    save_file(state, work / "nan.safetensors")
    ended = cli("scan", "nan.safetensors", *FULL, "--certificate", "--format", "json")
    assert ended.document()["checkpoints"][0]["model"]["certificate"] is None
    assert "not finite" in ended.err
