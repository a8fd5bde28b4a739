"""Directories that the Trainer of transformers writes."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nndiag import ScanSettings, scan
from nndiag.checkpoint import find_checkpoints, open_checkpoint
from nndiag.model.fit import fit
from nndiag.model.optimizer import match_optimizer
from nndiag.records.level import Level

from .files import Payload, same_tensors, save

transformers = pytest.importorskip("transformers", reason="the extra frameworks is not installed")
pytest.importorskip("accelerate", reason="the extra frameworks is not installed")


class Trained:
    """A run of three checkpoints, its directory, model and optimiser as they are in the end."""

    def __init__(self, run: Path) -> None:
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, num_labels=3,
        )  # fmt: skip
        self.run, self.model = run, transformers.BertForSequenceClassification(config)
        samples = [
            {"input_ids": torch.randint(0, 50, (8,)), "labels": torch.tensor(i % 3)} for i in range(64)
        ]
        arguments = transformers.TrainingArguments(
            str(run), per_device_train_batch_size=8, max_steps=12, save_steps=4, logging_steps=2, learning_rate=1e-3,
            weight_decay=0.01, report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
        )  # fmt: skip
        self.trainer = transformers.Trainer(self.model, arguments, train_dataset=samples)
        self.trainer.train()
        optimizer: Any = self.trainer.optimizer
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        return Trained(tmp_path_factory.mktemp("run"))


def test_weights_step_epoch_and_log_come_back(trained: Trained) -> None:
    opened = open_checkpoint(trained.run / "checkpoint-12")
    assert (opened.format, opened.step, opened.epoch, opened.notes) == ("huggingface-trainer", 12, 1, ())
    assert same_tensors(dict(opened.places[0].tensors), trained.model.state_dict())
    log = [row for row in trained.trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in opened.history] == [2, 4, 6, 8, 10, 12]
    assert [row["loss"] for row in opened.history] == [row["loss"] for row in log]
    assert {row["learning_rate"] for row in opened.history} == {1e-3}


def test_a_report_has_the_last_losses_of_the_log(trained: Trained) -> None:
    log = {row["step"]: row["loss"] for row in trained.trainer.state.log_history if "loss" in row}
    settings = ScanSettings(level=Level.WEIGHTS)
    logged = [found.checkpoint.logged for found in scan(trained.run, settings).report.checkpoints]
    assert [(one.training_step, one.training_loss, one.eval_loss) for one in logged if one] == [
        (step, log[step], None) for step in (4, 8, 12)
    ]


def test_moments_come_back_by_name_through_two_groups(trained: Trained) -> None:
    opened = open_checkpoint(trained.run / "checkpoint-12")
    (saved,) = opened.optimizers
    assert (saved.key, len(saved.groups)) == ("optimizer.pt", 2)
    state, note = match_optimizer(trained.model, fit(trained.model, opened.places), opened.optimizers)
    assert state is not None
    assert (state.facts.name, state.facts.lr, state.step) == ("adamw", 1e-3, 12)
    assert note == "optimiser: its parameter groups differ in weight_decay: each parameter has its own"
    for name, parameter in trained.model.named_parameters():
        assert torch.equal(state.second_moments[name], trained.optimizer.state[parameter]["exp_avg_sq"]), name


def test_run_is_in_the_order_of_steps(trained: Trained) -> None:
    found = find_checkpoints(trained.run)
    assert [path.name for path in found] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]


@pytest.mark.parametrize("trained_on", [True, False])
def test_model_saved_at_the_end_comes_last_unless_it_is_that_of_a_checkpoint(
    trained: Trained, trained_on: bool, tmp_path: Path
) -> None:
    shutil.copytree(trained.run, tmp_path, dirs_exist_ok=True)
    trained.model.save_pretrained(tmp_path)
    if trained_on:
        weights = load_file(tmp_path / "model.safetensors")
        further = {name: 0.9 * tensor for name, tensor in weights.items()}
        save_file(further, tmp_path / "model.safetensors", metadata={"format": "pt"})
    notes: list[str] = []
    found = find_checkpoints(tmp_path, note=notes.append)
    steps = tuple(tmp_path / f"checkpoint-{step}" for step in (4, 8, 12))
    assert found == ((*steps, tmp_path) if trained_on else steps)
    assert any("the weights of checkpoint-12" in said for said in notes) != trained_on


def copied(trained: Trained, folder: Path) -> Path:
    folder.mkdir()
    for file in (trained.run / "checkpoint-12").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_optimiser_that_would_run_code_costs_a_note(trained: Trained, tmp_path: Path) -> None:
    folder, marker = copied(trained, tmp_path / "checkpoint-12"), tmp_path / "ran"
    save({"state": {}, "param_groups": [Payload(marker)]}, folder / "optimizer.pt")
    opened = open_checkpoint(folder)
    assert [saved.key for saved in opened.optimizers] == ["scheduler.pt"]
    assert "optimizer.pt was not used: is refused: its pickle names posix.mkdir" in opened.notes[0]
    assert not marker.exists()


def test_the_scheduler_says_rate_and_step_where_nothing_else_does(trained: Trained, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "checkpoint-12")
    (folder / "optimizer.pt").unlink()
    (folder / "trainer_state.json").write_text("{}")
    opened = open_checkpoint(folder)
    assert (opened.step, opened.notes) == (12, ())
    state, note = match_optimizer(trained.model, fit(trained.model, opened.places), opened.optimizers)
    assert state is not None
    assert (state.facts.lr, note) == (1e-3, "optimiser: its rule is not known, give --optimizer")
    whole = open_checkpoint(copied(trained, tmp_path / "checkpoint-24"))
    lines = [
        f"{hashlib.sha256((tmp_path / 'checkpoint-24' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
    ]
    assert whole.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"_last_lr": [2e-3, 2e-3], "last_epoch": 12}, "its learning rates are not those of optimizer.pt"),
        ({"_last_lr": [1e-3], "last_epoch": 12}, "it is of other parameter groups than the optimiser"),
        ({"_last_lr": ["much", 1e-3]}, "it holds no learning rates"),
        ([1, 2], "it holds no learning rates"),
    ],
)
def test_a_scheduler_that_does_not_belong_costs_a_note(
    trained: Trained, tmp_path: Path, content: object, said: str
) -> None:
    folder = copied(trained, tmp_path / "checkpoint-12")
    save(content, folder / "scheduler.pt")
    opened = open_checkpoint(folder)
    assert opened.notes == (f"scheduler.pt was not used: {said}",)
    assert [group["lr"] for group in opened.optimizers[0].groups] == [1e-3, 1e-3]


def test_a_scheduler_that_would_run_code_costs_a_note(trained: Trained, tmp_path: Path) -> None:
    folder, marker = copied(trained, tmp_path / "checkpoint-12"), tmp_path / "ran"
    save({"_last_lr": [1e-3, 1e-3], "lr_lambdas": [Payload(marker)]}, folder / "scheduler.pt")
    opened = open_checkpoint(folder)
    assert "scheduler.pt was not used: is refused: its pickle names posix.mkdir" in opened.notes[0]
    assert not marker.exists()


@pytest.mark.parametrize(
    "state",
    [
        "{", "[]", json.dumps({"global_step": "x", "epoch": None, "log_history": {}}),
        json.dumps({"global_step": -4, "epoch": 1e999, "log_history": [3, {"loss": "x", "step": 1e400}]}),
    ],
)  # fmt: skip
def test_damaged_state_costs_what_it_would_have_said(trained: Trained, tmp_path: Path, state: str) -> None:
    folder = copied(trained, tmp_path / "checkpoint-12")
    (folder / "trainer_state.json").write_text(state)
    opened = open_checkpoint(folder)
    assert opened.step == 12  # as the optimiser says
    assert opened.epoch is None
    assert all(row == {} for row in opened.history)


class Scaled(nn.Module):
    """A network with a vector that decays, which only its name tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.scale = nn.Linear(4, 4), nn.LayerNorm(4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x)) * self.scale


