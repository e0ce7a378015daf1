"""From the body of a publish request to events: all of them, or every fault there is, and never anything else."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidEvent, InvalidEvents, RequestError, RequestRejected
from solowire.fanout.recent_log import Entry
from solowire.gateway.publish import event_parser as publishing
from solowire.gateway.publish.body_cutter import JSON_TYPES, LARGE_BYTES, MSGPACK_TYPES, NDJSON_TYPES
from solowire.gateway.publish.event_parser import MAX_FAULTS, EventParser
from solowire.model.catalog import EventType
from solowire.model.events import MAX_DEPTH, Delivery, Event, Priority
from solowire.protocol.messages import Codec
from solowire.protocol.problem_details import to_http_response
from tests.support.examples import examples
from tests.support.parsed_events import parse_events

NOW = datetime(2026, 5, 4, 12, 0, 0, 250_000, UTC)
JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
Field = st.sampled_from(
    [
        *("type", "data", "id", "priority", "key", "user", "timestamp", "source", "correlation_id", "traceparent"),
        *("zone", "colour"),
    ]
)
Type = st.sampled_from([*CATALOG.names, "custom.x", "custom.*", "nope", ""]) | st.text()


def parser(**limits: Any) -> EventParser:
    numbers = itertools.count(1)
    return EventParser(CATALOG, lambda: f"made-{next(numbers)}", **limits)


def parse(body: object, content_type: str = JSON, **limits: Any) -> list[Event]:
    if not isinstance(body, bytes):
        encode = msgspec.msgpack.encode if content_type in MSGPACK_TYPES else msgspec.json.encode
        body = encode(body)
    return parse_events(parser(**limits), body, content_type, NOW, "ann")


def faults(body: object, content_type: str = JSON, **limits: int) -> list[tuple[int, str, str]]:
    with pytest.raises(InvalidEvents) as caught:
        parse(body, content_type, **limits)
    return [(fault.index, fault.path, fault.code) for fault in caught.value.faults]


@contextmanager
def counted_faults() -> Iterator[list[int]]:
    """The indexes of the items for which a fault was made within."""
    made: list[int] = []

    class Counted(InvalidEvent):
        def __init__(self, index: int, *rest: str) -> None:
            made.append(index)
            super().__init__(index, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "InvalidEvent", Counted)
        yield made


# ------------------------------------------------------------------------------------------------------ what fits


def test_an_event_takes_what_it_lacks_from_its_type() -> None:
    """A publisher gives type and data; the rest comes from the catalogue, the clock and the gateway."""
    [event] = parse({"type": "forwarder_health", "data": {"forwarder_id": 7, "status": "healthy"}})
    assert event == Event(
        id="made-1",
        type="forwarder_health",
        data=b'{"forwarder_id":7,"status":"healthy"}',
        priority=Priority.normal,
        delivery=Delivery.state,
        timestamp="2026-05-04T12:00:00.250Z",
        key="7",
        attributes={"forwarder_id": "7", "status": "healthy"},
        taken=NOW.timestamp(),
        publisher="ann",
    )


def test_a_publisher_may_say_everything_else_itself() -> None:
    """Id, priority, key, user, source, correlation id and time are taken as given; the time in UTC."""
    whole = {
        "id": "i",
        "type": "custom.x",
        "data": {"zone": "Example.COM."},
        "priority": "critical",
        "key": "k",
        "user": "u",
        "source": "s",
        "correlation_id": "c",
        "timestamp": "2026-05-04T12:00:00+02:00",
    }
    [event] = parse(whole)
    assert event == Event(
        id="i",
        type="custom.x",
        data=b'{"zone":"Example.COM."}',
        priority=Priority.critical,
        delivery=Delivery.durable,
        timestamp="2026-05-04T10:00:00.000Z",
        key="k",
        user="u",
        attributes={"zone": "example.com"},
        source="s",
        correlation_id="c",
        taken=NOW.timestamp(),
        publisher="ann",
    )


def test_a_state_without_a_key_gets_one_from_its_fields() -> None:
    """The key of a state is made of the fields that the catalogue names; absent ones are left out."""
    states: list[tuple[str, dict[str, Any], str | None]] = [
        ("dns_query_stats", {"queries_per_second": 1, "server": "ns1", "zone": "z"}, "ns1/z"),
        ("dns_query_stats", {"queries_per_second": 1}, None),
        ("bulk_progress", {"operation_id": "o"}, "o"),
        ("record_created", {"zone": "z", "name": "n", "type": "A"}, None),
    ]
    assert [parse({"type": t, "data": data})[0].key for t, data, _ in states] == [key for _, _, key in states]


@pytest.mark.parametrize("content_type", [*JSON_TYPES, "Application/JSON; charset=utf-8", *MSGPACK_TYPES])
def test_one_object_or_an_array(content_type: str) -> None:
    """Both encodings take a single event and an array of them, under each of their names."""
    one = {"type": "custom.x", "data": {"n": 1}}
    encode = msgspec.msgpack.encode if content_type in MSGPACK_TYPES else msgspec.json.encode
    assert [e.data for e in parse(encode(one), content_type)] == [b'{"n":1}']
    assert [e.id for e in parse(encode([one, one]), content_type)] == ["made-1", "made-2"]


@pytest.mark.parametrize("content_type", NDJSON_TYPES)
def test_lines_may_be_empty_or_end_in_any_way(content_type: str) -> None:
    """NDJSON takes empty lines, both line ends, and a last line without one."""
    body = b'\n{"type":"custom.a","data":{}}\r\n\r\n  \n{"type":"custom.b","data":{}}'
    assert [e.type for e in parse(body, content_type)] == ["custom.a", "custom.b"]


# ----------------------------------------------------------------------------------------------- what doesn't fit


def test_all_faults_are_told_with_their_place() -> None:
    """A publisher learns of every bad event at once: index, path and code."""
    batch = [
        {"type": "custom.ok", "data": {}},
        {"type": "nope", "data": {}},
        {"type": "zone_created", "data": {"zone": 5}},
        {"type": "custom.ok"},
        {"type": "custom.ok", "data": {}, "user": ""},
        "text",
        {"type": "custom.*", "data": {}},
    ]
    expected = [
        (1, "$.type", "unknown_type"),
        (2, "$.data.zone", "invalid_event"),
        (3, "$", "invalid_event"),
        (4, "$.user", "invalid_event"),
        (5, "$", "invalid_event"),
        (6, "$.type", "unknown_type"),
    ]
    assert faults(batch) == expected
    assert faults(batch, MSGPACK) == expected
    assert faults(b"\n".join(map(msgspec.json.encode, batch)), NDJSON) == expected


def test_a_bad_line_is_named_by_its_place_among_the_events() -> None:
    """One line that is no JSON, or too deep, leaves the others readable; empty lines don't count."""
    good = b'{"type":"custom.x","data":{}}'
    body = b"\n".join((good, b"", b"{", good, b"[" * 100_000, good))
    assert faults(body, NDJSON) == [(1, "$", "invalid_body"), (3, "$", "invalid_body")]


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("content_type", [JSON, MSGPACK, NDJSON])
def test_nesting_ends_at_a_depth_that_is_named(kind: str, content_type: str) -> None:
    """Data of 64 levels is accepted, and 65 are refused with that number, however the event is written."""

    def nested(levels: int) -> dict[str, Any]:
        data: Any = 1
        for _ in range(levels - 1):
            data = [data, 2] if kind == "list" else {"a": data, "b": 2}
        return {"type": "custom.deep", "data": {"x": data}}

    encode = msgspec.msgpack.encode if content_type == MSGPACK else msgspec.json.encode
    assert len(parse(encode(nested(MAX_DEPTH)), content_type)) == 1
    for levels in (MAX_DEPTH + 1, 500):
        with pytest.raises(InvalidEvents, match=f"{MAX_DEPTH} levels") as caught:
            parse(encode(nested(levels)), content_type)
        assert caught.value.faults[0].path == "$.data"
    with pytest.raises(RequestError, match=f"{MAX_DEPTH} levels"):
        parse(b"\x91" * 100_000 if content_type == MSGPACK else b"[" * 100_000, content_type)


