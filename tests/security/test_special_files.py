"""Paths that are no files, or lead where the run directory does not reach."""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nndiag.pipeline import scanning
from nndiag.pipeline.settings import ScanSettings
from tests.checkpoint.files import save, trained
from tests.cli.support import run_process
from tests.security.conftest import Program

WEIGHTS = {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}
Refused = Callable[..., str]
CONFIG = '[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "{}"\n'


@pytest.fixture
def patience() -> Iterator[None]:
    """Opening a pipe that nobody writes to waits for ever: end that with an error."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "directory.pt", "dangling", "loop"])
def test_checkpoint_that_is_no_file(run: Path, refused: Refused, patience: None, kind: str) -> None:
    path = run / "x.pt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind.startswith("directory"):
        path.mkdir()
    else:
        path.symlink_to("x.pt" if kind == "loop" else "nothing")
    for place in ("x.pt", "."):
        refused(place)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin", "/dev/tty", "/proc/self/mem",
                                  "/proc/self/environ", "/proc/self/maps", "/proc/kmsg", "/sys/kernel"])  # fmt: skip
def test_files_of_the_system(refused: Refused, path: str) -> None:
    refused(path)


@pytest.mark.parametrize("name", ["probe.npz", "probe.safetensors", "probe.pt"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/zero", "/proc/self/mem"])
def test_probe_that_is_no_file(run: Path, refused: Refused, patience: None, name: str, kind: str) -> None:
    save(WEIGHTS, run / "x.pth")
    if kind == "fifo":
        os.mkfifo(run / name)
    elif kind == "directory":
        (run / name).mkdir()
    else:
        (run / name).symlink_to(kind)
    (run / "nndiag.toml").write_text(CONFIG.format(name))
    refused("x.pth")
    refused(".")


@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/zero"])
def test_configuration_that_is_no_file(run: Path, scan: Program, patience: None, kind: str) -> None:
    save(WEIGHTS, run / "x.pth")
    if kind == "fifo":
        os.mkfifo(run / "nndiag.toml")
    elif kind == "directory":
        (run / "nndiag.toml").mkdir()
    else:
        (run / "nndiag.toml").symlink_to(kind)
    assert scan(".").code == 0  # as if there were none


def test_link_to_a_checkpoint_outside(run: Path, tmp_path: Path, refused: Refused) -> None:
    secret = save(WEIGHTS, tmp_path / "secret.pt")
    (run / "x.pt").symlink_to(secret)
    assert torch.load(run / "x.pt", weights_only=True)  # the stock loader follows it
    assert "is a link or pattern that leaves the run directory" in refused(".")


def test_link_outside_does_not_hide_the_others(run: Path, tmp_path: Path, scan: Program) -> None:
    save(WEIGHTS, run / "epoch_0.pt")
    secret = save(WEIGHTS, tmp_path / "secret.pt")
    (run / "epoch_1.pt").symlink_to(secret)
    (run / "epoch_2.pt").symlink_to(secret)
    ended = scan(".", "--format", "json", "--quiet")
    assert ended.code == 3
    paths = [one["checkpoint"]["path"] for one in json.loads(ended.out)["checkpoints"]]
    assert paths == ["epoch_0.pt"]
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [line.partition(":")[2].split(":")[0].strip() for line in lines] == ["epoch_1.pt", "epoch_2.pt"]
    assert all("is a link or pattern that leaves the run directory" in line for line in lines)
    assert "secret" not in ended.out + ended.err


def test_link_outside_is_never_opened(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(WEIGHTS, run / "epoch_0.pt")
    secret = save(WEIGHTS, tmp_path / "secret.pt")
    (run / "epoch_1.pt").symlink_to(secret)
    opened: list[Path] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **named: opened.append(path) or real(path, *more, **named)
    )
    outcome = scanning.scan(run, ScanSettings(cache=None))
    assert len(outcome.report.checkpoints) == len(outcome.refused) == 1
    read = {Path(path).resolve() for path in opened if isinstance(path, str | Path)}
    assert (run / "epoch_0.pt").resolve() in read
    assert secret.resolve() not in read


@pytest.mark.parametrize("name", ["agent.zip", "epoch_1", "step_2.pt"])
def test_what_a_link_outside_leads_to_is_not_looked_at(
    run: Path, tmp_path: Path, scan: Program, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither opened nor listed, to see what it is: its name says that it was meant."""
    save(WEIGHTS, run / "epoch_0.pt")
    secret = tmp_path / "secret"
    secret.mkdir()
    save_file(WEIGHTS, secret / "model.safetensors")
    (secret / "config.json").write_text("{}")
    (run / name).symlink_to(secret if name == "epoch_1" else secret / "model.safetensors")
    (run / "logs").symlink_to(secret)
    looked: list[str] = []
    for module, call in ((os, "open"), (os, "scandir"), (os, "listdir"), (builtins, "open"), (io, "open")):
        real = getattr(module, call)
        monkeypatch.setattr(
            module,
            call,
            lambda path, *more, real=real, **named: (looked.append(str(path)), real(path, *more, **named))[1],
        )
    ended = scan(".", "--format", "json", "--quiet")
    assert (ended.code, len(json.loads(ended.out)["checkpoints"])) == (3, 1)
    assert f"{name}: is a link or pattern that leaves the run directory" in ended.err
    assert "logs" not in ended.err
    assert any(path.endswith("epoch_0.pt") for path in looked)
    assert not [path for path in looked if path.split("/")[0] == name or "secret" in path]


