"""Which format a file is in, by its bytes and never by its name."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from nndiag.checkpoint.source import damaged
from nndiag.errors import InputError

Format = Literal["safetensors", "torch", "torch-legacy", "pt2", "stable-baselines3", "index"]

ZIP_MAGIC = b"PK\x03\x04"
# torch.save without zip begins with the pickled integer 0x1950a86a20f9469cfc6c, in protocol 2.
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
SAFETENSORS_HEADER_LIMIT = 100_000_000  # the library's own

_INDEX = re.compile(rb'\s*\{\s*"(weight_map|metadata)"\s*:')

_OLDEST = (b"sys_info", b"pickle", b"storages", b"tensors")
_RESAVE = "load it where it was made and save model.state_dict() with torch.save or safetensors"
_FOREIGN = (
    (
        b"GGUF",
        "a GGUF file, which holds weights packed for inference",
        "give the checkpoint it was made from",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 (Keras) file, which is not supported", "save the weights as safetensors"),
    (b"\x93NUMPY", "a NumPy array", "give it as --data, or give the checkpoint"),
    (b"\x1f\x8b", "gzip-compressed", "decompress it first"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself", "run git lfs pull"),
)


def identify(path: Path, file: BinaryIO) -> Format:
    """Return the format of an open file, and leave it at its start.

    Args:
        path: the file's name, for messages and for nothing else but the wording of a failure.
        file: the file.

    Raises:
        InputError: the bytes are those of another format, or of none.
    """
    head = file.read(512)
    file.seek(0)
    if head.startswith(ZIP_MAGIC):
        return _kind_of_zip(file)
    if head.startswith(LEGACY_MAGIC):
        return "torch-legacy"
    if _is_safetensors(head):
        return "safetensors"
    if _INDEX.match(head):
        return "index"
    raise _refusal(path, head)


def is_agent(path: Path) -> bool:
    """Return whether a file is an archive of Stable-Baselines3; false for what cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) == ZIP_MAGIC and _kind_of_zip(file) == "stable-baselines3"
    except OSError:
        return False


def _kind_of_zip(file: BinaryIO) -> Format:
    """Tell the archives apart by the names in them; what cannot be read is for the reader to say."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # of half a dozen kinds
        return "torch"
    finally:
        file.seek(0)
    tails = {name.partition("/")[2] for name in names}
    if "policy.pth" in names:
        return "stable-baselines3"
    is_module = "data.pkl" in tails
    if not is_module and ("archive_format" in tails or any(tail.startswith("models/") for tail in tails)):
        return "pt2"
    return "torch"


def _is_safetensors(head: bytes) -> bool:
    # The header may end beyond a truncated file: that is for the reader to say.
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= SAFETENSORS_HEADER_LIMIT


def _refusal(path: Path, head: bytes) -> InputError:
    for magic, what, do in _FOREIGN:
        if head.startswith(magic):
            return InputError(path, f"is {what}", do)
    if ZIP_MAGIC.startswith(head) or LEGACY_MAGIC.startswith(head):
        return damaged(path, f"only {len(head)} bytes")
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in _OLDEST:
        why = "is an archive of torch.save from before 2017, which is not supported"
        return InputError(path, why, "load it with torch.load where you trust it, and save it again")
    if head[257:262] == b"ustar":
        return InputError(path, "is a tar archive", "unpack it and give the checkpoint inside")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return InputError(
            path, "is a web page and not the file itself", "download it again, signed in if need be"
        )
    if text[:1] in (b"{", b"["):
        return InputError(
            path, "is JSON text, which holds no weights", "give the checkpoint that it belongs to"
        )
    if _is_onnx(head):
        return InputError(
            path, "is an ONNX graph, which is not supported", "give the checkpoint it was exported from"
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return InputError(
            path, "is a plain pickle that torch.save did not write, and loading it could run code", _RESAVE
        )
    if os.path.splitext(path)[1].lower() == ".safetensors":
        return damaged(path, "no safetensors header")
    return InputError(
        path,
        "is neither a safetensors nor a torch.save file, so it is damaged or something else",
        "give a .safetensors, .pt, .pth, .bin or .ckpt checkpoint",
    )


def _is_onnx(head: bytes) -> bool:
    # protobuf: field 1 (ir_version, a small number), then 2 (producer_name), 7 (graph) or 8 (opset_import)
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 20 and head[2] in (0x12, 0x3A, 0x42)
