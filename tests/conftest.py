"""What holds for all tests."""

from __future__ import annotations

import pytest

from tests.support.examples import register_profiles
from tests.support.requirements import check_requirements
from tests.support.slow_files import SLOW_FILES

register_profiles()


def pytest_runtest_setup(item: pytest.Item) -> None:
    check_requirements(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that no worker is left alone with one of them in the end."""
    order = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