def test_the_list_of_faults_has_an_end() -> None:
    """A thousand bad events are answered with the first hundred faults."""
    assert len(faults([{"type": "nope", "data": {}}] * 1000)) == MAX_FAULTS


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-05-04",
        "2026-05-04T12:00:00",
        "12:00",
        "yesterday",
        "",
        "2026-13-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        12,
        {},
    ],
)
def test_times_must_be_unambiguous(timestamp: object) -> None:
    """A time without a zone, or one that is none in UTC, is refused rather than guessed."""
    [(index, path, _)] = faults({"type": "custom.x", "data": {}, "timestamp": timestamp})
    assert (index, path) == (0, "$.timestamp")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999Z"),
        ("2016-12-31T23:59:60.750Z", "2016-12-31T23:59:59.999Z"),
        ("2017-01-01T05:29:60.5+05:30", "2016-12-31T23:59:59.999Z"),
        ("2016-12-31T15:59:60-08:00", "2016-12-31T23:59:59.999Z"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", MSGPACK])
def test_a_leap_second_is_a_time(said: str, kept: str, content_type: str) -> None:
    """The 61st second of a day's last minute is kept as that minute's last millisecond, in any zone."""
    item = {"type": "custom.x", "data": {}, "timestamp": said}
    body = msgspec.msgpack.encode(item) if content_type == MSGPACK else msgspec.json.encode(item)
    [event] = parse(body, content_type)
    assert event.timestamp == kept


@pytest.mark.parametrize(
    "said",
    [
        "2016-12-31T12:00:60Z",
        "2016-12-31T23:59:60",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:59:60+05:30",
        "2016-02-30T23:59:60Z",
        "2016-12-31T23:60:60Z",
    ],
)
def test_a_second_too_many_is_no_time(said: str) -> None:
    """Where there are no leap seconds, 60 is refused as before."""
    [(index, path, _)] = faults({"type": "custom.x", "data": {}, "timestamp": said})
    assert (index, path) == (0, "$.timestamp")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), [float("-inf")], b"bytes", {1: "a"}, {None: 1}, NOW, msgspec.msgpack.Ext(5, b"")],
)
def test_messagepack_that_json_can_not_say_is_refused(value: object) -> None:
    """What would reach clients as something else (NaN as null, bytes as text) is refused where it comes in."""
    assert faults({"type": "custom.x", "data": {"a": {"b": value}}}, MSGPACK) == [(0, "$.data", "out_of_range")]
    [(_, path, _)] = faults({"type": "system_metrics", "data": {"cpu_usage": 1, "host": value}}, MSGPACK)
    assert path.startswith("$.data")


