"""Looking at a training step: the functions run as they are, and what is needed beside them is taken without gradients.

A replay takes fused functions apart, for gradients in the middle of them. A training step must not be another one, so
here they are called whole: dropout draws what it would have drawn, and no pass backwards is longer than it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nndiag.replay import attention, recurrent
from nndiag.replay.kinds import Layer, Use
from nndiag.replay.layers import find_layers, owners_of
from nndiag.replay.lineage import Lineage
from nndiag.replay.orientation import Orientation
from nndiag.replay.watch import Call, Observer, Watch


class Look(Watch):
    """A watch that proves nothing and takes nothing apart."""

    def _followed_from(self, constants: Collection[Tensor]) -> Lineage:
        """Nobody asks which rows the data pick."""
        return Lineage(frozenset(map(id, constants)), picks=False)

    def _prove(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: object) -> None:
        """Nobody asks whether the network is piecewise linear."""

    def _look_for_unseen(self, given: Iterable[Tensor]) -> None:
        """As above."""

    def _kept(self, value: Tensor) -> Tensor:
        """What a use was given is not looked at again, and goes with the pass."""
        return value

    def _call(self, use: Use, output: Tensor) -> Call:
        """No gradient is taken in the middle."""
        return Call(use.layer, use, None, output.shape)

    def _attend(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Attend, and look at the projections before and behind."""
        result = func(*args, **kwargs)
        given = attention.arguments(args, kwargs)
        with torch.no_grad(), self:
            parts = attention.projected(given)
        more = (given["bias_k"], given["bias_v"])
        self._foreign("attention", more, {}, [one for one in more if one is not None])
        back = (given["query"], given["out_proj_weight"], given["out_proj_bias"])
        use = self._use_of("linear", back, {})
        call = None if use is None else self._enter(use, result[0])
        self._lineage.see("attention", parts, {}, result[0], call)
        return result

    def _unroll(self, whole: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        """Run a recurrent layer in its fused function, and read the states of its units."""
        result = whole(*args)
        self._see_states(recurrent.states_of(whole, name, args, result))
        self._lineage.see(name, args, {}, result, None)
        return result


class FirstLook(Look):
    """A look at the first step, which shows which axes of raw parameters count nodes: a scan asks a pass before.

    ``layers`` are those of the model, counted anew when the first product of a parameter comes, before it is made.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[Layer, ...],
        named: Mapping[str, Tensor],
        observer: Observer,
        constants: Collection[Tensor],
    ) -> None:
        super().__init__(owners_of(named, layers), observer, constants)
        self.layers = layers
        self._model, self._named = model, named
        self._orientation = Orientation(model)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look for products first."""
        known = len(self._orientation.axes)
        self._orientation.see(func, args, kwargs or {})
        if len(self._orientation.axes) > known:
            self.layers = find_layers(self._model, unit_axes=self._orientation.named())
            self._owners = owners_of(self._named, self.layers)
        result = super().__torch_function__(func, types, args, kwargs)
        self._orientation.follow(func, args, kwargs or {}, result)
        return result
