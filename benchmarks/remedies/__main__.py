"""Print the tables of what the remedies do: ``python -m benchmarks.remedies --output FILE``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.remedies import page
from benchmarks.remedies.deploying import savings
from benchmarks.remedies.dying import SEEDS, WAYS, ends
from benchmarks.remedies.overhead import overheads
from benchmarks.remedies.plasticity import ARMS

HEAD = """# Do the remedies help

`{command}`, torch {torch}, one thread. Code: `benchmarks/remedies/`.
"""


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    command = f"python -m benchmarks.remedies --seeds {' '.join(map(str, options.seeds))}"
    lines = [*HEAD.format(command=command, torch=torch.__version__).splitlines(), ""]
    died = {}
    for way in WAYS:
        begun = time.perf_counter()
        died[way] = [ends(way, seed) for seed in range(SEEDS)]
        _tell(way, begun)
    courses = {}
    for name, arm in ARMS.items():
        begun = time.perf_counter()
        courses[name] = [arm(seed) for seed in options.seeds]
        _tell(f"plasticity, {name}", begun)
    lines += [*page.of_dying(died), *page.of_plasticity(courses), *page.of_deployment(savings())]
    lines += page.of_overhead(overheads())
    text = "\n".join(lines).rstrip() + "\n"
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")


def _tell(what: str, begun: float) -> None:
    print(f"{what}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remedies", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the networks whose labels are shuffled"
    )
    parser.add_argument("--output", type=Path, help="write the page here instead of printing it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
