"""What came of treatments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nndiag.remedies.plan import Treatment
from nndiag.surgery.edits import Edits

Promise = Literal["unchanged", "measured", "finite"]
"""What holds of the function: it is the same on the probe to 1e-6 of its outputs' scale; it changed, and the loss was
measured; it was not finite and is now."""


@dataclass(frozen=True)
class Done:
    """A treatment that was carried out: how, and what holds of the function."""

    treatment: Treatment
    promise: Promise
    detail: str


@dataclass(frozen=True)
class Left:
    """A treatment that was not carried out, or was taken back, and why."""

    treatment: Treatment
    reason: str


@dataclass(frozen=True)
class Treated:
    """Everything that came of one round of treatments, and the edits that carry it over to another copy."""

    done: tuple[Done, ...]
    left: tuple[Left, ...]
    edits: Edits
