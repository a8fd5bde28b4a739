"""The weights level of a file without a model: every matrix and kernel in it is a layer, its first axis
counts nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from nndiag.checkpoint import Place
from nndiag.checkpoint.lazy import LazyTensors, renamed, specs_of
from nndiag.errors import InputError, UsageError
from nndiag.measures.record import weights_only
from nndiag.model.choice import named_place, narrow_places, with_prefix
from nndiag.records.measured import Measured
from nndiag.replay.kinds import Layer, Slot

_STATISTICS = ("running_mean", "running_var")
# What tables are called that are looked up: a row of them, such as that of the padding, may be zero.
_TABLE = re.compile(
    r"((word|tok(en)?|position|pos|token_type|segment|char)_?)?(emb|embed|embeddings?)|embed_(tokens|positions)|wte|wpe",
    re.I,
)
_LABELS = {2: "matrix", 3: "kernel 1d", 4: "kernel 2d", 5: "kernel 3d"}


def choose_tensors(places: Sequence[Place], weights_key: str | None, strip_prefix: str | None) -> LazyTensors:
    """Return the tensors to look at where no model says which; none is read yet.

    Raises:
        UsageError: several places hold weights and none was chosen, or the one chosen is not there.
    """
    chosen, inside = narrow_places(places, weights_key)
    prefix = with_prefix(inside, strip_prefix, chosen, ()) or ""
    holding = [place for place in chosen if any(name.startswith(prefix) for name in place.tensors)]
    if len(holding) > 1:
        known = ", ".join(named_place(place.key, prefix) for place in holding)
        options = " or ".join(f"--weights-key {place.key}" for place in holding[:2] if place.key)
        raise UsageError("weights", f"they lie in several places: {known}", f"choose with {options}")
    tensors = holding[0].tensors
    return renamed(tensors, {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)})


def measure_weights(tensors: Mapping[str, Tensor]) -> Measured:
    """Return what the weights alone say of the layers that the names and shapes suggest.

    Raises:
        InputError: there is no matrix or kernel among them.
    """
    specs = specs_of(tensors)
    layers = tuple(layer for name, t in specs.items() if (layer := _layer(name, t, specs)) is not None)
    if not layers:
        why = "there are no matrices or kernels of floating-point numbers"
        raise InputError("weights", why, "give a checkpoint of a network")
    with _one_thread():
        broken = tuple(_broken(layers, tensors))
        measured = weights_only(layers + broken, tensors)
    return replace(measured, unmeasured=tuple(_odd(specs)))


def count_parameters(specs: Mapping[str, Tensor]) -> int:
    """Return how many numbers the parameters have, as far as names and types tell them from buffers."""
    return sum(
        tensor.numel()
        for name, tensor in specs.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and name.rpartition(".")[2] not in _STATISTICS
    )


def _broken(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Yield a layer for each vector of no matrix, such as the scale of a norm, that holds numbers that are not finite;
    healthy ones say nothing by themselves.
    """
    known = {name for layer in layers for name in layer.names}
    for name, found in specs_of(tensors).items():
        if name not in known and found.dim() == 1 and found.is_floating_point() and found.numel():
            values = tensors[name]
            if not (values.float() if values.itemsize == 1 else values).isfinite().all():
                slot = Slot.of(name, values)
                yield Layer(name.removesuffix(".weight"), "vector", slot.nodes, slot.width, (slot,), ())


def _odd(specs: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the weights that are no floating-point numbers, and what they are."""
    for name, found in specs.items():
        if found.dim() > 1 and found.is_complex():
            yield name, "complex numbers"
        elif found.dim() > 1 and not found.is_floating_point() and "weight" in name.rpartition(".")[2]:
            yield name, "whole numbers, as packed weights are"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: reading and hashing the file, beside this, take longer than all that it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layer(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Layer | None:
    if tensor.dim() not in _LABELS or not tensor.is_floating_point() or not tensor.numel():
        return None
    owner, _, last = name.rpartition(".")
    bias_name = f"{owner}.bias" if owner else "bias"
    bias = tensors.get(bias_name) if last == "weight" else None
    has_bias = bias is not None and bias.shape == tensor.shape[:1]
    label = owner if last == "weight" and owner else name
    biases = (Slot.of(bias_name, bias),) if bias is not None and has_bias else ()
    weight = Slot.of(name, tensor)
    is_table = tensor.dim() == 2 and not has_bias and _TABLE.fullmatch(label.rpartition(".")[2]) is not None
    return Layer(
        label,
        "Embedding" if is_table else _LABELS[tensor.dim()],
        weight.nodes,
        weight.width,
        (weight,),
        biases,
    )
