"""One system for all tests that only use it; those that break or configure one start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.system import System, running


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("system") / "data", shards=2, settings={"STATE_INTERVAL_S": 0}) as started:
        yield started
