"""What second derivatives will take at most, from a few products that are timed on a few samples."""

from __future__ import annotations

import time

import torch

from nndiag.errors import InputError, ModelError
from nndiag.measures.certificate import most_passes, products_allowed, trainable
from nndiag.measures.collect import exact_settings, smooth_layers
from nndiag.measures.exact import most_products
from nndiag.measures.hvp import HessianProducts, NoSecondDerivativeError
from nndiag.measures.plan import Update
from nndiag.measures.replaying import Replay
from nndiag.measures.schedule import Schedule
from nndiag.records.forecast import ProductsForecast
from nndiag.records.level import Level

SAMPLES = (8, 32)
"""Samples of the two products that are timed: what calling functions takes does not grow with them."""
VECTORS = 16
"""The most vectors that they multiply."""


def exact_forecast(replay: Replay, schedule: Schedule) -> ProductsForecast | None:
    """Return what exact Hessian blocks will take, ``None`` where none will be made.

    Args:
        replay: which has taken note of a forward pass over some samples.
        schedule: how the budget of memory is held.

    Raises:
        InputError: in mode ``"hessian"``, the probe has no targets.
        NoSecondDerivativeError: in mode ``"hessian"``, an operation of the model has no second derivative.
    """
    plan = replay.plan
    layers = () if plan.level < Level.CURVATURE or plan.curvature == "ggn" else smooth_layers(replay)
    if not layers:
        return None
    try:
        settings = exact_settings(replay, schedule)
        most = most_products(replay.model, replay.probe, layers, settings)
        names = layers[0].names
        each = _seconds(replay, names, schedule.batch_size, min(most.count, most.at_once), keep=True)
    except (InputError, NoSecondDerivativeError):
        if plan.curvature == "hessian":
            raise
        return None
    return ProductsForecast(most.count, 0, most.count * each)


def certificate_forecast(replay: Replay, update: Update | None, a_pass: float) -> ProductsForecast:
    """Return what a certificate will take: the passes are those of a minimum, whose basin is measured.

    Args:
        replay: gives model and probe.
        update: the update rule, where it is known.
        a_pass: seconds of a forward and backward pass over the probe.

    Raises:
        InputError: the probe has no targets.
        ModelError: an operation of the model has no second derivative.
    """
    probe, names = replay.probe, trainable(replay.model)
    products = HessianProducts(replay.model, probe, names)
    count = products_allowed(products.size, products.like.element_size())
    passes = most_passes(None if update is None else update.facts)
    try:
        each = _seconds(replay, names, probe.batch_size, 1, keep=len(probe) <= probe.batch_size)
    except NoSecondDerivativeError as error:
        raise ModelError("--certificate", error.why, "leave it out") from error
    return ProductsForecast(count, passes, count * each + passes * a_pass)


def _seconds(replay: Replay, names: tuple[str, ...], batch_size: int, vectors: int, keep: bool) -> float:
    """Return the seconds that a product with one vector takes over the whole probe.

    Args:
        replay: gives model and probe.
        names: of the parameters that the vector is over.
        batch_size: samples at a time.
        vectors: how many are multiplied together.
        keep: whether the graphs of first derivatives are there already.
    """
    count, vectors = len(replay.probe), max(1, min(vectors, VECTORS))
    few, more = (min(samples, count, batch_size) for samples in SAMPLES)
    first = _timed(replay, names, few, vectors, keep)
    each = (_timed(replay, names, more, vectors, keep) - first) / (more - few) if more > few else first / few
    calling = max(0.0, first - max(0.0, each) * few)
    return (-(-count // batch_size) * calling + max(0.0, each) * count) / vectors


def _timed(replay: Replay, names: tuple[str, ...], samples: int, vectors: int, keep: bool) -> float:
    """Return the seconds of one product of so many vectors over so many samples, the second of two."""
    products = HessianProducts(replay.model, replay.probe, names, keep, slice(0, samples))
    ones = torch.ones(vectors, products.size).to(products.like)
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        found = products.product(ones)
        if found.is_cuda:
            torch.cuda.synchronize(found.device)
        seconds = time.perf_counter() - begun
    return seconds
