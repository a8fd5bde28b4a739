"""``nndiag.Monitor``: a history of a network's health, taken while it trains."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

import nndiag
from nndiag.errors import UsageError
from nndiag.measures import Update
from nndiag.model.optimizer_facts import facts_in, facts_of
from nndiag.monitor.healing import Correction, Healer, HealingSettings
from nndiag.monitor.history import Entry
from nndiag.monitor.watched import WatchedStep
from nndiag.pipeline.in_memory import diagnose_model, probe_of
from nndiag.probe.probe import Probe
from nndiag.records.measured import OptimizerFacts
from nndiag.records.report import Diagnosis, Report
from nndiag.report import render_json
from nndiag.report.files import write_text
from nndiag.rules.diagnose import Selection


class Monitor:
    """Measures a network on every ``every``-th training step, on the batch of that step.

    In a plain loop::

        with nndiag.Monitor(model, every=50, optimizer=optimizer) as monitor:
            for x, y in batches:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                monitor.step(loss)  # the gradients are there, the parameters not moved yet
                optimizer.step()
        monitor.save("history.json")  # nndiag compare history.json, nndiag gate history.json

    A step that is not measured costs a comparison of two numbers. One that is runs its forward pass under a watch, as a
    replay of a scan does, and reads ``.grad``: no further pass is made. Dead, dormant and dead data are of that batch,
    the smaller it is the less they prove; gradients and torque are of its mean loss.

    Args:
        model: the network, also as ``torch.compile`` returned it; a watched step runs it eagerly.
        every: steps from one measurement to the next.
        optimizer: whose learning rate the record names, and whose state goes with a node that is healed.
        probe: ``(x, y)`` held back, on which curvature is taken.
        loss: of the probe, by name; chosen by its targets where it is not given.
        curvature_every: measurements from one scan of the probe to the next; it takes its place in the history.
        thresholds: of the rules, by name, where they are to differ.
        heal: ``True``, or settings, for the self-healing loop: what is dead, dormant, saturated or cannot turn in two
            measurements in a row is treated as ``nndiag heal --goal train`` would, proved on the probe, or on the
            batch of the step where there is none. ``corrections`` says what was done.

    Raises:
        UsageError: a number is out of range, or there is no probe to take curvature on.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 50,
        *,
        optimizer: Optimizer | None = None,
        probe: tuple[Tensor, Tensor] | Tensor | None = None,
        loss: str | None = None,
        curvature_every: int | None = None,
        thresholds: Mapping[str, float] | None = None,
        heal: bool | HealingSettings = False,
    ) -> None:
        if every < 1:
            raise UsageError(f"every={every}", "is too small", "give at least 1")
        if curvature_every is not None and (curvature_every < 1 or probe is None):
            why = "there is no probe to take it on" if probe is None else "is too small"
            raise UsageError(f"curvature_every={curvature_every}", why, "give probe=(x, y) and at least 1")
        self.every = every
        self.steps = 0
        self._model = model
        self._optimizer = optimizer
        self._selection = Selection(thresholds=dict(thresholds or {}))
        self._watched = WatchedStep(model)
        self._parameters = sum(p.numel() for p in model.parameters())
        self._curvature_every = curvature_every
        self._probe, self._loss = probe, loss
        self._healer = None if heal is False else Healer(HealingSettings() if heal is True else heal)
        self._history: list[Entry] = []
        if every == 1:
            self._watched.arm()

    def step(self, loss: Tensor | float | None = None, *, scale: float = 1.0) -> bool:
        """Say that a training step has made its gradients; measure, where it is its turn.

        Args:
            loss: of the step, for the record.
            scale: by which the gradients are multiplied, as ``GradScaler.get_scale()`` has it.

        Returns:
            Whether the step was measured.
        """
        self.steps += 1
        taken = self.steps % self.every == 0 and self._take(loss, scale)
        if taken and self._healer is not None:
            self._heal(self._healer)
        if self._watched.seen:
            self._watched.forget()
        if (self.steps + 1) % self.every == 0:
            self._watched.arm()
        return taken

    def begin(self, *inputs: object) -> None:
        """Say that a training step begins, for loops that run parts of the model and never call the model itself.

        Args:
            inputs: what it works on, samples along the first axis.
        """
        if (self.steps + 1) % self.every == 0 and not self._watched.seen:
            self._watched.disarm()
            self._watched.begin(inputs, {})

    def end(self, output: Tensor) -> None:
        """Say that the forward pass is over; ``output`` is what came of it, such as the loss."""
        self._watched.end(output)

    @property
    def latest(self) -> Diagnosis | None:
        """What the last measurement says, ``None`` before the first."""
        return self._history[-1].diagnosis if self._history else None

    @property
    def taken(self) -> int:
        """How many measurements there are."""
        return len(self._history)

    @property
    def report(self) -> Report:
        """The history, as a scan of as many checkpoints would report it.

        Raises:
            UsageError: nothing was measured yet.
        """
        if not self._history:
            why = f"none of {self.steps} steps was measured"
            raise UsageError("monitor", why, f"train for at least every={self.every} steps")
        settings: dict[str, Any] = {
            "every": self.every,
            "curvature_every": self._curvature_every,
            "thresholds": dict(self._selection.thresholds),
        }
        return Report(
            nndiag_version=nndiag.__version__,
            settings=settings,
            checkpoints=tuple(one.diagnosis for one in self._history),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history as JSON, whole or not at all, for ``nndiag compare`` and ``nndiag gate``.

        Raises:
            UsageError: nothing was measured yet.
            InputError: the file cannot be written.
        """
        write_text(Path(path), render_json(self.report))

    def close(self) -> None:
        """Take everything from the model that a step to come would have needed; the history stays."""
        self._watched.disarm()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def corrections(self) -> tuple[Correction, ...]:
        """What the self-healing loop did, and what it gave up, in order."""
        return () if self._healer is None else tuple(self._healer.corrections)

    def _heal(self, healer: Healer) -> None:
        found = self.latest
        assert found is not None
        due = healer.look(found)
        probe = self._proof() if due else None
        if probe is not None:
            healer.correct(self._raw, self._watched.layers, self._optimizer, probe, due, self.steps)

    def _proof(self) -> Probe | None:
        """Return what a treatment is proved on: the probe, or the inputs of the step that was watched."""
        if self._probe is not None:
            return probe_of(self._probe, self._loss)
        given = self._watched.inputs
        if given is None or given.kwargs or not all(isinstance(x, Tensor) for x in given.args):
            return None
        return Probe(tuple(x.detach() for x in given.args), None, None)

    def _take(self, loss: Tensor | float | None, scale: float) -> bool:
        """Take the numbers of the step that was watched, or of the probe; ``False`` without a forward pass."""
        begun = time.perf_counter()
        self._watched.disarm()
        turn = len(self._history) + 1
        if self._probe is not None and self._curvature_every and turn % self._curvature_every == 0:
            self._history.append(Entry.known(self._scanned()))
        elif self._watched.seen:
            measured = self._watched.take(loss, scale, _said_by(self._optimizer))
            seconds = time.perf_counter() - begun
            self._history.append(
                Entry.of(measured, self._name, self.steps, self._parameters, self._selection, seconds)
            )
        else:
            return False
        return True

    def _scanned(self) -> Diagnosis:
        """Scan the probe."""
        assert self._probe is not None
        report = diagnose_model(self._raw, self._probe, self._loss, self._update, self._selection)
        found = report.checkpoints[0]
        facts = found.checkpoint.model_copy(update={"path": self._name, "step": self.steps})
        return found.model_copy(update={"checkpoint": facts})

    @property
    def _name(self) -> str:
        return f"{type(self._raw).__name__}-{self.steps}"

    @property
    def _raw(self) -> nn.Module:
        raw: nn.Module = getattr(self._model, "_orig_mod", self._model)
        return raw

    @property
    def _facts(self) -> OptimizerFacts | None:
        if self._optimizer is None:
            return None
        return facts_of(self._optimizer.param_groups, list(self._optimizer.state.values()))[0]

    @property
    def _update(self) -> Update | None:
        """The update rule, with the second moments that Adam divides by."""
        facts = self._facts
        if self._optimizer is None or facts is None:
            return None
        states = {name: self._optimizer.state.get(p, {}) for name, p in self._raw.named_parameters()}
        moments = {name: state["exp_avg_sq"] for name, state in states.items() if "exp_avg_sq" in state}
        steps = {name: int(state["step"]) for name, state in states.items() if "step" in state}
        return Update(facts, moments, max(steps.values(), default=None), self._rules(facts), steps)

    def _rules(self, facts: OptimizerFacts) -> dict[str, OptimizerFacts]:
        """Return the facts of every parameter that the optimiser holds, those of its group."""
        assert self._optimizer is not None
        names = {id(p): name for name, p in self._raw.named_parameters()}
        return {
            names[id(p)]: facts_in(group, facts.name)
            for group in self._optimizer.param_groups
            for p in group["params"]
            if id(p) in names
        }


def _said_by(optimizer: Optimizer | None) -> Callable[[], OptimizerFacts | None]:
    """Return what an optimiser says now of its update rule, to be read when somebody asks."""
    if optimizer is None:
        return lambda: None
    groups = [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key != "params"
        }
        for group in optimizer.param_groups
    ]
    kept = dict.fromkeys(key for state in optimizer.state.values() for key in state)
    return lambda: facts_of(groups, [kept])[0]
