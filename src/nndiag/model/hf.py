"""A network from ``config.json``, through the transformers library: ``--model hf``.

The class named under ``architectures`` is looked up in the library's own tables and nowhere else. No weights are loaded
by the library: nndiag puts in those that it opened itself. Nothing is fetched.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from nndiag.config.callables import reason, running
from nndiag.errors import InputError, ModelError, UsageError
from nndiag.model.hf_config import HfConfig, read_config

MOST_PARAMETERS = 500_000
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
LOSSES = (
    (re.compile(r"For\w*CausalLM$|LMHeadModel$|ForConditionalGeneration$"), "causal_lm"),
    (re.compile(r"ForMaskedLM$|ForTokenClassification$"), "masked_lm"),
    (re.compile(r"For\w*(Sequence|Image|Audio|Video)Classification\w*$"), "cross_entropy"),
)
"""The loss that a class was trained with, by its name; labels of an encoder-decoder are not shifted."""
_OF_PROBLEM = {"regression": "mse", "multi_label_classification": "bce_with_logits"}


@dataclass(frozen=True)
class HfModel:
    """The network in its initial state, and the name of the loss it was trained with where the class says so."""

    module: nn.Module
    loss: str | None


def build_hf(path: Path, check: Callable[[nn.Module], None]) -> HfModel:
    """Build the network that a ``config.json`` describes, with eager attention and without a cache.

    Args:
        path: the ``config.json``.
        check: is given the network without any numbers first, and raises where the weights do not fit it: a head that
            is missing from the checkpoint is found here, and a configuration larger than it never takes memory.

    Raises:
        UsageError: transformers is not installed.
        InputError: the configuration is refused, or names a class that transformers does not know.
        ModelError: the library fails on it.
    """
    config = read_config(path)
    what = str(path)
    with running(what, ModelError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto = import_transformers("--model hf")
        settings = _settings(config)
        factory = _class_of(auto, config)
        with _bounded(path):
            empty = without_numbers(
                settings,
                lambda: factory.from_config(settings, trust_remote_code=False, attn_implementation="eager"),
            )
        check(_as_named(empty, config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = factory.from_config(settings, trust_remote_code=False, attn_implementation="eager")
    return HfModel(model, loss_of(config))


def without_numbers(settings: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network that takes no memory.

    The library finds the rows of heads that a network lacks (``pruned_heads``) by looking at numbers: these heads are
    taken out afterwards.

    Args:
        settings: the library's configuration object; it is left as it is.
        build: builds the network from it.
    """
    heads = getattr(settings, "pruned_heads", None) or {}
    try:
        if heads:
            settings.pruned_heads = {}
        with torch.device("meta"):
            empty = build()
    finally:
        if heads:
            settings.pruned_heads = heads
    if heads:
        empty.prune_heads({layer: list(some) for layer, some in heads.items()})  # type: ignore[operator]
    return empty


@contextlib.contextmanager
def _bounded(path: Path) -> Iterator[None]:
    """Stop a building that goes on without end: numbers in a configuration multiply."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_PARAMETERS:
            why = f"is refused: it describes more than {MOST_PARAMETERS:,} parameter tensors"
            raise InputError(path, why, "correct it, or give --model file.py:callable")

    hook = register_module_parameter_registration_hook(one_more)
    try:
        yield
    finally:
        hook.remove()


def import_transformers(option: str) -> Any:
    """Import transformers, told first not to use the network, and return its tables of classes.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.update(OFFLINE)
    try:
        import transformers
        from transformers.models.auto import modeling_auto
    except ImportError as error:
        why = f"transformers cannot be imported ({reason(error)})"
        raise UsageError(option, why, 'pip install "nndiag[hf]", or give --model file.py:callable') from error
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
    return modeling_auto


def _settings(config: HfConfig) -> Any:
    """Return the library's own configuration object."""
    from transformers import CONFIG_MAPPING

    if config.model_type not in CONFIG_MAPPING:
        why = f'transformers {_version()} knows no model_type "{config.model_type[:80]}"'
        raise InputError(config.path, why, "install a version that does, or give --model file.py:callable")
    try:
        settings = CONFIG_MAPPING[config.model_type].from_dict(dict(config.values))
    except Exception as error:  # values of any type may stand there
        raise InputError(config.path, f"transformers refuses it ({reason(error)})", "correct it") from error
    settings.use_cache = False
    return settings


def _class_of(auto: Any, config: HfConfig) -> Any:
    """Return the Auto-class whose table has the architecture for this kind of model.

    Raises:
        InputError: no table has it.
    """
    for factory in _auto_classes(auto):
        known = factory._model_mapping._model_mapping.get(config.model_type, ())
        if config.architecture in ((known,) if isinstance(known, str) else known):
            return factory
    why = f'transformers {_version()} knows no class "{config.architecture[:80]}" of type "{config.model_type[:80]}"'
    raise InputError(config.path, why, "correct it, or give --model file.py:callable")


def _auto_classes(auto: Any) -> Iterator[Any]:
    base = auto._BaseAutoModelClass
    for value in vars(auto).values():
        if isinstance(value, type) and issubclass(value, base) and getattr(value, "_model_mapping", None):
            yield value


def _as_named(model: nn.Module, config: HfConfig) -> nn.Module:
    """Return the network, having made sure that it is of the class that was named."""
    if type(model).__name__ != config.architecture:
        why = f'transformers builds a {type(model).__name__} where "{config.architecture[:80]}" is named'
        raise InputError(config.path, why, "give --model file.py:callable")
    return model


def loss_of(config: HfConfig) -> str | None:
    """Return the name of the loss that a class was trained with, where its own name says it."""
    named = next((loss for pattern, loss in LOSSES if pattern.search(config.architecture)), None)
    if named == "causal_lm" and config.values.get("is_encoder_decoder"):
        return "masked_lm"
    if named == "cross_entropy":
        return _OF_PROBLEM.get(str(config.values.get("problem_type")), named)
    return named


def _version() -> str:
    import transformers

    return str(transformers.__version__)
