"""What keeps a candidate from fitting a model, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nndiag.checkpoint.lazy import specs_of
from nndiag.model.candidates import Candidate
from nndiag.model.wanted import Wanted

SHOWN = 5


@dataclass(frozen=True)
class Mismatch:
    """Names that the model wants and the file lacks, names that the model lacks, and entries of another shape
    or kind.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many entries do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.differing)

    def __str__(self) -> str:
        parts = [
            f"{len(entries)} {kind} ({_listed(entries)})"
            for kind, entries in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.differing),
            )
            if entries
        ]
        return ", ".join(parts)


def find_mismatch(wanted: Wanted, candidate: Candidate) -> Mismatch:
    """Compare the model's state with the entries under a candidate; none of them is read."""
    names = candidate.names.under(candidate.prefix)
    held = frozenset(names)
    specs = specs_of(candidate.place.tensors)
    differing = []
    for name, tensor in wanted.tensors.items():
        if name in held:
            difference = _difference(tensor, specs[candidate.prefix + name])
            if difference:
                differing.append(f"{name}: {difference}")
    return Mismatch(
        missing=tuple(
            name for name in wanted.tensors if name not in held and not wanted.may_miss(name, held)
        ),
        unexpected=tuple(
            name for name in names if name not in wanted.tensors and not wanted.passes_over(name)
        ),
        differing=tuple(differing),
    )


def _difference(wanted: Tensor, held: Tensor) -> str:
    """Return how the file's entry differs from the model's, or ``""``.

    Another floating type is cast when loaded. Integers in place of a floating parameter are a quantised code,
    not weights.
    """
    if wanted.shape != held.shape:
        return f"file {_shape(held)}, model {_shape(wanted)}"
    if isinstance(wanted, nn.Parameter) and (
        held.is_floating_point() != wanted.is_floating_point() or held.is_complex() != wanted.is_complex()
    ):
        return f"file {_dtype(held)}, model {_dtype(wanted)}"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(entries: Sequence[str]) -> str:
    """Return five entries, each of bounded length, then a count."""
    shown = [entry if len(entry) <= 120 else f"{entry[:117]}..." for entry in entries[:SHOWN]]
    more = len(entries) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)
