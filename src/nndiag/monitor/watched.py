"""One training step, watched: hooks that are there for a single forward pass, and the numbers that it showed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nndiag.measures.gradients import GradientSums, quick_gradient_measures
from nndiag.measures.record import completed, weights_record
from nndiag.measures.sketch import NodeRows
from nndiag.monitor.reading import QuickObserver
from nndiag.records.level import Level
from nndiag.records.measured import LayerMeasures, Measured, OptimizerFacts
from nndiag.replay.kinds import Layer
from nndiag.replay.layers import find_layers, owners
from nndiag.replay.passes import main_output
from nndiag.replay.watch import Watch

FOLDS = 4


@dataclass(frozen=True)
class Inputs:
    """What the model was called with in the step that was watched."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class WatchedStep:
    """Watches the next forward pass in training mode. Nodes are not compared with each other: it takes too long.

    Args:
        model: as it is called; wrapped by ``torch.compile`` or not.

    Between :meth:`arm` and that forward pass the model has two hooks; code that ``torch.compile`` has made is not run,
    because nothing could be seen in it. After it, also after an error in it, the model is as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = getattr(model, "_orig_mod", model)
        self._layers = find_layers(self._model)
        self._handles: list[RemovableHandle] = []
        self._stance: Any = None
        self._watch: Watch | None = None
        self._observer = QuickObserver(FOLDS)
        self._reached: set[str] = set()
        self._rows: dict[str, int] = {}
        self._samples = 0
        self._given = Inputs((), {})
        self.inputs: Inputs | None = None

    @property
    def seen(self) -> bool:
        """Whether a forward pass was watched to its end."""
        return self.inputs is not None

    def arm(self) -> None:
        """Put the hooks there."""
        self.disarm()
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after, always_call=True),
        ]
        self._calm()

    def disarm(self) -> None:
        """Take away all that :meth:`arm` and :meth:`begin` put there."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._watch = None
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def take(
        self, gradients: Mapping[str, Tensor], loss: float | None, facts: OptimizerFacts | None
    ) -> Callable[[], Measured]:
        """Take the numbers of the step that was watched, and return how they are put together.

        Args:
            gradients: of the mean loss, by the names of the parameters; none where there are none.
            loss: of the step.
            facts: the optimiser's.
        """
        named: dict[str, Tensor] = dict(self._model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            taken = [self._taken(layer, named, gradients) for layer in self._layers]
        norms = [torch.linalg.vector_norm(_wide(g)).double() for g in gradients.values()]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else None
        samples = self._samples
        return lambda: Measured(
            level=Level.GRADIENTS if gradients else Level.ACTIVATIONS,
            layers=tuple(one() for one in taken),
            samples=samples,
            folds=min(FOLDS, samples),
            has_targets=norm is not None,
            loss=loss,
            gradient_norm=norm,
            optimizer=facts,
        )

    def _taken(
        self, layer: Layer, named: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Callable[[], LayerMeasures]:
        """Take what a layer has now; what the passes left behind stays as it is."""
        rows = _single(layer.rows(named).detach())
        base = weights_record(layer, NodeRows.split(rows, layer.weight_size), repetitions=False)
        mean = None
        if set(layer.names) <= gradients.keys():
            mean = quick_gradient_measures(rows, _single(layer.rows(gradients)), layer.weight_size)
        activity, samples = self._observer.sums.get(layer.name), self._samples
        apart, reached = self._rows.get(layer.name) == samples, layer.name in self._reached
        return lambda: completed(
            base, activity, GradientSums(layer), mean, samples, reached=reached, apart=apart
        )

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Watch from here on, to :meth:`end`.

        Args:
            args: what the model is, or will be, called with.
            kwargs: the same by name.
        """
        self._calm()
        given = [x for x in chain(args, kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        self._samples = len(given[0]) if given else 0
        self._observer = QuickObserver(FOLDS)
        self._observer.begin(torch.arange(self._samples) % FOLDS)
        self.inputs = None
        self._given = Inputs(args, kwargs)
        constants = tuple(chain(self._model.parameters(), self._model.buffers()))
        self._watch = Watch(owners(self._model, self._layers), self._observer, constants)
        self._watch.__enter__()  # type: ignore[no-untyped-call]

    def end(self, output: Tensor | None) -> None:
        """Watch no longer; ``output`` is what came of it, ``None`` where it failed."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.disarm()
        if output is None:
            return
        watch.finish(output)
        self._reached = set(watch.used_elsewhere)
        self._rows = {}
        for call in watch.calls:
            self._reached.add(call.layer.name)
            if call.reading is not None:
                self._rows[call.layer.name] = call.shape[0]
                self._observer.commit(call.layer, call.reading, call.produced, call.is_output)  # type: ignore[arg-type]
        self.inputs = self._given

    def forget(self) -> None:
        """Let go of what was seen."""
        self.inputs = None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and self._watch is None:
            self.begin(args, kwargs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        try:
            found = None if output is None else main_output(output)
        except TypeError:  # an output without a tensor that could be found: nothing is known of its step
            found = None
        self.end(found)

    def _calm(self) -> None:
        """Let nothing that ``torch.compile`` has made run: nothing could be seen in it."""
        if self._stance is None and "torch._dynamo" in sys.modules:  # else nothing is compiled
            self._stance = torch.compiler.set_stance("force_eager")


def _single(rows: Tensor) -> Tensor:
    """Return rows in single precision, or in double precision as a copy: training goes on with its own."""
    return rows.clone() if rows.dtype == torch.float64 else rows.float()


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
