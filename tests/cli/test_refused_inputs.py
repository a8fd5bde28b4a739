"""Checkpoints, probes and models that cannot be examined: one clear line, exit code 3."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from pathlib import Path
from timeit import Timer as Clock  # noqa: F401  what runs code, under a name of ours

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import Cli
from tests.cli.support import FULL, WITH_MODEL, Ended, network, samples


def test_missing_file(cli: Cli) -> None:
    line = cli("scan", "net.safetensor").failed(3)
    assert 'did you mean "net.safetensors"?' in line


def test_impossible_name(cli: Cli) -> None:
    cli("scan", "x" * 5000).failed(3)
    cli("scan", "net.pt/inside").failed(3)


def test_empty_directory(cli: Cli, work: Path) -> None:
    (work / "empty").mkdir()
    assert "holds no checkpoint file" in cli("scan", "empty").failed(3)
    assert "holds no checkpoint file" in cli("scan", "empty", *FULL).failed(3)


@pytest.mark.parametrize("script", [False, True])
def test_deepspeed_zero_is_no_healthy_network(cli: Cli, work: Path, script: bool) -> None:
    step = work / "zero" / "global_step10"
    step.mkdir(parents=True)
    (work / "zero" / "latest").write_text("global_step10")
    if script:
        (work / "zero" / "zero_to_fp32.py").write_text("")
    torch.save({"module": network().state_dict()}, step / "mp_rank_00_model_states.pt")
    flat = {"optimizer_state_dict": {"fp32_flat_groups": [torch.randn(8, 4)]}, "w": torch.randn(8, 4)}
    torch.save(flat, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for path in ("zero", "zero/global_step10"):
        line = cli("scan", path).failed(3)
        assert "DeepSpeed ZeRO" in line
        assert "run `python zero_to_fp32.py . OUT`" in line


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.98])
def test_truncated_checkpoint(cli: Cli, work: Path, name: str, kept: float) -> None:
    content = (work / name).read_bytes()
    (work / name).write_bytes(content[: int(len(content) * kept)])
    assert name in cli("scan", name, *FULL).failed(3)


def test_damaged_file_in_a_run_is_named(cli: Cli, work: Path) -> None:
    file = work / "run" / "epoch_2.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "epoch_2.safetensors" in without_the_second(cli("scan", "run", *FULL, "--format", "json"))


def without_the_second(ended: Ended) -> str:
    """Check that the others were scanned and the errors outranked them; return the one line."""
    report = ended.document(3)
    assert [Path(found["checkpoint"]["path"]).stem for found in report["checkpoints"]] == [
        "epoch_1",
        "epoch_10",
    ]
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    assert re.fullmatch(r"error: [^\n]+?: [^\n]+; [^\n]+", line)
    return line


def test_every_checkpoint_of_a_run_damaged_is_the_first_ones_error(cli: Cli, work: Path) -> None:
    for file in (work / "run").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-10])
    assert "epoch_1.safetensors" in cli("scan", "run", *FULL).failed(3)


def test_pickled_module(cli: Cli, work: Path) -> None:
    torch.save(network(), work / "module.pt")
    line = cli("scan", "module.pt", *WITH_MODEL).failed(3)
    assert "module.pt" in line
    assert "--trust" in line
    document = cli("scan", "module.pt", *WITH_MODEL, "--trust", "--format", "json").document()
    assert document["checkpoints"][0]["checkpoint"]["format"] == "pickled-module"


def test_a_harmless_global_is_let_in_by_name_alone(cli: Cli, work: Path) -> None:
    content = {"state_dict": network().state_dict(), "args": argparse.Namespace(lr=0.1, layers=[1, 2])}
    torch.save(content, work / "run.pt")
    assert "--allow-global argparse.Namespace" in cli("scan", "run.pt").failed(3)
    assert cli("scan", "run.pt", "--allow-global", "argparse.Namespace", "--format", "json").code == 0
    assert "is not the dotted name" in cli("scan", "run.pt", "--allow-global", "Namespace").failed(2)
    assert "no such name" in cli("scan", "run.pt", "--allow-global", "argparse.Nothing").failed(2)


class Net(torch.nn.Module):
    """A module of a user's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()


class Settings:
    """Data of a user's own class."""

    def __init__(self) -> None:
        self.width = 3


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_module_of_ones_own_class_is_called_one(
    cli: Cli, work: Path, legacy: bool, wrapped: bool
) -> None:
    content = {"args": argparse.Namespace(lr=0.1), "model": Net()} if wrapped else Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form keeps the source of modules, and may not find it
        torch.save(content, work / "module.pt", _use_new_zipfile_serialization=not legacy)
    line = cli("scan", "module.pt").failed(3)
    assert "holds a pickled module" in line
    assert "save model.state_dict()" in line
    assert "or give --trust" in line
    assert "--allow-global" not in line
    assert cli("scan", "module.pt", "--trust", "--format", "json").code == 0


