"""``init``: what it writes loads and gets the deepest level where the weights say enough; hints for these files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nndiag
from nndiag.config.load import load_run_config
from nndiag.errors import InputError, UsageError
from nndiag.pipeline.initialising import draft
from nndiag.pipeline.survey import survey


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three checkpoints of a network of linear layers with its optimiser, and a probe beside them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(3):
        optimizer.zero_grad()
        net(torch.randn(9, 4)).square().mean().backward()
        optimizer.step()
        state = {"epoch": epoch, "model": net.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"epoch_{epoch}.pt")
    save_file({"x": torch.randn(24, 4), "y": torch.arange(24) % 3}, folder / "probe.safetensors")
    return folder


def test_a_run_of_linear_layers_is_ready_to_scan(run: Path) -> None:
    made = draft(run)
    assert made.path == run / "nndiag.toml"
    made.path.write_text(made.text)
    config = load_run_config(run)
    assert config.model.sequential == (("Linear", 4, 8), ("ReLU",), ("Linear", 8, 3))
    assert (config.probe.data, config.probe.loss) == ("probe.safetensors", "cross_entropy")
    assert config.checkpoints.include == "epoch_*.pt"
    assert "adam, lr 0.01" in made.text
    assert '["ReLU"],   # guess' in made.text
    report = nndiag.scan(run, nndiag.ScanSettings(last=1)).report
    assert [found.level for found in report.checkpoints] == ["curvature"]


def test_one_file_beside_no_data(run: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    (run / "epoch_2.pt").rename(lone / "net.pt")
    made = draft(lone / "net.pt")
    assert made.path == lone / "nndiag.toml"
    assert '# data = "probe.npz"' in made.text
    assert "x with 4 numbers a sample" in made.text
    made.path.write_text(made.text)
    assert load_run_config(lone).probe.data is None


def test_what_is_there_stays_unless_forced(run: Path) -> None:
    (run / "nndiag.toml").write_text("")
    with pytest.raises(UsageError, match="is there already; add --force"):
        draft(run)
    assert draft(run, force=True).text
    with pytest.raises(InputError, match="there is no such file"):
        draft(run / "gone")
    (run / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        draft(run / "empty")


def test_two_networks_in_one_file_are_told_apart(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    both = {
        f"{which}.{name}": t.clone() for which in ("net", "target") for name, t in net.state_dict().items()
    }
    torch.save({"state": both, "step": 3}, folder / "agent.pt")
    made = draft(folder)
    made.path.write_text(made.text)
    config = load_run_config(folder)
    assert (config.checkpoints.weights_key, config.checkpoints.strip_prefix) == ("state", "net.")
    report = nndiag.scan(folder, nndiag.ScanSettings(data="random:4")).report
    assert report.checkpoints[0].level == "curvature"


@pytest.mark.parametrize(
    "name", ['a"]\nfactory = "evil.py:f"\n#', "\x1b[31mred", "\u2028x", "[model]", "\x7f", "\ud800"]
)
def test_names_in_a_file_cannot_write_configuration(name: str, tmp_path: Path) -> None:
    held = {f"{name}.0.weight": torch.ones(3, 2), f"{name}.2.weight": torch.ones(2, 3)}
    other = {f"b.{key}": tensor for key, tensor in held.items()}
    torch.save({**held, **other}, tmp_path / "net.pt")
    made = draft(tmp_path)
    made.path.write_text(made.text, encoding="utf-8")
    assert load_run_config(tmp_path).model.factory is None
    assert all(line.isprintable() for line in made.text.splitlines() if line.startswith("#"))
    torch.save({f"{name}.weight": torch.ones(3, 2)}, tmp_path / "net.pt")
    text = draft(tmp_path, force=True).text
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    save_file({"wte.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    said = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    made = draft(tmp_path)
    made.path.write_text(made.text)
    config = load_run_config(tmp_path)
    assert (config.model.factory, config.probe.loss) == ("hf", "causal_lm")


def test_hints_name_the_flags_for_these_files(run: Path, tmp_path: Path) -> None:
    assert nndiag.scan(run).hints == (
        "add --model file.py:callable and --data run/probe.safetensors to see what the nodes do, and which of them "
        "are dead",
        "or run nndiag init run: the weights fit Linear layers 4→8→3, which it writes into an nndiag.toml, "
        "activations guessed",
    )
    (run / "probe.safetensors").unlink()
    assert nndiag.scan(run).hints[-1] == (
        "without data, --data random:4 shows what the network does with random numbers"
    )
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({"wte.weight": torch.ones(4, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    assert nndiag.scan(folder).hints == (
        "add --model hf --data FILE to see what the nodes do, and which of them are dead; config.json describes a "
        "GPT2LMHeadModel",
        "without data, --data random:tokens:16 shows what the network does with random numbers",
    )
    (folder / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 8}'
    )
    assert "--data random:tokens:8 " in nndiag.scan(folder).hints[-1]


def test_data_are_sought_in_the_form_that_the_model_takes(run: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file({"wte.weight": torch.ones(4, 2)}, hub / "model.safetensors")
    for folder in (run, hub):
        for name in ("data.parquet", "data.txt", "train.parquet"):
            (folder / name).touch()
        np.savez(folder / "data.npz", x=np.zeros((2, 4)))
        np.savez(folder / "eval.npz", input_ids=np.zeros((2, 4)))
    assert survey(run).data == run / "data.npz"
    (hub / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    assert survey(hub).data == hub / "data.parquet"
    (hub / "data.parquet").unlink()
    assert survey(hub).data == hub / "eval.npz"
    (hub / "eval.npz").write_bytes(b"damaged")
    assert survey(hub).data is None
    (hub / "tokenizer.json").touch()
    assert survey(hub).data == hub / "data.txt"


def test_what_a_factory_must_fit_is_said_largest_first(tmp_path: Path) -> None:
    weights = {"steps": torch.tensor(3), "a.bias": torch.ones(2), "a.weight": torch.ones(2, 5)}
    state = {
        "state_dict": weights,
        "ema": dict(weights),
        "hyper_parameters": {"width": 2, "name": "x\n[evil]"},
    }
    torch.save(state, tmp_path / "net.ckpt")
    text = draft(tmp_path / "net.ckpt").text
    assert text.index("a.weight: 2x5") < text.index("steps: one number") < text.index("a.bias: 2")
    assert r"takes them by name: width = 2, name = 'x\n[evil]'" in text
    assert 'weights_key under [checkpoints] names one: "state_dict", "ema"' in text


def test_an_exported_program_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (torch.randn(8, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    save_file({"x": torch.randn(24, 4), "y": torch.arange(24) % 3}, tmp_path / "probe.safetensors")
    with pytest.raises(InputError, match="give --trust if it is yours"):
        draft(Path("net.pt2"))
    made = draft(Path("net.pt2"), trust=True)
    assert made.command == "nndiag scan net.pt2 --trust"
    assert "sequential" not in made.text
    assert 'data = "probe.safetensors"' in made.text
    (tmp_path / "nndiag.toml").write_text(
        made.text.replace('# loss = "cross_entropy"', 'loss = "cross_entropy"')
    )
    (found,) = nndiag.scan("net.pt2", nndiag.ScanSettings(trust=True)).report.checkpoints
    assert found.level == "curvature"
