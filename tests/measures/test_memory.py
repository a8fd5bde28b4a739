"""A budget of memory is held, and changes nothing but the way the numbers are come by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cases import CASES, EVERY_KIND, build, probe
from torch import nn

from nndiag.config.sizes import parse_bytes
from nndiag.errors import UsageError
from nndiag.measures import Plan, Update, forecast, measure
from nndiag.measures.blocks import NodeBlocks
from nndiag.measures.capture import Capture
from nndiag.measures.collect import scheduled
from nndiag.measures.replaying import Replay
from nndiag.measures.schedule import Need, Part, Round, Schedule, Setting, make_schedule
from nndiag.measures.solving import Solving
from nndiag.probe.probe import Probe
from nndiag.records.level import Level
from nndiag.records.measured import Measured, OptimizerFacts
from nndiag.replay.state import undisturbed
from nndiag.spectrum.leading import SWEEPS

NAMES = ("cnn", "tokens", "lstm", "attention", "tied")
BY_NAME = {case.name: case for case in (*CASES, *EVERY_KIND)}
Ran = Callable[..., tuple[Measured, Solving]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Return a function that measures, and gives what carried the schedule out beside the numbers."""
    seen: list[Solving] = []
    run = Solving.run

    def noted(self: Solving) -> None:
        run(self)
        seen.append(self)

    monkeypatch.setattr(Solving, "run", noted)

    def call(
        model: nn.Module, samples: Probe, plan: Plan, update: Update | None = None
    ) -> tuple[Measured, Solving]:
        return measure(model, samples, plan, update), seen[-1]

    return call


def wanted_and_least(model: nn.Module, samples: Probe, plan: Plan) -> tuple[int, int]:
    with undisturbed(model, plan.seed):
        _, schedule = scheduled(Replay(model, samples, plan), None)
    return schedule.wanted, schedule.least