def test_plan_says_which_links_are_refused(run: Path, tmp_path: Path, scan: Program) -> None:
    save(WEIGHTS, run / "epoch_0.pt")
    (run / "epoch_1.pt").symlink_to(save(WEIGHTS, tmp_path / "secret.pt"))
    np.savez(run / "probe.npz", x=np.ones((5, 4), np.float32))
    (run / "nndiag.toml").write_text(CONFIG.format("probe.npz"))
    ended = scan(".", "--plan", "--quiet", "--format", "json")
    assert ended.code == 3
    assert json.loads(ended.out)
    assert "error: epoch_1.pt: is a link or pattern that leaves the run directory" in ended.err
    (run / "epoch_1.pt").unlink()
    assert scan(".", "--plan", "--quiet").code == 0


def test_pattern_that_leaves_the_directory(run: Path, tmp_path: Path, refused: Refused) -> None:
    save(WEIGHTS, tmp_path / "secret.pt")
    for pattern, code in (("../*.pt", 3), (f"{tmp_path}/*.pt", 2)):
        (run / "nndiag.toml").write_text(f'[checkpoints]\ninclude = "{pattern}"\n')
        refused(".", code=code)


def test_link_to_the_optimizer_of_another_run(run: Path, tmp_path: Path, scan: Program) -> None:
    save(WEIGHTS, run / "policy.pth")
    save(trained()[1].state_dict(), tmp_path / "secret.pth")
    (run / "policy.optimizer.pth").symlink_to(tmp_path / "secret.pth")
    assert torch.load(run / "policy.optimizer.pth", weights_only=True)  # the stock loader follows it
    ended = scan("policy.pth")
    assert ended.code == 0
    assert "policy.optimizer.pth was not used: it is a link that leaves its directory" in ended.err
    whole = scan(".", "--quiet")
    assert whole.code == 3
    assert "policy.pth" in whole.out  # the link beside it hides nothing
    (line,) = whole.err.splitlines()
    assert "policy.optimizer.pth: is a link or pattern that leaves the run directory" in line


@pytest.mark.parametrize("name", ["probe.npz", "probe.safetensors", "probe.pt"])
def test_link_to_a_probe_outside(
    run: Path, tmp_path: Path, refused: Refused, scan: Program, name: str
) -> None:
    save(WEIGHTS, run / "x.pth")
    secret = tmp_path / f"secret-{name}"
    x = torch.ones(8, 4)
    if name.endswith("npz"):
        np.savez(secret, x=x.numpy())
    elif name.endswith("pt"):
        torch.save({"x": x}, secret)
    else:
        save_file({"x": x}, secret)
    (run / name).symlink_to(secret)
    stock = np.load if name.endswith("npz") else torch.load if name.endswith("pt") else load_file
    assert stock(run / name)["x"].shape == (8, 4)  # the stock loaders follow it
    (run / "nndiag.toml").write_text(CONFIG.format(name))
    assert "is a link that leaves the run directory" in refused(".")
    assert scan(".", "--trust", "--quiet", "--level", "activations").code == 0
    assert scan(".", "--data", name, "--quiet", "--level", "activations").code == 0  # the user's own word
    (run / name).unlink()
    secret.rename(run / f"real-{name}")
    (run / name).symlink_to(f"real-{name}")
    assert scan(".", "--quiet", "--level", "activations").code == 0  # a link inside is none that leaves


def test_modules_in_the_working_directory_are_not_imported(run: Path, marker: Path) -> None:
    """``python -m`` puts the working directory before everything else that Python imports from."""
    save(WEIGHTS, run / "x.pth")
    for name in ("numpy", "torch", "typer", "rich", "pydantic", "tomllib", "safetensors", "sitecustomize"):
        (run / f"{name}.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    run_process(cwd=run, launcher=("-c", "import numpy"))
    marker.rmdir()  # that is what Python does by itself
    ended = run_process("scan", "x.pth", cwd=run)
    assert ended.code == 0, ended.err
    assert not marker.exists()


@pytest.mark.parametrize("length", [200, 255, 256, 5000])
def test_names_of_files_that_are_very_long(run: Path, scan: Program, length: int) -> None:
    save(WEIGHTS, run / "x.pth")
    name = "x" * (length - 4) + ".npz"
    (run / "nndiag.toml").write_text(CONFIG.format(name))
    scan(".").failed(3)
    scan("x.pth", "--data", name).failed(3)
    scan("x" * length).failed(3)
    scan("x.pth", "--model", "x" * length + ".py:build").failed(2)


def test_file_name_that_is_not_unicode(run: Path, scan: Program) -> None:
    name = os.fsdecode(b"\xff\xfe\x1b[2J\n::error::.pt")
    save({"x": 1}, run / name)
    assert scan(name).failed(3).isprintable()
    assert scan(".").failed(3).isprintable()
    assert sys.getfilesystemencoding() == "utf-8"
