"""Peak memory with a probe and with one ten times larger, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.markdown import rows, section
from benchmarks.peak import Peak
from benchmarks.problems import resnet_case
from benchmarks.setting import Setting


def table(setting: Setting) -> list[str]:
    """Compare the peaks."""
    n, few = (1, 16) if setting.quick else (3, 32)
    case = resnet_case(n, few, setting.device, 5 if setting.quick else 30)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save({name: value.cpu() for name, value in case.model.state_dict().items()}, weights)
        peaks = []
        for samples in (few, 10 * few):
            setting.say(f"{samples} samples")
            runs = [
                peak_in_a_process(setting, weights, n, samples, batch=few) for _ in range(setting.repeats)
            ]
            peaks.append(sorted(runs, key=lambda peak: peak.most)[len(runs) // 2])
    first = peaks[0].most
    body = [
        [
            str(peak.samples), mib(peak.probe), mib(peak.before), mib(peak.most), f"{peak.most / first - 1:+.0%}",
            f"{peak.seconds:.1f} s",
        ]
        for peak in peaks
    ]  # fmt: skip
    where = "of the device's allocator" if setting.device.type == "cuda" else "resident, of the whole process"
    head = ("samples", "the probe itself", "before measuring", "peak", "against the smaller", "time")
    return [
        *section(
            "Memory",
            f"{case.name} in batches of {few}, {peaks[0].budget}. Peak memory {where}; every run is a fresh process "
            f"that builds the network, loads its weights and measures, and a row is the median of {setting.repeats} by "
            "peak: what the allocator leaves in pieces differs by some 5 % from run to run.",
        ),
        *rows(head, body),
    ]


def peak_in_a_process(setting: Setting, weights: Path, n: int, samples: int, batch: int) -> Peak:
    """Run ``benchmarks.peak`` and return what it found."""
    asked = [str(weights), n, samples, batch, setting.device, torch.get_num_threads()]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak", *map(str, asked)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Peak(**json.loads(done.stdout))


def mib(count: int) -> str:
    """Return bytes in MiB."""
    return f"{count / 2**20:,.0f} MiB"
