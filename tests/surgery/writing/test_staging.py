"""Whole or not at all: killed at any moment, on a full disk, onto what is there already."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as dcp

from nndiag.checkpoint import open_checkpoint
from nndiag.errors import InputError, NndiagError, UsageError
from nndiag.model.fit import fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import check_destination, write, writing
from nndiag.surgery.writing.job import Job
from nndiag.surgery.writing.safetensors_file import write_safetensors
from nndiag.surgery.writing.staging import staged
from tests.surgery.writing.networks import healed, network, pruned, trained, written
from tests.surgery.writing.test_sharded import shards

ROOT = Path(__file__).parents[3]


def _zip(path: Path) -> Path:
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path / "a.pt")
    return path / "a.pt"


def _legacy(path: Path) -> Path:
    torch.save(network().state_dict(), path / "a.pt", _use_new_zipfile_serialization=False)
    return path / "a.pt"


def _safetensors(path: Path) -> Path:
    model, optimizer = trained()
    save_file(model.state_dict(), path / "a.safetensors")
    torch.save(optimizer.state_dict(), path / "a.optimizer.safetensors")
    return path / "a.safetensors"


def _huggingface(path: Path) -> Path:
    folder = shards(path / "a", network(), "safetensors").parent
    (folder / "config.json").write_text("{}")
    return folder


def _dcp(path: Path) -> Path:
    dcp.save({"model": network().state_dict()}, checkpoint_id=path / "a")
    return path / "a"


MAKERS = [_safetensors, _zip, _legacy, _huggingface, _dcp]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def everything(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


KILLED = [_safetensors, _zip, _huggingface, _dcp]


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of killed runs: sources in ``before/NAME``, ``after/NAME``, the rest in ``places/NAME/NUMBER``."""
    root = tmp_path_factory.mktemp("killed")
    sources = []
    for make in KILLED:
        (root / "before" / make.__name__).mkdir(parents=True)
        sources.append(make(root / "before" / make.__name__).relative_to(root / "before"))
    shutil.copytree(root / "before", root / "after", copy_function=shutil.copy2)
    (root / "places").mkdir()
    command = [sys.executable, "-m", "tests.surgery.writing.killed", str(root / "places")]
    command += [str(root / "after" / source) for source in sources]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("make", KILLED)
def test_killed_at_any_moment_it_is_whole_or_not_there(kills: Path, make: Callable[[Path], Path]) -> None:
    name = make.__name__
    assert everything(kills / "before" / name) == everything(kills / "after" / name)
    source = next(path for path in (kills / "before" / name).iterdir() if "optimizer" not in path.name)
    *killed, lived = sorted((kills / "places" / name).iterdir())
    assert len(killed) > 10
    whole = everything(lived)
    target = lived / ("new" + source.suffix)
    assert [path.name for path in lived.iterdir() if path.name.startswith(".")] == []
    unfinished = 0
    for place in killed:
        seen = {path.name for path in place.iterdir() if not path.name.startswith(".")}
        hidden = [path for path in place.iterdir() if path.name.startswith(".")]
        unfinished += bool(hidden) and not seen
        shown = {name: value for name, value in everything(place).items() if not name.startswith(".")}
        assert shown.items() <= whole.items()
        if target.name in seen:
            assert shown == whole
            continue
        assert all(
            "optimizer" in other for other in seen
        )  # it comes before its weights, and goes with the next run
        written(source, pruned(network()), place / target.name, network())
        assert everything(place) == whole
    assert unfinished > 5


@pytest.mark.parametrize("stopped", [False, True])
def test_what_came_before_a_target_that_does_not_arrive_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    link = os.link

    def meanwhile(made: Path, target: Path) -> None:
        if target.name == "new" and stopped:
            raise KeyboardInterrupt
        if target.name == "new":
            target.write_text("somebody else's")
        link(made, target)

    def make() -> None:
        with staged(tmp_path / "new") as folder:
            (folder / "new").write_text("weights")
            (folder / "a report").write_text("of them")

    monkeypatch.setattr(os, "link", meanwhile)
    with pytest.raises(KeyboardInterrupt if stopped else UsageError):
        make()
    assert everything(tmp_path) == ({} if stopped else {"new": b"somebody else's"})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("limit", [0, 100, 500])
