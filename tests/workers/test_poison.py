"""Whatever stands in the log, a shard goes on: nobody misses what comes behind it, and it is counted and named once."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from solowire.backplane.messages import LogBatch, StateSnapshot
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.catch_up import CatchUp
from solowire.fanout.recent_log import RecentLog
from solowire.fanout.skipped_events import LINES_A_SECOND, SkippedEvents
from solowire.protocol import messages as c
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection
from tests.support.examples import examples
from tests.support.poison import MANY_LABELS, ODD, POISON
from tests.support.shard_harness import QUERY, ShardHarness

READERS: list[dict[str, Any]] = [
    {"user": "ann", "role": "admin", "subscriptions": ["*"]},
    {"user": "bob", "role": "admin", "subscriptions": ["*"], "codec": Codec.msgpack},
    {"user": "cat", "role": "viewer", "subscriptions": ["*"]},
    {"user": "dan", "role": "viewer", "subscriptions": ["*"], "codec": Codec.msgpack_deflate},
    {"user": "eve", "role": "admin", "subscriptions": ["*"], "filter": {"zone": ["a", "example.com"]}},
    {"user": "fay", "role": "viewer", "subscriptions": ["custom.*"], "scopes": {"zones": ("a",)}},
]


def deliver(b: ShardHarness, body: bytes, user: str | None = None) -> int:
    """Puts bytes into the router's log and gives them to the shard."""
    b.offset += 1
    b.journal.append((b.offset, user, body))
    b.deliver((b.offset, body))
    return b.offset


def marks(b: ShardHarness, connection: Connection) -> list[int]:
    """The offsets of good events that have come to it: each of its frames can be read."""
    return [e.offset for e in b.read_events(connection) if e.id.startswith("event-")]


def readers(b: ShardHarness) -> list[Connection]:
    return [b.connect(**dict(reader)) for reader in READERS]


def good(b: ShardHarness) -> int:
    return b.publish("custom.good", {"zone": "b.a"})


@pytest.mark.parametrize("name", POISON)
def test_poison_is_passed_over_counted_and_named_once(name: str) -> None:
    """No reader gets it, all get what comes behind it, live and coming back; one line says which it was and why."""
    with capture_logs() as logs:
        b = ShardHarness()
        first = good(b)
        everybody = readers(b)
        poison = deliver(b, POISON[name])
        last = good(b)
        b.wait(2)
        assert [marks(b, connection) for connection in everybody] == [[last]] * len(everybody)
        back = b.connect("gil", "admin", subscriptions=["*"], resume=c.Resume(b.epoch, 0))
        b.wait(2)
        assert marks(b, back) == [first, last]
    assert sum(b.shard.log.skipped.totals.values()) == 1
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert line["offset"] == poison
    assert "it is passed over" in line["hint"]
    assert line["reason"]
    assert len(str(line)) < 700


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_keeps_nothing_from_anybody(name: str) -> None:
    """Whether or not it is sent, every frame can be read by its client, and what comes behind it arrives."""
    b = ShardHarness(shard__conflation__interval_s=5.0, shard__aggregation__events_per_s=1.0)
    everybody = readers(b)
    deliver(b, ODD[name])
    deliver(b, ODD[name])
    last = good(b)
    b.wait(10)
    for connection in everybody:
        assert marks(b, connection) == [last]


@pytest.mark.parametrize("name", POISON)
def test_poison_of_one_user_alone(name: str) -> None:
    """Nor is it given to the user whose own it is, or does it keep that user from the rest."""
    b = ShardHarness()
    ann = b.connect("ann", "admin", subscriptions=["*"])
    deliver(b, POISON[name], user="ann")
    own = b.publish("custom.good", user="ann")
    b.wait(1)
    assert marks(b, ann) == [own]


def test_a_log_begins_with_poisonous_states() -> None:
    """What can't be loaded of the present states is passed over, and the others are there."""
    b = ShardHarness()
    states = [(n, body) for n, body in enumerate([*POISON.values(), *ODD.values()], 1)]
    _, state = b.make_event("system_metrics", {"cpu_usage": 1, "host": "ns1"})
    b.offset = 1000
    b.shard.on_snapshot(StateSnapshot("epoch-2", 1000, [*states, (900, state)]), b.now)
    b.epoch = "epoch-2"
    b.change_ring(0)
    ann = b.connect("ann", "admin", subscriptions=["system_metrics"])
    b.wait(1)
    assert 900 in [e.offset for e in b.read_events(ann)]
    assert b.shard.log.skipped.totals["event_decode_failed"] > 10


