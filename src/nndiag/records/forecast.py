"""What a scan is going to do with its memory and time, before it does it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartForecast:
    """Nodes ``start`` to ``stop`` (the first that is not among them) of a layer.

    ``kept`` says what is held of them: ``"inputs and weights"`` of every sample, ``"inputs and gradients"`` of every
    pass, ``"jacobians"``, ``"whole blocks"``, or ``"nothing"`` where every product is made of a further replay.
    """

    layer: str
    start: int
    stop: int
    kept: str
    bytes: int


@dataclass(frozen=True)
class RoundForecast:
    """What is treated together: ``replays`` of the probe, about so many where nothing is kept.

    ``bytes`` is the most in use at once.
    """

    replays: int
    bytes: int
    parts: tuple[PartForecast, ...]


@dataclass(frozen=True)
class ProductsForecast:
    """What second derivatives take of one checkpoint, at most: less where fewer nodes or products suffice.

    ``products`` are those of one vector with a Hessian over the whole probe, ``passes`` forward and backward ones
    beside them; ``seconds`` of both, from some that were timed on a few samples.
    """

    products: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """The plan of a scan, of one checkpoint but for ``checkpoints`` and ``seconds``.

    ``batch_size`` samples go through the model together; ``backward_passes`` are of each of them over all replays.
    ``budget_bytes`` may be in use beside model and probe and ``peak_bytes`` will be; ``wanted_bytes`` is what one
    replay for everything takes, ``least_bytes`` the smallest budget. ``seconds`` is an estimate for all checkpoints,
    from a small batch that was timed, without what comes after: ``exact`` are exact Hessian blocks, where such may be
    made, ``certificate`` is that of the whole model, where it is asked for.
    """

    level: str
    checkpoints: int
    samples: int
    batch_size: int
    budget_bytes: int
    wanted_bytes: int
    least_bytes: int
    peak_bytes: int
    replays: int
    backward_passes: int
    seconds: float
    exact: ProductsForecast | None
    certificate: ProductsForecast | None
    rounds: tuple[RoundForecast, ...]
