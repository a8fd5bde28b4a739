"""Zip archives of torch, copied record by record with some records replaced."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from nndiag.checkpoint.source import damaged, summary

_MADE_BY_WRITER = frozenset({"version", ".data/serialization_id"})
_ALIGNMENT = ".storage_alignment"
_BYTE_ORDER = "byteorder"


class Archive:
    """An archive open for reading.

    Args:
        path: its name, for messages.
        file: the archive, at its start.

    Raises:
        InputError: it is damaged.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        try:
            self._reader = torch._C.PyTorchFileReader(file)
            self.names: tuple[str, ...] = tuple(self._reader.get_all_records())
        except Exception as error:  # torch raises nearly every exception there is over damaged bytes
            raise damaged(path, summary(error)) from error

    def read(self, name: str) -> bytes:
        """Return a record.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            return self._reader.get_record(name)
        except Exception as error:
            raise damaged(self.path, summary(error)) from error

    def write(
        self, target: BinaryIO, new: Mapping[str, bytes | bytearray], gone: Collection[str] = ()
    ) -> None:
        """Write the archive with other content for some records, new ones at its end, and without others.

        Args:
            target: the file to write; where it fails, torch says that its position is wrong.
            new: the records that change or are new.
            gone: names of records that are left out.
        """
        writer = torch._C.PyTorchFileWriter(target)
        if (
            _BYTE_ORDER not in self.names
        ):  # the writer would add it behind its own records: elsewhere than a copy has it
            new = {**new, _BYTE_ORDER: b"little"}
        for name in (*self.names, *(name for name in new if name not in self.names)):
            if name in _MADE_BY_WRITER or name in gone:
                continue
            content = bytes(new[name]) if name in new else self.read(name)
            if name == _ALIGNMENT:
                content = b"64"  # what the writer does
            writer.write_record(name, content, len(content))
        writer.write_end_of_file()
