"""The page: what was measured, and what the figures say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

from benchmarks.markdown import rows, section
from benchmarks.remedies import dying, plasticity, redo
from benchmarks.remedies.deploying import Saving
from benchmarks.remedies.dying import End
from benchmarks.remedies.overhead import EVERY, Overhead
from benchmarks.remedies.plasticity import Course
from nndiag.surgery.deploying.cost import RUNS, SAMPLES

Runs = Sequence[Mapping[str, End]]


def of_dying(found: Mapping[str, Runs]) -> list[str]:
    """Return the tables of networks that died."""
    lines = section(
        "Networks that died, trained on",
        f"Linear layers of 64-64-64-32-10 units with ReLU, He-normal, Adam. Killed by 100 steps at 40 times the "
        f"learning rate; by biases of -3 in the beginning and 200 steps; by a weight decay of 0.1 for 600 steps. Then "
        f"what killed them ends, and every copy is trained on for {dying.STEPS} steps at 1e-3 with the optimiser as it "
        "was: as it is; healed once, as `nndiag heal --goal train --init kaiming_normal` heals a checkpoint; with a "
        "monitor that heals, every 10 steps, on the training data; with ReDo (Sokar et al. 2023: dormant units "
        f"recycled at the start and every {redo.EVERY} steps). From scratch: a new network, as many steps. Accuracy is "
        "of digits that training has not seen, the loss of those that it has. Mean ± standard "
        f"deviation over {dying.SEEDS} seeds.",
    )
    for way, runs in found.items():
        body = [
            [
                arm,
                *(
                    _spread([getattr(run[arm], what) for run in runs])
                    for what in ("accuracy", "loss", "dormant")
                ),
            ]
            for arm in runs[0]
        ]
        lines += [f"### By {way}", "", *rows(["", "accuracy", "loss", "dormant"], body), *_said(runs), ""]
    return lines


def _said(runs: Runs) -> list[str]:
    """Return what the figures say: healing against nothing, and against the best of ReDo, seed by seed."""
    rivals = [arm for arm in runs[0] if arm.startswith("ReDo")]
    said = []
    for arm in ("heal, once", "Monitor, every 10"):
        gains = [run["nothing"].loss - run[arm].loss for run in runs]
        spread = max(_deviation([run[name].loss for run in runs]) for name in ("nothing", arm))
        margin = "larger" if mean(gains) > spread else "not larger"
        best = min(rivals, key=lambda rival: mean(run[rival].loss for run in runs))
        apart = mean(run[best].loss - run[arm].loss for run in runs)
        noise = max(_deviation([run[name].loss for run in runs]) for name in (best, arm))
        against = "better than" if apart > noise else "worse than" if -apart > noise else "as good as"
        said.append(
            f"{arm}: loss lower than with nothing by {mean(gains):.3f}, {margin} than the spread ({spread:.3f}); "
            f"{against} the better ReDo ({best}: {apart:+.3f}, spread {noise:.3f}). Accuracy higher than with nothing, "
            f"seed by seed: {_spread([run[arm].accuracy - run['nothing'].accuracy for run in runs])}."
        )
    return [" ".join(said)]


def of_plasticity(found: Mapping[str, Sequence[Course]]) -> list[str]:
    """Return the table of shuffled labels."""
    lines = section(
        "Plasticity: labels shuffled again and again",
        f"The same network on {plasticity.SAMPLES} digits whose labels are shuffled {plasticity.TASKS} times, "
        f"{plasticity.STEPS} steps of Adam at {plasticity.LR:g} each. Accuracy on the labels of a task when it ends, "
        "and the share of dormant units (τ = 0.025). The monitor sees the batches of training alone, 64 samples "
        "each. Mean ± standard deviation over seeds.",
    )
    places = [0, plasticity.TASKS // 3, 2 * plasticity.TASKS // 3, plasticity.TASKS - 1]
    head = [
        "",
        *(f"accuracy, task {place + 1}" for place in places),
        *(f"dormant, task {p + 1}" for p in places),
    ]
    body = [
        [
            arm,
            *(_spread([one.accuracies[place] for one in courses]) for place in places),
            *(_spread([one.dormant[place] for one in courses]) for place in places),
        ]
        for arm, courses in found.items()
    ]
    return lines + rows(head, body)


def of_deployment(found: Iterable[Saving]) -> list[str]:
    """Return the table of smaller networks."""
    lines = section(
        "Deployed: size and time against the change of the outputs",
        "`--goal deploy` on the probe of each network: nodes that are gone, parameters, floating-point operations a "
        f"sample, milliseconds of one pass over its first {SAMPLES} samples (median of {RUNS}; of small networks "
        "mostly overhead), and the largest change of an output over the largest output.",
    )
    body = [
        [
            one.name, f"{one.gone} of {one.nodes}", _pair(*one.parameters), _pair(*one.flops),
            f"{1e3 * one.seconds[0]:.2f} → {1e3 * one.seconds[1]:.2f}", f"{one.change:.1e}",
        ]
        for one in found
    ]  # fmt: skip
    return lines + rows(["network", "nodes gone", "parameters", "operations", "ms", "change"], body)


def of_overhead(found: Iterable[Overhead]) -> list[str]:
    """Return the table of what watching costs."""
    lines = section(
        "What a monitor costs",
        "Processor time of a training step, medians over rounds by turns without a monitor and with one: without, of "
        "the step at whose end a measurement is prepared, of the step that is measured, and what these two add to "
        f"training at `every={EVERY}`. Other steps cost a comparison of two numbers.",
    )
    body = [
        [
            one.name,
            *(f"{1e3 * value:.2f}" for value in (one.without, one.ordinary, one.measured)),
            f"{100 * one.share:.1f} %",
        ]
        for one in found
    ]
    return lines + rows(["network", "without, ms", "before, ms", "measured, ms", f"every {EVERY}"], body)


def _pair(before: float, after: float) -> str:
    return f"{before:,.0f} → {after:,.0f}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {_deviation(values):.3f}"


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