def test_integers_that_messagepack_can_not_say_are_refused() -> None:
    """JSON integers beyond 64 bits can't reach every client; the largest that can are taken."""
    for value in (2**64, -(2**63) - 1, 2**70, 10**4000):
        assert faults(b'{"type":"custom.x","data":{"a":[%s]}}' % str(value).encode())[0][1:] == (
            "$.data",
            "out_of_range",
        ), value
    for value in (2**64 - 1, -(2**63)):
        assert parse({"type": "custom.x", "data": {"a": value}})[0].data == b'{"a":%d}' % value


def test_sizes() -> None:
    """Too many events and too large an event are refused with what is allowed."""
    one = {"type": "custom.x", "data": {"x": "xxxx"}}
    assert len(parse([one] * 3, max_events=3, max_bytes=12)) == 3
    with pytest.raises(RequestRejected) as caught:
        parse([one] * 4, max_events=3)
    assert (caught.value.status, caught.value.code) == (413, "too_many_events")
    assert faults(one, max_bytes=11) == [(0, "$.data", "event_too_big")]


LONGEST = ".".join(["x" * 63] * 3 + ["x" * 61])
RECORD = {"zone": "a", "name": "a", "type": "A"}


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("name", [LONGEST, LONGEST + ".", ".".join("a" * 127), r"\046" * 253])
def test_the_longest_names_that_dns_allows_are_taken(name: str, content_type: str) -> None:
    """In each attribute that is a name, of a typed event and of a custom one."""
    for item in (
        {"type": "custom.x", "data": {"zone": name}},
        {"type": "record_created", "data": {**RECORD, "zone": name, "name": name}},
        {"type": "dns_query_log", "data": {"client_ip": "::1", "query_domain": name, "query_type": "A", "zone": name}},
    ):
        [event] = parse(item, content_type)
        assert name.removesuffix(".") in event.attributes.values()


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("name", [LONGEST + "x", ".".join("a" * 128), "." * 200])
@pytest.mark.parametrize("event_type", [t for t in CATALOG.types if t.hierarchical], ids=lambda t: t.name)
def test_names_that_dns_does_not_allow_are_refused_by_their_path(
    event_type: EventType, name: str, content_type: str
) -> None:
    """Each attribute that is a name, of every type that has one."""
    type_name = event_type.name.replace("*", "x")
    for attribute in event_type.attributes:
        for field in attribute.fields if attribute.hierarchical else ():
            data = {**required(event_type), field: name}
            assert faults({"type": type_name, "data": data}, content_type) == [(0, f"$.data.{field}", "invalid_event")]


