"""The commands in the README's table of frameworks run as they are printed, to the deepest level."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nndiag.cli import main
from tests import hf
from tests.checkpoint.test_dcp import NETWORK, write_with_two_ranks
from tests.docs.test_readme import README
from tests.pipeline.test_deepest_levels import FACTORY, train_with
from tests.timm_library import library

TABLE = README.partition("is scanned to the deepest level by one command each:")[2].partition("\n\n**")[0]
WORDS = "a cat sat on the mat and slept".split()


def table_of(kind: str, count: int = 9) -> Any:
    """Return a probe as the columns of a table."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return pyarrow.table({name: tensor.tolist() for name, tensor in hf.samples(kind, count).items()})


def whole() -> None:
    hf.saved("bert", Path("MODEL_DIR"))
    write_table("held_out.parquet", "bert")


def write_table(name: str, kind: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    parquet.write_table(table_of(kind), name)


def reviews() -> None:
    hf.saved("bert", Path("MODEL_DIR"))
    tokenizer(Path("MODEL_DIR"))
    rows = [{"text": " ".join(WORDS[i % 3 : i % 3 + 5]), "label": i % 3} for i in range(9)]
    Path("reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))


def text() -> None:
    t = hf.library()
    torch.manual_seed(0)
    config = t.GPT2Config(vocab_size=len(WORDS), n_positions=256, n_embd=4, n_layer=1, n_head=1)
    t.GPT2LMHeadModel(config).save_pretrained("MODEL_DIR")
    tokenizer(Path("MODEL_DIR"))
    Path("held_out.txt").write_text("the cat sat on a mat and slept on the mat " * 30)


def tokenizer(folder: Path) -> None:
    library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = library.Tokenizer(
        library.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a")
    )
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))


def trainer() -> None:
    library = hf.library()
    pytest.importorskip("accelerate", reason="accelerate is not installed", exc_type=ImportError)
    given = {name: tensor.long() for name, tensor in hf.samples("bert", 8).items()}
    rows = [{name: tensor[i] for name, tensor in given.items()} for i in range(8)]
    options = library.TrainingArguments(
        output_dir="OUTPUT_DIR", per_device_train_batch_size=4, num_train_epochs=2, save_strategy="epoch",
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    library.Trainer(model=hf.tiny("bert"), args=options, train_dataset=rows).train()
    write_table("held_out.parquet", "bert")


def lightning() -> None:
    library = pytest.importorskip("lightning", reason="lightning is not installed", exc_type=ImportError)
    Path("model.py").write_text(FACTORY)
    train_with(library, Path("lightning_logs/version_0/checkpoints"), width=6, depth=1)
    probe(4)


def ranks() -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    Path("raw").mkdir()
    Path("outputs/checkpoint").mkdir(parents=True)
    (write_with_two_ranks(Path("raw").absolute()) / "flat").rename("outputs/checkpoint/step-1000")
    Path("net.py").write_text(NETWORK)
    probe(4)


def exported() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.randn(5, 4),), dynamic_shapes=free), "net.pt2")
    probe(4)


def probe(width: int) -> None:
    numpy = pytest.importorskip("numpy")
    generator = torch.Generator().manual_seed(0)
    numpy.savez("probe.npz", x=torch.randn(12, width, generator=generator).numpy(), y=numpy.arange(12) % 3)


def timm() -> None:
    torch.manual_seed(0)
    save_file(library().create_model("resnet18", num_classes=10).state_dict(), "net.safetensors")
    numpy = pytest.importorskip("numpy")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    numpy.savez("probe.npz", x=images.numpy(), y=numpy.arange(4))


MADE: dict[str, Callable[[], None]] = {
    "nndiag scan MODEL_DIR --data held_out.parquet": whole,
    "nndiag scan MODEL_DIR --data reviews.jsonl": reviews,
    "nndiag scan MODEL_DIR --data held_out.txt --block-size 256": text,
    "nndiag scan OUTPUT_DIR --data held_out.parquet": trainer,
    "nndiag scan lightning_logs/version_0/checkpoints --model model.py:Net --data probe.npz": lightning,
    "nndiag scan outputs/checkpoint/step-1000 --model net.py:build --data probe.npz": ranks,
    "nndiag scan net.pt2 --trust --data probe.npz": exported,
    "nndiag scan net.safetensors --model timm:resnet18 --model-arg num_classes=10 --data probe.npz": timm,
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that write checkpoints
        yield


def test_every_command_of_the_table_is_tried() -> None:
    assert re.findall(r"`(nndiag scan [^`]+)`", TABLE) == list(MADE)


@pytest.mark.parametrize("command", MADE)
def test_a_command_of_the_table_gets_the_deepest_level(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    MADE[command]()
    capfd.readouterr()
    assert main([*shlex.split(command)[1:], "--output", "json=report.json"]) == 0
    document = json.loads(Path("report.json").read_text())
    assert {found["level"] for found in document["checkpoints"]} == {"curvature"}
