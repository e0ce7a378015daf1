"""How many connections there may be, and what is kept for administrators."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.runtime.settings.limits_settings import LimitsSettings
from tests.runtime.settings.loading import fault


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"GROUPS": {"admin": {"reserved": 11}}}, ["SOLOWIRE_LIMITS__GROUPS", "SOLOWIRE_LIMITS__MAX_CONNECTIONS"]),
        ({"GROUPS": {"a": {"reserved": 6}, "b": {"reserved": 5}}}, ["11 slots", "SOLOWIRE_LIMITS__MAX_CONNECTIONS"]),
        ({"GROUPS": {"a": {"reserved": 3, "limit": 2}}}, ["SOLOWIRE_LIMITS__GROUPS", "'a'", "reserved", "limit"]),
        ({"GROUPS": {"{a}": {"limit": 11}}}, ["'{a}'", "11", "SOLOWIRE_LIMITS__MAX_CONNECTIONS"]),
        ({"MAX_CONNECTIONS_PER_SHARD": 11}, ["SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_SHARD, 11, is above"]),
        ({"MAX_CONNECTIONS_PER_USER": 11}, ["SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_USER, 11, is above"]),
        ({"MAX_CONNECTIONS_PER_ADDRESS": 11}, ["SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_ADDRESS, 11, is above"]),
        ({"GROUPS": {"a": {"weight": 0}}}, ["SOLOWIRE_LIMITS__GROUPS: a.weight"]),
        ({"GROUPS": {"a": {"wieght": 2}}}, ["SOLOWIRE_LIMITS__GROUPS: a.wieght", "did you mean weight?"]),
    ],
)
def test_limits_that_contradict_each_other_are_one_line(limits: dict[str, Any], words: list[str]) -> None:
    """A reserve above a limit, or any limit above the global one, stops the start, and says what to change."""
    line = fault(variables={f"LIMITS__{name}": value for name, value in {"MAX_CONNECTIONS": 10, **limits}.items()})
    assert all(word in line for word in words), line


def test_administrators_have_a_reserve_unless_something_else_is_said() -> None:
    """By default a few slots are administrators' own: a tenth or less, one at least, what the other reserves leave."""

    def reserved(**limits: Any) -> int:
        return LimitsSettings.model_validate(limits).with_administrators().groups["admin"].reserved

    assert reserved() == 16
    assert reserved(max_connections=50) == 5
    assert reserved(max_connections=2) == 1
    assert reserved(max_connections=50, groups={"operator": {"reserved": 48}}) == 2
    assert reserved(group_by="tenant") == 16
    assert reserved(groups={"admin": {"limit": 3}}) == 3
    assert reserved(groups={"admin": {"reserved": 0}}) == 0
    heavy = LimitsSettings.model_validate({"groups": {"admin": {"weight": 2}}}).with_administrators().groups["admin"]
    assert (heavy.weight, heavy.reserved) == (2.0, 16)
    assert LimitsSettings(max_connections=1).with_administrators().groups == {}