def test_groups_are_told_by_names_where_shapes_cannot(tmp_path: Path) -> None:
    model = Scaled()
    names = dict(model.named_parameters())
    decaying = ["scale", "first.weight"]
    groups = [
        {"params": [names[name] for name in names if name in decaying], "weight_decay": 0.1},
        {"params": [names[name] for name in names if name not in decaying], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    opened = open_checkpoint(save(content, tmp_path / "w.pt"))
    state, _ = match_optimizer(model, fit(model, opened.places), opened.optimizers)
    assert state is not None
    for name, parameter in names.items():
        assert torch.equal(state.second_moments[name], optimizer.state[parameter]["exp_avg_sq"])


class TwoVectors(nn.Module):
    """Vectors of which one decays by its name, and the other comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))


def test_groups_that_could_be_filled_in_two_ways_are_declined(tmp_path: Path) -> None:
    model = TwoVectors()
    optimizer = torch.optim.AdamW([{"params": [model.scale]}, {"params": [model.bias]}])
    (model.scale * 3 + model.bias).square().sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    opened = open_checkpoint(save(content, tmp_path / "w.pt"))
    state, note = match_optimizer(model, fit(model, opened.places), opened.optimizers)
    assert state is not None
    assert not state.second_moments
    assert "several orders that fit the shapes" in note