def test_a_full_disk_leaves_nothing(tmp_path: Path, make: Callable[[Path], Path], limit: int) -> None:
    source = make(tmp_path)
    before = everything(tmp_path)
    model = network()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with pytest.raises(InputError, match="cannot be written: file too large; free some space") as caught:
            written(source, healed(model), tmp_path / "new", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for eight pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_small_file_system_that_is_full(small_disk: Path, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(100, 100))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model.state_dict(), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "c.safetensors")
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "d")
    edits = Edits({"0.weight": torch.ones(100, 100)})
    for source in ("a.pt", "b.pt", "c.safetensors", "d"):
        with pytest.raises(InputError, match="no space left on device; free some space") as caught:
            written(tmp_path / source, edits, small_disk / "new", model)
        assert caught.value.exit_code == 3
        assert not list(small_disk.iterdir())


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    source = _safetensors(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.link(source, tmp_path / "hard")
    cases = {
        source: "the checkpoint itself",
        tmp_path / "link": "the checkpoint itself",
        tmp_path / "hard": "the checkpoint itself",
        folder / ".." / source.name: "the checkpoint itself",
        tmp_path / "dangling": "there already",
        folder: "there already",
        tmp_path / "a.optimizer.safetensors": "there already",
        tmp_path / "no" / "folder": "no folder",
        source / "inside": "no folder",
        tmp_path / ("n" * 300): "not a possible name",
        tmp_path / "nu\0ll": "not a possible name",
    }
    before = everything(tmp_path)
    for target, words in cases.items():
        with pytest.raises(UsageError, match=words) as caught:
            written(source, healed(network()), target, network())
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_the_optimiser_beside_a_target_is_not_overwritten(tmp_path: Path) -> None:
    source = _safetensors(tmp_path)
    (tmp_path / "b.optimizer.safetensors").write_text("of someone else")
    with pytest.raises(UsageError, match="there already"):
        written(source, healed(network()), tmp_path / "b.safetensors", network())
    assert (tmp_path / "b.optimizer.safetensors").read_text() == "of someone else"
    assert not (tmp_path / "b.safetensors").exists()


def test_a_target_inside_the_checkpoint_is_a_misuse(tmp_path: Path) -> None:
    source = _huggingface(tmp_path)
    (tmp_path / "way").symlink_to(source)
    for target in (source / "new", tmp_path / "way" / "new"):
        with pytest.raises(UsageError, match="inside the checkpoint"):
            written(source, healed(network()), target, network())
    assert not (source / "new").exists()


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _zip(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="permission denied; choose another place") as caught:
        check_destination(source, tmp_path / "new")
    assert caught.value.exit_code == 3


def test_what_came_into_being_meanwhile_stays(tmp_path: Path) -> None:
    for kind in ("file", "folder"):
        target = tmp_path / kind
        with pytest.raises(NndiagError), staged(target) as folder:  # noqa: PT012
            if kind == "file":
                (folder / kind).write_text("mine")
                target.write_text("theirs")
            else:
                (folder / kind).mkdir()
                target.mkdir()
                (target / "theirs").touch()
    assert (tmp_path / "file").read_text() == "theirs"
    assert (tmp_path / "folder" / "theirs").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_error_in_between_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "new") as folder:  # noqa: PT012
        (folder / "new").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    gone = tmp_path / "source" / "tokenizer.json"
    with pytest.raises(InputError) as caught, staged(tmp_path / "new") as folder:
        shutil.copyfile(gone, folder / "tokenizer.json")
    assert (
        str(caught.value)
        == f"{gone}: cannot be read: no such file or directory; check the file, and heal again"
    )
    with (
        pytest.raises(InputError, match="/new: cannot be written: no such file or directory; choose"),
        staged(tmp_path / "new") as folder,
    ):
        (folder / "gone" / "weights").write_bytes(b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_leftovers_go_and_what_another_run_is_writing_stays(tmp_path: Path) -> None:
    start = f".nndiag-{hashlib.sha256(b'new').hexdigest()[:12]}-"
    left, running, other = tmp_path / f"{start}a", tmp_path / f"{start}b", tmp_path / ".nndiag-else-c"
    for folder in (left, running, other):
        folder.mkdir()
        (folder / "new").write_text("half")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / f"{start}link").symlink_to(outside)
    lock = os.open(running, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "source").touch()
    check_destination(tmp_path / "source", tmp_path / "new")
    os.close(lock)
    assert not left.exists()
    assert outside.exists()
    assert running.exists()
    assert other.exists()


