"""What frameworks write, down to the curvature level, each in one command: with the real libraries where they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.cli import main
from tests import hf
from tests.cli.conftest import Cli
from tests.cli.support import Ended

EPOCHS = 3
FACTORY = """
from torch import nn
class Net(nn.Module):
    def __init__(self, width=8, depth=1):
        super().__init__()
        inner = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), *inner, nn.Linear(width, 3))
    def forward(self, x):
        return self.net(x)
"""


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        capfd.readouterr()
        code = main(["scan", *map(str, words), "--curvature", "ggn", "--format", "json"])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Libraries that write checkpoints warn of this and that; what nndiag prints is still looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "6KB"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
def test_a_hugging_face_directory(kind: str, shards: dict[str, str], scan: Cli, tmp_path: Path) -> None:
    model = hf.saved(kind, tmp_path / "model", **shards)
    assert (len(list((tmp_path / "model").glob("*.safetensors"))) > 1) == bool(shards)
    save_file(hf.samples(kind), tmp_path / "probe.safetensors")
    (found,) = scan("model", "--data", "probe.safetensors").document()["checkpoints"]
    assert found["level"] == "curvature"
    assert found["checkpoint"]["format"] == "huggingface"
    assert found["checkpoint"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_checkpoints_of_a_trainer_with_their_optimiser(scan: Cli, tmp_path: Path) -> None:
    library = hf.library()
    pytest.importorskip("accelerate", reason="accelerate is not installed", exc_type=ImportError)
    given = {name: t.long() for name, t in hf.samples("bert", 8).items()}
    rows = [{name: t[i] for name, t in given.items()} for i in range(8)]
    options = library.TrainingArguments(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, num_train_epochs=EPOCHS, save_strategy="epoch",
        learning_rate=1e-3, weight_decay=0.01, report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
        logging_strategy="epoch", dataloader_pin_memory=False, lr_scheduler_type="constant",
    )  # fmt: skip
    library.Trainer(model=hf.tiny("bert"), args=options, train_dataset=rows).train()
    save_file({**hf.samples("bert", 8)}, tmp_path / "probe.safetensors")
    found = scan("run", "--data", "probe.safetensors").document()["checkpoints"]
    assert [one["checkpoint"]["step"] for one in found] == [2, 4, 6]
    assert {one["level"] for one in found} == {"curvature"}
    assert found[-1]["checkpoint"]["optimizer"]["name"] == "adamw"
    assert found[-1]["checkpoint"]["optimizer"]["lr"] == 1e-3
    assert "stability_margin_max" in found[-1]["layers"][0]["measures"]


def test_a_lightning_run(scan: Cli, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed", exc_type=ImportError)
    (tmp_path / "model.py").write_text(FACTORY)
    train_with(lightning, tmp_path / "run", width=6, depth=2)
    save_file({"x": torch.randn(12, 4), "y": torch.arange(12) % 3}, tmp_path / "probe.safetensors")
    ended = scan("run", "--model", "model.py:Net", "--data", "probe.safetensors")
    found = ended.document()["checkpoints"]
    assert [one["checkpoint"]["epoch"] for one in found] == [0, 1, 2]
    assert {one["level"] for one in found} == {"curvature"}
    assert found[-1]["checkpoint"]["optimizer"]["name"] == "adam"
    assert "hyper-parameters in the checkpoint given to model.py:Net: width=6, depth=2" in ended.err


def train_with(lightning: Any, folder: Path, **sizes: int) -> None:
    """Let Lightning train the network of the factory for three epochs, and save every one."""
    names: dict[str, Any] = {}
    exec(FACTORY, names)

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int, depth: int, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = names["Net"](width, depth)

        def training_step(self, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16) % 3)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, callbacks=[keep], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Task(**sizes, lr=0.01), torch.utils.data.DataLoader(data, batch_size=8))


def test_an_exported_program(scan: Cli, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(net, (torch.randn(5, 4),), dynamic_shapes=free), tmp_path / "net.pt2"
    )
    save_file({"x": torch.randn(12, 4), "y": torch.arange(12) % 3}, tmp_path / "probe.safetensors")
    words = ("net.pt2", "--data", "probe.safetensors")
    assert "is code; give --trust" in scan(*words).failed(3)
    (found,) = scan(*words, "--trust").document()["checkpoints"]
    assert found["level"] == "curvature"
    assert [layer["kind"] for layer in found["layers"]] == ["Linear", "Linear"]


def test_text_and_noise_for_a_language_model(scan: Cli, tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    hf.saved("gpt2", tmp_path / "model")
    words = {word: number for number, word in enumerate("a cat sat on the mat and slept".split())}
    tokenizer = library.Tokenizer(library.models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("the cat sat on a mat and slept on the mat " * 9)
    text, noise = (
        scan("model", "--data", data, "--block-size", "8", "--limit", "6").document()["checkpoints"][0]
        for data in ("text.txt", "random:tokens:8")
    )
    assert (text["level"], noise["level"]) == ("curvature", "curvature")
    assert (text["probe"]["random"], noise["probe"]["random"]) == (False, True)
    assert text["probe"]["loss"] == noise["probe"]["loss"] == "causal_lm"
