"""Recurrent layers step by step: what torch does in one fused call, in functions that can be seen.

Each use of a weight is then a linear function of its own, whose gradients show what every gate of every unit gets at
every step. Equations as in the documentation of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]
"""From what the input and the last hidden state contribute to the gates, and the last state, to the new state."""


@dataclass(frozen=True)
class Unrolled:
    """What a recurrent call returns, and the hidden states of each of its layers, ``(steps, batch, hidden)``.

    ``hidden`` pairs them with the weight of the inputs, by which the layer is known.
    """

    result: Any
    hidden: tuple[tuple[Tensor, Tensor], ...]


def lstm_step(x: Tensor, h: Tensor, state: State) -> State:
    """``c' = σ(f) c + σ(i) tanh(g)``, ``h' = σ(o) tanh(c')``."""
    i, f, g, o = (x + h).chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_step(x: Tensor, h: Tensor, state: State) -> State:
    """``n = tanh(x_n + σ(r) h_n)``, ``h' = (1 − σ(z)) n + σ(z) h``."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, dim=-1), h.chunk(3, dim=-1)
    update = torch.sigmoid(xz + hz)
    new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - update) * new + update * state[0],)


def tanh_step(x: Tensor, h: Tensor, state: State) -> State:
    """``h' = tanh(x + h)``."""
    return (torch.tanh(x + h),)


def relu_step(x: Tensor, h: Tensor, state: State) -> State:
    """``h' = max(0, x + h)``."""
    return (torch.relu(x + h),)


STEPS: dict[str, Step] = {"lstm": lstm_step, "gru": gru_step, "rnn_tanh": tanh_step, "rnn_relu": relu_step}
CELLS = {f"{name}_cell": step for name, step in STEPS.items()}


def weights_in(name: str, args: Sequence[Any]) -> list[Tensor]:
    """Return the weights that a recurrent call is given, or none where it is no call that can be unrolled."""
    if name in CELLS:
        return [w for w in args[2:6] if isinstance(w, Tensor)]
    packed = (
        len(args) < 3 or not isinstance(args[2], list | tuple) or not args[2] or isinstance(args[2][0], tuple)
    )
    return [] if packed or not isinstance(args[0], Tensor) or args[0].dim() != 3 else list(args[2])


def unroll(name: str, args: Sequence[Any]) -> Unrolled:
    """Do what ``torch.lstm``, ``gru``, ``rnn_tanh``, ``rnn_relu`` do on a padded batch, in eval mode."""
    inputs, start, flat, has_bias, layers, _, _, bidirectional, batch_first = args[:9]
    sequence = inputs.transpose(0, 1) if batch_first else inputs
    begin = tuple(start) if isinstance(start, tuple | list) else (start,)  # an exported program has lists
    directions = 2 if bidirectional else 1
    parameters = _by_layer(flat, has_bias, layers * directions)
    hidden, ends = [], []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = next(parameters)
            state = tuple(s[place] for s in begin)
            found, end = _scan(STEPS[name], sequence, state, weights, backwards=direction == 1)
            outputs.append(found)
            ends.append(end)
            hidden.append((weights.input, found))
        sequence = outputs[0] if directions == 1 else torch.cat(outputs, dim=2)
    output = sequence.transpose(0, 1) if batch_first else sequence
    finals = tuple(torch.stack([end[i] for end in ends]) for i in range(len(begin)))
    return Unrolled((output, *finals), tuple(hidden))


def unroll_cell(name: str, args: Sequence[Any]) -> Unrolled:
    """Do what ``torch.lstm_cell``, ``gru_cell``, ``rnn_tanh_cell``, ``rnn_relu_cell`` do: one step."""
    inputs, start, w_input, w_hidden, b_input, b_hidden = (*args, None, None)[:6]
    state = tuple(start) if isinstance(start, tuple | list) else (start,)
    x, h = F.linear(inputs, w_input, b_input), F.linear(state[0], w_hidden, b_hidden)
    end = CELLS[name](x, h, state)
    result = end if isinstance(start, tuple | list) else end[0]
    return Unrolled(result, ((w_input, end[0].unsqueeze(0)),))


def states_of(
    function: Callable[..., Any], name: str, args: Sequence[Any], result: Any
) -> list[tuple[Tensor, Tensor]]:
    """Return the hidden states of a recurrent call that ran whole, as ``Unrolled`` has them.

    The last layer's are its result; those below are computed once more, without gradients. Behind a dropout they
    cannot be: layers between the first and the last are then left out.

    Args:
        function: the torch function.
        name: its name, as in ``STEPS`` and ``CELLS``.
        args: of the call.
        result: of the call.
    """
    if name in CELLS:
        end = result[0] if isinstance(result, tuple) else result
        return [(args[2], end.unsqueeze(0))]
    inputs, start, flat, has_bias, layers, dropout, train, bidirectional, batch_first = args[:9]
    directions = 2 if bidirectional else 1
    weights = [own.input for own in _by_layer(flat, has_bias, layers * directions)]
    begin = list(start) if isinstance(start, tuple | list) else [start]
    each = len(flat) // layers
    found: list[tuple[Tensor, Tensor]] = []
    sequence = inputs
    for layer in range(layers):
        if layer == layers - 1:
            sequence = result[0]
        elif layer > 0 and dropout > 0 and train:
            continue
        else:
            first = [s[layer * directions : (layer + 1) * directions] for s in begin]
            own = flat[layer * each : (layer + 1) * each]
            given = first if isinstance(start, tuple | list) else first[0]
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that these weights are a part of a larger piece of memory
                sequence = function(
                    sequence, given, own, has_bias, 1, 0.0, train, bidirectional, batch_first
                )[0]
        steps = sequence.transpose(0, 1) if batch_first else sequence
        own_weights = weights[layer * directions : (layer + 1) * directions]
        found.extend(zip(own_weights, steps.chunk(directions, dim=2), strict=True))
    return found


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer and direction."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None
    hidden_bias: Tensor | None
    projection: Tensor | None


@dataclass(frozen=True)
class Stratum:
    """One layer and direction of a recurrent call.

    ``inputs`` is what it takes, ``before`` the hidden state before each step, ``states`` that after it, all
    ``(steps, batch, width)``.
    """

    weights: Weights
    inputs: Tensor
    before: Tensor
    states: Tensor


def strata(
    function: Callable[..., Any], name: str, args: Sequence[Any], result: Any
) -> tuple[tuple[Stratum, ...], ...]:
    """Return what every layer of a recurrent call that ran whole took and put out: by layer, then by direction.

    Args:
        function: the torch function.
        name: its name, as in ``STEPS`` and ``CELLS``.
        args: of the call, in eval mode.
        result: of the call.
    """
    states = [found for _, found in states_of(function, name, args, result)]
    if name in CELLS:
        first = args[1][0] if isinstance(args[1], tuple | list) else args[1]
        w_input, w_hidden, b_input, b_hidden = (*args[2:6], None, None)[:4]
        weights = Weights(w_input, w_hidden, b_input, b_hidden, None)
        return ((Stratum(weights, args[0].unsqueeze(0), first.unsqueeze(0), states[0]),),)
    inputs, start, flat, has_bias, layers, _, _, bidirectional, batch_first = args[:9]
    directions = 2 if bidirectional else 1
    first = start[0] if isinstance(start, tuple | list) else start
    sequence = inputs.transpose(0, 1) if batch_first else inputs
    every = []
    for place, weights in enumerate(_by_layer(flat, has_bias, layers * directions)):
        own, begin = states[place], first[place].unsqueeze(0)
        backwards = place % directions == 1
        before = torch.cat([own[1:], begin] if backwards else [begin, own[:-1]])
        every.append(Stratum(weights, sequence, before, own))
        if place % directions == directions - 1:
            sequence = torch.cat(states[place + 1 - directions : place + 1], dim=2)
    return tuple(tuple(every[at : at + directions]) for at in range(0, len(every), directions))


def _by_layer(flat: Sequence[Tensor], has_bias: bool, count: int) -> Iterator[Weights]:
    each = len(flat) // count
    for place in range(count):
        own = list(flat[place * each : (place + 1) * each])
        biases = own[2:4] if has_bias else [None, None]
        rest = own[4:] if has_bias else own[2:]
        yield Weights(own[0], own[1], biases[0], biases[1], rest[0] if rest else None)


def _scan(
    step: Step, sequence: Tensor, state: State, weights: Weights, backwards: bool
) -> tuple[Tensor, State]:
    """Run through a sequence; the output is in the order of the input whichever way it was run."""
    inputs = F.linear(sequence, weights.input, weights.input_bias)
    order = range(len(sequence) - 1, -1, -1) if backwards else range(len(sequence))
    outputs: list[Tensor] = []
    for t in order:
        state = step(inputs[t], F.linear(state[0], weights.hidden, weights.hidden_bias), state)
        if weights.projection is not None:
            state = (F.linear(state[0], weights.projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state
