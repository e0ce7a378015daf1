"""What a client says, and what it is answered: told by a shard on sockets in memory."""

from __future__ import annotations

import jwt
import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.reader import MAX_PENDING_REPLIES
from solowire.fanout.recent_log import RecentLog
from solowire.protocol import messages as c
from solowire.protocol.messages import MAX_MESSAGE_BYTES, Codec
from solowire.workers.connections.heartbeat import FREE_PONGS
from tests.support.shard_harness import QUERY, SECRET, TOKENS, WALL, ShardHarness, reconnect_client

# ------------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize("codec", Codec)
def test_messages_are_answered(codec: Codec) -> None:
    """A ping is answered with a pong and stats with numbers, each with its id, in the client's codec."""
    b = ShardHarness()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    b.say(connection, c.Ping(1))
    b.say(connection, c.Pong(2))
    b.say(connection, c.Stats("s"))
    pong, reply = b.read_messages(connection)
    assert (pong.id, pong.time) == (1, b.now + WALL)
    assert reply.id == "s"
    assert reply.data["subscriptions"] == ["custom.a"]
    assert reply.data["session"] == "session-1"


def test_stats_tell_where_a_quiet_connection_stands() -> None:
    """A connection that has missed nothing stands at the newest event, also when none of them was for it."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.quiet"])
    for _ in range(50):
        b.publish("custom.loud")
    b.say(connection, c.Stats())
    [reply] = b.read_messages(connection)
    assert reply.data["cursor"] == reply.data["position"] == 50


def test_bad_messages_are_answered() -> None:
    """A message that can't be understood is an error with its id, and the connection goes on."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    for raw in ("{", '{"type":"nosuch","id":7}', '{"type":"subscribe","id":"x"}', b"\xff"):
        b.send_raw(connection, raw)
    assert [(e.code, e.id) for e in b.read_messages(connection)] == [
        ("invalid_message", None),
        ("invalid_message", 7),
        ("invalid_message", "x"),
        ("invalid_message", None),
    ]
    b.publish("custom.a")
    assert len(b.read_events(connection)) == 1


def test_ten_bad_messages_in_a_minute_close() -> None:
    """The tenth bad message within a minute closes the connection for good; nine, and nine later, do not."""
    b = ShardHarness()
    connection = b.connect()
    for _ in range(9):
        b.send_raw(connection, "{")
    assert b.close_code(connection) is None
    b.wait(61)
    for _ in range(9):
        b.send_raw(connection, "{")
    assert b.close_code(connection) is None
    b.send_raw(connection, "{")
    assert b.close_code(connection) == 4400
    b.read_messages(connection)
    b.say(connection, c.Ping(1))
    assert b.read_messages(connection) == []


