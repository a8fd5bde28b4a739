"""Which of an optimiser's entries belongs to which parameter of a model.

An optimiser numbers its parameters in the order in which it was given them, so a number alone proves nothing:
an agent's optimiser counts through two networks, weight decay splits parameters into two groups. An order is
believed only where the shape of every entry fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from nndiag.model.fit import Fit

Key = int | str
# get_decay_parameter_names in transformers' Trainer
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
SHAPED = ("exp_avg_sq", "exp_avg", "max_exp_avg_sq", "momentum_buffer", "square_avg")


class SavedOptimizer(Protocol):
    """An optimiser's state dict as a checkpoint holds it."""

    @property
    def key(self) -> str:
        """Return where in the checkpoint it lies."""

    @property
    def groups(self) -> tuple[Mapping[str, object], ...]:
        """Return the parameter groups, ``params`` among their entries."""

    @property
    def state(self) -> Mapping[Key, Mapping[str, object]]:
        """Return what is kept for each parameter, by its number or name."""


@dataclass(frozen=True)
class Assignment:
    """``keys`` maps parameter names to the optimiser's own keys; empty where nothing was certain, and
    ``note`` says why.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether the entries were matched."""
        return bool(self.keys)


def assign(model: nn.Module, fit: Fit, saved: SavedOptimizer) -> Assignment:
    """Match the entries of ``saved`` with the parameters of ``model``.

    Tried in turn: by name; by position among all parameters, those that are trained, or those with weight decay
    before those without (matrices before vectors, or as the Trainer of transformers tells them by their names); by
    position among all entries of the place in the file; by the sequence of shapes of those entries that have state.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    keys = list(_keys(saved.groups))
    by_name = _by_name(shapes, fit.prefix, saved)
    if by_name and _shapes_fit(by_name, shapes, saved):
        return Assignment(by_name)
    if any(isinstance(key, str) for key in (*keys, *saved.state)):
        return Assignment(note="its names or shapes do not fit the model, its moments are left out")
    fitting: list[dict[str, Key]] = []
    for names in _orders(model, [len(list(_keys([group]))) for group in saved.groups]):
        if len(names) == len(keys):
            by_order = dict(zip(names, keys, strict=True))
            if _shapes_fit(by_order, shapes, saved) and by_order not in fitting:
                fitting.append(by_order)
    if len(fitting) > 1 and any(_shape(state) is not None for state in saved.state.values()):
        return Assignment(
            note=f"its {len(saved.groups)} groups may have been filled in several orders that fit the shapes of the "
            "model, its moments are left out"
        )
    if fitting:
        return Assignment(fitting[0])
    return _among_others(shapes, keys, fit, saved)


def _among_others(
    shapes: Mapping[str, torch.Size], keys: Sequence[Key], fit: Fit, saved: SavedOptimizer
) -> Assignment:
    """Match a model that is one of several networks, or a part of one, that the optimiser counts through."""
    counted = f"it indexes {len(keys)} parameters and the model has {len(shapes)}"
    with_state = [key for key in keys if _shape(saved.state.get(key, {})) is not None]
    positions = {name: position for position, name in enumerate(fit.entries)}
    if len(keys) == len(positions) != len(shapes) and all(fit.prefix + name in positions for name in shapes):
        by_place = {name: keys[positions[fit.prefix + name]] for name in shapes}
        mine = set(by_place.values())
        if with_state and mine.isdisjoint(with_state):
            return Assignment(
                note=f"{counted}; its state belongs to other entries of the file and is left out"
            )
        if with_state and _shapes_fit(by_place, shapes, saved):
            return Assignment(by_place, f"{counted}; matched by their order in the file")
    if len(with_state) == len(shapes) > 0:
        by_state = dict(zip(shapes, with_state, strict=True))
        if _shapes_fit(by_state, shapes, saved):
            return Assignment(
                by_state, f"{counted}; matched by the shapes of the {len(with_state)} that have state"
            )
    if len(keys) == len(shapes):
        counted = "the shapes of its state do not fit the model in their order"
    return Assignment(note=f"{counted}; its moments are left out" if with_state else "")


def _keys(groups: Iterable[Mapping[str, object]]) -> Iterator[Key]:
    for group in groups:
        members = group.get("params")
        if isinstance(members, list | tuple):
            yield from (key for key in members if isinstance(key, int | str))


def _by_name(shapes: Mapping[str, torch.Size], prefix: str, saved: SavedOptimizer) -> dict[str, Key]:
    """Return the optimiser's key for every parameter that it names, as the model or as the file names it."""
    named: dict[str, Key] = {key: key for key in (*_keys(saved.groups), *saved.state) if isinstance(key, str)}
    for group in saved.groups:
        names, members = group.get("param_names"), group.get("params")
        if (
            isinstance(names, list | tuple)
            and isinstance(members, list | tuple)
            and len(names) == len(members)
        ):
            pairs = zip(names, members, strict=True)
            named |= {
                name: key for name, key in pairs if isinstance(name, str) and isinstance(key, int | str)
            }
    for start in dict.fromkeys((prefix, "")):
        found = {name: named[start + name] for name in shapes if start + name in named}
        if found:
            return found
    return {}


def _orders(model: nn.Module, sizes: Sequence[int]) -> Iterator[list[str]]:
    """Yield the orders in which a training script may have handed over the parameters, in groups of these sizes."""
    parameters = dict(model.named_parameters())
    yield list(parameters)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    yield trained
    if len(sizes) < 2:
        return
    for decaying in (
        [name for name in trained if parameters[name].dim() >= 2],
        _trainer_decays(model, trained),
    ):
        # groups without a member are left away by some scripts and kept by others
        if sizes[0] in (len(decaying), len(trained) - len(decaying)):
            others = [name for name in trained if name not in set(decaying)]
            yield decaying + others if sizes[0] == len(decaying) else others + decaying


def _trainer_decays(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the parameters that the Trainer of transformers puts into its first group, the one with weight decay."""
    norms = [owner for owner, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    of_norms = {f"{owner}.{part}" for owner in norms for part in ("weight", "bias")}
    return [name for name in names if name not in of_norms and not _NO_DECAY.search(name.lower())]


def _shapes_fit(keys: Mapping[str, Key], shapes: Mapping[str, torch.Size], saved: SavedOptimizer) -> bool:
    """Return whether every entry that has a state has the shape of its parameter."""
    held = {name: _shape(saved.state.get(key, {})) for name, key in keys.items()}
    return all(shape is None or shape == shapes[name] for name, shape in held.items())


def _shape(state: Mapping[str, object]) -> torch.Size | None:
    """Return the one shape of the tensors that follow a parameter; ``None`` without any."""
    found = {value.shape for name in SHAPED if isinstance(value := state.get(name), Tensor)}
    return found.pop() if len(found) == 1 else (torch.Size((-1,)) if found else None)
