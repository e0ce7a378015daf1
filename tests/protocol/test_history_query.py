"""Questions about history as they are written: each wrong parameter is named, and nothing else is ever raised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidHistoryQuery
from solowire.protocol.history_query import (
    HistoryCursor,
    HistoryPosition,
    HistoryQuery,
    parse_history,
    read_query_string,
)

NOW = 1_000_000.0


def parse(**fields: Any) -> HistoryQuery:
    return parse_history(fields, CATALOG, now=NOW, max_limit=5000)


def faults(**fields: Any) -> list[str]:
    with pytest.raises(InvalidHistoryQuery) as caught:
        parse(**fields)
    return sorted(caught.value.faults)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("1h", NOW - 3600),
        ("90s", NOW - 90),
        ("5m", NOW - 300),
        ("2d", NOW - 172_800),
        ("0.5s", NOW - 0.5),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01t01:00:10.5+01:00", 10.5),
        ("1970-01-01 00:00:10z", 10.0),
        ("ab12:7", HistoryPosition("ab12", 7)),
    ],
)
def test_a_bound_is_a_time_a_duration_or_a_position(text: str, bound: float | HistoryPosition) -> None:
    """Each of the three ways to say from where on."""
    assert parse(since=text).since == bound


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "1",
            "1y",
            "-1h",
            "yesterday",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "a:b",
            "a:-1",
        ),
        *("\u0661h", "9999999999d9", "x:99999999999999999999", "1h ", "a b:1"),
    ],
)
def test_what_is_no_bound_is_named(text: str) -> None:
    """What could be taken for another moment than was meant is refused."""
    assert faults(since=text, until=text) == ["since", "until"]


def test_all_faults_are_named_at_once() -> None:
    """Whoever mends one doesn't learn of the next only then."""
    wrong = {"since": "x", "until": "y", "types": ["nope"], "filter": {"nope": ["a"]}, "limit": 0, "after": "z"}
    assert faults(**wrong, order="up") == sorted([*wrong, "order"])
    assert faults(limit=5001) == faults(limit=True) == faults(limit="7") == ["limit"]
    assert faults(types=[]) == ["types"]
    assert faults(filter={"zone": ["*.example.com"]}) == ["filter"]
    assert faults(since="1h", until="2h") == ["until"]
    assert faults(since="e:5", until="e:4") == faults(since="e:5", until="f:6") == ["until"]
    assert faults(types=["record_updated"] * 300) == ["types"]


def test_a_query_string_names_what_it_can_t_have() -> None:
    """Unknown and repeated parameters, and filters that are no JSON; and what else is wrong beside them."""
    for query, names in (
        ("form=1h", ["form"]),
        ("since=1h&since=2h", ["since"]),
        ("filter=zone", ["filter"]),
        ("filter={%22zone%22:%22a%22}&order=up", ["filter", "order"]),
        ("filter=" + "x" * 40_000, ["filter"]),
    ):
        with pytest.raises(InvalidHistoryQuery) as caught:
            read_query_string(query)
        assert sorted(caught.value.faults) == names
    fields = read_query_string("types=dns.*,%20security_alert&filter=%7B%22zone%22%3A%5B%22a%22%5D%7D&limit=7")
    assert fields == {"types": ["dns.*", "security_alert"], "filter": {"zone": ["a"]}, "limit": 7}


@given(st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True), st.integers(0, 2**53), st.none() | st.integers(0, 2**53))
def test_a_cursor_is_read_as_it_was_written(epoch: str, offset: int, end: int | None) -> None:
    """What a page has as `next` is what the next question goes on with."""
    cursor = HistoryCursor(epoch, offset, end)
    assert parse(after=str(cursor)).after == cursor


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-12-01T07:00:00+01:00", "2026-12-01T07:00:00+01:00"),  # as it is typed: a + in a URL is a blank
        ("2026-12-01T07:00:00.5%2B01:00", "2026-12-01T07:00:00.5+01:00"),
        ("2026-12-01+07:00:00+01:00", "2026-12-01 07:00:00+01:00"),
        ("2026-12-01+07:00:00Z", "2026-12-01 07:00:00Z"),
    ],
)
def test_a_plus_in_a_time_need_not_be_encoded(written: str, read: str) -> None:
    """Behind a time and before hh:mm a blank can be nothing else."""
    fields = read_query_string(f"since={written}&until={written}")
    assert fields == {"since": read, "until": read}
    parse_history({"since": fields["since"]}, CATALOG, now=0.0, max_limit=10)


@given(st.text(max_size=80) | st.text('since=until&typesfilter{}[]"%0123456789:hTZ,.', max_size=80))
def test_any_query_string_is_read_or_named(query: str) -> None:
    """Whatever stands in a query is a question, or has a name of what is wrong with it."""
    named = {"": ""}
    try:
        fields = read_query_string(query)
        parse_history(fields, CATALOG, now=NOW, max_limit=5000)
    except InvalidHistoryQuery as refused:
        named = refused.faults
    assert named


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.none() | st.text(max_size=30) for name in ("since", "until", "after", "order")},
            "types": st.lists(st.text(max_size=10), max_size=3),
            "filter": st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2), max_size=2),
            "limit": st.none() | st.integers(),
        },
    )
)
def test_any_message_is_read_or_named(fields: dict[str, Any]) -> None:
    """The same of what a socket says, whose fields have their types already."""
    named = {"": ""}
    try:
        parse_history(fields, CATALOG, now=NOW, max_limit=5000)
    except InvalidHistoryQuery as refused:
        named = refused.faults
    assert named
