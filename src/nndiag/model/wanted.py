"""What a model wants of a checkpoint: tensors by name, and what of them may be missing or may lie there unused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn


@dataclass(frozen=True)
class Wanted:
    """A model's named tensors, parameters as parameters.

    ``twins`` maps a name to the other names of the same tensor, of which a file need hold one. ``optional`` and
    ``unused`` are patterns by which the model's own library says which names may be missing, and which may lie in a
    file although nothing takes them; ``old_names`` that it has renamed some.
    """

    tensors: Mapping[str, Tensor]
    twins: Mapping[str, frozenset[str]]
    optional: tuple[re.Pattern[str], ...] = ()
    unused: tuple[re.Pattern[str], ...] = ()
    old_names: bool = False

    def may_miss(self, name: str, held: frozenset[str]) -> bool:
        """Whether a file that holds these names need not hold this one."""
        if self.twins.get(name, frozenset()) & held:
            return True
        is_weight = isinstance(self.tensors[name], nn.Parameter)
        return not is_weight and any(pattern.search(name) for pattern in self.optional)

    def passes_over(self, name: str) -> bool:
        """Whether a name that the model does not want may lie beside those that it wants."""
        return any(pattern.search(name) for pattern in self.unused)

    def today(self, name: str) -> str:
        """Return the name that an entry of a file has now: scale and shift were once called gamma and beta."""
        if not self.old_names:
            return name
        return _LAYER_NORM.sub(lambda match: f"LayerNorm.{_TODAY[match[1]]}", name)

    @cached_property
    def indispensable(self) -> int:
        """How many names at least a file must hold: one of every tensor that may not be missing."""
        needed = [name for name in self.tensors if not self.may_miss(name, frozenset())]
        return len({min({name, *self.twins.get(name, ())}) for name in needed})


def wanted_of(model: nn.Module) -> Wanted:
    """Return what a model wants; extra state that is no tensor is left out."""
    state = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    twins = {
        name: frozenset(names) - {name} for names in by_tensor.values() if len(names) > 1 for name in names
    }
    if not hasattr(model, "_keys_to_ignore_on_load_unexpected"):
        return Wanted(tensors, twins)
    return Wanted(
        tensors,
        twins,
        _patterns(getattr(model, "_keys_to_ignore_on_load_missing", None)),
        (*_patterns(model._keys_to_ignore_on_load_unexpected), *_BUFFERS_OF_OLD),
        old_names=True,
    )


def _patterns(words: object) -> tuple[re.Pattern[str], ...]:
    """Return what transformers keeps on its classes as patterns."""
    return tuple(re.compile(word) for word in words) if isinstance(words, list | tuple | set) else ()


_LAYER_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")
_TODAY = {"gamma": "weight", "beta": "bias"}
_BUFFERS_OF_OLD = _patterns(
    [r"(^|\.)attn\.(masked_)?bias$", r"(^|\.)position_ids$", r"\.rotary_emb\.inv_freq$"]
)
"""Buffers that older versions of transformers saved, and newer ones compute."""
