"""Files that change while they are read: said in one line, never a mixture, never a dead process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nndiag.checkpoint.source import Watched
from tests.cli.support import run_process
from tests.security.conftest import Program
from tests.security.stock import in_child

WEIGHTS = {f"{index}.weight": torch.zeros(1000, 1000) for index in range(5)}


@contextmanager
def meanwhile(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a change again and again, from before until after the block, and once as soon as any file was opened."""
    over, begun, one_at_a_time = threading.Event(), threading.Event(), threading.Lock()

    def work() -> None:
        while not over.is_set():
            with one_at_a_time:
                change()
            begun.set()
            over.wait(0.001)

    stock = Watched.__init__

    def opened(file: Watched, path: Path) -> None:
        stock(file, path)
        with one_at_a_time:
            change()

    monkeypatch.setattr(Watched, "__init__", opened)
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write(path: Path, form: str) -> Path:
    if form == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form == "zip")
    return path


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(os.urandom(100))


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("change", [append, rewrite])
def test_checkpoint_that_is_written_to(
    run: Path, scan: Program, form: str, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(run / "x.pt", form)
    with meanwhile(lambda: change(path), monkeypatch):
        line = scan("x.pt").failed(3)
    assert "changed while it was read" in line or "damaged" in line


TRUNCATING = """
import os, sys, threading
from nndiag.cli import main
import nndiag.checkpoint.torch_file as torch_file
import nndiag.pipeline.{module} as place

torch_file.LARGE = {large}

stock = place.{name}

def shorter(*arguments, **keywords):
    os.truncate("x.pt", 5000)
    return stock(*arguments, **keywords)

place.{name} = shorter
sys.exit(main(["scan", "x.pt"]))
"""


@pytest.mark.parametrize("large", [1 << 28, 1])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_checkpoint_that_is_cut_short_after_it_was_opened(run: Path, form: str, large: int) -> None:
    """Memory that is mapped to a file kills the process where the file has gone."""
    write(run / "x.pt", form)
    ended = run_process(
        cwd=run, launcher=("-c", TRUNCATING.format(module="job", name="choose_tensors", large=large))
    )
    assert "changed while it was read" in ended.failed(3) or "damaged" in ended.failed(3)


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_stock_loaders_die_of_a_file_that_is_cut_short(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.pt", form)

    def stock() -> object:
        if form == "zip":
            tensor = torch.load(path, weights_only=True, mmap=True)["4.weight"]
            os.truncate(path, 5000)
            return tensor[-1, -1].item()
        with safe_open(path, "pt") as file:
            os.truncate(path, 5000)
            return file.get_tensor("4.weight")[-1, -1].item()

    assert in_child(stock).signal == signal.SIGBUS


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_stock_loaders_mix_old_and_new(tmp_path: Path, form: str) -> None:
    """Of a file that is written to between two tensors they return one of each, and say nothing."""
    path = write(tmp_path / "x.pt", form)

    def overwrite() -> None:
        content = path.read_bytes()
        old = WEIGHTS["4.weight"].numpy().tobytes()
        new = torch.ones_like(WEIGHTS["4.weight"]).numpy().tobytes()
        start = content.rindex(old)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(new)

    if form == "zip":
        found = torch.load(path, weights_only=True, mmap=True)
        overwrite()
        first, last = found["0.weight"], found["4.weight"]
    else:
        with safe_open(path, "pt") as opened:
            first = opened.get_tensor("0.weight")
            overwrite()
            last = opened.get_tensor("4.weight")
    assert first.max() == 0
    assert last[-1, -1] == 1


@pytest.mark.parametrize("name", ["probe.npz", "probe.safetensors", "probe.pt"])
def test_probe_that_is_written_to(
    run: Path, scan: Program, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"0.weight": torch.ones(3, 100), "0.bias": torch.ones(3)}, run / "x.pth")
    x = torch.zeros(40_000, 100)
    path = run / name
    if name.endswith("npz"):
        np.savez(path, x=x.numpy())
    elif name.endswith("pt"):
        torch.save({"x": x}, path)
    else:
        save_file({"x": x}, path)
    (run / "nndiag.toml").write_text(
        f'[model]\nsequential = [["Linear", 100, 3]]\n[probe]\ndata = "{name}"\n'
    )
    with meanwhile(lambda: append(path), monkeypatch):
        line = scan("x.pth", "--level", "activations").failed(3)
    assert "changed while it was read" in line or "damaged" in line
    assert sys.getswitchinterval() < 1