def agree(one: Measured, two: Measured, tolerance: float) -> None:
    """Check every number of a measurement, each relative to the largest of its kind in the layer."""
    assert two.loss == pytest.approx(one.loss, rel=tolerance)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=tolerance)
    assert one.curvature is not None
    assert two.curvature is not None
    assert (two.curvature.kind, two.curvature.products) == (one.curvature.kind, one.curvature.products)
    assert two.curvature.coverage == pytest.approx(one.curvature.coverage, rel=1e-6)
    for here, there in zip(one.layers, two.layers, strict=True):
        assert here.per_node.keys() == there.per_node.keys()
        for name, values in {**here.per_node, **here.per_fold}.items():
            found = {**there.per_node, **there.per_fold}[name]
            eigenvalue = name.startswith("lambda") or name == "sigma_min"
            like = here.per_node["lambda_max"] if eigenvalue else values
            scale = np.abs(like[np.isfinite(like)]).max(initial=0.0)
            np.testing.assert_allclose(
                found, values, rtol=0, atol=tolerance * scale, err_msg=f"{here.name} {name}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_a_quarter_of_what_is_wanted_gives_the_same_numbers(name: str, dtype: torch.dtype, ran: Ran) -> None:
    model = build(BY_NAME[name], dtype)
    samples = probe(BY_NAME[name], "cross_entropy", samples=24, batch_size=24, dtype=dtype)
    whole, _ = ran(model, samples, Plan(Level.CURVATURE))
    wanted, least = wanted_and_least(model, samples, Plan(Level.CURVATURE))
    assert least < wanted / 4
    part, solving = ran(model, samples, Plan(Level.CURVATURE, memory_budget=wanted // 4))
    agree(whole, part, 1e-4 if dtype == torch.float32 else 1e-8)
    assert solving.replay.part_size < samples.batch_size
    assert solving.most_kept < wanted / 4
    assert max(one.bytes for one in solving.schedule.rounds) <= wanted / 4


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["exact", "sampled"])
@pytest.mark.parametrize("name", ["cnn", "tokens"])
def test_a_tenth_takes_several_replays_and_gives_the_same_numbers(name: str, noise: float, ran: Ran) -> None:
    model, samples = build(BY_NAME[name]), probe(BY_NAME[name], "cross_entropy", samples=20, batch_size=10)
    plan = Plan(Level.CURVATURE, noise=noise, coverage=0.0)
    whole, once = ran(model, samples, plan)
    wanted, least = wanted_and_least(model, samples, plan)
    tight = Plan(Level.CURVATURE, noise=noise, coverage=0.0, memory_budget=max(least, wanted // 10))
    part, solving = ran(model, samples, tight)
    agree(whole, part, 1e-8)
    assert once.replays == 1
    assert solving.replays == len(solving.schedule.rounds) > 1


def streamed_at_once(needs: Sequence[Need], setting: Setting, budget: int, asked: bool) -> Schedule:
    """Return a schedule that keeps nothing: all layers in one round, those with several nodes in two ranges."""
    parts = []
    for need in needs:
        ends = (0, need.nodes // 2, need.nodes) if need.nodes > 1 else (0, need.nodes)
        parts += [Part(need.layer, "streamed", a, b, 0) for a, b in pairwise(ends)]
    return Schedule(budget, 7, (Round(tuple(parts), True, 0),), None, 0, 0)


def adam(model: nn.Module) -> Update:
    moments = {name: p.detach().square() + 1e-3 for name, p in model.named_parameters()}
    return Update(
        OptimizerFacts("adam", 1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-3), moments, step=50
    )


@pytest.mark.parametrize(
    ("name", "solver", "noise", "worth"),
    [
        *((name, "lanczos", 0.0, 64) for name in (*NAMES, "raw", "odd_convolutions", "wide_mlp")),
        ("cnn", "lanczos", 0.1, 64), ("wide_mlp", "lanczos", 0.1, 64), ("mlp_without_bias", "power", 0.0, 64),
        ("wide_mlp", "lanczos", 0.0, 2), ("wide_mlp", "lanczos", 0.1, 2),
    ],
)  # fmt: skip
def test_streamed_layers_share_replays_and_have_the_same_numbers(
    name: str, solver: str, noise: float, worth: int, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nndiag.measures.curvature.DENSE_SIZE", 0)
    monkeypatch.setattr("nndiag.spectrum.lead.WORTH", worth)
    model, samples = build(BY_NAME[name]), probe(BY_NAME[name], "cross_entropy", samples=20, batch_size=12)
    plan = Plan(Level.CURVATURE, solver, tolerance=3e-2, noise=noise, coverage=0.0)
    update = adam(model)
    kept = measure(model, samples, plan, update)
    monkeypatch.setattr("nndiag.measures.collect.make_schedule", streamed_at_once)
    streamed, solving = ran(model, samples, plan, update)
    agree(kept, streamed, 1e-6 if solver == "power" else 1e-8)
    assert solving.most_kept == 0
    most = max(layer.size for layer in solving.replay.layers)
    leads = SWEEPS + 1 if worth < 64 and solver == "lanczos" else 0
    # one replay a product of the slowest solver, and one for the folds
    assert leads < solving.replays <= leads + (1 + 3 * 300 + 2 if solver == "power" else 1 + min(64, most))


@pytest.mark.parametrize("worth", [2, 64])
def test_blocks_added_up_whole_have_the_same_numbers(
    worth: int, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nndiag.measures.curvature.DENSE_SIZE", 0)
    monkeypatch.setattr("nndiag.spectrum.lead.WORTH", worth)
    model, samples = build(BY_NAME["wide_mlp"]), probe(BY_NAME["wide_mlp"], "mse", samples=30, batch_size=12)
    plan = Plan(Level.CURVATURE, tolerance=3e-2, coverage=0.0)
    kept = measure(model, samples, plan)

    def summed(needs: Sequence[Need], setting: Setting, budget: int, asked: bool) -> Schedule:
        parts = tuple(Part(need.layer, "whole", 0, need.nodes, 0) for need in needs)
        return Schedule(budget, 12, (Round(parts, False, 0),), None, 0, 0)

    monkeypatch.setattr("nndiag.measures.collect.make_schedule", summed)
    whole, _ = ran(model, samples, plan)
    agree(kept, whole, 1e-8)


def test_what_turns_out_larger_than_expected_is_given_up_and_taken_later(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = build(BY_NAME["wide_mlp"]), probe(BY_NAME["wide_mlp"], "mse", samples=100, batch_size=32)
    whole, once = ran(model, samples, Plan(Level.CURVATURE))

    def hopeful(needs: Sequence[Need], setting: Setting, budget: int, asked: bool) -> Schedule:
        found = make_schedule(needs, setting, budget, asked)
        (first,) = found.rounds
        nothing = tuple(replace(part, bytes=0) for part in first.parts)
        room = once.most_kept - 1
        return replace(found, rounds=(Round(nothing, False, found.budget - room),))

    monkeypatch.setattr("nndiag.measures.collect.make_schedule", hopeful)
    part, solving = ran(model, samples, Plan(Level.CURVATURE))
    agree(whole, part, 1e-10)
    assert solving.replays == 2
    assert solving.most_kept < once.most_kept


@pytest.mark.parametrize("name", ["wide_mlp", "cnn", "lstm", "raw"])
def test_bytes_kept_are_those_of_the_tensors_held(
    name: str, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, int]] = []
    blocks = Capture.blocks

    def weighed(self: Capture) -> NodeBlocks:
        segments = [t for s in self._segments for g in s.gradients for t in g]
        inputs = [x for s in self._segments for h in s.shares for u in h.uses for x in u.inputs.values()]
        tensors = [*self._inputs, *self._weights, *self._row_folds, *self._jacobians, *segments, *inputs]
        tensors += [s.folds for s in self._segments]
        tensors += [] if self._sums is None else [self._sums, self._sums[0].clone()]
        held.append((self.bytes, sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())))
        return blocks(self)

    monkeypatch.setattr(Capture, "blocks", weighed)
    ran(build(BY_NAME[name]), probe(BY_NAME[name], "cross_entropy", 20, 8), Plan(Level.CURVATURE))
    assert held
    for counted, true in held:
        assert true <= counted <= 1.5 * true  # what two layers share, or two passes, is counted twice


def test_a_budget_that_is_too_small_says_what_is_needed() -> None:
    model, samples = build(BY_NAME["cnn"]), probe(BY_NAME["cnn"], "mse", samples=20)
    _, least = wanted_and_least(model, samples, Plan(Level.CURVATURE))
    measure(model, samples, Plan(Level.CURVATURE, memory_budget=least))
    with pytest.raises(UsageError, match="give at least") as caught:
        measure(model, samples, Plan(Level.CURVATURE, memory_budget=least - 1))
    asked = parse_bytes(str(caught.value).rpartition(" ")[2], "--memory-budget")
    assert least <= asked <= 1.1 * least


def test_a_forecast_is_what_is_done(ran: Ran) -> None:
    model, samples = build(BY_NAME["cnn"]), probe(BY_NAME["cnn"], "mse", samples=40, batch_size=16)
    wanted, _ = wanted_and_least(model, samples, Plan(Level.CURVATURE))
    plan = Plan(Level.CURVATURE, memory_budget=wanted // 4)
    found = forecast(model, samples, plan, checkpoints=3)
    _, solving = ran(model, samples, plan)
    assert found.replays == solving.replays > 1
    assert found.batch_size == solving.replay.part_size
    assert (found.wanted_bytes, found.budget_bytes) == (wanted, wanted // 4)
    assert found.least_bytes < found.peak_bytes <= found.budget_bytes
    assert found.seconds > 0
    assert {part.layer for one in found.rounds for part in one.parts} == {"0", "1", "3", "4", "8"}


@pytest.mark.parametrize("level", [Level.ACTIVATIONS, Level.GRADIENTS])
def test_other_levels_pass_fewer_samples_at_a_time(level: Level, ran: Ran) -> None:
    model, samples = build(BY_NAME["cnn"]), probe(BY_NAME["cnn"], "mse", samples=40, batch_size=32)
    whole, _ = ran(model, samples, Plan(level))
    wanted, _ = wanted_and_least(model, samples, Plan(level))
    part, solving = ran(model, samples, Plan(level, memory_budget=wanted // 4))
    assert solving.replay.part_size < 32
    for one, two in zip(whole.layers, part.layers, strict=True):
        for name, values in one.per_node.items():
            np.testing.assert_allclose(two.per_node[name], values, rtol=1e-8, atol=1e-12, err_msg=name)


def test_progress_never_goes_back() -> None:
    shares, said = [], set()

    def progress(what: str, done: int, total: int) -> None:
        shares.append(done / total)
        said.add(what)

    model, samples = build(BY_NAME["cnn"]), probe(BY_NAME["cnn"], "mse", samples=40, batch_size=16)
    wanted, _ = wanted_and_least(model, samples, Plan(Level.CURVATURE))
    measure(model, samples, Plan(Level.CURVATURE, memory_budget=wanted // 4), progress=progress)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 < shares[-1] <= 1
    assert {"replaying the probe, replay 1", "curvature of layer 3 (5 of 5)"} <= said | {""}


PEAK = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from nndiag.measures import Plan, measure
from nndiag.measures.collect import scheduled
from nndiag.measures.replaying import Replay
from nndiag.probe.loss import named_loss
from nndiag.probe.probe import Probe
from nndiag.records.level import Level

class Features(nn.Module):
    def forward(self, x):
        return torch.cat([(k * x).cos() for k in range(80)], dim=1)

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(Features(), nn.Linear(480, 48), nn.ReLU(), nn.Linear(48, 1))
count, budget = int(sys.argv[1]), int(sys.argv[2])
x, y = torch.randn(count, 6), torch.randn(count, 1)
samples = Probe((x,), y, named_loss("mse"), 256)
plan = Plan(Level.CURVATURE, tolerance=0.05, memory_budget=budget)
_, schedule = scheduled(Replay(model, samples, plan), None)
measure(model, samples, plan)
status = Path("/proc/self/status").read_text().splitlines()
peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
print(json.dumps({"peak": peak, "wanted": schedule.wanted, "streamed": any(r.streamed for r in schedule.rounds)}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is not told here")
def test_ten_times_the_probe_takes_no_more_memory() -> None:
    budget = 8 * 2**20
    small, large = (peak(count, budget) for count in (600, 6000))
    assert large["wanted"] > 5 * budget
    assert large["streamed"]
    assert not small["streamed"]
    assert large["peak"] < 1.1 * small["peak"]


def peak(count: int, budget: int) -> dict[str, int]:
    """Measure in a process of its own: the peak of this one may have been higher before."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(count), str(budget)], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_exact_blocks_of_a_smooth_network_are_the_same_in_a_small_budget(ran: Ran) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    samples = probe(BY_NAME["mlp"], "cross_entropy", samples=60, batch_size=32)
    plan = Plan(Level.CURVATURE, curvature="hessian", noise=0.0)
    whole, _ = ran(model, samples, plan)
    _, least = wanted_and_least(model, samples, plan)
    part, solving = ran(model, samples, replace(plan, memory_budget=least))
    assert solving.replay.part_size < 32
    assert {layer.curvature_kind for layer in part.layers} == {"hessian"}
    agree(whole, part, 1e-8)