def test_a_source_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    source = _zip(tmp_path)
    opened = open_checkpoint(source)
    fitted = fit(network(), opened.places)
    content = source.read_bytes()
    source.write_bytes(content)
    os.utime(source, ns=(0, 0))
    with pytest.raises(InputError, match="changed while it was read"):
        write(opened, fitted, healed(network()), tmp_path / "new.pt", model=network())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_report_appears_with_the_checkpoint_or_not_at_all(tmp_path: Path) -> None:
    source = _zip(tmp_path)
    opened = open_checkpoint(source)
    fitted, model = fit(network(), opened.places), network()

    def report(notes: tuple[str, ...]) -> dict[str, bytes]:
        return {"new.json": b"{}" * len((*notes, 1))}

    made = write(opened, fitted, healed(model), tmp_path / "new", model=model, beside=report)
    assert made.beside == (tmp_path / "new.json",)
    assert (tmp_path / "new.json").read_bytes() == b"{}"
    with pytest.raises(UsageError, match=r"new\.json: is there already"):
        write(opened, fitted, healed(model), tmp_path / "other", model=model, beside=report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "new", "new.json"]


@pytest.mark.parametrize("arrived", [True, False])
def test_what_lies_beside_a_target_goes_only_where_the_target_never_came(
    tmp_path: Path, arrived: bool
) -> None:
    hidden = tmp_path / f".nndiag-{hashlib.sha256(b'new').hexdigest()[:12]}-a"
    hidden.mkdir()
    for name in ("new", "new.json", "other"):
        (hidden / name).write_text("whole")
    os.link(hidden / "new.json", tmp_path / "new.json")
    (tmp_path / "other").write_text("whole")
    if arrived:  # and was renamed by its owner
        os.link(hidden / "new", tmp_path / "mine")
    (tmp_path / "source").touch()
    check_destination(tmp_path / "source", tmp_path / "new")
    left = {"other", "source"} | ({"mine", "new.json"} if arrived else set())
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_does_not_read_back_as_it_was_meant_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = _safetensors(tmp_path), network()
    edits = healed(model)

    def spoiling(change: Callable[[bytearray], object]) -> Callable[..., None]:
        def write_other(job: Job, target: Path) -> None:
            write_safetensors(job.source.path, job.changes, target)
            content = bytearray(target.read_bytes())
            change(content)
            target.write_bytes(content)

        return write_other

    for change, words in (
        (lambda content: content.__setitem__(-1, content[-1] ^ 1), "came out with another 3.weight"),
        (lambda content: content.clear(), "cannot be read again"),
    ):
        monkeypatch.setattr(writing, "_WRITERS", {"safetensors": spoiling(change)})
        with pytest.raises(InputError, match=words):
            written(source, edits, tmp_path / "b.safetensors", model)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a.optimizer.safetensors", "a.safetensors",
        ]  # fmt: skip
