"""``[policy]``: what makes the gate fail, with other limits for layers that match a pattern.

Read without pydantic, whose import takes longer than the gate may; ``tables.PolicyTable`` says the same to ``scan``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from nndiag.config.suggest import suggest
from nndiag.errors import UsageError

LAYERS = "layers"
"""The table of tables by pattern: ``[policy.layers."features.*"]``."""

ALWAYS_FORBIDDEN = ("ND101",)
"""Where a policy forbids nothing by name: a network with numbers that are not finite never passes."""


@dataclass(frozen=True)
class Limits:
    """The keys of a policy; ``None`` where it does not say.

    Fractions are of a layer's nodes; ``max_new_degenerate`` counts nodes of a layer; ``max_regression`` is the share by
    which the loss may have grown. ``forbid`` holds codes or their beginnings.
    """

    max_degenerate_fraction: float | None = None
    max_dead_fraction: float | None = None
    max_new_degenerate: int | None = None
    max_regression: float | None = None
    min_effective_rank: float | None = None
    forbid: tuple[str, ...] | None = None

    @property
    def given(self) -> frozenset[str]:
        """The keys that it says something about."""
        return frozenset(key for key in KEYS if getattr(self, key) is not None)

    def filled(self, other: Limits) -> Limits:
        """Return these limits, with those that only ``other`` gives."""
        return replace(self, **{key: getattr(other, key) for key in other.given - self.given})


KEYS = tuple(one.name for one in fields(Limits))
_OF_THE_MODEL = "max_regression"


@dataclass(frozen=True)
class Policy:
    """Limits for every layer, and for those whose names match a pattern; ``source`` says where they stand."""

    limits: Limits = field(default_factory=Limits)
    layers: Mapping[str, Limits] = field(default_factory=dict)
    source: str = ""

    def of(self, layer: str) -> Limits:
        """Return what holds for a layer: of each key the most specific pattern's, else the general one.

        A name without wildcards is more specific than a pattern, a pattern with more literal characters more than
        one with fewer; of equals the one that stands first counts.
        """
        matching = [pattern for pattern in self.layers if fnmatchcase(layer, pattern)]
        found = Limits()
        for pattern in sorted(matching, key=_specificity, reverse=True):
            found = found.filled(self.layers[pattern])
        return found.filled(self.limits)

    def over(self, other: Policy) -> Policy:
        """Return this policy with the keys and patterns that only ``other`` gives."""
        patterns = {
            pattern: self.layers.get(pattern, Limits()).filled(other.layers.get(pattern, Limits()))
            for pattern in (*other.layers, *self.layers)
        }
        sources = " and ".join(one.source for one in (self, other) if one.source and not one.empty)
        return Policy(self.limits.filled(other.limits), patterns, sources)

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not self.limits.given and not self.layers

    def forbids(self, code: str) -> bool:
        """Whether a code, or codes that begin so, are forbidden anywhere."""
        parts = (self.limits.forbid, *(limits.forbid for limits in self.layers.values()))
        tokens = (token for part in parts if part is not None for token in part)
        return any(token.startswith(code) or code.startswith(token) for token in tokens)

    def unmatched(self, layers: Mapping[str, object]) -> tuple[str, ...]:
        """Return the patterns that match none of these layers."""
        return tuple(p for p in self.layers if not any(fnmatchcase(name, p) for name in layers))


def parse_policy(table: object, source: str) -> Policy:
    """Return a policy from its table.

    Args:
        table: what TOML holds under ``[policy]``.
        source: the file and the table, for messages.

    Raises:
        UsageError: an unknown key or a value of the wrong type or range.
    """
    if not isinstance(table, Mapping):
        raise UsageError(source, f"policy is {_shown(table)}, expected a table", "write [policy]")
    layers = table.get(LAYERS, {})
    if not isinstance(layers, Mapping):
        raise UsageError(
            source, f"{LAYERS} is {_shown(layers)}, expected a table", f'write [policy.{LAYERS}."*"]'
        )
    general = {key: value for key, value in table.items() if key != LAYERS}
    by_pattern = {
        str(pattern): _limits(part, f'{source} {LAYERS}."{pattern}"', within=True)
        for pattern, part in layers.items()
    }
    return Policy(_limits(general, source, within=False), by_pattern, source)


def _limits(table: object, source: str, *, within: bool) -> Limits:
    if not isinstance(table, Mapping):
        raise UsageError(source, f"is {_shown(table)}, expected a table", "write limits in it")
    known = [key for key in KEYS if not (within and key == _OF_THE_MODEL)]
    for key in table:
        if key not in known:
            raise UsageError(
                source, f'unknown key "{key}"', suggest(str(key), known if within else [*known, LAYERS])
            )
    return Limits(**{key: _value(key, value, source) for key, value in table.items()})


def _value(key: str, value: object, source: str) -> Any:
    def wrong(expected: str) -> UsageError:
        return UsageError(source, f"{key} is {_shown(value)}, expected {expected}", "correct its value")

    if key == "forbid":
        if not isinstance(value, list | tuple) or not all(isinstance(code, str) and code for code in value):
            raise wrong('a list of codes, such as ["ND101", "ND4"]')
        return tuple(code.strip().upper() for code in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong("a finite number")
    if value < 0:
        raise wrong("a number of at least 0")
    if key == "max_new_degenerate":
        if not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if key.endswith("_fraction") and value > 1:
        raise wrong("a number of at most 1")
    return float(value)


def _specificity(pattern: str) -> tuple[bool, int]:
    """Return how much of a name a pattern says; sorts the most specific last."""
    literal = re.sub(r"\[[^\]]*\]|[*?]", "", pattern)
    return literal == pattern, len(literal)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
