"""Which events are for whom: told by a shard on sockets in memory."""

from __future__ import annotations

import msgspec
import pytest

from solowire.backplane.messages import LogBatch
from solowire.model.events import Event, encode_event
from solowire.protocol.messages import Codec
from tests.support.shard_harness import QUERY, ShardHarness


@pytest.mark.parametrize("codec", Codec)
def test_frames_are_redacted(codec: Codec) -> None:
    """A viewer and an operator get the same query, the viewer without the client's address."""
    b = ShardHarness()
    viewer = b.connect("alice", "viewer", codec, subscriptions=["dns_query_log"])
    operator = b.connect("olga", "operator", codec, subscriptions=["dns_query_log"])
    b.publish("dns_query_log", {**QUERY, "undeclared": "secret"})
    assert [e.data for e in b.read_events(operator)] == [{**QUERY, "undeclared": "secret"}]
    assert [e.data for e in b.read_events(viewer)] == [{k: v for k, v in QUERY.items() if k != "client_ip"}]
    assert b"10.0.0.1" not in b"".join(f.encode() if isinstance(f, str) else f for f in b.sockets.sent[viewer])


def test_scopes_hold() -> None:
    """A user whose token names a zone gets events of it and of what is beneath it, and of no other."""
    b = ShardHarness()
    connection = b.connect(scopes={"zones": ("example.com",)}, subscriptions=["dns.*"])
    for zone in ("example.com", "sub.example.com", "notexample.com", "example.org", "com"):
        b.publish("zone_created", {"zone": zone})
    b.wait(1)
    assert [e.data["zone"] for e in b.read_events(connection)] == ["example.com", "sub.example.com"]


def test_a_personal_event_reaches_its_user_only() -> None:
    """An event for one user reaches that user, in order with the others, and nobody else."""
    b = ShardHarness()
    alice, bob = (b.connect(u, subscriptions=["custom.*"]) for u in ("alice", "bob"))
    b.publish("custom.a")
    b.publish("custom.b", user="alice")
    b.publish("custom.a")
    b.publish("custom.b", user="carol")
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [1, 2, 3]
    assert [e.offset for e in b.read_events(bob)] == [1, 3]
    b.publish("custom.a")
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [e.offset for e in b.read_events(bob)] == [5]
    assert b.sockets.sent[alice][-1] is b.sockets.sent[bob][-1]


def test_a_personal_event_must_be_wanted_and_allowed() -> None:
    """An event for a user who has not subscribed to its type, or may not see it, is not sent."""
    b = ShardHarness()
    alice = b.connect(subscriptions=["custom.a", "gateway_stats"])
    b.publish("custom.b", user="alice")
    b.publish("gateway_stats", {"connections": 1}, user="alice")
    b.wait(1)
    assert b.read_messages(alice) == []


def test_a_bad_event_in_a_batch_is_counted() -> None:
    """Bytes that are no event, and a type that is not known here, are counted, and the rest of the batch comes."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    first = b.make_event("custom.a")
    b.offset += 2
    unknown = msgspec.structs.replace(msgspec.msgpack.decode(first[1], type=Event), type="newer")
    last = b.make_event("custom.a")
    b.shard.on_batch(LogBatch(b.epoch, 0, 4, [first, (2, b"\xc1"), (3, encode_event(unknown)), last]), b.now)
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [1, 4]
    assert b.shard.log.skipped.totals == {"event_decode_failed": 1, "event_unknown_type": 1}
