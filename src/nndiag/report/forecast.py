"""The plan of a scan: for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nndiag.config.sizes import bytes_in_words
from nndiag.errors import printable
from nndiag.records.forecast import Forecast, ProductsForecast, RoundForecast
from nndiag.report.numbers import counted


def render_forecast(forecast: Forecast, console: Console) -> None:
    """Print a plan for people."""
    for line in _sentences(forecast):
        console.print(Text(line), soft_wrap=True)
    if any(one.parts for one in forecast.rounds):
        console.print()
        console.print(_table(forecast))


def forecast_json(forecast: Forecast) -> str:
    """Return a plan as one JSON object."""
    return json.dumps(asdict(forecast), indent=2, allow_nan=False) + "\n"


def _sentences(forecast: Forecast) -> Iterator[str]:
    each = "" if forecast.checkpoints == 1 else f", for each of {forecast.checkpoints} checkpoints"
    yield f"Plan      {forecast.level} on {counted(forecast.samples, 'sample')}{each}"
    streamed = any(_streamed(one) for one in forecast.rounds)
    about = "about " if streamed else ""
    at_once = counted(forecast.batch_size, "sample")
    replays = f"{about}{counted(forecast.replays, 'replay')} of the probe"
    yield f"Passes    {replays}, {about}{forecast.backward_passes:,} backward, {at_once} at a time"
    peak, budget = bytes_in_words(forecast.peak_bytes), bytes_in_words(forecast.budget_bytes)
    yield f"Memory    {peak} at most, of a budget of {budget}, beside model and probe"
    wanted, least = bytes_in_words(forecast.wanted_bytes), bytes_in_words(forecast.least_bytes, up=True)
    yield f"          all in one replay takes {wanted}; the least is {least}"
    later = (("exact Hessian blocks", forecast.exact), ("the certificate", forecast.certificate))
    more = [_spent(what, taken, forecast.checkpoints) for what, taken in later if taken is not None]
    yield f"Time      about {_duration(forecast.seconds)}{', and at most' if more else ''}"
    yield from (f"          {one}" for one in more)


def _spent(what: str, taken: ProductsForecast, checkpoints: int) -> str:
    """Return what second derivatives take, in words: the time for all checkpoints, as that of the rest."""
    passes = f", {taken.passes:,} passes" if taken.passes else ""
    amount = f"{counted(taken.products, 'product')}{passes}"
    return f"{_duration(checkpoints * taken.seconds)} more for {what} ({amount})"


def _table(forecast: Forecast) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Replay")
    table.add_column("Layer", overflow="fold")
    table.add_column("Nodes", justify="right")
    table.add_column("Kept")
    table.add_column("Bytes", justify="right")
    begun = 0
    for one in forecast.rounds:
        about = f"{begun + 1} to about {begun + one.replays}" if _streamed(one) else str(begun + 1)
        for place, part in enumerate(one.parts):
            table.add_row(
                about if place == 0 else "",
                escape(printable(part.layer)),
                f"{part.start}–{part.stop - 1}",
                part.kept,
                bytes_in_words(part.bytes),
            )
        begun += one.replays
    return table


def _streamed(one: RoundForecast) -> bool:
    return any(part.kept == "nothing" for part in one.parts)


def _duration(seconds: float) -> str:
    """Return a duration with as many digits as an estimate deserves."""
    if seconds < 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
