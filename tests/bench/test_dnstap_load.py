"""The benchmark's name server tells what a real one would, at the times that it says."""

from __future__ import annotations

import msgspec

from bench.dnstap_frames import CONTENT_TYPE, READY, START, make_control
from bench.dnstap_load import PreparedPairs, make_pairs
from solowire.sources.bind9.dnstap.frame_stream import FrameStream
from solowire.sources.bind9.dnstap.query_event import QueryEventMaker
from solowire.sources.bind9.dnstap.query_tap import QueryTap


def test_each_pair_is_one_answered_query_of_its_moment() -> None:
    prepared = PreparedPairs(make_pairs(50))
    stream, tap = FrameStream(), QueryTap(QueryEventMaker("ns1", frozenset(), "run"))
    stream.feed(make_control(READY, CONTENT_TYPE) + make_control(START, CONTENT_TYPE))
    for first, at, stamp in (
        (0, 1_796_000_000.25, "2026-11-30T00:53:20.250Z"),
        (120, 1_796_000_001.0, "2026-11-30T00:53:21.000Z"),
    ):
        frames = stream.feed(prepared.make(first, 120, at)).frames
        events = [msgspec.json.decode(event) for event in tap.take_frames(frames, 0.0, 0.0)]
        assert len(events) == 120
        assert {event["timestamp"] for event in events} == {stamp}
        assert {event["data"]["duration_ms"] for event in events} == {0.0}
        assert all(event["data"]["rcode"] in ("NOERROR", "NXDOMAIN") for event in events)
    assert (tap.counts.damaged, tap.counts.unanswered, tap.counts.unasked) == (0, 0, 0)
