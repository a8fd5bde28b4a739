"""A network of the timm library by its name: ``--model timm:resnet18``. No weights are fetched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from nndiag.config.callables import reason, running
from nndiag.config.suggest import suggest
from nndiag.errors import ModelError, UsageError

PREFIX = "timm:"
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def build_timm(spec: str, arguments: Mapping[str, object]) -> nn.Module:
    """Return a network in its initial state.

    Args:
        spec: ``timm:NAME``, a name of timm's own list; places on a hub or a disk are refused.
        arguments: keywords for ``timm.create_model``, such as ``num_classes``.

    Raises:
        UsageError: timm is not installed, or knows no such name.
        ModelError: it fails.
    """
    what, name = f"--model {spec}", spec.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(what, "is no name of a timm model", "write e.g. timm:resnet18")
    refused = next((key for key in arguments if key in _REFUSED), None)
    if refused is not None:
        raise UsageError(
            what, f"{refused} would fetch weights", "leave it out: weights come from the checkpoint"
        )
    with running(what, ModelError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import timm
        except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
            why = f"timm cannot be imported ({reason(error)})"
            raise UsageError(
                what, why, 'pip install "nndiag[timm]", or give --model file.py:callable'
            ) from error
        if not timm.is_model(name):
            raise UsageError(what, "timm knows no such model", suggest(name, timm.list_models()[:10_000]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, **arguments)
    assert isinstance(model, nn.Module)
    return model
