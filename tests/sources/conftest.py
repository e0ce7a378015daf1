"""What tests of the agent share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a query log is to be."""
    return tmp_path / "query.log"


@pytest.fixture
def logged() -> Iterator[Callable[[], set[str]]]:
    """Gives the names of all that has been logged in the test so far."""
    with capture_logs() as logs:
        yield lambda: {line["event"] for line in logs}
