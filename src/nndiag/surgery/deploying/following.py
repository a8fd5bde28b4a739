"""Following the atoms of all parameters through one real forward pass, function by function.

Functions are seen where torch dispatches them, after its own composite ones (``linear``, ``einsum``, ``lstm``,
attention) have come apart, so that a few dozen are enough for all; a function that is not known fixes every atom that
meets it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from nndiag.surgery.deploying.atoms import Atoms, Ids
from nndiag.surgery.deploying.consumers import Consumer, Consumers
from nndiag.surgery.deploying.labels import Labels

OUTPUT = "it is an output of the network"


class Places:
    """The atoms along every axis of every parameter and buffer, by name; tied names share theirs."""

    def __init__(self, model: nn.Module, atoms: Atoms) -> None:
        self.axes: dict[str, tuple[Ids | None, ...]] = {}
        self.tensors: dict[str, Tensor] = {}
        self._labels: dict[int, Labels] = {}
        stored = model.state_dict().keys()
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            if id(tensor) not in self._labels:
                seen = name in stored  # what is stored nowhere has the size that the code gives it
                axes = tuple((atoms.fresh(size),) if size > 1 and seen else () for size in tensor.shape)
                self._labels[id(tensor)] = Labels(axes, constant=True)
            self.tensors[name] = tensor
            self.axes[name] = tuple(axis[0] if axis else None for axis in self._labels[id(tensor)].axes)
        self._first = {id(tensor): name for name, tensor in reversed(named)}

    def labels(self, tensor: Tensor) -> Labels | None:
        """Return the labels of a parameter or buffer."""
        return self._labels.get(id(tensor))

    def name(self, tensor: Tensor) -> str | None:
        """Return the first name of a parameter or buffer."""
        return self._first.get(id(tensor))

    def viewed(self, view: Tensor, axis: int) -> tuple[str, int, int] | None:
        """Return the parameter that a tensor is a view of, which of its axes an axis is, and where the view begins."""
        storage, start = view.untyped_storage().data_ptr(), view.data_ptr()
        for name, tensor in self.tensors.items():
            if tensor.untyped_storage().data_ptr() != storage or not tensor.numel() or not storage:
                continue
            offset = start - tensor.data_ptr()
            if not 0 <= offset < tensor.numel() * tensor.element_size():
                continue
            fits = [
                a
                for a in range(tensor.dim())
                if tensor.stride(a) == view.stride(axis) and tensor.shape[a] >= view.shape[axis] > 1
            ]
            if len(fits) == 1:
                return name, fits[0], offset
        return None


class Following(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """A mode under which the model is run.

    Args:
        atoms: of this network.
        places: of its parameters and buffers.
        consumers: told of every sum over places.
        choices: by the turn of a function in the pass, which of the axes that atoms are split over keeps them.

    ``splits`` holds, by turn, the atoms that were split over several axes, and over how many.
    """

    def __init__(
        self, atoms: Atoms, places: Places, consumers: Consumers, choices: Mapping[int, int]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.atoms, self.places, self.consumers = atoms, places, consumers
        self.turn = 0
        self.splits: dict[int, tuple[Ids, int]] = {}
        self.used: set[str] = set()
        self._choices = choices
        self._known = WeakTensorKeyDictionary()
        self._waiting = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function and follow the atoms through it."""
        from nndiag.surgery.deploying.operations import see

        self.turn += 1
        kwargs = dict(kwargs or {})
        for tensor in _tensors((args, kwargs)):
            if (name := self.places.name(tensor)) is not None:
                self.used.add(name)
        result = func(*args, **kwargs)
        see(self, Call(func, args, kwargs, result))
        return result

    def labels(self, tensor: Tensor) -> Labels:
        """Return a tensor's labels; of what was never seen nothing can be removed."""
        known: Labels | None = self.places.labels(tensor)
        if known is None:
            known = self._known.get(tensor, None)  # type: ignore[no-untyped-call]
        return Labels.none(tensor.dim(), constant=tensor.dim() == 0) if known is None else known

    def give(self, tensor: Tensor, labels: Labels) -> None:
        """Say what the labels of a result are. An axis of one place keeps no atom: that place stays."""
        axes = list(labels.axes)
        for i, axis in enumerate(axes):
            if axis and tensor.shape[i] == 1:
                for factor in axis:
                    self.atoms.fix(factor, "it is used by itself")
                axes[i] = ()
        if self.places.labels(tensor) is None:
            self._known[tensor] = Labels(tuple(axes), labels.constant)

    def fix(self, labels: Labels, reason: str, axes: Sequence[int] | None = None) -> None:
        """Say that nothing along these axes (``None``: all) can be removed."""
        for i in range(len(labels.axes)) if axes is None else axes:
            for factor in labels.axes[i]:
                self.atoms.fix(factor, reason)

    def choose(self, factor: Ids, sizes: tuple[int, ...]) -> int:
        """Return which axis keeps atoms that are split over several, and take note that there was a choice."""
        self.splits[self.turn] = (factor, len(sizes))
        return min(self._choices.get(self.turn, 0), len(sizes) - 1)

    def wait(self, tensor: Tensor, consumer: Consumer) -> None:
        """Remember that a sum has not yet met a bias."""
        self._waiting[tensor] = consumer

    def waiting(self, tensor: Tensor) -> Consumer | None:
        """Return the sum that a tensor holds, if it has not met a bias yet."""
        found: Consumer | None = self._waiting.get(tensor, None)  # type: ignore[no-untyped-call]
        return found


class Call:
    """One call of a function: its plain name, its arguments by name, and its result."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        packet = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        self.name: str = packet.rstrip("_") if not packet.startswith("__") else packet
        schema = func._schema.arguments if hasattr(func, "_schema") else ()
        self.given: dict[str, Any] = (
            {a.name: a.default_value for a in schema if a.has_default_value()}
            | dict(zip((a.name for a in schema), args, strict=False))
            | dict(kwargs)
        )
        self.pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
        self.result = result

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return _tensors(self.given)

    @property
    def results(self) -> list[Tensor]:
        """All tensors among the results."""
        return _tensors(self.result)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def plain_functions() -> Iterator[None]:
    """Let torch run without the fused functions that the atoms could not be followed through."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            torch._C._set_mkldnn_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_mkldnn_enabled(bool(mkldnn))


def run(model: nn.Module, inputs: Sequence[Tensor], mode: Following) -> None:
    """Run one batch under the mode, and fix what belongs to the network's outputs."""
    mode.turn = 0
    inputs = [x.clone() for x in inputs]
    with mode:
        output = model(*inputs)
    for leaf in _tensors(output):
        mode.fix(mode.labels(leaf), OUTPUT)


Handler = Callable[[Following, Call], None]
