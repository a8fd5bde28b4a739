"""Whom the weights inside of a recurrent layer and of an attention hear, which torch runs in one call each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nndiag.replay import attention, recurrent
from nndiag.replay.layers import Owners
from nndiag.surgery.training.outlets import Shared
from nndiag.surgery.training.strands import Bundle, Strand, joined

_PROJECTED = "its states are projected before anything hears them"
_SCORES = (
    "a query and a key are heard through each other: with the one as good as zero the other would be "
    "without influence"
)


@dataclass(frozen=True)
class Part:
    """A weight at work inside of a call, on entries ``(..., width)`` that are units of ``bundle``."""

    weight: Tensor
    bias: Tensor | None
    entries: Tensor
    bundle: Bundle | None


@dataclass(frozen=True)
class Composite:
    """What is known of a call.

    ``parts`` are the weights in it, ``made`` says whose units its results are, ``stacked`` the same of results that
    hold the units of several layers one above the other along their first axis. ``reasons`` says why the units of a
    layer cannot be shut, ``shared`` why some of them cannot.
    """

    parts: tuple[Part, ...]
    made: tuple[tuple[Tensor, Bundle], ...]
    stacked: tuple[tuple[Tensor, tuple[Bundle, ...]], ...] = ()
    sources: tuple[str, ...] = ()
    reasons: Mapping[str, str] | None = None
    shared: Mapping[str, tuple[Shared, ...]] | None = None


def through_recurrent(
    function: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    result: Any,
    owners: Owners,
    source: Bundle | None,
) -> Composite:
    """Return what a recurrent call, or that of a cell, does with units.

    A unit is heard by the weights of the hidden state of its own layer, by those of the layer above, and by whatever
    hears the result; its own state is no other unit's.

    Args:
        function: the torch function.
        name: its name.
        args: of the call.
        result: of the call.
        owners: the layer and slot of every parameter.
        source: whose units its inputs are, along their last axis.
    """
    strata = recurrent.strata(function, name, args, result)
    parts: list[Part] = []
    owned: list[tuple[str, Bundle]] = []
    reasons: dict[str, str] = {}
    heard = source
    for level in strata:
        outputs: list[tuple[Tensor, Bundle | None]] = []
        for one in level:
            layer, _ = owners[id(one.weights.input)]
            parts.append(Part(one.weights.input, one.weights.input_bias, one.inputs, heard))
            projected = one.weights.projection is not None
            width = one.states.shape[-1]
            own = Bundle(one.states.dim() - 1, width, () if projected else (Strand(layer.name, width),))
            if projected:
                reasons[layer.name] = _PROJECTED
            else:
                parts.append(Part(one.weights.hidden, one.weights.hidden_bias, one.before, own))
            owned.append((layer.name, own))
            outputs.append((one.states, own))
        heard = joined(outputs, outputs[0][0].dim() - 1)
    made, stacked = _results(name, result, heard, [own for _, own in owned])
    return Composite(tuple(parts), made, stacked, tuple(layer for layer, _ in owned), reasons)


Made = tuple[tuple[Tensor, Bundle], ...]
Stacked = tuple[tuple[Tensor, tuple[Bundle, ...]], ...]


def _results(name: str, result: Any, last: Bundle | None, owned: Sequence[Bundle]) -> tuple[Made, Stacked]:
    """Return whose units the results are: the outputs, and the states that every layer and direction ends with."""
    ends = result if isinstance(result, tuple | list) else (result,)
    if name in recurrent.CELLS:
        return tuple((end, _along_last(owned[0], end)) for end in ends), ()
    output, *finals = ends
    made = ((output, _along_last(last, output)),) if last is not None else ()
    if len(owned) == 1:
        return (*made, *((end, _along_last(owned[0], end)) for end in finals)), ()
    rows = tuple(Bundle(1, own.length, own.strands) for own in owned)
    return made, tuple((end, rows) for end in finals)


def _along_last(bundle: Bundle, tensor: Tensor) -> Bundle:
    return Bundle(tensor.dim() - 1, bundle.length, bundle.strands)


def through_attention(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    result: Any,
    owners: Owners,
    source: Bundle | None,
    entries_wanted: bool,
) -> Composite:
    """Return what a call of ``F.multi_head_attention_forward`` does with units.

    A value is heard by its column of the output projection; queries and keys by each other.

    Args:
        function: the torch function.
        given: its arguments by name.
        result: of the call.
        owners: the layer and slot of every parameter.
        source: whose units the inputs are, where queries, keys and values are taken from one tensor.
        entries_wanted: whether anybody asks for the numbers that arrive at the weights.
    """
    width = int(given["embed_dim_to_check"])
    parts: list[Part] = []
    reasons: dict[str, str] = {}
    shared: dict[str, tuple[Shared, ...]] = {}
    if given["use_separate_proj_weight"]:
        values = owners[id(given["v_proj_weight"])][0].name
        for one in ("q_proj_weight", "k_proj_weight"):
            reasons[owners[id(given[one])][0].name] = _SCORES
        start = 0
    else:
        values, start = owners[id(given["in_proj_weight"])][0].name, -2 * width
        shared[values] = tuple(_queries_and_keys(width, int(given["num_heads"])))
        if given["query"] is given["key"] is given["value"]:
            parts.append(Part(given["in_proj_weight"], given["in_proj_bias"], given["query"], source))
    attended = given["query"]
    if entries_wanted:
        attended = attention.attend(function, given, attention.projected(given))[0]
    of_values = Bundle(attended.dim() - 1, width, (Strand(values, width, start),))
    parts.append(Part(given["out_proj_weight"], given["out_proj_bias"], attended, of_values))
    output = result[0]
    back = owners[id(given["out_proj_weight"])][0].name
    after = Bundle(output.dim() - 1, width, (Strand(back, width),))
    return Composite(tuple(parts), ((output, after),), (), (*reasons, values, back), reasons, shared)


def _queries_and_keys(width: int, heads: int) -> Iterator[Shared]:
    """Yield the rows of the queries, and those of the keys, of every head of a packed projection."""
    each = width // heads
    for first in range(0, width, each):
        values = range(2 * width + first, 2 * width + first + each)
        yield Shared(range(first, first + each), _SCORES, values, width)
        yield Shared(range(width + first, width + first + each), _SCORES, values, -width)
