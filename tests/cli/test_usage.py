"""Options and configuration that are wrong: one clear line, exit code 2, before any work where that can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL, network, samples


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bogus",), "--bogus"),
        (("--limit", "0"), "--limit 0"),
        (("--limit", "-1"), "--limit -1"),
        (("--limit", "two"), "--limit"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--folds", "0"), "--folds 0"),
        (("--every", "0"), "--every 0"),
        (("--last", "0"), "--last 0"),
        (("--threads", "0"), "--threads 0"),
        (("--seed", "-1"), "--seed -1"),
        (("--seed", "4611686018427387905"), "--seed 4611686018427387905: is too large"),
        (("--lr", "nan"), "--lr nan"),
        (("--lr", "-1"), "--lr -1"),
        (("--betas", "0.9"), "--betas 0.9"),
        (("--betas", "0.9,1"), "--betas 1"),
        (("--momentum", "1"), "--momentum 1"),
        (("--horizon", "0"), "--horizon 0"),
        (("--format", "yaml"), "--format yaml"),
        (("--output", "report.json"), "--output report.json"),
        (("--output", "yaml=report"), "yaml"),
        (("--output", "json=missing/report.json"), "there is no folder"),
        (("--output", "json=run"), "is a directory"),
        (("--level", "deep"), "'deep' is not one of"),
        (("--solver", "magic"), "'magic' is not one of"),
        (("--curvature", "x"), "--curvature"),
        (("--dtype", "int8"), "--dtype"),
        (("--goal", "x"), "--goal"),
        (("--optimizer", "x"), "--optimizer"),
        (("--fail-on", "x"), "--fail-on"),
        (("--verify", "--granularity", "head"), "--verify: actions are tried on nodes"),
        (("--device", "nowhere"), "--device nowhere"),
        (("--device", "meta"), "--device meta"),
        (("--select", "ND9"), "--select ND9"),
        (("--ignore", "X"), "--ignore X"),
        (("--model", "models"), "does not name a callable"),
        (("--model", "models.py:bild"), 'did you mean "build"?'),
        (("--model", "model.py:build"), "there is no file"),
        (("--model", "no_such_package.x:build"), "no_such_package"),
        (("--model-arg", "width=8"), "--model"),
        ((*WITH_MODEL, "--model-arg", "width"), "NAME=VALUE"),
        ((*WITH_MODEL, "--model-arg", "width=eight"), "is not JSON"),
        ((*WITH_MODEL, "--data", "probe.csv"), "probe.csv"),
        ((*WITH_MODEL, "--data", "probe.safetensors", "--loss", "hinge"), "there is no such loss"),
        ((*WITH_MODEL, "--weights-key", "ema"), "--weights-key ema"),
        (("--weights-key", "ema"), "--weights-key ema"),
        ((*WITH_MODEL, "--strip-prefix", "net"), "--strip-prefix net"),
        (("--strip-prefix", "net"), "--strip-prefix net"),
    ],
)
def test_wrong_option(cli: Cli, words: tuple[str, ...], said: str) -> None:
    assert said in cli("scan", "net.safetensors", *words).failed(2)


@pytest.mark.parametrize("words", [("scan",), ("scann", "net.pt"), ("explain",), ("explain", "ND999")])
def test_wrong_command(cli: Cli, words: tuple[str, ...]) -> None:
    cli(*words).failed(2)


def test_no_command_shows_the_help(cli: Cli) -> None:
    ended = cli()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: nndiag")


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ((), "--model"),
        (WITH_MODEL, "--data FILE"),
        ((*WITH_MODEL, "--data", "x.safetensors"), "--loss"),
    ],
)
def test_level_that_needs_more(cli: Cli, work: Path, given: tuple[str, ...], flag: str) -> None:
    save_file({"x": samples()["x"]}, work / "x.safetensors")
    line = cli("scan", "net.safetensors", *given, "--level", "curvature").failed(2)
    assert flag in line.partition("; ")[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[probe]\nlosss = 'mse'\n", 'did you mean "loss"?'),
        ("[modle]\n", 'did you mean "model"?'),
        ("[probe\n", "not valid TOML"),
        ("[probe]\nlimit = 0\n", "limit"),
        ("[model]\nsequential = [['Linaer', 4, 3]]\n", 'did you mean "Linear"?'),
        ("[rules.thresholds]\nnonsense = 1\n", "nonsense"),
    ],
)
def test_wrong_configuration(cli: Cli, work: Path, content: str, said: str) -> None:
    (work / "run" / "nndiag.toml").write_text(content)
    line = cli("scan", "run").failed(2)
    assert "nndiag.toml" in line or "threshold" in line
    assert said in line


def test_two_places_that_fit(cli: Cli, work: Path) -> None:
    torch.save({"model": network().state_dict(), "ema": network(seed=1).state_dict()}, work / "two.pt")
    for words in ((), FULL):
        line = cli("scan", "two.pt", *words).failed(2)
        assert '"model"' in line
        assert '"ema"' in line
        assert "--weights-key" in line.partition("; ")[2]
        assert cli("scan", "two.pt", *words, "--weights-key", "ema").code == 0


def test_output_never_replaces_an_input(cli: Cli, work: Path) -> None:
    before = (work / "net.safetensors").read_bytes()
    for file in ("net.safetensors", "probe.safetensors"):
        assert file in cli("scan", "net.safetensors", *FULL, "--output", f"json={file}").failed(2)
    assert (work / "net.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--select", "ND505"), "needs the curvature level and --certificate"),
        (("--select", "ND4", "--level", "gradients"), "needs the curvature level"),
        (("--select", "ND505", "--certificate"), None),
        (("--select", "ND1", "--select", "ND4"), None),
    ],
)
def test_what_is_selected_and_cannot_be_found_is_named(
    cli: Cli, words: tuple[str, ...], said: str | None
) -> None:
    ended = cli("scan", "net.safetensors", *FULL, *words)
    assert ended.code == 0
    if said is None:
        assert "not looked for" not in ended.err
    else:
        assert f"note: --select {words[1]}: it is not looked for, as it {said}" in ended.err