@pytest.mark.parametrize(
    "raw",
    [b" " * (MAX_MESSAGE_BYTES + 1), " " * (MAX_MESSAGE_BYTES + 1), "ü" * (MAX_MESSAGE_BYTES // 2 + 1)],
    ids=["bytes", "text", "utf-8"],
)
def test_a_message_that_is_too_big_closes(raw: str | bytes) -> None:
    """A message over 64 KB, as it was on the wire, closes the connection with 1009."""
    b = ShardHarness()
    connection = b.connect()
    b.send_raw(connection, raw)
    assert b.close_code(connection) == 1009


def test_a_message_as_big_as_allowed_is_read() -> None:
    """A message of exactly 64 KB is a message."""
    b = ShardHarness()
    connection = b.connect()
    b.send_raw(connection, '{"type":"ping","id":1}'.ljust(MAX_MESSAGE_BYTES))
    assert b.read_messages(connection)[0].id == 1


def test_messages_too_fast_are_refused_for_a_while() -> None:
    """A client that sends too fast is told how long to wait, and is heard again after that."""
    b = ShardHarness(session__message_rate=10.0, session__message_burst=5.0)
    connection = b.connect()
    for n in range(5):
        b.say(connection, c.Ping(n))
    *pongs, error = b.read_messages(connection)
    assert len(pongs) == 4  # hello was the first of the burst
    assert error.code == "rate_limited"
    b.wait(error.retry_after)
    b.say(connection, c.Ping("later"))
    assert b.read_messages(connection)[-1].id == "later"


def test_subscribe_and_unsubscribe() -> None:
    """Subscriptions change while the connection is open, and each change is answered with what it comes to."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.say(connection, c.Subscribe(["custom.b", "gateway_stats"], 1, {"zone": ["a.org"]}))
    [answer] = b.read_messages(connection)
    assert (answer.id, answer.subscriptions) == (1, ["custom.a", "custom.b"])
    assert [(d.type, d.reason) for d in answer.denied] == [("gateway_stats", "forbidden")]
    b.publish("custom.a")
    b.publish("custom.b", {"zone": "b.org"})
    b.publish("custom.b", {"zone": "a.org"})
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [1, 3]
    b.say(connection, c.Unsubscribe(["custom.a"], 2))
    assert b.read_messages(connection)[0].subscriptions == ["custom.b"]
    b.say(connection, c.Unsubscribe(["custm.b", "audit_log"], 3))
    [answer] = b.read_messages(connection)
    assert (answer.id, answer.subscriptions) == (3, ["custom.b"])
    assert [(d.type, d.reason) for d in answer.denied] == [("custm.b", "unknown_type"), ("gateway_stats", "forbidden")]
    b.publish("custom.a")
    b.publish("custom.b", {"zone": "a.org"})
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [5]


def test_subscriptions_are_bounded() -> None:
    """A client that subscribes to ever new names is refused at some point, rather than remembered without end."""
    b = ShardHarness()
    connection = b.connect(subscriptions=[])
    for n in range(3):
        b.say(connection, c.Subscribe([f"custom.n{n}.{i}" for i in range(100)], n))
    answers = b.read_messages(connection)
    assert [type(a) for a in answers] == [c.Subscriptions, c.Subscriptions, c.Error]
    assert answers[-1].code == "too_many"
    assert len(connection.wanted) == 200


def test_subscribing_brings_nothing_of_the_past() -> None:
    """Who subscribes to a type gets what is published from then on, however long the connection was quiet before."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    connection = b.connect(subscriptions=["custom.quiet"])
    for _ in range(10):
        b.publish("custom.loud")
    b.say(connection, c.Subscribe(["custom.loud"], 1))
    b.wait(1)
    assert b.read_events(connection) == []
    b.say(connection, c.Unsubscribe(["custom.loud"], 1))
    for _ in range(50):
        b.publish("custom.loud")
    b.say(connection, c.Subscribe(["custom.loud"], 2))
    b.wait(1)
    assert b.read_events(connection) == []
    assert b.close_code(connection) is None
    b.publish("custom.loud")
    assert [e.offset for e in b.read_events(connection)] == [61]


def test_a_connection_closed_in_the_middle_of_an_answer_joins_nothing() -> None:
    """A client that is closed because its answers pile up gets no event after that."""
    b = ShardHarness()
    waiting = b.open_connection("alice")
    live = b.connect("bob")
    for connection, last in ((waiting, c.Hello(subscriptions=["custom.a"])), (live, c.Subscribe(["custom.a"]))):
        b.sockets.stuck.add(connection)
        for n in range(MAX_PENDING_REPLIES + 1):
            b.say(connection, c.Ping(n))
        b.read_messages(connection)
        b.say(connection, last)
        assert [m.code for m in b.read_messages(connection)] == ["gap"]
        assert b.close_code(connection) == 4413
        assert connection.feed is None
        b.sockets.unstick(connection)
    b.publish("custom.a")
    b.wait(1)
    assert b.read_messages(waiting) == b.read_messages(live) == []
    assert len(b.shard.feeds) == 0


# -------------------------------------------------------------------------------------------------------- another token


def test_a_refreshed_token_goes_on() -> None:
    """A client that sends a new token in time is neither closed nor warned again at the old one's end."""
    b = ShardHarness()
    identity = TOKENS.identify(b.sign_token("alice", ttl=100), b.now + WALL)
    connection = b.open_as(identity)
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    b.wait(30)
    b.read_messages(connection)
    b.say(connection, c.Refresh(b.sign_token("alice", ttl=1000), "r"))
    reply, subscriptions = b.read_messages(connection)
    assert (reply.id, reply.data) == ("r", {"token_expires_at": "2027-01-15T08:33:50Z"})
    assert subscriptions.subscriptions == ["custom.a"]
    for _ in range(8):
        b.wait(20)
        b.say(connection, c.Pong())
    assert b.close_code(connection) is None
    assert b.read_messages(connection) == []


def test_a_refresh_with_fewer_rights_counts_at_once() -> None:
    """When a refreshed token may see less, what it may not see stops at once, even what was about to be sent."""
    b = ShardHarness()
    connection = b.connect("alice", "admin", subscriptions=["gateway_stats", "custom.a", "dns_query_log"])
    b.publish("custom.a")
    b.publish("gateway_stats", {"connections": 1})
    b.publish("dns_query_log", QUERY)
    assert [e.offset for e in b.read_events(connection)] == [1]
    b.say(connection, c.Refresh(b.sign_token("alice", "viewer"), "r"))
    b.publish("gateway_stats", {"connections": 2})
    b.wait(2)
    reply, subscriptions, *rest = b.read_messages(connection)
    assert reply.id == "r"
    assert subscriptions.subscriptions == ["custom.a", "dns_query_log"]
    assert [(d.type, d.reason) for d in subscriptions.denied] == [("gateway_stats", "forbidden")]
    assert [(e.offset, e.data.get("client_ip")) for m in rest for e in m.events] == [(3, None)]


def test_a_refresh_with_narrower_scopes_counts_at_once() -> None:
    """When a refreshed token names fewer zones, no event of the others comes any more."""
    b = ShardHarness()
    connection = b.connect("alice", scopes={"zones": ("a.org", "b.org")}, subscriptions=["dns.*"])
    b.publish("zone_created", {"zone": "a.org"})
    b.publish("zone_created", {"zone": "b.org"})
    b.say(connection, c.Refresh(b.sign_token("alice", zones=("a.org",))))
    b.publish("zone_created", {"zone": "a.org"})
    b.wait(2)
    assert [e.offset for e in b.read_events(connection)] == [1, 3]


def test_a_refresh_with_more_rights_brings_back_what_was_asked_for() -> None:
    """A type that was asked for and denied comes as soon as a new token allows it, without asking again."""
    b = ShardHarness()
    connection = b.connect("alice", "viewer", subscriptions=["gateway_stats", "custom.a"])
    b.say(connection, c.Refresh(b.sign_token("alice", "admin")))
    assert b.read_messages(connection)[-1].subscriptions == ["custom.a", "gateway_stats"]
    b.publish("gateway_stats", {"connections": 1})
    assert len(b.read_events(connection)) == 1


def test_a_token_of_another_user_is_refused() -> None:
    """A connection can't become another user's, nor go on with a token that proves nothing, or may have none."""
    b = ShardHarness()
    connection = b.connect("alice", "viewer", subscriptions=["custom.a"])
    b.say(connection, c.Refresh(b.sign_token("bob", "admin"), 1))
    b.say(connection, c.Refresh("garbage", 2))
    b.say(connection, c.Refresh(b.sign_token("alice", "admin", ttl=-1), 3))
    b.say(connection, c.Refresh(b.sign_token("alice", "publisher"), 4))
    assert [(e.id, e.code) for e in b.read_messages(connection)] == [
        (1, "wrong_user"),
        (2, "invalid_token"),
        (3, "token_expired"),
        (4, "forbidden"),
    ]
    assert connection.identity.role == "viewer"


def test_a_token_that_proves_nothing_is_answered_whatever_it_says() -> None:
    """Half a character in a token's header is refused like any other nonsense, at once or when its turn has come."""
    nonsense = jwt.encode({"sub": "alice"}, SECRET, "HS256", {"crit": ["\ud800"]})
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=1))
    for _ in range(5):
        b.publish("custom.a")
    connection = b.connect(subscriptions=["custom.a"])
    b.say(connection, c.Refresh(nonsense, 1))
    assert [(e.id, e.code) for e in b.read_messages(connection)] == [(1, "invalid_token")]
    resuming = reconnect_client(b, 1, user="bob")
    b.say(resuming, c.Refresh(nonsense, 2))
    assert b.read_messages(resuming) == []
    b.answer_requests()
    assert [(m.id, m.code) for m in b.read_messages(resuming) if isinstance(m, c.Error)] == [(2, "invalid_token")]


