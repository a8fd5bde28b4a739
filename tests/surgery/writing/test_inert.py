"""Pickles that are read and written without being run say the same as before."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nndiag.errors import InputError
from nndiag.surgery.writing.inert import read_pickle, write_pickle
from tests.checkpoint.files import Payload
from tests.surgery.writing.networks import trained

NOWHERE = Path("a.pt")


class Keyed:
    """An object that is made with keywords, of a list, and of a dict."""

    def __new__(cls, **given: int) -> Keyed:
        made = super().__new__(cls)
        made.given = given
        return made

    given: dict[str, int]

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), self.given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Listed(list[int]):
    """A list of a class of its own."""


class Named(dict[str, int]):
    """A dict of a class of its own."""


def again(value: object, protocol: int) -> object:
    """Return a value after its pickle was read and written without being run."""
    tree, found = read_pickle(NOWHERE, io.BytesIO(pickle.dumps(value, protocol=protocol)))
    assert found == protocol
    return pickle.loads(write_pickle(tree, protocol))


def objects() -> list[Any]:
    """What may lie in a training checkpoint."""
    ordered = collections.OrderedDict(a=1, b=[2])
    ordered.mark = "attributes too"  # type: ignore[attr-defined]
    counted = collections.defaultdict(list, {"a": [1]})
    listed, named = Listed([1, 2, 3]), Named(a=1)
    listed.note = named.note = "kept"  # type: ignore[attr-defined]
    return [
        ordered, counted, listed, named, Keyed(width=3), argparse.Namespace(a=argparse.Namespace(b={1, 2})),
        collections.Counter("abca"), datetime.datetime(2020, 1, 2), Path("x"), complex(1, 2), {frozenset({1})},
        np.arange(6.0).reshape(2, 3).tolist(), slice(1, 2), range(3), b"bytes", bytearray(b"more"), print, int,
        list(range(3000)), {n: str(n) for n in range(3000)}, "ä" * 300, 10**40, -1, 1e300, None, True, (), (1,),
        (1, 2, 3, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_all_kinds(protocol: int) -> None:
    values = objects()
    found = again(values, protocol)
    assert found == values
    assert isinstance(found, list)
    assert [type(value) for value in found] == [type(value) for value in values]
    assert found[0].mark == "attributes too"
    assert (found[2].note, found[3].note) == ("kept", "kept")


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_shared_stays_shared_and_what_contains_itself_too(protocol: int) -> None:
    shared = argparse.Namespace(a=1)
    circle: list[Any] = [shared, shared]
    circle.append(circle)
    found: Any = again(circle, protocol)
    assert found[0] is found[1]
    assert found[2] is found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(2, 5))
def test_any_plain_value(value: object, protocol: int) -> None:
    assert again(value, protocol) == value


def test_what_torch_writes_is_as_long_and_settles(tmp_path: Path) -> None:
    model, optimizer = trained()
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "x": objects()[:1]}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickled = archive.read("a/data.pkl")
    once = write_pickle(*read_pickle(NOWHERE, io.BytesIO(pickled)))
    assert len(once) <= len(pickled)  # equal strings that are one in memory are written once
    assert write_pickle(*read_pickle(NOWHERE, io.BytesIO(once))) == once


def test_nothing_is_run(tmp_path: Path) -> None:
    content = pickle.dumps([Payload(tmp_path / "ran")], protocol=2)
    tree, protocol = read_pickle(NOWHERE, io.BytesIO(content))
    assert write_pickle(tree, protocol) == content
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"\x80\x02]q\x00(K\x01", b"\x80\x02h\x05.", b"\x82\x01."]
)
def test_damage_is_one_line(content: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.pt: is truncated or damaged"):
        read_pickle(NOWHERE, io.BytesIO(content))
