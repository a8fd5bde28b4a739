"""Ways to damage bytes: blindly, or inside a container so that the damage gets past its checksums and lengths.

Everything is drawn from the generator that is given, so that a number names a case for ever.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Damage = Callable[[bytes, Random], bytes]

_NUMBERS = (
    0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 40, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_WORDS = (
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"\x80\x02", b"\x80\x04\x95", b"}q\x00(",
    b"tR", b"\x85R", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n", b"cos\nsystem\n", b"\x81",
    b"b", b"s", b"Q", b"2", b"0", b"h\x00", b"q\x00", b"]", b"(", b".", b"K\xff", b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"[[[[[[[[", b"{\"a\":", b"null", b"-1", b"1e999", b"NaN",
    b"18446744073709551616", b"\"\\ud800\"", b"\x1b[2J", b"\r\n", b"::error::", b"../../", b"/etc/passwd",
    b"\xff\xfe", b"\x00" * 8, b"F64", b"I4", b"BOOL",
)  # fmt: skip


def _span(content: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + int(2 ** rng.uniform(0, 10)))


def _flip(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _truncate(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(1, len(content) + 1)]


def _cut(content: bytes, rng: Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _zero(content: bytes, rng: Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def _duplicate(content: bytes, rng: Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _move(content: bytes, rng: Random) -> bytes:
    start, end = _span(content, rng)
    to = rng.randrange(len(content) + 1)
    return content[:to] + content[start:end] + content[to:]


def _length(content: bytes, rng: Random) -> bytes:
    """Put a telling number over one that may be a length."""
    form = rng.choice("<B <H <I <Q >I >Q".split())
    size = struct.calcsize(form)
    place = rng.randrange(max(len(content) - size, 0) + 1)
    number = rng.choice((*_NUMBERS, len(content), len(content) - 1)) % (1 << (8 * size))
    return content[:place] + struct.pack(form, number) + content[place + size :]


def _digits(content: bytes, rng: Random) -> bytes:
    """Replace a number in a text by another."""
    starts = [index for index, byte in enumerate(content[: 1 << 16]) if 48 <= byte < 58]
    if not starts:
        return _length(content, rng)
    start = rng.choice(starts)
    end = start
    while end < len(content) and 48 <= content[end] < 58:
        end += 1
    return content[:start] + str(rng.choice((*_NUMBERS, -1, 10**30))).encode() + content[end:]


def _insert(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    over = rng.choice((0, 1, 4))
    return content[:place] + rng.choice(_WORDS) * rng.choice((1, 1, 1, 300)) + content[place + over :]


BLIND: tuple[Damage, ...] = (
    _flip, _flip, _overwrite, _truncate, _cut, _zero, _duplicate, _move, _length, _length, _digits, _insert,
)  # fmt: skip
"""What is done to bytes of which nothing is known; what finds most stands twice."""


def damage(content: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Return damaged bytes.

    Args:
        content: a valid file.
        others: further valid files, of which parts may be spliced in.
        rng: decides everything.
    """
    if rng.random() < 0.6:
        inside = _inside(content, others, rng)
        if inside is not None:
            return inside
    return _blindly(content, others, rng)


def _blindly(content: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if others and rng.random() < 0.05:
            content = _splice(content, rng.choice(others), rng)
        elif content:
            content = rng.choice(BLIND)(content, rng)
    return content


def _splice(content: bytes, other: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _inside(content: bytes, others: Sequence[bytes], rng: Random) -> bytes | None:
    """Damage what a container holds and close it again, as an attacker would; ``None`` where there is none."""
    if content.startswith(b"PK\x03\x04"):
        return _in_zip(content, others, rng)
    if content[8:9] == b"{":
        return _in_header(content, others, rng)
    if content.startswith(b"{"):
        return _in_json(content, rng)
    return None


def _in_zip(content: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    packed = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(packed, "w", rng.choice((0, 0, 0, 0, 0, zipfile.ZIP_DEFLATED))) as new,
    ):
        warnings.simplefilter("ignore")  # names that stand twice
        entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        chosen = rng.randrange(len(entries))
        if rng.random() < 0.5:  # the pickle is the part that says most
            chosen = next((i for i, (name, _) in enumerate(entries) if name.endswith(".pkl")), chosen)
        name, inner = entries[chosen]
        what = rng.random()
        if what < 0.05:
            del entries[chosen]
        elif what < 0.1:
            entries.append((name, inner))
        elif what < 0.15:
            entries[chosen] = (
                _blindly(name.encode(), (), rng).decode("latin-1").replace("\x00", "x") or "x",
                inner,
            )
        else:
            entries[chosen] = name, damage(inner, others, rng) if inner else b"?"
        for entry in entries:
            new.writestr(*entry)
    return packed.getvalue()


def _in_header(content: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Damage the header of a safetensors file and give its new length; sometimes entry by entry."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.5:
        header = _blindly(header, (), rng)
    else:
        entries = json.loads(header)
        name = rng.choice(sorted(entries))
        entry = entries[name]
        if not isinstance(entry, dict) or "shape" not in entry:
            entries[name] = rng.choice((None, [], {"step": "9" * 30}, {"a": "\x1b[31m"}))
        else:
            entry[rng.choice(("shape", "data_offsets"))] = [
                rng.choice(_NUMBERS) for _ in range(rng.randrange(4))
            ]
            entry["dtype"] = rng.choice((entry["dtype"], "F64", "BF16", "F8_E4M3", "F4", "C64", "X"))
        header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + body


_ODD: tuple[object, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -1e308, "", "x", "../x", "\x1b[2J", "\ud800", "9" * 5000,
    [], {}, [[]], {"a": 1}, [1, "a", None], [0] * 1000, ["x"] * 1000, "x" * 100_000,
)  # fmt: skip


def _in_json(content: bytes, rng: Random) -> bytes | None:
    """Put something else at one place of a text of JSON, or of one of its lines."""
    lines = content.split(b"\n")
    if len(lines) > 1 and lines[0].endswith(b"}"):
        chosen = rng.randrange(len(lines))
        changed = _in_json(lines[chosen], rng)
        return None if changed is None else b"\n".join([*lines[:chosen], changed, *lines[chosen + 1 :]])
    root = {"": json.loads(content)}
    holder, key = rng.choice(list(_places_in(root)))
    what = rng.random()
    if what < 0.1 and holder is not root:
        del holder[key]
    elif what < 0.2 and isinstance(holder[key], dict):
        holder[key][rng.choice(("type", "a", "\x1b", "x" * 5000))] = rng.choice(_ODD)
    elif what < 0.3 and isinstance(holder[key], list | str):
        holder[key] = holder[key] * rng.choice((2, 50, 2000))
    else:
        holder[key] = rng.choice((*_ODD, {"a": holder[key]}, [holder[key]]))
    return json.dumps(root[""]).encode()


def _places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every dict or list inside of a value with every key or index of it."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places_in(value[key])
