"""What tests of the agent share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a query log is to be."""
    return tmp_path / "query.log"
