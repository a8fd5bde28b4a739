"""The sizes of a smaller network as plain data, and a freshly built network brought to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nndiag.errors import InputError, UsageError

Widths = Mapping[str, Mapping[str, int | list[int]]]
"""By the path of a module: its numbers by attribute, and the shapes of its parameters and buffers."""


def widths_of(before: nn.Module, after: nn.Module) -> dict[str, dict[str, int | list[int]]]:
    """Return what differs between a network and its smaller copy: numbers of modules and shapes of tensors."""
    found: dict[str, dict[str, int | list[int]]] = {}
    smaller = dict(after.named_modules(remove_duplicate=False))
    for path, module in before.named_modules(remove_duplicate=False):
        other = smaller[path]
        changed: dict[str, int | list[int]] = {}
        for name, value in vars(module).items():
            now = getattr(other, name, None)
            if type(value) is int and type(now) is int and now != value:
                changed[name] = now
        for name, tensor in _tensors(module).items():
            shape = list(getattr(other, name).shape)
            if shape != list(tensor.shape):
                changed[name] = shape
        if changed:
            found[path] = changed
    return found


def resize(model: nn.Module, widths: Widths | str | Path) -> nn.Module:
    """Bring a freshly built network to the sizes of a smaller one, so that its ``load_state_dict`` takes the weights.

    Args:
        model: as its factory builds it; it is changed in place.
        widths: what ``heal --goal deploy`` wrote, or the path of that file: by the path of a module its numbers and the
            shapes of its tensors, ``{"fc1": {"out_features": 213, "weight": [213, 4], "bias": [213]}}``.

    Returns:
        The same model. What its tensors hold are the first entries of what they held: load the smaller weights.

    Raises:
        InputError: the file cannot be read.
        UsageError: the sizes are not those of this network.
    """
    what = "widths"
    if isinstance(widths, str | Path):
        what, widths = str(widths), _read(widths)
    modules = dict(model.named_modules(remove_duplicate=False))
    cuts: list[tuple[nn.Module, str, list[int]]] = []
    numbers: list[tuple[nn.Module, str, int]] = []
    for path, sizes in widths.items():
        if path not in modules:
            raise UsageError(
                what, f'the model has no module "{path}"', "build it as it was before it was made smaller"
            )
        module = modules[path]
        for name, size in sizes.items():
            if _fits_number(module, name, size):
                numbers.append((module, name, size))  # type: ignore[arg-type]
            elif _fits_tensor(module, name, size):
                cuts.append((module, name, size))  # type: ignore[arg-type]
            else:
                why = f'"{path}" has no {name} that could become {size}'
                raise UsageError(what, why, "build it as it was before it was made smaller")
    made: dict[int, Tensor] = {}
    for module, name, shape in cuts:
        _cut(module, name, shape, made)
    for module, name, number in numbers:
        setattr(module, name, number)
    return model


def _read(path: str | Path) -> Widths:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", "give the file that heal wrote") from error
    if not isinstance(found, dict) or not all(isinstance(sizes, dict) for sizes in found.values()):
        raise InputError(path, "does not hold sizes by module", "give the file that heal wrote")
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}


def _fits_number(module: nn.Module, name: str, size: object) -> bool:
    known = vars(module).get(name)
    return type(known) is int and type(size) is int and size > 0


def _fits_tensor(module: nn.Module, name: str, size: object) -> bool:
    tensor = _tensors(module).get(name)
    if tensor is None or not isinstance(size, list) or len(size) != tensor.dim():
        return False
    return all(type(new) is int and 0 < new <= old for new, old in zip(size, tensor.shape, strict=True))


def _cut(module: nn.Module, name: str, shape: list[int], made: dict[int, Tensor]) -> None:
    """Replace a tensor by its first entries; what is shared stays shared."""
    old = _tensors(module)[name]
    if id(old) not in made:
        part = old.detach()[tuple(slice(size) for size in shape)].clone()
        made[id(old)] = nn.Parameter(part, old.requires_grad) if isinstance(old, nn.Parameter) else part
    setattr(module, name, made[id(old)])
