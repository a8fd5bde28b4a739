"""A network as a list of ``torch.nn`` layers: data, not code, so it may come from anyone.

Every layer is first made on the ``meta`` device, where sizes cost nothing, and only then in memory.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nndiag.config.callables import reason
from nndiag.config.suggest import nearest
from nndiag.errors import UsageError

LARGEST = 2**31
"""Parameters and buffers of all layers together."""

MOST_LAYERS = 10_000

WEIGHTED = (
    "Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d "
    "BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LayerNorm GroupNorm RMSNorm Embedding"
)
SHAPING = "Flatten Unflatten Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
ACTIVATIONS = (
    "ReLU ReLU6 RReLU LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Tanh "
    "Tanhshrink Softplus Softsign Softshrink Hardshrink Hardtanh Hardsigmoid Hardswish Threshold GLU Softmax "
    "Softmin Softmax2d LogSoftmax"
)
POOLING = (
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d"
)
LAYERS: Mapping[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in f"{WEIGHTED} {SHAPING} {ACTIVATIONS} {POOLING}".split()
}
"""The layers that may be named; each builds itself from plain values and runs nothing else."""

REFUSED = ("device", "dtype")


def build_sequential(
    layers: Sequence[object], source: str = "sequential", largest: int = LARGEST
) -> nn.Sequential:
    """Return the network; its parameters are named ``"0.weight"``, ``"0.bias"``, … by position.

    The initial weights are the same on every call, and the global random state is left as it was.

    Args:
        layers: one list a layer: its name in ``torch.nn``, its arguments, then optionally a mapping of
            keywords, e.g. ``["Conv2d", 1, 6, 3, {"padding": 1}]``. Arguments are numbers, booleans, strings
            and lists of whole numbers.
        source: where the list stands, for messages.
        largest: how many numbers the network may hold.

    Raises:
        UsageError: a layer is unknown, its arguments do not fit it, or the network is absurdly large.
    """
    largest = min(largest, LARGEST)
    if not layers:
        raise UsageError(source, "holds no layer", 'list the layers, e.g. ["Linear", 64, 10]')
    if len(layers) > MOST_LAYERS:
        raise UsageError(source, f"holds {len(layers):,} layers, more than {MOST_LAYERS:,}", "correct it")
    made, size = [], 0
    for position, entry in enumerate(layers):
        where = f"{source} entry {position}"
        name, arguments, keywords = _read(entry, where)
        size += _size(name, arguments, keywords, where)
        if size > largest:
            why = f"the layers up to here hold {size:,} numbers, more than the checkpoint can"
            raise UsageError(where, why, "correct the sizes")
        made.append((name, arguments, keywords))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return nn.Sequential(*(LAYERS[name](*arguments, **keywords) for name, arguments, keywords in made))


def _read(entry: object, where: str) -> tuple[str, list[object], dict[str, object]]:
    """Return name, positional arguments and keywords of one entry."""
    if not isinstance(entry, list | tuple) or not entry or not isinstance(entry[0], str):
        raise UsageError(where, "is not a list that begins with a layer's name", 'write ["Linear", 64, 10]')
    name, *arguments = entry
    if name not in LAYERS:
        raise _unknown(name, where)
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], Mapping) else {}
    return (
        name,
        [_plain(value, f"{where} ({name})") for value in arguments],
        {str(key): _plain(value, f"{where} ({name}) {key}") for key, value in keywords.items()},
    )


def _unknown(name: str, where: str) -> UsageError:
    close = nearest(name, LAYERS)
    if close is not None:
        return UsageError(where, f'unknown layer "{name}"', f'did you mean "{close}"?')
    likely = nearest(name, LAYERS, cutoff=0.0) or "Linear"
    return UsageError(
        where,
        f'unknown layer "{name}" (the nearest known one is "{likely}")',
        "layers that are not known here need a factory: --model file.py:callable",
    )


def _plain(value: object, where: str) -> object:
    """Return the value as layers take it (lists become tuples), refusing all that is not plain."""
    if isinstance(value, list | tuple) and all(type(item) is int for item in value):
        return tuple(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        where,
        f"an argument is of type {type(value).__name__}",
        "give numbers, booleans, strings, lists of integers",
    )


def _size(name: str, arguments: Sequence[object], keywords: Mapping[str, object], where: str) -> int:
    """Return how many numbers the layer holds, from a copy that takes no memory."""
    what, layer = f"{where} ({name})", LAYERS[name]
    try:
        given = inspect.signature(layer).bind(*arguments, **keywords).arguments
    except TypeError as error:
        raise UsageError(what, str(error), f"write the arguments of torch.nn.{name}") from error
    for key in [*given, *given.get("kwargs", {})]:
        if key in REFUSED or key.startswith("_"):
            raise UsageError(what, f'the argument "{key}" cannot be given here', "remove it")
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            made = layer(*arguments, **keywords)
            sizes = [tensor.numel() for tensor in made.state_dict().values()]
    except Exception as error:
        raise UsageError(what, f"torch refuses its arguments ({reason(error)})", "correct them") from error
    if 0 in sizes:
        raise UsageError(what, "has a parameter of size 0", "correct its sizes")
    return sum(sizes)
