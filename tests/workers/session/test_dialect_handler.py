"""Old clients at a shard: how they begin, what they get, how they live beside others, and how they are ended.

The page says nothing by itself and comes back by what it was closed with, so that is what is looked at here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog

from solowire.auth.leniency import Leniency
from solowire.errors import InvalidToken, RequestRejected
from solowire.model.access import Identity
from solowire.protocol.messages import Codec, Hello, Welcome
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.history.dialect_pages import PAGE_BYTES
from tests.domains.dns.legacy.page import read_frame
from tests.support.shard_harness import DIALECT, OLD_PATH, QUERY, TOKENS, WALL, ShardHarness, find_user

RECORD = {"zone": "example.com", "name": "www.example.com", "type": "A", "value": "192.0.2.7"}


def old_shard(**limits: Any) -> ShardHarness:
    return ShardHarness(**{"shard__flush__per_connection_ms": 0.0, **limits})


def read(b: ShardHarness, connection: Connection) -> list[dict[str, Any]]:
    """What has come, as the page reads it."""
    return [read_frame(json.dumps(frame)) for frame in b.read_frames(connection)]


def say(b: ShardHarness, connection: Connection, **message: Any) -> list[dict[str, Any]]:
    b.send_raw(connection, json.dumps(message))
    return read(b, connection)


def ask_recent(b: ShardHarness, connection: Connection, limit: int) -> list[dict[str, Any]]:
    frames = say(b, connection, type="get_recent_events", data={"limit": limit})
    b.answer_history(100)
    return frames + read(b, connection)


def test_it_begins_by_itself_with_the_present_states() -> None:
    """The first frame says what is subscribed; then what is known comes, and then what happens."""
    b = old_shard()
    b.publish("forwarder_health", {"forwarder_id": 1, "status": "healthy"}, key="1")
    page = b.connect_old()
    b.publish("record_created", RECORD)
    b.wait(1)
    frames = read(b, page)
    assert [f["type"] for f in frames] == ["connection_established", "health_update", "record_created"]
    assert frames[2]["data"]["zone_name"] == "example.com"


def test_each_event_is_a_frame_of_its_own() -> None:
    """A flush of many events is as many WebSocket messages."""
    b = old_shard(shard__flush__per_connection_ms=1000.0)
    page = b.connect_old()
    read(b, page)
    b.deliver(*(b.make_event("record_created", {**RECORD, "value": str(n)}) for n in range(5)))
    b.wait(1)
    assert [f["data"]["value"] for f in read(b, page)] == ["0", "1", "2", "3", "4"]


def test_silence_is_health() -> None:
    """For hours the page says nothing, is sent no ping, and stays."""
    b = old_shard(session__heartbeat_interval_s=25.0)
    page = b.connect_old()
    read(b, page)
    for _ in range(20):
        b.wait(600)
    assert read(b, page) == []
    assert b.close_code(page) is None


def test_the_user_s_view_decides() -> None:
    """Fields that are hidden from the user are not in its frames, and other zones' events are not sent."""
    b = old_shard()
    page = b.connect_old(zone=("example.com",))
    b.publish("record_created", RECORD)
    b.publish("record_created", {**RECORD, "zone": "example.org"})
    b.publish("dns_query_log", QUERY)
    b.publish("user_login", {"user": "ann"})
    b.wait(2)
    _, record, row = read(b, page)
    assert record["data"]["zone_name"] == "example.com"
    assert (row["data"]["type"], row["data"]["client_ip"]) == ("query_update", "")


def test_an_event_for_one_user_reaches_all_of_its_sockets() -> None:
    """Old ones and the unified one, and nobody else's."""
    b = old_shard()
    first, second, other = b.connect_old("alice"), b.connect_old("alice"), b.connect_old("bob")
    new = b.connect("alice", subscriptions=["dns.*"])
    for page in (first, second, other):
        read(b, page)
    b.publish("record_created", RECORD, user="alice")
    b.wait(1)
    assert [len(read(b, page)) for page in (first, second, other)] == [1, 1, 0]
    assert len(b.read_events(new)) == 1


def test_those_who_see_the_same_share_a_feed() -> None:
    """Whatever the number of pages: one translation of each event."""
    b = old_shard()
    pages = [b.connect_old(f"user-{n}") for n in range(3)]
    assert len({id(page.feed) for page in pages}) == 1
    assert b.connect_old("narrow", zone=("example.com",)).feed is not pages[0].feed


