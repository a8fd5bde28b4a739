"""SHA-256 of a checkpoint's files, computed beside the reading and measuring of them.

``hashlib`` lets other threads run, so that on two cores the hash costs no time of its own. It takes longer than all
else that is done with the bytes, and so it leaves the reading of them to another thread. One file has the hash of
its bytes. Several have the hash of the lines ``HASH  NAME`` that ``sha256sum`` prints for them in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from threading import Thread

from nndiag.checkpoint.ahead import read_ahead
from nndiag.checkpoint.source import Watched


class Digest:
    """The hash of some files, on its way from the moment that this is made.

    Args:
        files: the files, watched since they were opened, by the names under which they are hashed: ``""`` for a
            file that is the whole checkpoint.
    """

    def __init__(self, files: Mapping[str, Watched]) -> None:
        self._files = dict(sorted(files.items()))
        self._result = ""
        self._error: Exception | None = None
        # a daemon: an error elsewhere must not wait for the rest of a large file
        self._thread = Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def hexdigest(self) -> str:
        """Return the hash, when it is there.

        Raises:
            InputError: a file changed since it was opened, or cannot be read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        for file in self._files.values():
            file.check_unchanged()
        return self._result

    def _run(self) -> None:
        try:
            hashes = {name: _hash(file) for name, file in self._files.items()}
        except Exception as error:  # it is raised where the hash is asked for
            self._error = error
            return
        self._result = hashes[""] if list(hashes) == [""] else _of_lines(hashes)


def _hash(file: Watched) -> str:
    found = hashlib.sha256()
    for chunk in read_ahead(file):
        found.update(chunk)
    return found.hexdigest()


def _of_lines(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{value}  {name}\n" for name, value in hashes.items())
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
