"""Depth and number of values by the text alone, as a walk over the values finds them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.algorithms.json_structure import count_values, is_deeper
from tests.support.examples import examples


def count_levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(count_levels, inner), default=0)


quirky = st.text('[]{}"\\a', max_size=8)
nested = st.recursive(
    quirky | st.integers(),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(quirky, inner, max_size=4),
    max_leaves=60,
)


@given(st.lists(nested, max_size=30), st.integers(0, 12), st.integers(1, 14))
@settings(deadline=None, max_examples=examples(200))
def test_levels_are_counted_as_they_are_nested(value: list[Any], more: int, levels: int) -> None:
    """By the text alone, whatever stands in its strings."""
    data: dict[str, Any] = {"f": value}
    for _ in range(more):
        data = {"[": [data]}
    assert is_deeper(msgspec.json.encode(data), levels) == (count_levels(data) > levels)


@pytest.mark.parametrize("many", [1, 31, 32, 33, 5_000])
def test_a_level_too_many_is_found_wherever_it_is(many: int) -> None:
    deep = b"[" * 64 + b"]" * 64
    text = b'{"f":[' + b",".join([b"[]"] * many + [deep] + [b"[]"] * many) + b"]}"
    assert (is_deeper(text, 66), is_deeper(text, 65)) == (False, True)


def walk_values(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return max(1, len(inner)) + sum(map(walk_values, inner))


@given(nested)
@settings(deadline=None, max_examples=examples(200))
def test_of_many_values_none_is_counted_that_stands_in_a_string(value: Any) -> None:
    many = [value] + [{}] * 600
    assert count_values(msgspec.json.encode(many)) == walk_values(many)


def test_of_few_those_in_strings_count_as_well() -> None:
    assert count_values(b'{"f":[",",1]}') == 4
