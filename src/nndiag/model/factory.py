"""A network from the user's own code: ``--model file.py:callable`` with ``--model-arg K=V``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nndiag.config.callables import load_callable, running
from nndiag.errors import ModelError, UsageError


def _taken(factory: Callable[..., object], offered: Mapping[str, object]) -> dict[str, object]:
    """Return those of the values offered that a callable takes by name; ``**`` takes none."""
    try:
        known = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name: offered[one.name] for one in known if one.kind in kinds and one.name in offered}


def parse_arguments(pairs: Sequence[str]) -> dict[str, object]:
    """Return the keywords that ``--model-arg K=V`` gives, V as JSON.

    Raises:
        UsageError: a pair has no ``=``, its key is no Python name or is given twice, or its value is not
            JSON.
    """
    arguments: dict[str, object] = {}
    for pair in pairs:
        what = f"--model-arg {pair}"
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(what, "is not of the form NAME=VALUE", "write e.g. --model-arg width=128")
        if key in arguments:
            raise UsageError(what, f"{key} is given twice", "keep one")
        try:
            arguments[key] = json.loads(value)
        except (ValueError, RecursionError) as error:
            quoted = f"{key}={json.dumps(value, ensure_ascii=False)}"
            do = f"a string needs quotes: --model-arg '{quoted}'"
            if value in ("True", "False", "None"):
                word = {"True": "true", "False": "false", "None": "null"}[value]
                do = f"write {key}={word}"
            raise UsageError(what, f"{value or 'nothing'} is not JSON", do) from error
    return arguments


def build_model(
    spec: str,
    folder: Path,
    arguments: Mapping[str, object] | None = None,
    *,
    option: str = "--model",
    offered: Mapping[str, object] = MappingProxyType({}),
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """Call the factory that ``spec`` names and return its module, in the mode the factory left it in.

    A factory that draws random numbers from torch gets the same ones on every call; the global state is left
    as it was.

    Args:
        spec: ``path/file.py:callable`` or ``pkg.mod:callable``.
        folder: what a relative path counts from.
        arguments: keywords for the callable.
        option: where the spec was given, for messages.
        offered: keywords that the checkpoint suggests, plain values all: those that the callable takes by name, and
            that ``arguments`` do not give.
        note: told which of them were taken.

    Raises:
        UsageError: the spec names no callable.
        ModelError: its code fails, or returns something else than an ``nn.Module`` with materialised
            parameters.
    """
    what = f"{option} {spec}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        factory = load_callable(spec, folder, option, ModelError)
        given = dict(arguments or {})
        taken = _taken(factory, {name: value for name, value in offered.items() if name not in given})
        if taken:
            words = ", ".join(f"{name}={value!r}"[:80] for name, value in taken.items())
            note(f"hyper-parameters in the checkpoint given to {spec}: {words}")
        with running(what, ModelError):
            model = factory(**{**taken, **given})
    if not isinstance(model, nn.Module):
        raise ModelError(
            what,
            f"returned an object of type {type(model).__name__}, not a torch.nn.Module",
            "return the network",
        )
    for name, tensor in model.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise ModelError(
                what, f"{name} has no shape yet (a lazy layer)", "run the network once in the factory"
            )
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            raise ModelError(what, f"{name} lies on the meta device", "make the network in memory")
    return model