# ------------------------------------------------------------------------------------ beside the user's others


def test_two_tabs_never_fight() -> None:
    """Neither an old nor a new connection of the user ends an old one, and no old one ends a new one."""
    b = old_shard()
    new = b.connect("alice")
    first, second = b.connect_old("alice"), b.connect_old("alice")
    newer = b.connect("alice")
    assert [b.close_code(c) for c in (first, second, new, newer)] == [None, None, 4409, None]


def test_the_newest_beyond_the_limit_is_refused() -> None:
    """Before anything is accepted, so that the page waits; those that are here stay."""
    b = old_shard(legacy_connections_per_user=2)
    pages = [b.connect_old("alice"), b.connect_old("alice")]
    with pytest.raises(RequestRejected) as refused:
        b.connect_old("alice")
    assert (refused.value.status, refused.value.code) == (429, "too_many_connections")
    assert [b.close_code(page) for page in pages] == [None, None]
    b.shard.on_closed(pages[0])
    b.connect_old("alice")
    b.connect_old("bob")


def test_they_count_in_the_limits() -> None:
    """An old socket has a slot of its group; without one it is refused, with 503."""
    b = old_shard()
    b.grant_lease(viewer=1)
    b.connect_old("alice")
    with pytest.raises(RequestRejected) as refused:
        b.connect_old("bob")
    assert (refused.value.status, refused.value.code) == (503, "over_limit")


def test_an_old_socket_gives_way_to_the_user_s_unified_connection() -> None:
    """Where all slots are taken: the user gets in with its next try."""
    b = old_shard()
    b.grant_lease(viewer=1)
    page = b.connect_old("alice")
    with pytest.raises(RequestRejected):
        b.connect("alice")
    assert b.close_code(page) == 1013
    b.shard.on_closed(page)
    b.connect("alice")


def test_they_share_the_user_s_rates() -> None:
    """What a page says too much is answered once a second, and its socket stays open; other users are not held up."""
    b = old_shard(session__message_rate=1.0, session__message_burst=5.0)
    first, second, other = b.connect_old("alice"), b.connect_old("alice"), b.connect_old("bob")
    answers = [say(b, page, type="ping") for page in (first, second) * 3]
    kinds = [frame["type"] for frames in answers for frame in frames if frame["type"] != "connection_established"]
    assert kinds == ["pong"] * 5 + ["error"]
    for _ in range(100):
        say(b, second, type="ping")
    assert b.close_code(second) is None
    assert say(b, other, type="ping")[-1]["type"] == "pong"


def test_bad_messages_never_end_it() -> None:
    b = old_shard(session__message_rate=1000.0, session__message_burst=1000.0)
    page = b.connect_old()
    read(b, page)
    for _ in range(50):
        b.send_raw(page, "nonsense")
    assert {frame["data"]["error_code"] for frame in read(b, page)} == {"invalid_json"}
    assert b.close_code(page) is None


def test_a_message_that_is_too_big_ends_it() -> None:
    b = old_shard()
    page = b.connect_old()
    b.send_raw(page, "x" * 65 * 1024)
    assert b.close_code(page) == 1009


# ------------------------------------------------------------------------------------------------ what it says


def test_a_subscription_really_changes_what_is_sent() -> None:
    b = old_shard()
    page = b.connect_old()
    read(b, page)
    [answer] = say(b, page, type="unsubscribe", event_types=["record_created"])
    assert answer["type"] == "subscription_updated"
    b.publish("record_created", RECORD)
    b.publish("bulk_started", {"operation_id": 1})
    b.wait(1)
    assert read(b, page) == []
    say(b, page, type="subscribe", data={"event_types": ["bulk_started", "audit_log"]})
    b.publish("bulk_started", {"operation_id": 2})
    b.publish("record_updated", RECORD)
    b.wait(1)
    assert [f["type"] for f in read(b, page)] == ["bulk_started", "record_updated"]


def test_what_the_user_may_not_see_is_not_subscribed() -> None:
    b = old_shard()
    page = b.connect_old()
    read(b, page)
    [answer] = say(b, page, type="subscribe", event_types=["audit_log"])
    assert answer["data"]["errors"] == ["not allowed: audit_log"]


