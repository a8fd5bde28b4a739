"""Looking at a training step: the functions run as they are, and what is needed beside them is taken without gradients.

A replay takes fused functions apart, for gradients in the middle of them. A training step must not be another one, so
here they are called whole: dropout draws what it would have drawn, and no pass backwards is longer than it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nndiag.replay import attention, recurrent
from nndiag.replay.kinds import Use
from nndiag.replay.lineage import Lineage
from nndiag.replay.watch import Call, Watch


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
