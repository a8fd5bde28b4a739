"""Checkpoints of Lightning: what comes out loads and trains on with it; keys, callbacks and loops stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nndiag.surgery.edits import Edits
from tests.surgery.writing.networks import healed, network, pruned, written

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's own, and those of what it imports
    lightning = pytest.importorskip("lightning", reason="the extra frameworks is not installed")


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network(width)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def train(module: Classifier, folder: Path, epochs: int, source: Path | None = None) -> Any:
    """Train for some epochs, from a checkpoint where there is one."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, save_top_k=-1)
        trainer = lightning.Trainer(
            max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu", callbacks=[keep],
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=source)
    return trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(Classifier(6), folder, 1)
    (file,) = folder.glob("*.ckpt")
    return file


@pytest.mark.parametrize("change", [healed, pruned])
def test_lightning_goes_on(source: Path, tmp_path: Path, change: Callable[[nn.Module], Edits]) -> None:
    before = torch.load(source, weights_only=True)
    model = network()
    model.load_state_dict({n.removeprefix("net."): v for n, v in before["state_dict"].items()})
    edits, target = change(model), tmp_path / "b.ckpt"
    assert written(source, edits, target, model).notes == ()
    after = torch.load(target, weights_only=True)
    assert list(after) == list(before)
    for key in set(before) - {"state_dict", "optimizer_states"}:
        assert after[key] == before[key], key
    assert list(after["state_dict"]) == list(before["state_dict"])
    width = 4 if edits.kept else 6
    module = Classifier.load_from_checkpoint(target, width=width)
    assert torch.equal(module.net[3].weight, edits.values["3.weight"])
    again = Classifier(width)
    trainer = train(again, tmp_path / "on", 2, target)
    assert trainer.global_step == 8
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {8}
