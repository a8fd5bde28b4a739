"""Archives of agents: the policy and its optimiser are edited, every other entry stays as it is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from nndiag.checkpoint import open_checkpoint
from nndiag.errors import InputError
from nndiag.model.fit import fit
from nndiag.surgery.edits import Edits
from nndiag.surgery.writing import write
from tests.surgery.writing.networks import adam, expected, healed, network, pruned, same, step, trained


def packed(value: object) -> bytes:
    """Return what torch.save writes."""
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def agent(path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Write an archive in which the network is one of two, with its own optimiser."""
    model, optimizer = trained()
    policy = {f"q_net.{name}": value for name, value in model.state_dict().items()}
    policy |= {f"q_net_target.{name}": value for name, value in model.state_dict().items()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "data", b'{"policy_class": {":serialized:": "gAWVKwAAAAAAAACMCHBvc2l4lIwGc3lzdGVt"}}'
        )
        archive.writestr("policy.pth", packed(policy))
        archive.writestr("policy.optimizer.pth", packed(optimizer.state_dict()))
        archive.writestr("pytorch_variables.pth", packed(None))
        archive.writestr("_stable_baselines3_version", b"2.0.0")
    return model, optimizer


def test_policy_and_optimiser_change_and_all_else_stays(tmp_path: Path) -> None:
    model, _ = agent(tmp_path / "a.zip")
    opened = open_checkpoint(tmp_path / "a.zip")
    fitted = fit(model, opened.places, strip_prefix="q_net")
    for change, width in ((healed, 6), (pruned, 4)):
        edits, target = change(model), tmp_path / f"{width}.zip"
        (note,) = write(opened, fitted, edits, target, model=model).notes
        assert note.startswith('"q_net_target" holds other weights of the same names, which ')
        assert note.endswith("left as they were") == (width == 6)
        assert ("code that builds both networks alike does not load this file" in note) == (width == 4)
        with zipfile.ZipFile(tmp_path / "a.zip") as old, zipfile.ZipFile(target) as new:
            assert old.namelist() == new.namelist()
            for one, two in zip(old.infolist(), new.infolist(), strict=True):
                assert one.date_time == two.date_time
                if one.filename not in ("policy.pth", "policy.optimizer.pth"):
                    assert old.read(one) == new.read(two)
            policy = torch.load(io.BytesIO(new.read("policy.pth")), weights_only=True)
            state = torch.load(io.BytesIO(new.read("policy.optimizer.pth")), weights_only=True)
        mine = {n.removeprefix("q_net."): v for n, v in policy.items() if n.startswith("q_net.")}
        assert same(mine, expected(model, edits))
        assert torch.equal(policy["q_net_target.0.weight"], model.state_dict()["0.weight"])
        again = network(width)
        again.load_state_dict(mine)
        resumed = adam(again)
        resumed.load_state_dict(state)
        step(again, resumed)
        assert int(resumed.state[again[0].weight]["step"]) == 4


def test_damage_in_an_entry_that_nobody_reads_is_found_when_it_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "a.zip"
    model, _ = agent(source)
    content = bytearray(source.read_bytes())
    content[content.index(b"policy_class")] ^= 1
    source.write_bytes(content)
    opened = open_checkpoint(source)
    fitted = fit(model, opened.places, strip_prefix="q_net")
    with pytest.raises(InputError, match=r"a\.zip: is truncated or damaged .*CRC"):
        write(opened, fitted, healed(model), tmp_path / "b.zip", model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def older(content: bytes) -> bytes:
    """Return a file of torch.save as torch wrote it before it took note of the order of bytes."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(("/byteorder", "/.format_version", "/.storage_alignment")):
                new.writestr(entry, old.read(entry))
    return written.getvalue()


@pytest.mark.parametrize("saved_by", ["torch of today", "older torch"])
def test_an_archive_in_which_nothing_is_left_to_change_is_written_again_byte_for_byte(
    tmp_path: Path, saved_by: str
) -> None:
    agent(tmp_path / "a.zip")
    if saved_by == "older torch":
        with zipfile.ZipFile(tmp_path / "a.zip") as new:
            contents = {name: new.read(name) for name in new.namelist()}
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as old:
            for name, content in contents.items():
                old.writestr(name, older(content) if name.endswith(".pth") else content)
    source, written = tmp_path / "a.zip", []
    for turn in range(3):
        opened, (model, _) = open_checkpoint(source), trained()
        edits = healed(model) if turn == 0 else Edits(values={}, reset={})
        source = tmp_path / f"{turn}.zip"
        write(opened, fit(model, opened.places, strip_prefix="q_net"), edits, source, model=model)
        written.append(source.read_bytes())
    assert written[0] == written[1] == written[2]