@pytest.mark.parametrize("event_type", [t for t in CATALOG.types if t.attributes], ids=lambda t: t.name)
def test_values_that_filters_look_at_are_bounded(event_type: EventType) -> None:
    """No attribute has more than 1,024 characters: what is longer is refused by its path."""
    for attribute in event_type.attributes:
        for field in attribute.fields:
            data = {**required(event_type), field: "x" * 1025}
            [(_, path, _)] = faults({"type": event_type.name.replace("*", "x"), "data": data})
            assert path == f"$.data.{field}"


def test_names_in_a_list_are_no_attribute() -> None:
    """A list of zones is data that nobody filters by, whatever is in it."""
    [event] = parse({"type": "custom.x", "data": {"zone": ["a.b", ".".join("a" * 5000)], "topic": {"zone": "x"}}})
    assert event.attributes == {}


def required(event_type: EventType) -> dict[str, Any]:
    """The least data that an event of the type may have."""
    if event_type.payload.struct is None:
        return {}
    values = {str: "a", int: 1, float: 1.0, bool: True}
    data = {}
    for field in msgspec.structs.fields(event_type.payload.struct):
        if field.required:
            for value in (*values.values(), "info", "running", []):
                with suppress(msgspec.ValidationError):
                    msgspec.convert(value, field.type)
                    data[field.name] = value
                    break
    return data


@pytest.mark.parametrize("body", [b"[]", b"\n", b"\x90"])
def test_a_request_without_events(body: bytes) -> None:
    """An empty request is a mistake, and said to be one."""
    kind = MSGPACK if body == b"\x90" else NDJSON if body == b"\n" else JSON
    with pytest.raises(RequestError) as caught:
        parse(body, kind)
    assert caught.value.code == "empty_request"


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "json", "multipart/form-data; boundary=x"])
def test_other_media_types(content_type: str) -> None:
    """Other content types are refused with those that are understood."""
    with pytest.raises(RequestRejected) as caught:
        parse(b"{}", content_type)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")
    assert "application/x-ndjson" in caught.value.hint


# ------------------------------------------------------------------------------------------------------- anything


def check(events: list[Event]) -> None:
    """What the gateway lets through: nothing behind it has to refuse any of it."""
    for event in events:
        data = json.loads(event.data)
        assert isinstance(data, dict)
        event_type = CATALOG[event.type]
        CATALOG.validate_data(event_type, data)
        assert event.delivery is event_type.delivery
        assert datetime.fromisoformat(event.timestamp).utcoffset() is not None
        assert event.timestamp.endswith("Z")
        entry = Entry(1, event, event_type)
        for codec in Codec:
            for hidden in (frozenset[str](), frozenset(event_type.sensitive)):
                fragment = entry.get_fragment(codec, hidden)
                if fragment is None:
                    assert hidden
                    continue
                received = (msgspec.json if codec.is_json else msgspec.msgpack).decode(fragment)
                assert received["data"].items() <= data.items()
                if not hidden:
                    assert received["data"] == data


def survives(body: bytes, content_type: str) -> None:
    error: RequestError
    try:
        events = parse(body, content_type)
    except RequestError as raised:
        error = raised
    else:
        assert events
        check(events)
        return
    if isinstance(error, InvalidEvents):
        assert error.faults
        assert all(f.index >= 0 and f.path.startswith("$") and f.message for f in error.faults)
    else:
        assert error.code in ("invalid_body", "empty_request", "too_many_events")


