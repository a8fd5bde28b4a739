"""Files that keep the grammar of their format and lie in it: what blind damage rarely reaches."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from nndiag.checkpoint import open_checkpoint
from nndiag.checkpoint.inventory import Inventory
from nndiag.checkpoint.pickle_walk import walk_pickle
from nndiag.errors import InputError, NndiagError

FIXED = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SIZES = st.one_of(
    st.integers(0, 8), st.sampled_from([-1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 2**64, 10**30])
)
ODD = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.lists(SIZES, max_size=3), SIZES
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(
            st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "F4", "C64"]), ODD
        ),
        "shape": st.one_of(st.lists(SIZES, max_size=4), ODD),
        "data_offsets": st.one_of(st.lists(SIZES, max_size=3), ODD),
    },
    optional={"extra": ODD},
)
HEADER = st.dictionaries(
    st.one_of(st.text(max_size=6), st.just("__metadata__")), st.one_of(ENTRY, ODD, st.dictionaries(st.text(), ODD)),
    max_size=5,
)  # fmt: skip


def opens_or_says_why(content: bytes, suffix: str) -> bool:
    """Open bytes as a checkpoint: it works, or ends in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(content)
        error = _raised(lambda: open_checkpoint(path))
    assert error is None or isinstance(error, NndiagError)
    assert error is None or (error.exit_code == 3 and str(error).isprintable())
    return error is None


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


@FIXED
@given(HEADER, st.integers(0, 64), st.integers(-9, 9))
def test_safetensors_headers(header: dict[str, object], body: int, off: int) -> None:
    text = json.dumps(header).encode()
    length = max(0, len(text) + (off if abs(off) > 7 else 0))
    opens_or_says_why(struct.pack("<Q", length) + text + bytes(body), ".safetensors")


def test_safetensors_headers_of_the_same_grammar_can_be_valid() -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    assert opens_or_says_why(struct.pack("<Q", len(text)) + text + bytes(16), ".safetensors")


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STEPS = st.one_of(
    st.sampled_from(
        [

            b"N", b"\x88", b"\x89", b"K\x00", b"K\x05", b"J\xff\xff\xff\xff",
            b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"G" + bytes(8), b")", b"]", b"}", b"(", b"t", b"\x85",
            b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R", b"b", b"Q", b"q\x00", b"q\x01", b"h\x00",
            b"h\x01", b"r\x00\x00\x00\x00", b"j\x01\x00\x00\x00", b"U\x01a", b"\x8f", b"\x80\x02",
            b"\x80\x04", b"\x81", b"0", b"2", b"i", b"o", b"c\n\n", b"\x93", b"\x94", b"\x95" + bytes(8),
            b"\x8e" + b"\xff" * 8, b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f",
        ]
    ),
    st.sampled_from(["0", "cpu", "storage", "latin1", "w", "state_dict", "\ud7ff"]).map(_text),
    st.sampled_from(
        [
            "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage",
            "torch._tensor _rebuild_from_type_v2", "torch.nn.parameter Parameter", "collections OrderedDict",
            "collections Counter", "torch Size", "torch device", "_codecs encode", "builtins set", "builtins bytearray",
            "__builtin__ complex", "torch Tensor", "torch float32", "torch._utils _rebuild_tensor_v3",
        ]
    ).map(lambda name: b"c" + name.replace(" ", "\n").encode() + b"\n"),
)  # fmt: skip
STORAGE = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + b"K\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
TENSOR = REBUILD + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
PICKLES = st.lists(st.one_of(STEPS, STEPS, st.sampled_from([STORAGE, TENSOR, REBUILD])), max_size=24).map(
    b"".join
)


def _archive(pickled: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/version", "3\n")
    return packed.getvalue()


@seed(1)
@FIXED
@given(PICKLES)
def test_sequences_of_opcodes(body: bytes) -> None:
    opens_or_says_why(_archive(b"\x80\x02" + body + b"."), ".pt")


@FIXED
@given(PICKLES, PICKLES)
def test_sequences_of_opcodes_inside_a_dict(before: bytes, after: bytes) -> None:
    opens_or_says_why(_archive(b"\x80\x02}(" + _text("w") + TENSOR + before + after + b"u."), ".pt")


@FIXED
@given(PICKLES)
def test_what_the_walk_lets_through_names_nothing_that_it_does_not_know(body: bytes) -> None:
    """Whatever the walk accepts loads without code: torch's own unpickler meets no name it refuses."""
    content = b"\x80\x02" + body + b"."
    try:
        walk_pickle(io.BytesIO(content), Inventory(Path("x")))
    except InputError:
        return
    said = str(_raised(lambda: torch.load(io.BytesIO(_archive(content)), weights_only=True)))
    assert "Unsupported" not in said
    assert "GLOBAL" not in said


def test_the_opcodes_can_make_a_checkpoint() -> None:
    assert opens_or_says_why(_archive(b"\x80\x02}" + _text("w") + TENSOR + b"s."), ".pt")
