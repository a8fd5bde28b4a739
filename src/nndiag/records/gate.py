"""What the gate decided, one record a rule and layer; dataclasses, since pydantic costs more than the gate may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gravity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Check:
    """One rule on one layer, or on the whole model (``layer`` is ``None``).

    ``value`` is what was found and ``limit`` what is allowed, in the unit of the rule; ``None`` where there is no such
    number. ``code`` is the finding it is about, ``nodes`` are those that it concerns, ``look`` is the command that
    shows more.
    """

    rule: str
    layer: str | None
    value: float | None
    limit: float | None
    passed: bool
    message: str
    gravity: Gravity = "error"
    code: str | None = None
    nodes: tuple[int, ...] = ()
    look: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of one report, failed ones first; ``subject`` is the checkpoint file that they are about.

    ``notes`` are about the policy. ``caution`` is a sentence that every format says, passed or not: what the checks
    rest on that is no data.
    """

    checks: tuple[Check, ...]
    subject: str
    policy: str = ""
    notes: tuple[str, ...] = ()
    caution: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)
