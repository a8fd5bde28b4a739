"""Text that Markdown shows as it is."""

from __future__ import annotations

import re

from nndiag.errors import printable

_ACTIVE = re.compile(r"([\\`*_\[\]<>|~$#&])")


def inert(text: object) -> str:
    """Return ``text`` as one line shown as it is: no markup, link, mention or table border."""
    shown = _ACTIVE.sub(r"\\\1", printable(str(text)))
    return (
        shown.replace("://", ":\\/\\/")
        .replace("www.", "www\\.")
        .replace("@", "@<!-- -->")
        .replace("::", ":\\:")
    )
