"""Callbacks of frameworks: the history of a real run, and nothing left on the model."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nndiag.monitor import lightning_callback, trainer_callback

from .test_monitor import hooks, network

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own


def samples(count: int) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return torch.utils.data.TensorDataset(x, torch.randint(0, 3, (count,), generator=generator))


def dead_in(file: Path) -> list[set[int]]:
    found = json.loads(file.read_text())["checkpoints"]
    return [
        {n["index"] for n in one["nodes"] if n["verdict"] == "plateau" and n["layer"].endswith("0")}
        for one in found
    ]


def test_lightning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch", reason="the extra frameworks is not installed")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    module, file = Module(), tmp_path / "history.json"
    callback = lightning_callback(file, every=3)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(samples(32 * 8), batch_size=32))
    document = json.loads(file.read_text())
    assert [one["checkpoint"]["step"] for one in document["checkpoints"]] == [3, 6]
    assert document["checkpoints"][0]["probe"]["samples"] == 32
    assert document["checkpoints"][0]["checkpoint"]["optimizer"]["lr"] == 1e-3
    assert document["checkpoints"][0]["level"] == "gradients"
    assert all(dead >= {0, 1, 2} for dead in dead_in(file))
    assert hooks(module) == 0


class Classifier(nn.Module):
    """A model as Transformers calls it: by keywords, its loss first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    pytest.importorskip("accelerate", reason="the extra frameworks is not installed")
    model, file = Classifier(), tmp_path / "history.json"
    data = [{"x": x, "labels": y} for x, y in samples(32 * 8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=32, num_train_epochs=1, report_to=[],
        save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, callbacks=[trainer_callback(file, every=3)]
    )
    trainer.train()
    document = json.loads(file.read_text())
    assert [one["checkpoint"]["step"] for one in document["checkpoints"]] == [3, 6]
    assert document["checkpoints"][0]["probe"]["samples"] == 32
    assert all(dead >= {0, 1, 2} for dead in dead_in(file))
    assert hooks(model) == 0
