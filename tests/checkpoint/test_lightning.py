"""Checkpoints that Lightning writes, read without it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nndiag.checkpoint import find_checkpoints, open_checkpoint

from .files import same_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's own, and those of what it imports
    lightning = pytest.importorskip("lightning", reason="the extra formats is not installed")


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, width: int, lr: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier, torch.optim.Optimizer]:
    """A directory of three checkpoints, the module and its optimiser in the end."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
    module = Classifier(6, 0.01, {"sizes": [1, 2], "name": None})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, save_top_k=-1)
        trainer = lightning.Trainer(
            max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            callbacks=[keep],
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    return folder, module, trainer.optimizers[0]


def test_run_comes_back_in_order(run: tuple[Path, Classifier, torch.optim.Optimizer]) -> None:
    folder, module, optimizer = run
    found = [open_checkpoint(path) for path in find_checkpoints(folder)]
    assert [(opened.step, opened.epoch) for opened in found] == [(4, 0), (8, 1), (12, 2)]
    last = found[-1]
    (place,) = last.places
    assert place.key == "state_dict"
    assert same_tensors(dict(place.tensors), dict(module.state_dict()))
    (saved,) = last.optimizers
    for index, parameter in enumerate(module.parameters()):
        moment = saved.state[index]["exp_avg_sq"]
        assert isinstance(moment, torch.Tensor)
        assert torch.equal(moment, optimizer.state[parameter]["exp_avg_sq"])


def test_hyper_parameters_are_plain_values(run: tuple[Path, Classifier, torch.optim.Optimizer]) -> None:
    opened = open_checkpoint(find_checkpoints(run[0])[0])
    assert dict(opened.hyper_parameters) == {
        "width": 6,
        "lr": 0.01,
        "options": {"sizes": (1, 2), "name": None},
    }


def test_lightning_is_not_needed(
    run: tuple[Path, Classifier, torch.optim.Optimizer], monkeypatch: Any
) -> None:
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("lightning", "pytorch_lightning")
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    assert open_checkpoint(find_checkpoints(run[0])[0]).places