def test_a_name_out_of_the_file_is_not_offered_as_harmless(cli: Cli, work: Path) -> None:
    content = {"args": argparse.Namespace(lr=0.1), "more": Settings(), "model": network().state_dict()}
    torch.save(content, work / "run.pt")
    line = cli("scan", "run.pt").failed(3)
    assert f"names {Settings.__module__}.Settings," in line
    assert "safetensors" in line
    assert "--allow-global" not in line
    assert "--trust" not in line
    name = f"{Settings.__module__}.Settings"
    flags = ("--allow-global", name, "--allow-global", "argparse.Namespace")
    assert cli("scan", "run.pt", *flags, "--format", "json").code == 0


def test_code_behind_harmless_names_is_what_is_named(cli: Cli, work: Path) -> None:
    torch.save({"args": argparse.Namespace(), "model": Net(), "config": Touch()}, work / "evil.pt")
    line = cli("scan", "evil.pt").failed(3)
    assert "names posix.system," in line
    assert "--allow-global" not in line
    assert "--trust" not in line


def test_all_harmless_names_are_offered_at_once(cli: Cli, work: Path) -> None:
    content = {"model": network().state_dict(), "args": argparse.Namespace(), "best": np.float64(3)}
    torch.save(content, work / "run.pt")
    flags = re.findall(r"--allow-global \S+", cli("scan", "run.pt").failed(3))
    assert len(flags) > 2
    assert cli("scan", "run.pt", *" ".join(flags).split(), "--format", "json").code == 0


@pytest.mark.parametrize(
    "name",
    [
        "functools.partial", "operator.attrgetter", "runpy.run_path", "pydoc.pipepager", "asyncio.Runner", "sys.exit",
        "multiprocessing.Process", "ctypes.CDLL", "shutil.rmtree", "tempfile.NamedTemporaryFile", "pty.spawn",
        "code.InteractiveInterpreter", "timeit.Timer", "importlib.import_module", "webbrowser.open", "socket.socket",
        "logging.FileHandler", "zipfile.ZipFile", "sqlite3.Connection", "argparse.FileType", "typing.get_type_hints",
        "collections.namedtuple", "numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.save", "torch.hub.load",
        "torch.nn.Linear", "builtins.open", "builtins.getattr", "safetensors.safe_open", "tests.cli.support.network",
        f"{__name__}.Clock",
    ],
)  # fmt: skip
def test_no_code_is_let_in_by_name(cli: Cli, name: str) -> None:
    assert "is not data" in cli("scan", "net.pt", "--allow-global", name).failed(2)


class Touch:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> object:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(cli: Cli, work: Path, legacy: bool) -> None:
    content = {"state_dict": network().state_dict(), "config": Touch()}
    torch.save(content, work / "evil.pt", _use_new_zipfile_serialization=not legacy)
    cli("scan", "evil.pt", *FULL).failed(3)
    cli("scan", ".", *FULL)
    cli("scan", "evil.pt", *FULL, "--allow-global", "posix.system").failed(2)
    assert not (work / "pwned").exists()


def test_plain_pickle_does_not_run(cli: Cli, work: Path) -> None:
    (work / "evil.pt").write_bytes(pickle.dumps({"a": Touch()}))
    cli("scan", "evil.pt").failed(3)
    assert not (work / "pwned").exists()


def test_weights_that_do_not_fit(cli: Cli) -> None:
    line = cli("scan", "net.safetensors", *FULL, "--model-arg", "width=9").failed(3)
    assert "net.safetensors" in line
    assert "0.weight" in line


def test_weights_of_a_run_that_do_not_fit_name_the_file(cli: Cli, work: Path) -> None:
    save_file(dict(network(width=9).state_dict()), work / "run" / "epoch_2.safetensors")
    assert "epoch_2.safetensors" in without_the_second(cli("scan", "run", *FULL, "--format", "json"))


def test_probe_of_the_wrong_width(cli: Cli, work: Path) -> None:
    save_file({"x": torch.randn(5, 7), "y": torch.zeros(5, dtype=torch.int64)}, work / "probe.safetensors")
    assert ", 7)" in cli("scan", "net.safetensors", *FULL).failed(3)