def test_a_token_may_be_refreshed_before_hello() -> None:
    """A client may refresh before it says hello, and then the new rights are those of the welcome."""
    b = ShardHarness()
    connection = b.open_connection("alice", "viewer")
    b.say(connection, c.Refresh(b.sign_token("alice", "admin"), 1))
    b.say(connection, c.Hello(subscriptions=["gateway_stats"]))
    reply, welcome = b.read_messages(connection)
    assert reply.id == 1
    assert (welcome.role, welcome.subscriptions) == ("admin", ["gateway_stats"])


def test_refreshing_again_and_again_keeps_nothing() -> None:
    """A client that refreshes its token all day leaves no timers behind, and one that is gone leaves none either."""
    b = ShardHarness(session__message_burst=1000.0)
    connection = b.connect()
    for n in range(300):
        b.say(connection, c.Refresh(b.sign_token("alice", ttl=36_000 + n)))
    assert len(b.shard._timers) <= 10
    for n in range(300):
        b.shard.on_closed(b.connect(f"user-{n}"))
    b.wait(5)
    assert len(b.shard._timers) <= 100


def test_a_refreshed_token_moves_the_slot_to_the_new_group_if_there_is_one() -> None:
    """Another role counts to another group as soon as that has room; until then the connection stays in the old one."""
    b = ShardHarness()
    b.grant_lease(spare=1, viewer=1)
    connection = b.connect("alice")
    b.say(connection, c.Refresh(b.sign_token("alice", "operator")))
    assert b.shard.lease_usage_report(b.now).used == {"operator": 1}
    b.connect("bob")
    b.say(connection, c.Refresh(b.sign_token("alice", "viewer")))
    assert b.shard.lease_usage_report(b.now).used == {"operator": 1, "viewer": 1}
    b.shard.on_closed(connection)
    assert b.shard.lease_usage_report(b.now).used == {"viewer": 1}


