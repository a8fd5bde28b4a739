"""What the model that is measured takes: how samples must look for it, and where its tokenizer lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Takes:
    """Facts of a model that the reading of its data rests on; all of them may be unknown.

    ``names`` are the arguments of its ``forward``, ``main`` the one that plain ``x`` is given to by name
    (``None``: by position). ``vocabulary`` counts its tokens, ``longest`` the positions of a sequence. ``tokenizer`` is
    the folder of the checkpoint. ``loss`` is the name of the loss, which says what of a text is to be predicted, and
    ``block`` counts the tokens of a sample of text.
    """

    names: tuple[str, ...] = ()
    main: str | None = None
    vocabulary: int | None = None
    longest: int | None = None
    tokenizer: Path | None = None
    loss: str | None = None
    block: int | None = None


NOTHING_KNOWN = Takes()