@pytest.mark.parametrize("label", [3, -1, 1000])
def test_labels_out_of_range(cli: Cli, work: Path, label: int) -> None:
    probe = samples()
    probe["y"][4] = label
    save_file(probe, work / "probe.safetensors")
    assert f"label {label} is out of range" in cli("scan", "net.safetensors", *FULL).failed(3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probe_that_is_not_finite(cli: Cli, work: Path, value: float) -> None:
    probe = samples()
    probe["x"][0, 0] = value
    save_file(probe, work / "probe.safetensors")
    assert "x holds 1 value that is not finite" in cli("scan", "net.safetensors", *FULL).failed(3)


@pytest.mark.parametrize("name", ["probe.npz", "probe.safetensors", "probe.pt"])
def test_damaged_probe(cli: Cli, work: Path, name: str) -> None:
    probe = samples()
    if name.endswith("npz"):
        np.savez(work / name, **{key: value.numpy() for key, value in probe.items()})
    elif name.endswith("pt"):
        torch.save(probe, work / name)
    content = (work / name).read_bytes()
    (work / name).write_bytes(content[: len(content) // 2])
    assert name in cli("scan", "net.safetensors", *WITH_MODEL, "--data", name).failed(3)


def test_missing_probe(cli: Cli) -> None:
    line = cli("scan", "net.safetensors", *WITH_MODEL, "--data", "prob.safetensors").failed(3)
    assert "prob.safetensors" in line


def test_integer_tensors_only(cli: Cli, work: Path) -> None:
    save_file({"a.weight": torch.arange(6).reshape(2, 3)}, work / "ints.safetensors")
    assert "ints.safetensors" in cli("scan", "ints.safetensors").failed(3)


def test_no_measurable_layer(cli: Cli, work: Path) -> None:
    save_file({"count": torch.ones(3, dtype=torch.int64)}, work / "none.safetensors")
    cli("scan", "none.safetensors", "--model", "models.py:nothing").failed(3)
    cli("scan", "none.safetensors").failed(3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("models.py:raising", "raised ValueError: no width was given"),
        ("models.py:leaving", "raised SystemExit"),
        ("models.py:no_module", "dict, not a torch.nn.Module"),
        ("broken.py:build", "ZeroDivisionError"),
    ],
)
def test_factory_that_gives_no_network(cli: Cli, work: Path, spec: str, words: str) -> None:
    (work / "broken.py").write_text("1 / 0\n")
    assert words in cli("scan", "net.safetensors", "--model", spec).failed(3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Exiting", "SystemExit"),
        ("Broken", "KeyError: 'secret'"),
        ("Greedy", "out of memory"),
    ],
)
def test_forward_that_fails(cli: Cli, name: str, words: str) -> None:
    line = cli(
        "scan", "named.safetensors", "--model", f"models.py:{name}", "--data", "probe.safetensors"
    ).failed(3)
    assert words in line


def test_verbose_shows_the_traceback(cli: Cli) -> None:
    ended = cli(
        "scan", "named.safetensors", "--model", "models.py:Broken", "--data", "probe.safetensors", "--verbose"
    )
    assert (ended.code, ended.out) == (3, "")
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")


def test_loss_of_one_number(cli: Cli) -> None:
    line = cli("scan", "net.safetensors", *FULL[:4], "--loss", "models.py:one_number").failed(3)
    assert "one loss per sample" in line


def test_code_of_a_run_directory_needs_trust(cli: Cli, work: Path) -> None:
    (work / "run" / "model.py").write_text((work / "models.py").read_text())
    (work / "run" / "nndiag.toml").write_text('[model]\nfactory = "model.py:build"\n')
    line = cli("scan", "run").failed(3)
    assert "--trust" in line
    assert cli("scan", "run", "--trust", "--quiet").code == 0
    line = cli("scan", "run", "--trust", "--model-arg", "width=9").failed(3)
    assert "do not fit the model" in line


def test_names_in_a_checkpoint_cannot_steer_the_terminal(cli: Cli, work: Path) -> None:
    torch.save({"\x1b[2J\nerror: 0.weight": torch.ones(2, 2)}, work / "names.pt")
    assert "\x1b" not in cli("scan", "names.pt", *WITH_MODEL).failed(3)
    ended = cli("scan", "names.pt")
    assert ended.code == 0
    assert "\x1b" not in ended.out + ended.err


def test_file_name_that_is_not_unicode(cli: Cli, work: Path) -> None:
    name = os.fsdecode(b"net-\xff.pt")
    (work / name).write_bytes((work / "net.pt").read_bytes())
    for form in ("json", "rich", "markdown"):
        ended = cli("scan", name, "--format", form)
        assert ended.code == 0, ended.err
        assert "net-" in ended.out