def test_changes_too_many_are_refused() -> None:
    """They cost as much as those of any connection, and the refused ones are not in force."""
    b = old_shard(session__subscription_rate=0.1, session__subscription_burst=2.0)
    page = b.connect_old()
    read(b, page)
    names = ("zone_created", "zone_updated", "bind_reload")
    answers = [say(b, page, type="unsubscribe", event_types=[name])[0] for name in names]
    assert [a["type"] for a in answers] == ["subscription_updated", "subscription_updated", "error"]
    assert answers[2]["data"]["error_code"] == "rate_limited"
    b.publish("bind_reload", {"success": True})
    b.wait(1)
    assert [f["type"] for f in read(b, page)] == ["bind_reload"]


def test_statistics_count_old_sockets_by_type() -> None:
    b = old_shard()
    page = b.connect_old("root", "admin")
    b.connect_old("alice", path="/ws/health")
    read(b, page)
    [stats] = say(b, page, type="get_stats")
    assert stats["data"]["connection_types"]["health"] == 1
    assert (stats["data"]["total_users"], stats["data"]["total_connections"]) == (2, 2)


def test_recent_events_are_those_that_it_would_have_been_sent() -> None:
    """The newest, oldest first, through the user's view; in the frames' own shape."""
    b = old_shard()
    for n in range(5):
        b.publish("record_created", {**RECORD, "value": str(n)})
    b.publish("user_login", {"user": "ann"})
    b.publish("record_created", RECORD, user="bob")
    page = b.connect_old()
    read(b, page)
    [recent] = ask_recent(b, page, 3)
    assert [event["data"]["value"] for event in recent["data"]["events"]] == ["2", "3", "4"]
    for event in recent["data"]["events"]:
        read_frame(json.dumps(event))


def test_recent_events_are_found_however_far_back() -> None:
    """Whoever sees little of the log gets as much as everybody: the newest that are its own, of all that is kept."""
    b = old_shard()
    page = b.connect_old()
    b.publish("record_created", {**RECORD, "value": "old"})
    for _ in range(25):
        b.deliver(*(b.make_event("user_login", {"user": "ann"}) for _ in range(100)))
    b.publish("record_created", {**RECORD, "value": "new"})
    b.wait(1)
    read(b, page)
    [recent] = ask_recent(b, page, 10)
    assert [event["data"]["value"] for event in recent["data"]["events"]] == ["old", "new"]


def test_who_has_left_all_subscriptions_has_no_recent_events() -> None:
    b = old_shard()
    page = b.connect_old(path="/ws/health")
    b.publish("forwarder_health", {"forwarder_id": 1, "status": "healthy"}, key="1")
    [update] = say(b, page, type="get_subscription_info")[-1:]
    say(b, page, type="unsubscribe", event_types=update["data"]["subscribed_events"])
    [recent] = ask_recent(b, page, 10)
    assert recent["data"]["events"] == []


def test_questions_for_recent_events_are_questions_about_history() -> None:
    """They have its rate and its number at a time, and their answers a size; others go on as they did."""
    b = old_shard(history__max_per_user=1, history__burst=3.0, history__rate=1.0)
    b.deliver(*(b.make_event("record_created", {**RECORD, "value": "x" * 20_000}) for _ in range(50)))
    page = b.connect_old()
    b.wait(1)
    read(b, page)
    assert say(b, page, type="get_recent_events", data={"limit": 500}) == []
    [busy] = say(b, page, type="get_recent_events", data={"limit": 500})
    assert (busy["type"], busy["data"]["error_code"]) == ("error", "history_rate_limited")
    b.answer_history(100)
    [found] = read(b, page)
    assert 1 <= len(found["data"]["events"]) < 50
    assert len(json.dumps(found)) < PAGE_BYTES + 64 * 1024
    answers = [frame for _ in range(5) for frame in ask_recent(b, page, 500)]
    assert [frame["type"] for frame in answers] == ["recent_events"] * 2 + ["error"] * 3


def test_a_stopped_replay_leaves_a_question_for_recent_events_alone() -> None:
    """They are asked by one connection, and end each by itself."""
    b = old_shard()
    b.publish("record_created", RECORD)
    page = b.connect_old()
    read(b, page)
    [started] = say(b, page, type="start_replay", data={"start_time": "2020-01-01T00:00:00Z"})
    assert started["type"] == "replay_started", started
    say(b, page, type="get_recent_events", data={"limit": 5})
    say(b, page, type="stop_replay")
    b.answer_history()
    assert [frame["type"] for frame in read(b, page)] == ["recent_events"]


