"""Frames become events that the gateway takes; a damaged one costs itself alone."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bench.dnstap_frames import make_frame, make_query, make_response
from solowire.domains.dns.event_types import CATALOG
from solowire.gateway.publish.event_parser import EventParser
from solowire.model.events import Event
from solowire.sources.bind9.dnstap.dnstap_message import TappedMessage
from solowire.sources.bind9.dnstap.query_event import QueryEventMaker
from solowire.sources.bind9.dnstap.query_tap import QueryTap
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from tests.support.parsed_events import parse_events

AT = 1_700_000_000.25
QUERY = make_query("www.z.example", 28, edns=b"\0\x0a\0\x08abcdefgh")
ASKED = make_frame("CLIENT_QUERY", QUERY, at=AT)
ANSWERED = make_frame("CLIENT_RESPONSE", make_response(QUERY, 3), answered_at=AT + 0.004)


class Watcher:
    def __init__(self) -> None:
        self.seen: list[ObservedQuery] = []

    def observe_query(self, query: ObservedQuery) -> None:
        self.seen.append(query)


def make_tap(watcher: Watcher | None = None, upstream: list[TappedMessage] | None = None) -> QueryTap:
    events = QueryEventMaker("ns1", frozenset({"z.example"}), "run")
    return QueryTap(
        events,
        [watcher] if watcher else [],
        lambda message, now: upstream.append(message) if upstream is not None else None,
    )


def test_a_query_and_its_answer_are_one_event() -> None:
    watcher = Watcher()
    (event,) = make_tap(watcher).take_frames([ASKED, ANSWERED], 0.0, AT)
    assert msgspec.json.decode(event) == {
        "type": "dns_query_log",
        "id": "run-1",
        "timestamp": "2023-11-14T22:13:20.250Z",
        "source": "ns1",
        "data": {
            "server": "ns1",
            "client_ip": "192.0.2.1",
            "client_port": 5353,
            "query_domain": "www.z.example",
            "query_type": "AAAA",
            "query_class": "IN",
            "flags": "+E(0)K",
            "response_flags": "aa rd ra",
            "protocol": "UDP",
            "server_ip": "192.0.2.53",
            "zone": "z.example",
            "rcode": "NXDOMAIN",
            "duration_ms": 4.0,
            "size_bytes": len(make_response(QUERY, 3)),
        },
    }
    assert watcher.seen == [ObservedQuery(AT, "192.0.2.1", "www.z.example", "AAAA", "NXDOMAIN")]


def test_either_is_told_alone_when_the_other_does_not_come() -> None:
    tap = make_tap()
    assert tap.take_frames([make_frame("AUTH_QUERY", QUERY, client="2001:db8::1", at=AT)], 0.0, AT) == []
    (alone,) = tap.expire(60.0, AT)
    data = msgspec.json.decode(alone)["data"]
    assert (data["client_ip"], data["flags"], "rcode" in data) == ("2001:db8::1", "+E(0)K", False)
    tap.take_frames([ANSWERED], 0.0, AT)
    (alone,) = tap.end(AT)
    event = msgspec.json.decode(alone)
    assert (event["data"]["rcode"], "flags" in event["data"]) == ("NXDOMAIN", False)
    assert event["timestamp"] == "2023-11-14T22:13:20.254Z"
    assert (tap.counts.unanswered, tap.counts.unasked) == (1, 1)


def test_an_answer_with_the_query_s_time_tells_how_long_it_took_though_it_came_alone() -> None:
    tap = make_tap()
    tap.take_frames([make_frame("CLIENT_RESPONSE", make_response(QUERY), at=AT, answered_at=AT + 0.5)], 0.0, AT)
    event = msgspec.json.decode(tap.end(AT)[0])
    assert (event["timestamp"], event["data"]["duration_ms"]) == ("2023-11-14T22:13:20.250Z", 500.0)


def test_what_is_no_query_is_passed_over_and_what_is_damaged_counted() -> None:
    upstream: list[TappedMessage] = []
    tap = make_tap(upstream=upstream)
    notify_answer = bytearray(make_response(QUERY))
    notify_answer[2] |= 4 << 3
    frames = [
        make_frame("UPDATE_QUERY", QUERY),
        make_frame("AUTH_RESPONSE", bytes(notify_answer)),
        make_frame("CLIENT_QUERY", b"short"),
        make_frame("FORWARDER_RESPONSE", make_response(QUERY), at=AT, answered_at=AT + 0.02),
        b"\xff\xff no protobuf",
        ASKED[:-20],
    ]
    assert tap.take_frames(frames, 0.0, AT) == []
    assert (tap.counts.frames, tap.counts.skipped, tap.counts.damaged) == (6, 2, 3)
    assert [(m.is_response, m.is_forwarded) for m in upstream] == [(True, True)]
    assert len(tap.take_frames([ASKED, ANSWERED], 0.0, AT)) == 1


def check_events(events: list[bytes]) -> list[Event]:
    """As the gateway takes them, with all its checks."""
    parser = EventParser(CATALOG, lambda: "none is made")
    body = b"[" + b",".join(events) + b"]"
    return parse_events(parser, body, "application/json", datetime.now(UTC)) if events else []


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda kind, head, rest, client, port, at: make_frame(
                    kind, head + rest, client=client, port=port, at=at, answered_at=at
                ),
                st.sampled_from(["CLIENT_QUERY", "CLIENT_RESPONSE", "AUTH_QUERY", "AUTH_RESPONSE"]),
                st.sampled_from([QUERY, make_response(QUERY), QUERY[:12], b""]),
                st.binary(max_size=40),
                st.sampled_from(["192.0.2.1", "2001:db8::1"]),
                st.integers(0, 3),
                st.sampled_from([0.0, AT, 2.0**50]),
            ),
        ),
        max_size=20,
    )
)
def test_whatever_the_frames_the_gateway_takes_each_event(frames: list[bytes]) -> None:
    tap = make_tap()
    events = tap.take_frames(frames, 0.0, AT) + tap.end(AT)
    counts = tap.counts
    assert counts.frames == len(frames)
    assert counts.queries == len(events) == len(check_events(events))
    assert counts.damaged + counts.skipped + counts.queries <= len(frames)
