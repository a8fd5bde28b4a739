from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.errors import InputError, UsageError

from .files import FORMS, network, save, trained


def names(directory: Path, include: str | None = None, exclude: tuple[Path, ...] = ()) -> list[str]:
    return [path.name for path in find_checkpoints(directory, include, exclude)]


def write(path: Path, **extra: object) -> None:
    save({"model": {"w": torch.ones(2, 2)}, **extra}, path)


def test_a_file_is_itself_even_if_it_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x")
    assert find_checkpoints(path) == (path,)


@pytest.mark.parametrize("form", FORMS)
def test_order_is_by_step_inside_the_file(tmp_path: Path, form: str) -> None:
    for name, step in {"a.pt": 30, "b.pt": 4, "c.pt": torch.tensor(200)}.items():
        save({"model": {"w": torch.ones(2, 2)}, "step": step}, tmp_path / name, form)
    assert names(tmp_path) == ["b.pt", "a.pt", "c.pt"]


def test_order_is_by_epoch_inside_the_file_against_the_name(tmp_path: Path) -> None:
    write(tmp_path / "epoch_1.pt", epoch=9)
    write(tmp_path / "epoch_2.pt", epoch=8)
    assert names(tmp_path) == ["epoch_2.pt", "epoch_1.pt"]


def test_order_is_by_safetensors_metadata(tmp_path: Path) -> None:
    for name, epoch in {"a": "10", "b": "9"}.items():
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors", metadata={"epoch": epoch})
    assert names(tmp_path) == ["b.safetensors", "a.safetensors"]


def test_order_is_by_numbers_in_names_naturally(tmp_path: Path) -> None:
    for name in ("ckpt_10.pt", "ckpt_9.pt", "ckpt_100.pt", "ckpt_9b.pt"):
        write(tmp_path / name)
    assert names(tmp_path) == ["ckpt_9.pt", "ckpt_9b.pt", "ckpt_10.pt", "ckpt_100.pt"]


def test_files_without_step_come_last(tmp_path: Path) -> None:
    for name in ("epoch_10.pt", "epoch_9.pt"):
        write(tmp_path / name)
    save({"model": {"w": torch.zeros(2, 2)}}, tmp_path / "best.pt")
    assert names(tmp_path) == ["epoch_9.pt", "epoch_10.pt", "best.pt"]


def test_formats_may_be_mixed_and_leftovers_lie_around(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "epoch_1.safetensors")
    save({"w": torch.ones(2)}, tmp_path / "epoch_2.pt")
    save({"w": torch.ones(2)}, tmp_path / "epoch_3.pth", "legacy")
    save({"w": torch.ones(2)}, tmp_path / "epoch_4.safetensors")  # misnamed
    save(trained()[1].state_dict(), tmp_path / "optim_state.pt")
    save({"losses": [1.0]}, tmp_path / "history.pt")
    for leftover in (
        "notes.txt",
        "events.out.tfevents",
        "training_args.bin",
        "rng_state_0.pth",
        ".hidden.pt",
    ):
        (tmp_path / leftover).write_bytes(b"x")
    (tmp_path / "directory.pt").mkdir()
    (tmp_path / "wandb").mkdir()
    assert names(tmp_path) == ["epoch_1.safetensors", "epoch_2.pt", "epoch_3.pth", "epoch_4.safetensors"]


def test_what_was_cut_short_is_named(tmp_path: Path) -> None:
    write(tmp_path / "epoch_1.pt")
    for name in ("epoch_2.pt.tmp", "model.safetensors.incomplete", ".hidden.pt.part", "log.txt.tmp"):
        (tmp_path / name).write_bytes(b"x")
    for folder in ("checkpoint-500", "tmp-checkpoint-600", "shards", "logs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shards" / "__0_0.distcp").write_bytes(b"x")
    said: list[str] = []
    assert find_checkpoints(tmp_path, note=said.append) == (tmp_path / "epoch_1.pt",)
    assert said == [
        f"{tmp_path}: left out, unfinished, without weights or of another kind: "
        "checkpoint-500, epoch_2.pt.tmp, model.safetensors.incomplete, shards, tmp-checkpoint-600"
    ]