def test_recent_events_tell_of_all_forwarders_once() -> None:
    """Each measurement of one forwarder would be a list of all of them: 500 times 500 rows for one question."""
    b = old_shard()
    page = b.connect_old()
    for n in range(20):
        b.publish("forwarder_health", {"forwarder_id": n, "status": "healthy"}, key=str(n))
    b.publish("record_created", RECORD)
    b.wait(1)
    read(b, page)
    [recent] = ask_recent(b, page, 500)
    events = recent["data"]["events"]
    assert [event["type"] for event in events] == ["health_update", "record_created"]
    assert events[0]["data"]["total_forwarders"] == 20


# ---------------------------------------------------------------------------------------------------- the ends


def test_its_token_s_end_closes_it_with_1000() -> None:
    """The page comes back at once with its newest token; with the old one it is refused before it is accepted."""
    b = old_shard(session__expiry_notice_s=60.0)
    token = b.sign_token("alice", ttl=300)
    identity = TOKENS.identify(token, b.now + WALL)
    page = open_identity(b, identity)
    read(b, page)
    b.wait(299)
    assert read(b, page) == []  # no warning: nobody there reads one
    assert b.close_code(page) is None
    b.wait(2)
    assert b.close_code(page) == 1000


def open_identity(b: ShardHarness, identity: Identity) -> Connection:
    found = DIALECT.find_path(OLD_PATH)
    assert found is not None
    ticket = TOKENS.issue_ticket(identity, 0, f"own-{next(b._tickets)}", b.now + WALL)
    b.shard.admit(ticket, b.now, is_dialect=True)
    client = DialectClient("legacy", found, DIALECT.open_session(found, is_admin=False), "none")
    return b.shard.open_connection(identity, Codec.json, None, b.now, dialect=client)


def test_a_drain_closes_one_after_the_other_with_1000() -> None:
    """At the pace of the setting, without a word before: the page would list it as an event."""
    b = old_shard(shard__rebalance_users_per_s=10.0)
    pages = [b.connect_old(f"user-{n}") for n in range(5)]
    for page in pages:
        read(b, page)
    b.shard.start_drain(b.now)
    b.change_ring(1)
    b.wait(0.25)
    gone = [b.close_code(page) for page in pages]
    assert gone.count(None) == 4
    b.wait(1)
    assert [b.close_code(page) for page in pages] == [1000] * 5
    assert [read(b, page) for page in pages] == [[]] * 5


def test_a_change_of_the_ring_sends_it_to_its_new_shard_with_1000() -> None:
    b = old_shard()
    page = b.connect_old(find_user((0, 1), 1))
    b.change_ring(0, 1)
    b.wait(1)
    assert b.close_code(page) == 1000


def test_one_who_has_no_room_any_more_is_closed_with_1013() -> None:
    """Not with 1000: it would come back in 0.06 s, and again."""
    b = old_shard()
    page = b.connect_old()
    b.grant_lease(viewer=0)
    b.wait(1)
    assert b.close_code(page) == 1013


def test_signing_out_ends_all_of_the_user_s_sockets() -> None:
    """Old ones with 1008; and the page, which comes back with the token that it first had, is refused from then on."""
    b = old_shard()
    first, newest, later = (old_identity(b, ttl) for ttl in (600, 1200, 1800))
    pages = [open_identity(b, first), open_identity(b, newest)]
    new = b.connect("alice")
    assert b.shard.disconnect("alice") == 3
    assert [b.close_code(c) for c in (*pages, new)] == [1008, 1008, 4410]
    for identity in (first, newest):
        with pytest.raises(InvalidToken) as refused:
            open_identity(b, identity)
        assert refused.value.code == "token_revoked"
    open_identity(b, later)  # who has signed in again has another token, which ends later
    b.connect_old("bob")


def test_one_that_waits_when_its_user_signs_out_is_refused_too() -> None:
    """It had no socket at that moment, and comes back with what it has."""
    b = old_shard()
    identity = old_identity(b, 600)
    b.shard.on_closed(open_identity(b, identity))
    assert b.shard.disconnect("alice") == 0
    with pytest.raises(InvalidToken):
        open_identity(b, identity)