# ------------------------------------------------------------------------------------------------------------ how often


def test_messages_are_counted_for_the_user() -> None:
    """A second connection gives a user no more messages, and another user none the less."""
    b = ShardHarness(limits__max_connections_per_user=2, session__message_burst=5.0, session__message_rate=1.0)
    first, second = b.connect(), b.connect()
    for connection in (first, second, first):
        b.say(connection, c.Ping())
    b.say(second, c.Ping(9))
    assert (b.read_messages(second)[-1].code, b.read_messages(first)[-1].id) == ("rate_limited", None)
    other = b.connect("bob")
    b.say(other, c.Ping(1))
    assert b.read_messages(other)[0].id == 1


@pytest.mark.parametrize("codec", Codec)
def test_who_answers_pings_pays_nothing_for_another_connections_flood(codec: Codec) -> None:
    """One connection floods and is closed; the user's other one has only answered pings, and hears of nothing."""
    b = ShardHarness(
        limits__max_connections_per_user=2,
        session__message_burst=5.0,
        session__message_rate=0.001,
        session__heartbeat_interval_s=1.0,
    )
    quiet, flood = b.connect(codec=codec), b.connect()
    for _ in range(14):
        b.say(flood, c.Ping())
    assert b.close_code(flood) == 4400
    for _ in range(30):
        b.wait(1.0)
        b.say(quiet, c.Pong(time=b.now))
    assert (b.read_messages(quiet), b.close_code(quiet)) == ([], None)


def test_only_as_many_pongs_are_free_as_there_were_pings() -> None:
    """Pongs that nobody has asked for are messages like others."""
    b = ShardHarness(session__message_burst=10.0, session__message_rate=0.001, session__heartbeat_interval_s=10.0)
    connection = b.connect()
    for _ in range(5):  # it answers none of these, and says something else instead
        b.wait(10.0)
        b.say(connection, c.Ping())
    assert len(b.read_messages(connection)) == 5
    for _ in range(FREE_PONGS + 4):  # hello was the first of the burst
        b.say(connection, c.Pong())
    assert b.read_messages(connection) == []
    b.say(connection, c.Pong())
    assert b.read_messages(connection)[0].code == "rate_limited"


def test_coming_back_gives_nobody_more_messages() -> None:
    """Who has spent its burst is told so on its next connection, too; that one's hello is heard all the same."""
    b = ShardHarness(session__message_burst=5.0, session__message_rate=1.0)
    for _ in range(3):
        connection = b.connect()
        for n in range(5):
            b.say(connection, c.Ping(n))
        assert b.read_messages(connection)[-1].code == "rate_limited"
        b.shard.on_closed(connection)
    connection = b.connect()
    b.say(connection, c.Ping(1))
    assert b.read_messages(connection)[-1].code == "rate_limited"
    b.wait(60)
    b.shard.on_closed(connection)
    connection = b.connect()
    b.say(connection, c.Ping(1))
    assert b.read_messages(connection)[0].id == 1


def test_subscription_changes_have_a_rate_of_their_own() -> None:
    """Changes beyond it are answered with `rate_limited` and how long to wait; ten in a minute close with 4400."""
    b = ShardHarness(session__subscription_burst=2.0, session__subscription_rate=0.5)
    connection = b.connect(subscriptions=[])
    b.say(connection, c.Subscribe(["custom.a"], 1))
    b.say(connection, c.Unsubscribe(["custom.a"], 2))
    answer, error = b.read_messages(connection)
    assert (answer.id, error.id, error.code, error.retry_after) == (1, 2, "rate_limited", 2.0)
    b.wait(2)
    b.say(connection, c.Subscribe(["custom.b"], 3))
    assert b.read_messages(connection)[0].subscriptions == ["custom.a", "custom.b"]
    for _ in range(9):
        b.say(connection, c.Subscribe(["custom.b"]))
    assert b.close_code(connection) == 4400
