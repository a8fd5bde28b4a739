"""How a model is called: which inputs it takes by which names, and the samples of a probe given to it by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

TARGETS = ("labels", "label")
"""Arguments that are targets and go to the loss, never to the model."""
_NO_DATA = re.compile(r"past_key_values$|(use|output|return|cache|interpolate|logits_to)_")
"""Arguments by which models of transformers are told what to do."""


def argument_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what ``forward`` takes, in order, targets left out."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(
        one.name
        for one in parameters
        if one.kind in kinds and one.name not in TARGETS and not _NO_DATA.match(one.name)
    )


def call_by_names(model: nn.Module, names: Sequence[str]) -> None:
    """Let the model be called with positional inputs that its ``forward`` is given by these names.

    Only the instance is changed, so that the names of its parameters and modules stay as they are.
    """
    model.forward = _Named(model, tuple(names))


class _Named:
    """``forward`` of one model, from positions to names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self._model, self._names, self._forward = model, names, type(model).forward

    def __call__(self, *inputs: Tensor) -> Any:
        return self._forward(self._model, **dict(zip(self._names, inputs, strict=True)))