def test_a_copy_of_a_numbered_checkpoint_counts_once(tmp_path: Path) -> None:
    for epoch in range(3):
        save(
            {"epoch": epoch, "model": {"w": torch.full((2, 2), float(epoch))}}, tmp_path / f"epoch_{epoch}.pt"
        )
    save({"epoch": 2, "model": {"w": torch.full((2, 2), 2.0)}, "callbacks": "other"}, tmp_path / "last.pt")
    save({"epoch": 1, "model": {"w": torch.full((2, 2), 7.0)}}, tmp_path / "averaged.pt")
    save({"model": {"w": torch.zeros(2, 2)}}, tmp_path / "best.pt")
    said: list[str] = []
    found = find_checkpoints(tmp_path, note=said.append)
    assert [path.name for path in found] == ["epoch_0.pt", "averaged.pt", "epoch_1.pt", "epoch_2.pt"]
    assert said == [
        f"{tmp_path / 'best.pt'} is left out: it holds the weights of epoch_0.pt",
        f"{tmp_path / 'last.pt'} is left out: it holds the weights of epoch_2.pt",
    ]
    assert "last.pt" in names(tmp_path, include="*.pt")


def test_misnamed_files_are_ordered_by_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", step=2)
    write(tmp_path / "b.safetensors", step=1)
    assert names(tmp_path) == ["b.safetensors", "a.safetensors"]


def test_damaged_and_refused_files_stay_in_their_place(tmp_path: Path) -> None:
    write(tmp_path / "epoch_1.pt")
    write(tmp_path / "epoch_3.pt")
    (tmp_path / "epoch_2.pt").write_bytes((tmp_path / "epoch_1.pt").read_bytes()[:500])
    torch.save(network(), tmp_path / "epoch_4.pt")
    (tmp_path / "epoch_5.pt").touch()
    found = find_checkpoints(tmp_path)
    assert [path.name for path in found] == [f"epoch_{number}.pt" for number in range(1, 6)]
    for index in (1, 3, 4):
        with pytest.raises(InputError):
            open_checkpoint(found[index])


def test_optimizer_sibling_is_no_checkpoint_even_if_damaged(tmp_path: Path) -> None:
    save(network().state_dict(), tmp_path / "policy.pth")
    (tmp_path / "policy.optimizer.pth").write_bytes(b"PK\x03\x04")
    assert names(tmp_path) == ["policy.pth"]
    assert names(tmp_path, "*.pth") == ["policy.pth"]


def test_include_replaces_the_suffixes(tmp_path: Path) -> None:
    write(tmp_path / "epoch_1.pt")
    write(tmp_path / "epoch_2.weights")
    write(tmp_path / "last.weights")
    assert names(tmp_path, "epoch_*.weights") == ["epoch_2.weights"]


def test_excluded_files_are_left_out(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "epoch_1.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "probe.safetensors")
    beside = tmp_path / "sub" / ".." / "probe.safetensors"
    (tmp_path / "sub").mkdir()
    assert names(tmp_path, exclude=(beside,)) == ["epoch_1.safetensors"]


def test_link_to_another_checkpoint_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "epoch_1.pt")
    (tmp_path / "last.pt").symlink_to(tmp_path / "epoch_1.pt")
    assert names(tmp_path) == ["epoch_1.pt"]


def test_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write(tmp_path / "secret.pt")
    (run / "epoch_1.pt").symlink_to(tmp_path / "secret.pt")
    with pytest.raises(InputError, match="leaves the run directory"):
        find_checkpoints(run)


def test_pattern_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write(tmp_path / "secret.pt")
    with pytest.raises(InputError, match="leaves the run directory"):
        find_checkpoints(run, "../*.pt")
    with pytest.raises(UsageError, match="not a pattern"):
        find_checkpoints(run, str(tmp_path / "*.pt"))
    with pytest.raises(UsageError, match="not a pattern"):
        find_checkpoints(run, "")


def test_missing_and_empty_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        find_checkpoints(tmp_path / "none")
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match="holds no checkpoint file;"):
        find_checkpoints(tmp_path)
    write(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"holds no checkpoint file matching epoch_\*;"):
        find_checkpoints(tmp_path, "epoch_*")


def test_only_an_optimizer_is_no_checkpoint(tmp_path: Path) -> None:
    save(trained()[1].state_dict(), tmp_path / "policy.optimizer.pth")
    with pytest.raises(InputError, match="holds no checkpoint file"):
        find_checkpoints(tmp_path)
