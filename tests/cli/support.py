"""What the tests of the command line work with: a small network, its files, and how a command ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MODELS = """
import os, time, warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


def build(width=8, outputs=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, outputs))


def raising():
    raise ValueError("no width\\nwas given")


def leaving():
    raise SystemExit(0)


def no_module():
    return {"a": 1}


def nothing():
    return nn.Sequential(nn.ReLU())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def act(self, x):
        return F.relu(x)

    def forward(self, x):
        return self.head(self.act(self.hidden(x)))


class Module(Net):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()


class InPlace(Net):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)


class Method(Net):
    def act(self, x):
        return x.relu()


class Talking(Net):
    def forward(self, x):
        print("hello from forward")
        return super().forward(x)


class Warning(Net):
    def forward(self, x):
        warnings.warn("this is\\nold")
        return super().forward(x)


class Exiting(Net):
    def forward(self, x):
        raise SystemExit(0)


class Greedy(Net):
    def forward(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


class Broken(Net):
    def forward(self, x):
        raise KeyError("secret")


class Slow(Net):
    def forward(self, x):
        Path("running").touch()
        time.sleep(60)
        return super().forward(x)


def per_sample(output, target):
    return (output.logsumexp(1) - output.gather(1, target[:, None])[:, 0])


def one_number(output, target):
    return F.cross_entropy(output, target)
"""


def network(width: int = 8, seed: int = 0) -> nn.Sequential:
    """Return the network of ``models.py:build``, seeded."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def samples(count: int = 10) -> dict[str, Tensor]:
    """Return a probe of four features and three classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return {"x": x, "y": torch.randint(0, 3, (count,), generator=generator)}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of ``models.py:Net``."""
    return {name.replace("0.", "hidden.").replace("2.", "head."): t for name, t in state.items()}


def write_files(folder: Path) -> None:
    """Write the models, a checkpoint in three formats, a probe and a run of three checkpoints."""
    (folder / "models.py").write_text(MODELS)
    state = dict(network().state_dict())
    save_file(state, folder / "net.safetensors")
    torch.save(state, folder / "net.pt")
    save_file(renamed(state), folder / "named.safetensors")
    save_file(samples(), folder / "probe.safetensors")
    run = folder / "run"
    run.mkdir()
    for epoch in (1, 2, 10):
        save_file(dict(network(seed=epoch).state_dict()), run / f"epoch_{epoch}.safetensors")


WITH_MODEL = ("--model", "models.py:build")
FULL = (*WITH_MODEL, "--data", "probe.safetensors", "--loss", "cross_entropy")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def failed(self, code: int) -> str:
        """Check that it failed as every command has to, and return the one line of the error."""
        assert self.code == code, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        *notes, line = self.err.splitlines()
        assert all(note.startswith("note: ") for note in notes), self.err
        assert re.fullmatch(r"error: [^\n]+?: [^\n]+; [^\n]+", line), line
        return line

    def document(self, code: int = 0) -> Any:
        """Check that it ended with this code and JSON on stdout, and return that."""
        assert self.code == code, self.err
        return json.loads(self.out)


def run_process(
    *words: str, cwd: Path, launcher: tuple[str, ...] = ("-m", "nndiag"), **environment: str
) -> Ended:
    """Run the real program."""
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=cwd, env=clean_environment() | environment, capture_output=True, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def clean_environment() -> dict[str, str]:
    """Return the environment without what changes how a terminal program looks."""
    looks = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONIOENCODING", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in looks}