@given(st.binary(max_size=200), st.sampled_from([JSON, NDJSON, MSGPACK]))
@example(b"\x81\x80\xc0", MSGPACK)
@example(b"\x81\x90\xc0", MSGPACK)
@example(b"\x91" * 100_000, MSGPACK)
@example(b"\x81\xa1x" * 5_000, MSGPACK)
@example(b"[" * 100_000, JSON)
@example(b'{"a":' * 100_000, NDJSON)
@example(b'{"type":"custom.x","data":{"a":' + b"9" * 5_000 + b"}}", JSON)
@example(b'{"type":"custom.x","data":{"a":1e999}}', JSON)
@example(b'{"type":"custom.x","data":{"a":"\\ud800"}}', JSON)
@example(b'\xef\xbb\xbf{"type":"custom.x","data":{}}', JSON)
@settings(max_examples=examples(300))
def test_any_bytes_are_events_or_a_documented_error(body: bytes, content_type: str) -> None:
    """No bytes whatever bring the gateway down: they are events, or a fault that is told."""
    survives(body, content_type)


@given(
    st.lists(
        st.dictionaries(Field, Json, max_size=6).flatmap(
            lambda d: st.fixed_dictionaries({"type": Type, "data": st.dictionaries(Field, Json, max_size=4)}).map(
                lambda required: d | required
            )
        )
        | Json,
        max_size=4,
    ),
    st.sampled_from([JSON, NDJSON, MSGPACK]),
)
@settings(max_examples=examples(300))
def test_anything_that_looks_like_events_is_events_or_a_documented_error(items: list[Any], content_type: str) -> None:
    """Whatever a publisher puts into the fields, what is accepted fits, and reaches clients as it was published."""
    try:
        if content_type == NDJSON:
            body = b"\n".join(map(msgspec.json.encode, items))
        else:
            body = (msgspec.msgpack.encode if content_type == MSGPACK else msgspec.json.encode)(items)
    except OverflowError:
        return  # an integer that the encoding doesn't have
    survives(body, content_type)


@given(Json, st.sampled_from([JSON, MSGPACK]), st.booleans())
@settings(max_examples=examples(200))
def test_whatever_stands_in_the_place_of_a_trace_context_is_ignored(
    value: object, content_type: str, is_traced: bool
) -> None:
    """It fails no request, and nothing of it is kept."""
    try:
        body = (msgspec.msgpack.encode if content_type == MSGPACK else msgspec.json.encode)(
            {"type": "custom.x", "data": {}, "traceparent": value}
        )
    except OverflowError:
        return
    [event] = parse(body, content_type, is_traced=is_traced)
    assert event.traceparent is None


def test_a_trace_context_is_kept_where_traces_are_recorded() -> None:
    """In the one form of version 00; elsewhere it is nothing."""
    sent = f"cc-{'1' * 32}-{'2' * 16}-03-later"
    body = {"type": "custom.x", "data": {}, "traceparent": sent}
    assert [event.traceparent for event in parse(body, is_traced=True)] == [f"00-{'1' * 32}-{'2' * 16}-01"]
    assert [event.traceparent for event in parse(body)] == [None]


@given(st.data())
@settings(max_examples=examples(100))
def test_a_valid_request_that_is_cut_anywhere_is_a_documented_error(data: st.DataObject) -> None:
    """A request that was cut off on its way is refused as a whole, never read in part, except at the end of a line."""
    batch = [{"type": "zone_created", "data": {"zone": "example.com", "serial": 7}}] * 2
    kind = data.draw(st.sampled_from([JSON, MSGPACK]))
    body = (msgspec.json.encode if kind == JSON else msgspec.msgpack.encode)(batch)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(RequestError):
        parse(body[:cut], kind)


@pytest.mark.parametrize("depth", [*range(1, 100, 20), *range(100, 1200, 40)])
def test_any_depth_is_refused_or_can_be_sent_on(depth: int) -> None:
    """Nested data is refused above its bound; below it, both encodings and every redaction can carry it."""
    body = b'{"type":"custom.x","data":{"x":' + b"[" * depth + b"]" * depth + b"}}"
    try:
        [event] = parse(body)
    except RequestError:
        refused = True
    else:
        refused = False
    assert refused == (depth >= MAX_DEPTH)
    if refused:
        return
    entry = Entry(1, event, CATALOG[event.type])
    for codec in Codec:
        assert entry.get_fragment(codec, frozenset())
        assert entry.get_fragment(codec, frozenset({"client_ip"}))


# --------------------------------------------------------------------------------------------------- what it costs

