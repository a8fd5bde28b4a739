"""What a model wants of a checkpoint: tensors by name, and what of them may be missing or may lie there unused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX


@dataclass(frozen=True)
class Wanted:
    """A model's named tensors, parameters as parameters.

    ``twins`` maps a name to the other names of the same tensor, of which a file need hold one. ``optional`` and
    ``unused`` are patterns by which the model's own library says which names may be missing, and which may lie in a
    file although nothing takes them; ``old_names`` that it has renamed some. ``base`` is the part of the model that
    this library also saves alone, and ``modules`` are the paths of all of its parts.
    """

    tensors: Mapping[str, Tensor]
    twins: Mapping[str, frozenset[str]]
    optional: tuple[re.Pattern[str], ...] = ()
    unused: tuple[re.Pattern[str], ...] = ()
    old_names: bool = False
    base: str = ""
    modules: frozenset[str] = frozenset()

    def may_miss(self, name: str, held: frozenset[str]) -> bool:
        """Whether a file that holds these names need not hold this one."""
        if self.twins.get(name, frozenset()) & held:
            return True
        is_weight = isinstance(self.tensors[name], nn.Parameter)
        return not is_weight and any(pattern.search(name) for pattern in self.optional)

    def passes_over(self, name: str) -> bool:
        """Whether a name that the model does not want may lie beside those that it wants: it holds no weights of a
        part that the model has.
        """
        if name.rpartition(".")[2] == _EXTRA_STATE_KEY_SUFFIX:
            return True
        return any(pattern.search(name) for pattern in self.unused) or self._is_of_another_part(name)

    def today(self, names: Iterable[str]) -> list[str]:
        """Return the names that entries of a file have now: scale and shift were once called gamma and beta, and what
        was saved as the base alone (the weights of GPT-2 as published) has not the base's own name before it.
        """
        found = list(names)
        if self.old_names:
            found = [_LAYER_NORM.sub(lambda match: f"LayerNorm.{_TODAY[match[1]]}", name) for name in found]
        if self.base and not any(name.startswith(self.base) for name in found):
            based = [self.base + name for name in found]
            return [new if new in self.tensors else old for new, old in zip(based, found, strict=True)]
        return found

    def _is_of_another_part(self, name: str) -> bool:
        """Whether a name lies in a part that this class of the library lacks whole, as a second head; a further layer
        of a stack, or a further parameter of a layer, is no such part.
        """
        parts = name.split(".")[:-1]
        paths = (".".join(parts[: count + 1]) for count in range(len(parts)))
        lacking = next((path for path in paths if path not in self.modules), None)
        return bool(self.modules) and lacking is not None and not lacking.rpartition(".")[2].isdecimal()

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
        base=_base_of(model),
        modules=frozenset(name for name, _ in model.named_modules()),
    )


def _base_of(model: nn.Module) -> str:
    """Return the path of what the library calls the model's base, with its dot; ``""`` where it is the base itself."""
    name = getattr(model, "base_model_prefix", "")
    return (
        f"{name}."
        if isinstance(name, str) and name and isinstance(getattr(model, name, None), nn.Module)
        else ""
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
