"""Train the sample runs and write them here, or into DIR: `python sample_checkpoints/make.py [DIR]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from _count import describe
from _stability import above_stability, diverging
from _toys import two_cycle, xor_abs1, xor_relu1
from _training import dying_mlp, healthy_mlp, small_cnn_bn, weight_decay_collapse
from _write import overview, put_in_place

RUNS = (
    healthy_mlp,
    dying_mlp,
    weight_decay_collapse,
    small_cnn_bn,
    above_stability,
    diverging,
    xor_abs1,
    xor_relu1,
    two_cycle,
)


def main(root: Path) -> None:
    """Make every run before the first is put in place."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    runs = [make() for make in RUNS]
    for run in runs:
        put_in_place(run, root)
        print(*describe(run), sep="\n")
    (root / "README.md").write_text(overview(runs), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