MANY = 200_000


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"x\n" * MANY, NDJSON),
        (b"1\n" * MANY, NDJSON),
        (b"[" + b",".join([b"{}"] * MANY) + b"]", JSON),
        (b"\xdd" + MANY.to_bytes(4, "big") + b"\x80" * MANY, MSGPACK),
    ],
)
def test_a_body_of_very_many_items_is_refused_without_a_look_at_each(body: bytes, content_type: str) -> None:
    """It took a gateway 3.7 s and 1.2 GB to find the faults of 2 million lines before it counted them."""
    with pytest.raises(RequestRejected) as caught, counted_faults() as made:
        parse(body, content_type)
    assert (caught.value.status, caught.value.code, made) == (413, "too_many_events", [])


@pytest.mark.parametrize("content_type", [JSON, NDJSON, MSGPACK])
@pytest.mark.parametrize("in_array", [True, False])
def test_an_item_that_is_larger_than_any_event_is_not_decoded(content_type: str, in_array: bool) -> None:
    """One event of 4 MB of empty maps took 1.8 s and 400 MB before it was found to be too big."""
    event = {"type": "custom.x", "data": {"a": [{}] * MANY}}
    encode = msgspec.msgpack.encode if content_type == MSGPACK else msgspec.json.encode
    body = encode([event] if in_array and content_type != NDJSON else event)
    assert faults(body, content_type) == [(0, "$", "event_too_big")]


def test_no_more_lines_are_looked_at_than_faults_are_told() -> None:
    with pytest.raises(InvalidEvents), counted_faults() as made:
        parse(b"x\n" * 5000, NDJSON)
    assert len(made) == MAX_FAULTS


def test_each_item_is_a_step_of_its_own() -> None:
    """So that a gateway can do something else between two of them."""
    body = msgspec.json.encode([{"type": "custom.x", "data": {}}, 1, {"type": "custom.y", "data": {}}])
    steps = parser().iter_events(body, JSON, NOW)
    assert [event and event.type for event in itertools.islice(steps, 3)] == ["custom.x", None, "custom.y"]
    with pytest.raises(InvalidEvents):
        next(steps)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "record_updatd", "data": {}}, "did you mean 'record_updated'?"),
        ({"type": "Custom", "data": {}}, "begin with custom."),
        ({"type": "custom.Deploy", "data": {}}, "lower-case letters"),
        ({"type": "custom.x", "data": {}, "prioritty": "low"}, "did you mean 'priority'?"),
        ({"type": "custom.x", "data": {}, "colour": "red"}, "an event has type, data"),
        ({"type": "custom.x", "data": {}, "priority": "urgent"}, "one of critical, high, normal, low"),
        ({"type": "security_alert", "data": {"severity": "hihg"}}, "one of critical, error, high"),
        ({"type": "custom.x", "data": {}, "timestamp": "yesterday"}, "such as 2030-12-31T12:00:00Z"),
        ({"type": "custom.x", "data": {}, "y" * 5000: 1}, "an event has"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_names_the_way_out(event: dict[str, Any], words: str) -> None:
    """What was meant, or all that there is: in the hint of the event, and in that of the answer, which stay short."""
    with pytest.raises(InvalidEvents) as caught:
        parse(event)
    assert words in caught.value.faults[0].hint
    _, _, body = to_http_response(caught.value)
    assert words in msgspec.json.decode(body)["hint"]
    assert len(body) < 2500


@pytest.mark.parametrize("item", [b"1", b"{}", b'""', b"[]", b"null"])
def test_a_body_of_too_many_items_is_not_cut_into_all_of_them(item: bytes) -> None:
    """It is refused at the first item too many: 4 MB of them would take a tenth of a second, and 60 MB of memory."""
    body = b"[" + b",".join([item] * (2**22 // (len(item) + 1) - 1)) + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(RequestRejected) as refused:
            parse(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code == "too_many_events"
    assert most < len(body) / 2


@pytest.mark.parametrize("count", [10, 4999, 5000])
def test_large_bodies_are_cut_as_small_ones(count: int) -> None:
    """Whatever their number, up to the most that may be, and in their order."""
    text = "x" * (LARGE_BYTES // count)
    items = [{"type": "custom.x", "id": f"{n}", "data": {"n": n, "text": text}} for n in range(count)]
    raw = msgspec.json.encode(items)
    assert len(raw) > LARGE_BYTES
    assert [event.id for event in parse(b" " + raw)] == [item["id"] for item in items]
