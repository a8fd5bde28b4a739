"""The depth of a scan."""

from __future__ import annotations

from enum import IntEnum


class Level(IntEnum):
    """How deep a scan looks; each level contains those before it.

    The value is the hundreds digit of its codes.
    """

    WEIGHTS = 1
    ACTIVATIONS = 2
    GRADIENTS = 3
    CURVATURE = 4

    @property
    def label(self) -> str:
        """The word used in options and reports, e.g. ``"curvature"``."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> Level:
        """Return the level with this label.

        Raises:
            KeyError: there is no such level.
        """
        return cls[label.upper()]