def test_a_replay_passes_over_poison() -> None:
    """Who comes back from before the recent log gets all that is sound of what the router still has."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=10, max_bytes=10**6))
    wanted = []
    for poison in POISON.values():
        wanted.append(good(b))
        deliver(b, poison)
    wanted += [good(b) for _ in range(12)]
    back = b.open_connection("ann", "admin")
    b.say(back, c.Hello(subscriptions=["custom.*"], resume=c.Resume(b.epoch, 0)))
    assert b.answer_requests() > 1
    b.wait(1)
    assert marks(b, back) == wanted


def test_a_flood_of_poison_writes_few_lines() -> None:
    """Thousands of bad events are all counted; each second few of them are named, and the number of the others."""
    with capture_logs() as logs:
        b = ShardHarness()
        for _ in range(1000):
            deliver(b, b"junk")
        b.shard.log.skipped.next_second()
    assert b.shard.log.skipped.totals == {"event_decode_failed": 1000}
    assert len(logs) == LINES_A_SECOND + 1
    assert (logs[-1]["more"], logs[-1]["last_offset"]) == (1000 - LINES_A_SECOND, 1000)


def test_what_is_met_again_is_named_once() -> None:
    """Replays come across the same event for each client: it is one event, and one line."""
    with capture_logs() as logs:
        skipped = SkippedEvents()
        for _ in range(5):
            skipped.skip("event_processing_failed", 7, "custom.a", ValueError("bad"))
    assert skipped.totals == {"event_processing_failed": 1}
    assert [(line["event"], line["offset"], line["type"], line["reason"]) for line in logs] == [
        ("event_processing_failed", 7, "custom.a", "ValueError: bad")
    ]


def test_names_of_many_labels_cost_the_shard_little() -> None:
    """What killed a shard, 16 events with 14,000 labels each in one message, is nothing it would have to hold."""
    b = ShardHarness()
    ann = b.connect("ann", "admin", subscriptions=["*"])
    body = POISON["a zone of 14,000 labels"]
    assert len(body) > 2 * 14_000
    b.shard.on_batch(LogBatch(b.epoch, 0, 16, [(n, body) for n in range(1, 17)]), b.now)
    b.offset = 16
    assert (b.shard.log.position, b.shard.log.held_bytes) == (16, 0)
    assert marks(b, ann) == []
    assert MANY_LABELS not in repr(b.shard.log.skipped.__dict__)


def test_an_error_while_one_event_is_matched_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with one event, which nobody has foreseen, those behind it arrive, and it is named."""
    b = ShardHarness()
    ann = b.connect("ann", "admin", subscriptions=["*"])
    matching = b.shard.feeds.matching

    def fails(entry: Any) -> Any:
        if entry.offset == 2:
            raise MemoryError
        return matching(entry)

    monkeypatch.setattr(b.shard.feeds, "matching", fails)
    assert [good(b) for _ in range(3)] == [1, 2, 3]
    b.wait(1)
    assert marks(b, ann) == [1, 3]
    assert b.shard.log.skipped.totals == {"event_processing_failed": 1}


@pytest.mark.parametrize("error", [MemoryError, RecursionError, ValueError])
def test_what_can_not_be_sent_is_passed_over_by_its_readers_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A frame that can't be made ends the connections of its feed, who begin anew; others and the shard go on."""
    b = ShardHarness()
    ann, bob = b.connect("ann", "admin", subscriptions=["*"]), b.connect("bob", "viewer", subscriptions=["custom.*"])
    events = Codec.encode_events

    def fails(codec: Codec, cursor: int, fragments: Any, *more: Any) -> Any:
        if any(b"broken" in fragment for fragment in fragments):
            raise error
        return events(codec, cursor, fragments, *more)

    monkeypatch.setattr(Codec, "encode_events", fails)
    before = b.offset
    b.publish("zone_created", {"zone": "broken"})
    shown = good(b)
    b.wait(1)
    assert (b.close_code(ann), b.close_code(bob)) == (4413, None)
    assert marks(b, bob) == [shown]
    again = b.open_connection("ann", "admin")
    b.say(again, c.Hello(subscriptions=["*"], resume=c.Resume(b.epoch, before)))
    welcome = b.read_messages(again)[0]
    assert (welcome.resumed, welcome.reason) == (False, "retention")
    assert good(b) == b.offset
    b.wait(1)
    assert marks(b, again) == [b.offset]


def test_one_reader_s_catching_up_fails_and_the_shard_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the log is read for one who is behind ends that one, and is not met again and again."""
    b = ShardHarness()
    ann, bob = b.connect("ann", "admin", subscriptions=["*"]), b.connect("bob", "viewer", subscriptions=["custom.*"])
    b.sockets.stuck.add(ann)
    good(b)
    b.wait(1)
    good(b)
    b.wait(1)

    def fails(*_: Any, **__: Any) -> Any:
        raise RecursionError

    monkeypatch.setattr(CatchUp, "_scan", fails)
    b.sockets.unstick(ann)
    b.wait(1)
    assert (b.close_code(ann), b.close_code(bob)) == (4413, None)
    assert marks(b, bob) == [1, 2]
    assert b.shard.next_due() > b.now


bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([*POISON.values(), *ODD.values()]),
    st.builds(
        lambda body, at, bit: body[:at] + bytes([body[at] ^ (1 << bit)]) + body[at + 1 :],
        st.just(
            msgspec.msgpack.encode(["id", "custom.a", b'{"a": "b", "n": 1}', "normal", "durable", "t", None, None])
        ),
        st.integers(0, 40),
        st.integers(0, 7),
    ),
)


@given(st.lists(bodies, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=examples(60), deadline=None)
def test_whatever_stands_in_the_log_what_is_sound_arrives(found: list[bytes], chance: random.Random) -> None:
    """Any bytes between sound events: readers of every kind get all sound ones, in order, and can read each frame."""
    b = ShardHarness(shard__conflation__interval_s=5.0, shard__aggregation__events_per_s=2.0)
    everybody = readers(b)
    sent = []
    for body in found:
        deliver(b, body)
        if chance.random() < 0.5:
            sent.append(good(b))
        if chance.random() < 0.3:
            b.publish("dns_query_log", QUERY)
    sent.append(good(b))
    b.wait(20)
    for connection in everybody:
        got = [e.offset for e in b.read_events(connection) if e.type == "custom.good"]
        assert got == sent
        assert b.close_code(connection) is None
