"""One training step, watched: hooks that are there for a single forward pass, and the numbers that it showed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nndiag.measures.gradients import GradientSums
from nndiag.measures.record import completed
from nndiag.monitor.looking import FirstLook, Look
from nndiag.monitor.reading import Moments, QuickObserver, QuickReading, Seen, sums_of
from nndiag.monitor.rows import Products, products_of
from nndiag.records.level import Level
from nndiag.records.measured import Measured, OptimizerFacts
from nndiag.replay.layers import find_layers, owners_of
from nndiag.replay.passes import main_output

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

    ``layers`` are those of the model; the first step that is watched shows how it uses raw parameters, and from then on
    their nodes are counted as a scan counts them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = getattr(model, "_orig_mod", model)
        self.layers = find_layers(self._model)
        self._oriented = False
        self._handles: list[RemovableHandle] = []
        self._stance: Any = None
        self._watch: Look | None = None
        self._named: dict[str, Tensor] = {}
        self._seen: list[Seen] = []
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
        self, loss: Tensor | float | None, scale: float, facts: Callable[[], OptimizerFacts | None]
    ) -> Callable[[], Measured]:
        """Take the numbers of the step that was watched, and return how they are put together.

        Args:
            loss: of the step.
            scale: by which the gradients of its mean loss are multiplied.
            facts: reads the optimiser's.
        """
        named, seen, samples = self._named, self._seen, self._samples
        gradients = _gradients(named, scale)
        with torch.no_grad(), torch.autocast(_device_type(named), enabled=False):
            taken = products_of(self.layers, named, gradients)
            graded = {name for one in taken if one.graded is not None for name in one.layer.names}
            others = _norm_of_others(named, gradients, graded)
        apart = {one.layer.name for one in taken if self._rows.get(one.layer.name) == samples}
        reached, has_gradients = self._reached, bool(gradients)
        value = loss.detach().clone() if isinstance(loss, Tensor) else loss

        def put_together() -> Measured:
            sums = sums_of(seen)
            return Measured(
                level=Level.GRADIENTS if has_gradients else Level.ACTIVATIONS,
                layers=tuple(
                    completed(
                        one.record(), sums.get(one.layer.name), GradientSums(one.layer), one.gradient_measures(),
                        samples, reached=one.layer.name in reached, apart=one.layer.name in apart,
                    )
                    for one in taken
                ),
                samples=samples,
                folds=min(FOLDS, samples),
                has_targets=has_gradients,
                loss=None if value is None else float(value),
                gradient_norm=_whole_norm(taken, others) if has_gradients else None,
                optimizer=facts(),
            )  # fmt: skip

        return put_together

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Watch from here on, to :meth:`end`.

        Args:
            args: what the model is, or will be, called with.
            kwargs: the same by name.
        """
        self._calm()
        given = [x for x in chain(args, kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        self._samples = len(given[0]) if given else 0
        self.inputs = None
        self._given = Inputs(args, kwargs)
        self._named, buffers = _tensors(self._model)
        constants = (*self._named.values(), *buffers)
        observer = QuickObserver(FOLDS, self._samples)
        if self._oriented:
            self._watch = Look(owners_of(self._named, self.layers), observer, constants)
        else:
            self._watch = FirstLook(self._model, self.layers, self._named, observer, constants)
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
        if isinstance(watch, FirstLook):
            self.layers, self._oriented = watch.layers, True
        watch.finish(output)
        self._reached = set(watch.used_elsewhere)
        self._reached |= {call.layer.name for call in watch.calls}
        self._rows = {}
        self._seen = []
        for call in watch.calls:
            if isinstance(call.reading, QuickReading) and isinstance(call.produced, Moments):
                self._rows[call.layer.name] = call.shape[0]
                self._seen.append(Seen(call.layer, call.produced, call.reading, call.is_output))
        self.inputs = self._given

    def forget(self) -> None:
        """Let go of what was seen."""
        self.inputs, self._given = None, Inputs((), {})
        self._named, self._seen = {}, []

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


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the parameters by all of their names, and the buffers, in one walk."""
    named: dict[str, Tensor] = {}
    buffers: list[Tensor] = []
    for path, module in model.named_modules(remove_duplicate=False):
        before = f"{path}." if path else ""
        named |= {before + name: p for name, p in module._parameters.items() if p is not None}
        buffers += [buffer for buffer in module._buffers.values() if buffer is not None]
    return named, buffers


def _gradients(named: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in named.items() if p.grad is not None}
    found = {name: g.to_dense() if g.is_sparse else g for name, g in found.items()}
    return found if scale == 1 else {name: g.float() / scale for name, g in found.items()}


def _norm_of_others(
    named: Mapping[str, Tensor], gradients: Mapping[str, Tensor], known: Collection[str]
) -> Tensor | None:
    """Return the norm of the gradients of parameters that are not known by name, shared ones once."""
    taken = {id(named[name]) for name in known}
    others = {id(named[name]): _wide(g) for name, g in gradients.items() if id(named[name]) not in taken}
    return nn.utils.get_total_norm(list(others.values())) if others else None


def _whole_norm(taken: Iterable[Products], others: Tensor | None) -> float:
    squares = sum(one.gradient_square() for one in taken)
    return math.sqrt(squares + (0.0 if others is None else float(others) ** 2))


def _device_type(named: Mapping[str, Tensor]) -> str:
    return next((p.device.type for p in named.values()), "cpu")


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
