"""Where in training a checkpoint was written: step and epoch, from the file or else from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nndiag.checkpoint.plain import named_entries, plain_number
from nndiag.checkpoint.record import SavedOptimizer

_STEP_KEYS = ("global_step", "step", "iteration")
_EPOCH_KEYS = ("epoch", "current_epoch")
PROGRESS_KEYS = _STEP_KEYS + _EPOCH_KEYS
"""What step and epoch are called."""
_LARGEST = 1 << 62

# A number counts where a word in front of it says what it is; "ckpt_12" says nothing.
_STEP_NAME = re.compile(
    r"(?<![a-z0-9])(?:global[_-]?step|steps?|iterations?|iters?)[=_-]?(\d{1,18})(?!\d)"
    r"|(?<![a-z0-9])(\d{1,18})_?steps?(?![a-z0-9=_-])",
    re.I,
)
_EPOCH_NAME = re.compile(r"(?<![a-z0-9])(?:epochs?|ep|e)[=_-]?(\d{1,18})(?![a-z0-9])", re.I)


@dataclass(frozen=True)
class Progress:
    """A step and an epoch, each as far as it is known."""

    step: int | None = None
    epoch: int | None = None

    def or_else(self, other: Progress) -> Progress:
        """Return this with its gaps filled from ``other``."""
        return Progress(
            other.step if self.step is None else self.step, other.epoch if self.epoch is None else self.epoch
        )


UNKNOWN = Progress()
"""Neither is known."""


def from_tree(tree: object, is_weights: bool) -> Progress:
    """Return what the top level of a loaded dict says.

    Args:
        tree: what the file holds.
        is_weights: whether that is a state dict itself, in which a tensor named ``step`` is a weight.
    """
    numbers = {
        name: _count(plain_number(value))
        for name, value in named_entries(tree)
        if name in PROGRESS_KEYS and not (is_weights and isinstance(value, Tensor))
    }
    return Progress(_first(numbers, _STEP_KEYS), _first(numbers, _EPOCH_KEYS))


def from_metadata(metadata: Mapping[str, str]) -> Progress:
    """Return what a safetensors header says, in strings of digits."""
    numbers = {name: int(text) for name, text in metadata.items() if re.fullmatch(r"[0-9]{1,18}", text)}
    return Progress(_first(numbers, _STEP_KEYS), _first(numbers, _EPOCH_KEYS))


def from_optimizers(optimizers: Iterable[SavedOptimizer]) -> Progress:
    """Return the step on which the state of every parameter of every optimiser agrees, if it does."""
    steps = {
        _count(values["step"]) for saved in optimizers for values in saved.state.values() if "step" in values
    }
    return Progress(step=steps.pop()) if len(steps) == 1 else Progress()


def from_name(stem: str) -> Progress:
    """Return what a file name without its suffix says, such as ``epoch=2-step=645``."""
    step, epoch = _STEP_NAME.search(stem), _EPOCH_NAME.search(stem)
    return Progress(int(step[1] or step[2]) if step else None, int(epoch[1]) if epoch else None)


def _first(numbers: Mapping[str, int | None], names: tuple[str, ...]) -> int | None:
    return next((number for name in names if (number := numbers.get(name)) is not None), None)


def _count(value: object) -> int | None:
    """Return a count of steps or epochs; counters in tensors are often floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LARGEST:
        return None
    return int(value) if value == int(value) else None
