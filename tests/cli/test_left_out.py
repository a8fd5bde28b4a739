"""What cannot be treated is listed, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nndiag.cli import main

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed, self.unused, self.head = nn.Linear(6, 5), nn.Linear(3, 3), nn.Linear(5, 3)
        self.phases = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x):
        x = torch.fft.irfft(torch.fft.rfft(x) * self.phases, n=6)
        h = torch.relu(self.mixed(x))
        return self.head(h - h.mean(0))
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("curvature", ["auto", "hessian"])
def test_what_is_left_out_is_said(
    curvature: str,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    space: dict = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    torch.save(space["Net"]().state_dict(), "net.pt")
    save_file({"x": torch.randn(10, 6), "y": torch.arange(10) % 3}, "probe.safetensors")
    words = f"net.pt --model net.py:Net --data probe.safetensors --curvature {curvature} --dtype {dtype}"
    assert main(["scan", *words.split(), "--format", "json"]) in (0, 1)
    (found,) = json.loads(capfd.readouterr().out)["checkpoints"]
    reasons = {one["name"]: one["reason"] for one in found["unmeasured"]}
    mixed = "samples of a batch influence each other there"
    assert reasons == {
        "phases": "its numbers are complex64, not real",
        "unused": "the forward pass does not use it",
        "mixed": mixed if curvature == "auto" else f"{mixed}; its curvature alone is known",
    }
