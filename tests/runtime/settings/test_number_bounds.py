"""Numbers far beyond all use: each is refused by the setting's name, and none ends in a traceback later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from solowire.runtime.settings.setting_paths import find_section, list_paths, to_variable
from solowire.runtime.settings.system_settings import Settings
from tests.runtime.settings.loading import fault

HUGE = ["1" + "0" * 23, "1e300", "9" * 400, "2147483648e9"]


def find_field(path: tuple[str, ...]) -> FieldInfo:
    model: type[BaseModel] = Settings
    for name in path[:-1]:
        model = find_section(model.model_fields[name]) or model
    return model.model_fields[path[-1]]


def is_number(path: tuple[str, ...]) -> bool:
    kinds = getattr(find_field(path).annotation, "__args__", (find_field(path).annotation,))
    return int in kinds or float in kinds


NUMBERS = [path for path in list_paths() if is_number(path)]


def upper_bounds(field: FieldInfo) -> Iterator[Any]:
    for rule in field.metadata:
        if isinstance(rule, annotated_types.Le):
            yield rule.le


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_each_number_has_an_upper_bound(place: Path, path: tuple[str, ...]) -> None:
    """What is beyond it is refused with the variable's name; no bound is beyond what a socket or a database takes."""
    [most] = upper_bounds(find_field(path))
    assert most <= 2**53
    for value in HUGE:
        assert to_variable(path) in fault(variables={to_variable(path).removeprefix("SOLOWIRE_"): value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIMITS__GROUPS", {"viewer": {"limit": 10**23}}),
        ("LIMITS__GROUPS", {"viewer": {"reserved": 10**23}}),
        ("LIMITS__GROUPS", {"viewer": {"weight": 1e300}}),
        ("SHARD__AGGREGATION__TYPE_EVENTS_PER_S", {"dns_query_log": 1e300}),
        ("SHARD__CONFLATION__TYPE_INTERVAL_S", {"system_metrics": 1e300}),
    ],
)
def test_numbers_in_tables_have_one_too(place: Path, name: str, value: Any) -> None:
    """They are named with the place in the table, as it is written there."""
    [inner] = value
    line = fault(variables={name: value})
    assert f"SOLOWIRE_{name}: {inner}" in line
