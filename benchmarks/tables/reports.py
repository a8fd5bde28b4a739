"""What is done with reports, without torch: start-up, gate, and comparing many reports of many nodes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import rows, section
from benchmarks.setting import Setting
from nndiag.records.packed import pack
from nndiag.report.document import render_json

LAYERS = 10
REPEATS = 5


def table(setting: Setting) -> list[str]:
    """Time the commands that read reports."""
    reports, nodes = (5, 1_000) if setting.quick else (50, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_report(Path(folder), place, reports, nodes) for place in range(reports)]
        size = sum(path.stat().st_size for path in paths)
        policy = Path(folder) / "policy.toml"
        policy.write_text("max_degenerate_fraction = 0.5\n")
        setting.say("commands")
        body = [
            ["`nndiag --help`", seconds(command("--help")), "0.3"],
            ["`nndiag rules`", seconds(command("rules")), "0.3"],
            [f"`nndiag gate` of one report, {nodes:,} nodes",
             seconds(command("gate", str(paths[-1]), "--policy", str(policy))), "0.3"],
            [f"comparing {reports} reports of {nodes:,} nodes ({size / 1e6:.0f} MB) after start-up",
             seconds(comparing(paths)), "1"],
            ["`nndiag compare` of them, start-up and JSON included",
             seconds(command("compare", "--format", "json", *map(str, paths))), "–"],
        ]  # fmt: skip
    return [
        *section(
            "Reports", f"Median of {REPEATS} runs each, every one a process of its own; none imports torch."
        ),
        *rows(("what", "seconds", "budget"), body),
    ]


def seconds(value: float) -> str:
    """Return a time with two digits."""
    return f"{value:.2f}"


def command(*words: str) -> float:
    """Return the median time of a command, start-up included."""
    return statistics.median(timed([sys.executable, "-m", "nndiag", *words]) for _ in range(REPEATS))


def timed(words: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begun


def comparing(paths: list[Path]) -> float:
    """Return the median time from the first byte read to the finished record, imports taken before."""
    code = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "import nndiag, nndiag.comparing.matching, nndiag.records.comparison, nndiag.gating.policies\n"
        "from nndiag.comparing.judging import compare_run; from nndiag.comparing.reading import read_reports, run_of\n"
        "import nndiag.comparing.rules; from nndiag.pipeline.comparing import compare\n"
        "begun = time.perf_counter(); found = compare(sys.argv[1:]); print(time.perf_counter() - begun)\n"
        "assert 'torch' not in sys.modules and len(found.checkpoints) == len(sys.argv) - 1\n"
    )
    words = [sys.executable, "-c", code, *map(str, paths)]
    return statistics.median(
        float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        for _ in range(REPEATS)
    )


def write_report(folder: Path, place: int, count: int, nodes: int) -> Path:
    """Write a report as a scan would: layers of equal width, a twentieth of the nodes dying along the run."""
    generator = np.random.default_rng(place)
    width, share = nodes // LAYERS, place / max(count - 1, 1)
    layers, listed = [], []
    for number in range(LAYERS):
        dead = int(0.05 * width * share)
        layers.append(layer_entry(generator, str(number), width, dead))
        listed += [node_entry(str(number), index) for index in range(dead)]
    diagnosis = {
        "checkpoint": {"path": f"e{place:03}.pt", "format": "torch", "sha256": "0" * 64, "step": 100 * place,
                       "epoch": place, "parameters": nodes * 100, "optimizer": {"name": "sgd", "lr": 0.1}},
        "probe": {"samples": 1000, "loss": "cross_entropy", "sha256": None, "folds": 4, "has_targets": True},
        "level": "curvature", "curvature": None,
        "timing": {"forward_backward_s": 0.1, "capture_s": 0.1, "curvature_s": 0.1, "total_s": 1.0},
        "model": {"loss": 2 - share, "gradient_norm": 1.0}, "layers": layers, "nodes": listed,
    }  # fmt: skip
    from nndiag.records.report import Report

    report = Report.model_validate({"nndiag_version": "0", "settings": {}, "checkpoints": [diagnosis]})
    path = folder / f"r{place:03}.json"
    path.write_text(render_json(report))
    assert json.loads(path.read_text())["checkpoints"]
    return path


def layer_entry(generator: np.random.Generator, name: str, width: int, dead: int) -> dict[str, Any]:
    norms = generator.random(width) + 0.5
    verdicts = {"healthy": width - dead, "plateau": dead}
    return {
        "name": name, "kind": "Linear", "nodes": width, "fan_in": 99, "parameters": 100 * width, "activation": "relu",
        "verdicts": verdicts, "curvature_kind": "hessian",
        "measures": {"effective_rank": 20.0, "torque_ratio_mean": 0.9, "stability_margin_max": 0.1},
        "every_node": {
            "states": "d" * dead + "h" * (width - dead), "parameter_norm": pack(norms), "weight_norm": pack(norms),
            "bias": pack(generator.normal(size=width)), "lambda_max": pack(generator.random(width)),
            "direction": pack(generator.normal(size=(width, 16)) / 4, "<f2"),
        },
    }  # fmt: skip


def node_entry(layer: str, index: int) -> dict[str, Any]:
    codes = (("ND201", "dead"), ("ND204", "dormant"), ("ND301", "no-gradient"), ("ND401", "plateau"))
    found = [
        {
            "code": code,
            "name": name,
            "severity": "warning",
            "message": f"{name} on 1,000 samples",
            "evidence": {"x": 0.0},
        }
        for code, name in codes
    ]
    return {
        "layer": layer, "index": index, "verdict": "plateau", "curvature_kind": "hessian",
        "measures": {f"measure_{i}": 0.123456789 for i in range(25)}, "findings": found,
        "action": {"kind": "reinitialise", "reason": "dead"},
    }  # fmt: skip
