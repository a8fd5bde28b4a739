"""What all tests share: one torch thread a worker, since workers that compete for cores wait for each other, and drawn
examples that are the same in every run and that no clock judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import torch
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a cache of its own, in this process and in those that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / uuid4().hex))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Put the number of threads back after a test that changes it."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
