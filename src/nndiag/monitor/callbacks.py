"""A monitor in other training loops. Their frameworks are imported when a callback is asked for, not before."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nndiag.errors import UsageError
from nndiag.monitor.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Sequence

AnyPath = str | os.PathLike[str]


def lightning_callback(path: AnyPath | None = None, **options: Any) -> Any:
    """Return a callback for a Lightning ``Trainer``, with the monitor of the run as ``monitor``.

    The whole training step is watched, whatever parts of the module it calls.

    Args:
        path: where the history is written when training ends; nowhere by default.
        options: of :class:`nndiag.Monitor`.

    Raises:
        UsageError: Lightning is not installed.
    """
    base = _class_of(("lightning.pytorch", "pytorch_lightning"), "Callback", "lightning")

    class MonitorCallback(base):  # type: ignore[misc, valid-type]
        """Steps a monitor."""

        monitor: Monitor | None = None
        _loss: Tensor | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """Start watching."""
            self.monitor = Monitor(module, **{"optimizer": next(iter(trainer.optimizers), None), **options})

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
            """Watch the step, where it is its turn."""
            if self.monitor is not None:
                self.monitor.begin(*_tensors(batch))

        def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
            """Watch no longer."""
            self._loss = loss.detach()
            if self.monitor is not None:
                self.monitor.end(loss)

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            """Take the gradients; of several optimisers the first counts the steps."""
            if self.monitor is not None and optimizer is trainer.optimizers[0]:
                self.monitor.step(self._loss)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            """Write the history."""
            _finish(self.monitor, path)

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            """Leave nothing behind."""
            if self.monitor is not None:
                self.monitor.close()

    return MonitorCallback()


def trainer_callback(path: AnyPath | None = None, **options: Any) -> Any:
    """Return a callback for the ``Trainer`` of Transformers, with the monitor of the run as ``monitor``.

    Healing needs a ``probe`` here: a model that is called by keywords cannot be proved on its batch.

    Args:
        path: where the history is written when training ends; nowhere by default.
        options: of :class:`nndiag.Monitor`.

    Raises:
        UsageError: Transformers is not installed.
    """
    base = _class_of(("transformers",), "TrainerCallback", "transformers")

    class MonitorCallback(base):  # type: ignore[misc, valid-type]
        """Steps a monitor."""

        monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Start watching."""
            self.monitor = Monitor(given["model"], **{"optimizer": given.get("optimizer"), **options})

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Take the gradients."""
            if self.monitor is not None:
                self.monitor.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Write the history."""
            _finish(self.monitor, path)

    return MonitorCallback()


def _class_of(modules: Sequence[str], name: str, package: str) -> Any:
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ImportError:
            continue
    raise UsageError(package, "is not installed", f"pip install {package}")


def _finish(monitor: Monitor | None, path: AnyPath | None) -> None:
    if monitor is None:
        return
    monitor.close()
    if path is not None and monitor.taken:
        monitor.save(path)


def _tensors(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch, in its order."""
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]
