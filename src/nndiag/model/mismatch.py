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
    """Names that the model wants and the file lacks, names that the model lacks, and entries of another shape or
    of another kind of numbers.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What to do about it."""
        if self.missing or self.unexpected:
            where = "or say where its weights lie with --weights-key and --strip-prefix"
            return f"give the model that was trained, {where}"
        if self.unlike:
            return "give the checkpoint before its weights were packed, or a model that takes them"
        return (
            "give the model the sizes that were trained: by --model-arg num_classes=10, say, or in its layers"
        )

    @property
    def count(self) -> int:
        """How many entries do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.differing) + len(self.unlike)

    def __str__(self) -> str:
        parts = [
            f"{len(entries)} {kind} ({_listed(entries)})"
            for kind, entries in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.differing),
                ("of another type", self.unlike),
            )
            if entries
        ]
        return ", ".join(parts)


def find_mismatch(wanted: Wanted, candidate: Candidate) -> Mismatch:
    """Compare the model's state with the entries under a candidate; none of them is read."""
    names = candidate.names.under(candidate.prefix)
    there = frozenset(names)
    specs = specs_of(candidate.place.tensors)
    pairs = [
        (name, one, specs[candidate.prefix + name]) for name, one in wanted.tensors.items() if name in there
    ]
    return Mismatch(
        missing=tuple(
            name for name in wanted.tensors if name not in there and not wanted.may_miss(name, there)
        ),
        unexpected=tuple(
            name for name in names if name not in wanted.tensors and not wanted.passes_over(name)
        ),
        differing=tuple(
            f"{name}: file {_shape(held)}, model {_shape(one)}"
            for name, one, held in pairs
            if one.shape != held.shape
        ),
        unlike=tuple(
            f"{name}: file {_dtype(held)}, model {_dtype(one)}"
            for name, one, held in pairs
            if _is_unlike(one, held)
        ),
    )


def _is_unlike(wanted: Tensor, held: Tensor) -> bool:
    """Return whether an entry is of another kind of numbers than the parameter that it is for.

    Another floating type is cast when loaded. Integers in place of a floating parameter are a quantised code,
    not weights.
    """
    return isinstance(wanted, nn.Parameter) and (
        held.is_floating_point() != wanted.is_floating_point() or held.is_complex() != wanted.is_complex()
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(entries: Sequence[str]) -> str:
    """Return five entries, each of bounded length, then a count."""
    shown = [entry if len(entry) <= 120 else f"{entry[:117]}..." for entry in entries[:SHOWN]]
    more = len(entries) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)