def old_identity(b: ShardHarness, ttl: float) -> Identity:
    """Of a token that ends then, as gateways judge it at old paths."""
    token = b.sign_token("alice", ttl=ttl)
    return TOKENS.identify_leniently(token, b.now + WALL, Leniency())


def test_one_who_takes_nothing_is_closed() -> None:
    """With 1013: it waits before it comes back."""
    b = old_shard(listen__write_timeout_s=5.0)
    page = b.connect_old()
    b.sockets.stuck.add(page)
    for n in range(20):
        b.publish("record_created", {**RECORD, "value": str(n)})
        b.wait(1)
    assert b.close_code(page) == 1013


# ---------------------------------------------------------------------------------- the path of both protocols


def open_shared(b: ShardHarness, user: str = "alice") -> Connection:
    admitted = b.shard.admit(b.issue_ticket(user), b.now, is_dialect=True)
    found = DIALECT.find_path("/ws")
    assert found is not None
    client = DialectClient("legacy", found, DIALECT.open_session(found, is_admin=False), "none")
    return b.shard.open_connection(admitted.identity, Codec.json, None, b.now, dialect=client)


def test_one_that_says_hello_speaks_solowire() -> None:
    """It is a connection like any other from then on: it replaces the user's older one, and is pinged."""
    b = old_shard()
    older = b.connect("alice")
    connection = open_shared(b)
    assert b.close_code(older) is None
    b.say(connection, Hello(subscriptions=["dns.*"]))
    [welcome] = b.read_messages(connection)
    assert isinstance(welcome, Welcome)
    assert b.close_code(older) == 4409
    for _ in range(4):
        b.wait(25)
    assert b.close_code(connection) == 4408  # it has answered no ping


def test_one_that_says_hello_too_late_is_not_heard() -> None:
    """The user has opened another meanwhile, which stays: nothing is begun for the one that is closed."""
    b = old_shard()
    connection = open_shared(b)
    newer = b.connect("alice")
    b.shard.take_arrivals()
    b.say(connection, Hello(subscriptions=["dns.*"]))
    b.publish("record_created", RECORD)
    b.wait(1)
    assert [b.close_code(c) for c in (connection, newer)] == [4409, None]
    assert b.sockets.sent.get(connection, []) == []
    assert not b.shard.has_arrivals
    assert b.shard.connections == {newer}


def test_one_that_says_nothing_speaks_the_old_protocol() -> None:
    b = old_shard(session__hello_timeout_s=2.0)
    page = open_shared(b)
    b.wait(1.9)
    assert b.sockets.sent.get(page, []) == []
    b.wait(0.2)
    assert [f["type"] for f in read(b, page)] == ["connection_established"]


def test_one_that_says_something_old_speaks_the_old_protocol() -> None:
    b = old_shard()
    page = open_shared(b)
    assert [f["type"] for f in say(b, page, type="ping")] == ["connection_established", "pong"]


# --------------------------------------------------------------------------------------------------- deprecation


def test_the_log_names_a_user_once_an_hour() -> None:
    """However many sockets it opens."""
    with structlog.testing.capture_logs() as lines:
        b = old_shard()
        for _ in range(3):
            b.connect_old("alice")
        b.connect_old("bob")
        b.wait(3601)
        b.connect_old("alice")
    named = [line for line in lines if line["event"] == "deprecated"]
    told = [(line["log_level"], line["user"], line["path"], line["agent"]) for line in named]
    row = ("/api/websocket/ws/{type}", "firefox")
    assert told == [("warning", "alice", *row), ("warning", "bob", *row), ("warning", "alice", *row)]


def test_what_is_used_is_counted() -> None:
    """By path, message and user agent; what is open, by type."""
    b = old_shard()
    page = b.connect_old()
    b.connect_old(path="/ws/health/17")
    say(b, page, type="ping")
    say(b, page, type="what is this")
    assert b.shard.dialects is not None
    assert b.shard.dialects.summarize() == {
        "path /api/websocket/ws/{type}": 1,
        "path /ws/{type}/{user_id}": 1,
        "agent firefox": 2,
        "message ping": 1,
        "message other": 1,
        "open admin": 1,
        "open health": 1,
    }
