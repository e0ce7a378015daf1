"""One system for all tests that only use it; those that break or configure one start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import System, running


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # All tests come from one address, and many show wrong tokens; and what is published is what they wait for.
    settings = {"AUTH__BAD_TOKEN_BURST": 10_000, "SHARD__CONFLATION__INTERVAL_S": 0}
    with running(tmp_path_factory.mktemp("system") / "data", shards=2, settings=settings) as started:
        yield started
