"""A shard's decisions: what happens to a user's one connection, told by a shard on sockets in memory."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import msgspec
import pytest

from solowire import client_protocol as c
from solowire.access import ROLES, Identity
from solowire.backplane import Came, Deliver, Elsewhere, Lease, Replay, Replayed, RingState, ShardAddress, States
from solowire.catalog import CATALOG
from solowire.client_protocol import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Codec
from solowire.codes import CloseCode
from solowire.errors import InvalidToken, Refused
from solowire.events import Event, Priority, encode_event
from solowire.feed import FlushDelays
from solowire.log import Log
from solowire.ring import Ring
from solowire.tokens import Tokens
from workers.connection import MAX_ANSWERS, Connection, State
from workers.heartbeat import FREE_PONGS
from workers.limits import Limits
from workers.shard import Shard
from workers.sockets import MemorySockets

SECRET = "a secret that is long enough for HS256, really"
WALL = 1_800_000_000.0  # unix seconds at monotonic 0
TOKENS = Tokens(SECRET, ROLES)
ENCODE: dict[Codec, Any] = {codec: msgspec.json.encode if codec.is_json else msgspec.msgpack.encode for codec in Codec}
QUERY = {"client_ip": "10.0.0.1", "query_domain": "www.example.com", "query_type": "A", "zone": "example.com"}


class Bench:
    """A shard with its router, its clients and its clock, all in this process and none of them running."""

    def __init__(
        self, shards: tuple[int, ...] = (0,), recent: Log | None = None, *, leased_for: float = 1e9, **limits: Any
    ) -> None:
        self.now = 1000.0
        self.sockets = MemorySockets()
        ids = count(1)
        self.shard = Shard(
            0,
            sockets=self.sockets,
            tokens=TOKENS,
            roles=ROLES,
            new_id=lambda: f"session-{next(ids)}",
            wall_offset=WALL,
            # As in a shard that has many connections: events wait as long as they may.
            limits=Limits(**{"flush": FlushDelays(per_connection=1.0), **limits}),
            recent=recent,
            ask=self._ask,
            came=self._tell,
        )
        self.came: list[Came] = []
        self.fence = 0
        self.lease(spare=1_000_000, seconds=leased_for)
        self.epoch = "epoch-1"
        self.journal: list[tuple[int, str | None, bytes]] = []  # the router's
        self.journal_floor = 0
        self.asked: list[Replay] = []
        self.address = ""  # of who connects
        self.version = 0
        self.offset = 0
        self._tickets = count(1)
        self._read: dict[Connection, int] = {}
        self.ring(*shards)

    # the router

    def ring(self, *shards: int, since: int = 0) -> None:
        """since: from which ring on the shard gets its users' own events; by default none is forgotten."""
        self.version += 1
        addresses = [ShardAddress(s, "localhost", 9000 + s, f"boot-{s}") for s in shards]
        self.shard.ring_changed(RingState(self.epoch, self.version, self.offset, addresses, since), self.now)

    def forgetful_ring(self, *shards: int) -> None:
        """As a router tells it that has taken the shard for dead."""
        self.ring(*shards, since=self.version + 1)

    def lease(self, spare: int = 0, seconds: float = 1e9, **slots: int) -> None:
        """What the router grants from now on, in answer to what the shard says."""
        self.fence += 1
        asked = self.shard.slots(self.now).asked
        self.shard.leased(Lease(self.fence, asked, seconds, slots, spare), self.now)

    def _tell(self, word: Came) -> bool:
        self.came.append(word)
        return True

    def _ask(self, question: Replay) -> bool:
        self.asked.append(question)
        return True

    def answer(self, at_a_time: int = 3) -> int:
        """Answers the shard's questions as the router does, in small parts; how many answers that took."""
        answers = 0
        while self.asked:
            answers += 1
            self.shard.replayed(self._answer(self.asked.pop(0), at_a_time), self.now)
        return answers

    def _answer(self, q: Replay, at_a_time: int) -> Replayed:
        if q.after > self.offset or q.after < self.journal_floor:
            return Replayed(q.request, q.after, [], "future" if q.after > self.offset else "retention")
        found = [r for r in self.journal if q.after < r[0] <= q.upto and (r[1] == q.user or not q.personal)]
        part = found[:at_a_time]
        upto = part[-1][0] if part and (len(part) < len(found) or not q.personal) else q.upto
        return Replayed(q.request, upto, [(o, body) for o, user, body in part if user in (None, q.user)])

    def event(self, name: str, data: dict[str, Any] | None = None, **more: Any) -> tuple[int, bytes]:
        self.offset += 1
        event_type = CATALOG[name]
        data = data if data is not None else {}
        event = Event(
            id=f"event-{self.offset}",
            type=name,
            data=json.dumps(data).encode(),
            priority=more.pop("priority", Priority.normal),
            delivery=event_type.delivery,
            timestamp="2026-01-01T00:00:00Z",
            attributes=CATALOG.check(event_type, data),
            **more,
        )
        self.journal.append((self.offset, event.user, encode_event(event)))
        return self.offset, encode_event(event)

    def deliver(self, *events: tuple[int, bytes]) -> None:
        after = events[0][0] - 1 if events else self.offset
        self.shard.deliver(Deliver(self.epoch, after, self.offset, list(events)), self.now)

    def publish(self, name: str, data: dict[str, Any] | None = None, **more: Any) -> int:
        self.deliver(self.event(name, data, **more))
        return self.offset

    # the clients

    def ticket(self, user: str, role: str = "viewer", shard: int = 0, **scopes: tuple[str, ...]) -> str:
        token = self.token(user, role, **scopes)
        identity = TOKENS.identify(token, self.now + WALL)
        return TOKENS.issue_ticket(identity, shard, f"ticket-{next(self._tickets)}", self.now + WALL, self.address)

    def token(self, user: str, role: str = "viewer", ttl: float = 36_000, **scopes: tuple[str, ...]) -> str:
        return TOKENS.sign(user, role, now=self.now + WALL, ttl=ttl, scopes=scopes)

    def open(self, user: str = "alice", role: str = "viewer", codec: Codec = Codec.json, **scopes: Any) -> Connection:
        admitted = self.shard.admit(self.ticket(user, role, **scopes), self.now)
        return self.shard.open(admitted.identity, codec, None, self.now, address=admitted.address)

    def open_as(self, identity: Identity) -> Connection:
        """Opens for an identity that no ticket has carried."""
        assert self.shard._admission.enter(identity, "", self.now)
        return self.shard.open(identity, Codec.json, None, self.now)

    def connect(self, user: str = "alice", role: str = "viewer", codec: Codec = Codec.json, **hello: Any) -> Connection:
        """Opens, says hello and takes the welcome."""
        connection = self.open(user, role, codec, **hello.pop("scopes", {}))
        self.say(connection, c.Hello(**hello))
        assert isinstance(codec.decode_server(self.sockets.sent[connection][0]), c.Welcome)
        self._read[connection] = 1
        return connection

    def say(self, connection: Connection, message: Any) -> None:
        self.raw(connection, ENCODE[connection.codec](message))

    def raw(self, connection: Connection, raw: str | bytes) -> None:
        self.shard.receive(connection, raw, self.now)

    def heard(self, connection: Connection) -> list[Any]:
        """What has come since the last look, pings apart."""
        frames = self.sockets.sent.get(connection, [])
        new = frames[self._read.get(connection, 0) :]
        self._read[connection] = len(frames)
        messages = [connection.codec.decode_server(frame) for frame in new]
        return [m for m in messages if not isinstance(m, c.Ping)]

    def events(self, connection: Connection) -> list[c.ReceivedEvent]:
        """The events that have come since the last look."""
        return [e for m in self.heard(connection) if isinstance(m, c.Events) for e in m.events]

    def closed(self, connection: Connection) -> int | None:
        code, _ = self.sockets.closed.get(connection, (None, ""))
        return code

    # the clock

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.shard.next_due()) <= end:
            self.now = max(self.now, due)
            self.shard.run(self.now)
        self.now = end
        self.shard.run(self.now)


def user_who(ring: tuple[int, ...], owner: int, other: tuple[int, ...] = (0,)) -> str:
    """A user who is shard 0's on `other`, and `owner`'s on `ring`."""
    before, after = Ring(other), Ring(ring)
    return next(u for u in (f"user-{n}" for n in count()) if before.owner(u) == 0 and after.owner(u) == owner)


# ----------------------------------------------------------------------------------------------- one connection


def test_a_shard_that_was_held_up_waits_for_the_hello_that_long_again() -> None:
    """A timer that comes late says nothing of the client: its hello may be here, unread, and is still its beginning."""
    b = Bench()
    connection = b.open("ann")
    b.now += 5.0
    b.shard.run(b.now)
    assert connection.state is State.waiting
    b.say(connection, c.Hello(subscriptions=["custom.a"], id=7))
    [welcome] = [m for m in b.heard(connection) if isinstance(m, c.Welcome)]
    assert welcome.id == 7
    silent = b.open("bob")
    b.now += 5.0
    b.wait(4.0)
    assert silent.state is State.live


def test_a_second_connection_replaces_the_first() -> None:
    """A user who opens a second tab has one connection: the new one, and the old is told to stay away."""
    b = Bench()
    old = b.connect(subscriptions=["custom.a"])
    new = b.connect(subscriptions=["custom.a"])
    assert b.closed(old) == 4409
    assert b.shard.connections == {new}
    b.publish("custom.a")
    assert len(b.events(new)) == 1
    assert b.events(old) == []
    b.shard.gone(old)
    b.wait(1)
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert len(b.events(new)) == 1


def test_a_second_connection_can_be_refused_instead() -> None:
    """With the setting `reject` the first tab stays, and the second gets 409 before it is accepted."""
    b = Bench(on_duplicate="reject")
    first = b.connect()
    ticket = b.ticket("alice")
    with pytest.raises(Refused) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.code) == (409, "duplicate_connection")
    assert b.closed(first) is None
    b.shard.gone(first)
    assert b.shard.admit(ticket, b.now).identity.user == "alice"


def test_users_dont_replace_each_other() -> None:
    """Two users are two connections, and an event for one of them finds the right one after the other has left."""
    b = Bench()
    alice, bob = b.connect("alice"), b.connect("bob")
    assert b.shard.connections == {alice, bob}
    b.shard.gone(alice)
    assert b.shard.connections == {bob}
    assert b.closed(bob) is None


def test_a_ticket_lets_in_once() -> None:
    """A URL that was copied from a log opens nothing."""
    b = Bench()
    ticket = b.ticket("alice")
    b.shard.admit(ticket, b.now)
    with pytest.raises(InvalidToken) as caught:
        b.shard.admit(ticket, b.now)
    assert caught.value.code == "ticket_used"


def test_a_ticket_for_another_shard_or_time_lets_nobody_in() -> None:
    """A ticket of another shard, or of a minute ago, is refused before the connection is accepted."""
    b = Bench()
    with pytest.raises(InvalidToken):
        b.shard.admit(b.ticket("alice", shard=1), b.now)
    ticket = b.ticket("alice")
    b.wait(60)
    with pytest.raises(InvalidToken):
        b.shard.admit(ticket, b.now)


def test_a_user_of_another_shard_is_not_let_in() -> None:
    """When the ring has changed since the ticket was made, the client is sent back to ask for the right shard."""
    b = Bench((0, 1))
    with pytest.raises(Refused) as caught:
        b.shard.admit(b.ticket(user_who((0, 1), 1)), b.now)
    assert (caught.value.status, caught.value.code) == (503, "wrong_shard")


def test_a_shard_that_isnt_ready_lets_nobody_in() -> None:
    """A shard that has not read the log up to where it was when it came refuses, and the ticket stays good."""
    b = Bench()
    b.offset, b.epoch = 5, "epoch-2"
    b.ring(0)
    ticket = b.ticket("alice")
    with pytest.raises(Refused) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    b.shard.deliver(Deliver("epoch-2", 0, 5, []), b.now)
    assert b.shard.ready
    assert b.shard.admit(ticket, b.now).identity.user == "alice"


def test_a_ring_that_changes_while_a_connection_opens() -> None:
    """A user who was given to another shard between ticket and acceptance is sent there, and gets nothing here."""
    b = Bench()
    user = user_who((0, 1), 1)
    identity = b.shard.admit(b.ticket(user), b.now).identity
    b.ring(0, 1)
    connection = b.open_as(identity)
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    b.publish("custom.a")
    b.wait(3)
    assert [type(m) for m in b.heard(connection)] == [c.ReconnectNow]
    assert b.closed(connection) == 4421


# -------------------------------------------------------------------------------------------------------- hello


def test_hello_is_answered_with_a_welcome() -> None:
    """The welcome says all that a client needs: who it is, where it stands, what it gets and what not."""
    b = Bench()
    b.publish("custom.a")
    connection = b.open("alice", "viewer")
    b.say(connection, c.Hello("h", ["custom.a", "gateway_stats", "nosuch"]))
    [welcome] = b.heard(connection)
    assert (welcome.user, welcome.role, welcome.id, welcome.session) == ("alice", "viewer", "h", "session-1")
    assert (welcome.epoch, welcome.cursor, welcome.resumed, welcome.reason) == ("epoch-1", 1, False, None)
    assert welcome.subscriptions == ["custom.a"]
    assert [(d.type, d.reason) for d in welcome.denied] == [("gateway_stats", "forbidden"), ("nosuch", "unknown_type")]
    assert welcome.token_expires_at == "2027-01-15T18:16:40Z"
    assert (welcome.heartbeat_s, welcome.reconnect) == (25.0, c.Reconnect(500, 20_000))


def test_hello_twice_is_an_error() -> None:
    """A second hello is answered with an error, and the connection goes on as it was."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.say(connection, c.Hello("again", ["custom.b"]))
    [error] = b.heard(connection)
    assert (error.code, error.id) == ("already_said_hello", "again")
    b.publish("custom.a")
    assert len(b.events(connection)) == 1


def test_without_hello_the_defaults_apply() -> None:
    """A client that says nothing, such as `wscat`, gets the defaults of its role after two seconds."""
    b = Bench()
    connection = b.open("alice", "viewer")
    b.wait(1.9)
    assert b.heard(connection) == []
    b.wait(0.2)
    [welcome] = b.heard(connection)
    assert welcome.resumed is False
    assert "record_created" in welcome.subscriptions
    assert "custom.*" in welcome.subscriptions
    assert "gateway_stats" not in welcome.subscriptions


def test_hello_with_no_subscriptions_gets_none() -> None:
    """An empty list means nothing, and is not the same as no list."""
    b = Bench()
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=[]))
    [welcome] = b.heard(connection)
    assert welcome.subscriptions == []
    b.publish("custom.a")
    b.wait(2)
    assert b.heard(connection) == []


def test_subscribe_before_hello_is_an_error() -> None:
    """Who subscribes before hello is told to say hello, and can still do it."""
    b = Bench()
    connection = b.open()
    b.say(connection, c.Subscribe(["custom.a"], "s"))
    b.say(connection, c.Unsubscribe(["custom.a"], "u"))
    assert [(e.code, e.id) for e in b.heard(connection)] == [("hello_first", "s"), ("hello_first", "u")]
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    assert isinstance(b.heard(connection)[0], c.Welcome)


def test_a_bad_hello_can_be_said_again() -> None:
    """A hello with a filter that means nothing is refused, and the next one counts."""
    b = Bench()
    connection = b.open()
    b.say(connection, c.Hello(1, ["custom.a"], {"nosuch": ["x"]}))
    assert [(e.code, e.id) for e in b.heard(connection)] == [("invalid_filter", 1)]
    b.say(connection, c.Hello(2, ["custom.a"]))
    assert b.heard(connection)[0].id == 2


def test_a_token_that_ends_in_the_far_future_is_welcome() -> None:
    """A connection whose identity has no end, or the latest one there can be, is welcomed like any other."""
    for expires in (None, 253_402_300_799.0):
        b = Bench()
        connection = b.open_as(Identity("alice", "viewer", (), {}, expires))
        b.say(connection, c.Hello())
        assert isinstance(b.heard(connection)[0], c.Welcome)


# ------------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize("codec", Codec)
def test_messages_are_answered(codec: Codec) -> None:
    """A ping is answered with a pong and stats with numbers, each with its id, in the client's codec."""
    b = Bench()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    b.say(connection, c.Ping(1))
    b.say(connection, c.Pong(2))
    b.say(connection, c.Stats("s"))
    pong, reply = b.heard(connection)
    assert (pong.id, pong.time) == (1, b.now + WALL)
    assert reply.id == "s"
    assert reply.data["subscriptions"] == ["custom.a"]
    assert reply.data["session"] == "session-1"


def test_stats_tell_where_a_quiet_connection_stands() -> None:
    """A connection that has missed nothing stands at the newest event, also when none of them was for it."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.quiet"])
    for _ in range(50):
        b.publish("custom.loud")
    b.say(connection, c.Stats())
    [reply] = b.heard(connection)
    assert reply.data["cursor"] == reply.data["position"] == 50


def test_bad_messages_are_answered() -> None:
    """A message that can't be understood is an error with its id, and the connection goes on."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    for raw in ("{", '{"type":"nosuch","id":7}', '{"type":"subscribe","id":"x"}', b"\xff"):
        b.raw(connection, raw)
    assert [(e.code, e.id) for e in b.heard(connection)] == [
        ("invalid_message", None),
        ("invalid_message", 7),
        ("invalid_message", "x"),
        ("invalid_message", None),
    ]
    b.publish("custom.a")
    assert len(b.events(connection)) == 1


def test_ten_bad_messages_in_a_minute_close() -> None:
    """The tenth bad message within a minute closes the connection for good; nine, and nine later, do not."""
    b = Bench()
    connection = b.connect()
    for _ in range(9):
        b.raw(connection, "{")
    assert b.closed(connection) is None
    b.wait(61)
    for _ in range(9):
        b.raw(connection, "{")
    assert b.closed(connection) is None
    b.raw(connection, "{")
    assert b.closed(connection) == 4400
    b.heard(connection)
    b.say(connection, c.Ping(1))
    assert b.heard(connection) == []


@pytest.mark.parametrize(
    "raw",
    [b" " * (MAX_MESSAGE_BYTES + 1), " " * (MAX_MESSAGE_BYTES + 1), "ü" * (MAX_MESSAGE_BYTES // 2 + 1)],
    ids=["bytes", "text", "utf-8"],
)
def test_a_message_that_is_too_big_closes(raw: str | bytes) -> None:
    """A message over 64 KB, as it was on the wire, closes the connection with 1009."""
    b = Bench()
    connection = b.connect()
    b.raw(connection, raw)
    assert b.closed(connection) == 1009


def test_a_message_as_big_as_allowed_is_read() -> None:
    """A message of exactly 64 KB is a message."""
    b = Bench()
    connection = b.connect()
    b.raw(connection, '{"type":"ping","id":1}'.ljust(MAX_MESSAGE_BYTES))
    assert b.heard(connection)[0].id == 1


def test_messages_too_fast_are_refused_for_a_while() -> None:
    """A client that sends too fast is told how long to wait, and is heard again after that."""
    b = Bench(message_rate=10.0, message_burst=5.0)
    connection = b.connect()
    for n in range(5):
        b.say(connection, c.Ping(n))
    *pongs, error = b.heard(connection)
    assert len(pongs) == 4  # hello was the first of the burst
    assert error.code == "rate_limited"
    b.wait(error.retry_after)
    b.say(connection, c.Ping("later"))
    assert b.heard(connection)[-1].id == "later"


def test_subscribe_and_unsubscribe() -> None:
    """Subscriptions change while the connection is open, and each change is answered with what it comes to."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.say(connection, c.Subscribe(["custom.b", "gateway_stats"], 1, {"zone": ["a.org"]}))
    [answer] = b.heard(connection)
    assert (answer.id, answer.subscriptions) == (1, ["custom.a", "custom.b"])
    assert [(d.type, d.reason) for d in answer.denied] == [("gateway_stats", "forbidden")]
    b.publish("custom.a")
    b.publish("custom.b", {"zone": "b.org"})
    b.publish("custom.b", {"zone": "a.org"})
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [1, 3]
    b.say(connection, c.Unsubscribe(["custom.a"], 2))
    assert b.heard(connection)[0].subscriptions == ["custom.b"]
    b.publish("custom.a")
    b.publish("custom.b", {"zone": "a.org"})
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [5]


def test_subscriptions_are_bounded() -> None:
    """A client that subscribes to ever new names is refused at some point, rather than remembered without end."""
    b = Bench()
    connection = b.connect(subscriptions=[])
    for n in range(3):
        b.say(connection, c.Subscribe([f"custom.n{n}.{i}" for i in range(100)], n))
    answers = b.heard(connection)
    assert [type(a) for a in answers] == [c.Subscriptions, c.Subscriptions, c.Error]
    assert answers[-1].code == "too_many"
    assert len(connection.wanted) == 200


def test_subscribing_brings_nothing_of_the_past() -> None:
    """Who subscribes to a type gets what is published from then on, however long the connection was quiet before."""
    b = Bench(recent=Log(max_events=20))
    connection = b.connect(subscriptions=["custom.quiet"])
    for _ in range(10):
        b.publish("custom.loud")
    b.say(connection, c.Subscribe(["custom.loud"], 1))
    b.wait(1)
    assert b.events(connection) == []
    b.say(connection, c.Unsubscribe(["custom.loud"], 1))
    for _ in range(50):
        b.publish("custom.loud")
    b.say(connection, c.Subscribe(["custom.loud"], 2))
    b.wait(1)
    assert b.events(connection) == []
    assert b.closed(connection) is None
    b.publish("custom.loud")
    assert [e.offset for e in b.events(connection)] == [61]


# --------------------------------------------------------------------------------------------- events to clients


def test_the_first_event_of_a_quiet_feed_comes_at_once() -> None:
    """After a while of silence an event waits for no company."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a", priority=Priority.low)
    assert len(b.events(connection)) == 1
    b.wait(5)
    b.publish("custom.a", priority=Priority.normal)
    assert len(b.events(connection)) == 1


@pytest.mark.parametrize(("priority", "seconds"), [(Priority.high, 0.02), (Priority.normal, 0.1), (Priority.low, 1.0)])
def test_events_wait_for_company_as_long_as_their_priority_says(priority: Priority, seconds: float) -> None:
    """In a busy feed high waits 20 ms, normal 100 ms and low a second, and then all come in one frame."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    b.heard(connection)
    b.publish("custom.a", priority=priority)
    b.publish("custom.a", priority=priority)
    b.wait(seconds * 0.9)
    assert b.heard(connection) == []
    b.wait(seconds * 0.1 + 1e-6)
    [frame] = b.heard(connection)
    assert [e.offset for e in frame.events] == [2, 3]
    assert frame.cursor == 3


def test_a_shard_with_few_connections_lets_nobody_wait() -> None:
    """Events wait for company no longer than a millisecond for each connection that the shard has."""
    b = Bench(flush=FlushDelays())
    connection = b.connect(subscriptions=["custom.a"])
    b.connect("bob", subscriptions=["custom.a"])
    b.publish("custom.a")
    b.publish("custom.a", priority=Priority.low)
    assert len(b.events(connection)) == 1
    b.wait(0.0021)
    assert len(b.events(connection)) == 1


def test_a_critical_event_comes_at_once_with_all_before_it() -> None:
    """A critical event waits for nothing, and takes along what was waiting, in the order of the log."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    b.publish("custom.a", priority=Priority.low)
    b.heard(connection)
    b.publish("custom.a", priority=Priority.critical)
    assert [e.offset for e in b.events(connection)] == [2, 3]


def test_equal_connections_get_the_same_frame() -> None:
    """Two users who may see and want the same are sent the very same bytes, encoded once."""
    b = Bench()
    one, two = (b.connect(u, subscriptions=["custom.a"]) for u in ("alice", "bob"))
    b.publish("custom.a", {"n": 1})
    assert b.sockets.sent[one][-1] is b.sockets.sent[two][-1]
    assert len(b.shard.feeds) == 1


@pytest.mark.parametrize("codec", Codec)
def test_frames_are_redacted(codec: Codec) -> None:
    """A viewer and an operator get the same query, the viewer without the client's address."""
    b = Bench()
    viewer = b.connect("alice", "viewer", codec, subscriptions=["dns_query_log"])
    operator = b.connect("olga", "operator", codec, subscriptions=["dns_query_log"])
    b.publish("dns_query_log", {**QUERY, "undeclared": "secret"})
    assert [e.data for e in b.events(operator)] == [{**QUERY, "undeclared": "secret"}]
    assert [e.data for e in b.events(viewer)] == [{k: v for k, v in QUERY.items() if k != "client_ip"}]
    assert b"10.0.0.1" not in b"".join(f.encode() if isinstance(f, str) else f for f in b.sockets.sent[viewer])


def test_scopes_hold() -> None:
    """A user whose token names a zone gets events of it and of what is beneath it, and of no other."""
    b = Bench()
    connection = b.connect(scopes={"zones": ("example.com",)}, subscriptions=["dns.*"])
    for zone in ("example.com", "sub.example.com", "notexample.com", "example.org", "com"):
        b.publish("zone_created", {"zone": zone})
    b.wait(1)
    assert [e.data["zone"] for e in b.events(connection)] == ["example.com", "sub.example.com"]


def test_a_personal_event_reaches_its_user_only() -> None:
    """An event for one user reaches that user, in order with the others, and nobody else."""
    b = Bench()
    alice, bob = (b.connect(u, subscriptions=["custom.*"]) for u in ("alice", "bob"))
    b.publish("custom.a")
    b.publish("custom.b", user="alice")
    b.publish("custom.a")
    b.publish("custom.b", user="carol")
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [1, 2, 3]
    assert [e.offset for e in b.events(bob)] == [1, 3]
    b.publish("custom.a")
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [e.offset for e in b.events(bob)] == [5]
    assert b.sockets.sent[alice][-1] is b.sockets.sent[bob][-1]


def test_a_personal_event_must_be_wanted_and_allowed() -> None:
    """An event for a user who has not subscribed to its type, or may not see it, is not sent."""
    b = Bench()
    alice = b.connect(subscriptions=["custom.a", "gateway_stats"])
    b.publish("custom.b", user="alice")
    b.publish("gateway_stats", {"connections": 1}, user="alice")
    b.wait(1)
    assert b.heard(alice) == []


def test_a_personal_event_behind_a_full_frame_arrives() -> None:
    """A personal event that comes in one batch with more than a frame holds is not lost between the frames."""
    b = Bench()
    alice = b.connect("alice", subscriptions=["custom.*"])
    bob = b.connect("bob", subscriptions=["custom.*"])
    big = {"x": "x" * 30_000}
    batch = [b.event("custom.big", big) for _ in range(6)]
    batch.append(b.event("custom.mine", user="alice"))
    batch.append(b.event("custom.after"))
    b.deliver(*batch)
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [e.offset for e in b.events(bob)] == [1, 2, 3, 4, 5, 6, 8]


def test_a_personal_event_survives_a_change_of_feed() -> None:
    """A personal event that waits for company is not lost when its user changes subscriptions in that moment."""
    b = Bench()
    alice = b.connect("alice", subscriptions=["custom.a"])
    bob = b.connect("bob", subscriptions=["custom.a", "custom.b"])
    b.deliver(b.event("custom.a"))  # both feeds now stand at the same place
    b.deliver(b.event("custom.a"), b.event("custom.a", user="alice"))
    b.say(alice, c.Subscribe(["custom.b"]))
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [1, 2, 3]
    assert [e.offset for e in b.events(bob)] == [1, 2]


def test_a_personal_event_survives_a_reconnect() -> None:
    """A personal event that waits for company is not lost when its user comes back in that moment."""
    b = Bench()
    alice = b.connect("alice", subscriptions=["custom.*"])
    b.connect("bob", subscriptions=["custom.*"])
    b.deliver(b.event("custom.a"))
    b.deliver(b.event("custom.a"), b.event("custom.a", user="alice"))
    again = b.connect("alice", subscriptions=["custom.*"], resume=c.Resume("epoch-1", 1))
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [1]
    assert [e.offset for e in b.events(again)] == [2, 3]


def test_a_quiet_connection_is_never_too_slow() -> None:
    """A connection that had nothing to get for longer than the log remembers gets its next event and no gap."""
    b = Bench(recent=Log(max_events=20))
    alice = b.connect("alice", subscriptions=["custom.quiet"])
    busy = b.connect("bob", subscriptions=["custom.quiet"])
    b.sockets.stuck.add(busy)
    b.say(busy, c.Ping())  # its socket is busy from now on
    for _ in range(100):
        b.publish("custom.loud")
    b.publish("custom.quiet", user="alice")
    b.wait(1)
    b.publish("custom.quiet")
    b.wait(1)
    b.sockets.unstick(busy)
    b.wait(1)
    assert [e.offset for e in b.events(alice)] == [101, 102]
    assert [e.offset for e in b.events(busy)] == [102]
    assert b.closed(alice) is None
    assert b.closed(busy) is None


def test_a_quiet_connection_whose_socket_is_busy_is_not_too_slow() -> None:
    """A connection that is busy for a moment when the first event in a long while comes gets it, and no gap."""
    b = Bench(recent=Log(max_events=20))
    busy = stuck(b, subscriptions=["custom.quiet"])
    for _ in range(100):
        b.publish("custom.loud")
    b.publish("custom.quiet")
    b.wait(1)
    b.sockets.unstick(busy)
    b.wait(1)
    assert [e.offset for e in b.events(busy)] == [101]
    assert b.closed(busy) is None


@pytest.mark.parametrize("codec", Codec)
def test_frames_are_bounded(codec: Codec) -> None:
    """Many events at once are cut into frames of at most 64 KB; only an event larger than that exceeds it."""
    b = Bench()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    slow = b.connect("bob", codec=codec, subscriptions=["custom.a"])
    b.sockets.stuck.add(slow)
    b.say(slow, c.Ping())
    sizes = [100, 9_000, 40_000, 40_000, 70_000, 5, 30_000, 30_000, 64_000]
    b.deliver(*[b.event("custom.a", {"x": "ü" * (n // 2)}) for n in sizes])
    b.wait(0.05)
    b.sockets.unstick(slow)
    b.wait(1)
    for reader in (connection, slow):
        frames = [f.encode() if isinstance(f, str) else f for f in b.sockets.sent[reader]]
        assert [e.offset for e in b.events(reader)] == list(range(1, 10))
        assert sum(len(f) > MAX_FRAME_BYTES for f in frames) <= (3 if codec.is_json else 1) * 3
        for frame in frames:
            message = codec.decode_server(frame)
            assert len(frame) <= MAX_FRAME_BYTES or len(message.events) == 1


def test_an_event_that_messagepack_cant_say_stops_nobody() -> None:
    """An integer of 30 digits, which JSON allows, neither stops the shard nor keeps other events from coming."""
    b = Bench()
    one = b.connect("alice", codec=Codec.msgpack, subscriptions=["custom.a"])
    two = b.connect("bob", codec=Codec.json, subscriptions=["custom.a"])
    b.deliver(b.event("custom.a", {"n": 10**30}), b.event("custom.a", {"n": 1}))
    b.wait(1)
    assert [e.data["n"] for e in b.events(one)] == [1e30, 1]
    assert [e.data["n"] for e in b.events(two)] == [10**30, 1]


def test_a_bad_event_in_a_batch_is_counted() -> None:
    """Bytes that are no event, and a type that is not known here, are counted, and the rest of the batch comes."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    first = b.event("custom.a")
    b.offset += 2
    unknown = msgspec.structs.replace(msgspec.msgpack.decode(first[1], type=Event), type="newer")
    last = b.event("custom.a")
    b.shard.deliver(Deliver(b.epoch, 0, 4, [first, (2, b"\xc1"), (3, encode_event(unknown)), last]), b.now)
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [1, 4]
    assert (b.shard.totals["undecodable"], b.shard.totals["unknown_types"]) == (1, 1)


def test_a_batch_that_comes_twice_is_sent_once() -> None:
    """What the router sends again after a reconnect reaches no client again."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    batch = [b.event("custom.a"), b.event("custom.a")]
    b.deliver(*batch)
    b.deliver(*batch)
    b.deliver(*batch, b.event("custom.a"))
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- slow readers


def stuck(b: Bench, *, user: str = "alice", **hello: Any) -> Connection:
    """A live connection whose socket takes nothing any more."""
    connection = b.connect(user, **hello)
    b.sockets.stuck.add(connection)
    b.say(connection, c.Ping())
    b.heard(connection)
    return connection


def test_a_reader_that_is_stuck_is_closed() -> None:
    """A client that reads nothing for 30 seconds is closed to come back; until then it keeps its place."""
    b = Bench()
    connection = stuck(b, subscriptions=["custom.a"])
    b.publish("custom.a")
    b.wait(29.9)
    assert b.closed(connection) is None
    b.wait(0.3)
    assert b.closed(connection) == 4413
    assert connection not in b.shard.connections


def test_a_reader_that_is_stuck_costs_nothing() -> None:
    """Ten thousand events for a client that reads nothing are neither sent nor kept for it, and others don't wait."""
    b = Bench()
    connection = stuck(b, subscriptions=["custom.a"])
    other = b.connect("bob", subscriptions=["custom.a"])
    before = len(b.sockets.sent[connection])
    for _ in range(100):
        b.deliver(*[b.event("custom.a", {"x": "x" * 100}) for _ in range(100)])
        b.wait(0.05)
    b.wait(0.2)
    assert len(b.events(other)) == 10_000
    assert len(b.sockets.sent[connection]) == before
    assert not connection.answers
    assert connection.feed is not None
    assert connection.feed._pending == []


def test_a_reader_that_recovers_gets_all_of_it() -> None:
    """A client that was stuck for a while gets everything it has missed, in order, once, and is current again."""
    b = Bench()
    connection = stuck(b, subscriptions=["custom.a"])
    b.connect("bob", subscriptions=["custom.a"])
    for _ in range(50):
        b.publish("custom.a", {"x": "x" * 5_000})
        b.wait(0.11)
    b.sockets.unstick(connection)
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == list(range(1, 51))
    assert connection.feed is not None
    assert connection in connection.feed.current


def test_a_reader_that_fell_out_of_the_log_is_told() -> None:
    """A client so slow that the log has forgotten what comes next is told of the gap and closed to resync."""
    b = Bench(recent=Log(max_events=20))
    connection = stuck(b, subscriptions=["custom.a"])
    for _ in range(50):
        b.publish("custom.a")
    b.wait(0.1)
    b.sockets.unstick(connection)
    b.wait(0.1)
    assert [m.code for m in b.heard(connection)] == ["gap"]
    assert b.closed(connection) == 4413


def test_answers_to_a_stuck_reader_are_bounded() -> None:
    """A client that asks and never reads is closed before its answers pile up."""
    b = Bench()
    connection = stuck(b)
    for n in range(MAX_ANSWERS):
        b.say(connection, c.Ping(n))
    assert b.closed(connection) is None
    b.say(connection, c.Ping("one more"))
    assert b.closed(connection) == 4413


def test_answers_come_before_the_events_behind_them() -> None:
    """The answer to a subscription comes before the first of its events, also when the socket was busy between."""
    b = Bench()
    connection = stuck(b, subscriptions=[])
    b.say(connection, c.Subscribe(["custom.a"], "s"))
    b.sockets.unstick(connection)  # it reads again, but nobody has looked yet
    b.publish("custom.a")
    b.wait(1)
    assert [type(m) for m in b.heard(connection)] == [c.Subscriptions, c.Events]


@pytest.mark.parametrize("while_stuck", [0, 1])
def test_the_welcome_comes_first(while_stuck: int) -> None:
    """Nothing of the current state and no event comes before the welcome, also when the socket was busy."""
    b = Bench()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    connection = b.open()
    b.sockets.stuck.add(connection)
    b.say(connection, c.Ping())
    b.say(connection, c.Hello(subscriptions=["system_metrics", "custom.a"]))
    for _ in range(while_stuck):
        b.publish("custom.a")
    b.sockets.unstick(connection)  # it reads again, but nobody has looked yet
    b.publish("custom.a")
    b.wait(1)
    messages = b.heard(connection)
    assert [type(m) for m in messages[:3]] == [c.Pong, c.Welcome, c.Events]
    assert [e.offset for m in messages[2:] for e in m.events] == list(range(1, 3 + while_stuck))


def test_a_connection_closed_in_the_middle_of_an_answer_joins_nothing() -> None:
    """A client that is closed because its answers pile up gets no event after that."""
    b = Bench()
    waiting = b.open("alice")
    live = b.connect("bob")
    for connection, last in ((waiting, c.Hello(subscriptions=["custom.a"])), (live, c.Subscribe(["custom.a"]))):
        b.sockets.stuck.add(connection)
        for n in range(MAX_ANSWERS + 1):
            b.say(connection, c.Ping(n))
        b.heard(connection)
        b.say(connection, last)
        assert b.closed(connection) == 4413
        assert connection.feed is None
        b.sockets.unstick(connection)
    b.publish("custom.a")
    b.wait(1)
    assert b.heard(waiting) == b.heard(live) == []
    assert len(b.shard.feeds) == 0


# ------------------------------------------------------------------------------------------------- time passing


def test_a_silent_client_is_closed() -> None:
    """A client that answers no heartbeat is closed with 4408, within a little more than three heartbeats."""
    b = Bench()
    connection = b.connect()
    b.wait(49)
    assert b.closed(connection) is None
    assert sum('"type":"ping"' in str(f) for f in b.sockets.sent[connection]) >= 1
    b.wait(28)
    assert b.closed(connection) == 4408


def test_a_client_that_answers_stays() -> None:
    """A client that answers its heartbeats, or says anything at all, stays for ever."""
    b = Bench()
    connection = b.connect()
    for n in range(60):
        b.wait(20)
        b.say(connection, c.Pong() if n % 2 else c.Stats())
    assert b.closed(connection) is None


def test_heartbeats_are_spread() -> None:
    """Many clients that came at once are not all pinged in the same moment of every round."""
    b = Bench()
    connections = []
    for n in range(100):
        connections.append(b.connect(f"user-{n}"))
        b.wait(0.25)
    before = [len(b.sockets.sent[x]) for x in connections]
    b.wait(1.01)
    pinged = sum(len(b.sockets.sent[x]) > n for x, n in zip(connections, before, strict=True))
    assert pinged <= 10


def test_a_pause_of_the_process_is_not_the_clients_fault() -> None:
    """When the process itself stood still for minutes, no client is closed for the heartbeats that nobody sent."""
    b = Bench()
    connection = b.connect()
    b.wait(30)
    b.say(connection, c.Pong())
    b.now += 600
    b.shard.run(b.now)
    assert b.closed(connection) is None
    b.say(connection, c.Pong())
    b.wait(40)
    assert b.closed(connection) is None


def test_an_expiring_token_is_announced_and_then_closes() -> None:
    """A client is told a minute before its token ends, and closed for good when it does."""
    b = Bench()
    identity = TOKENS.identify(b.token("alice", ttl=200), b.now + WALL)
    connection = b.open_as(identity)
    b.say(connection, c.Hello())
    b.heard(connection)
    for _ in range(13):
        b.wait(10)
        b.say(connection, c.Pong())
    b.wait(9)
    assert b.heard(connection) == []
    b.wait(1.1)
    assert [m.code for m in b.heard(connection)] == ["token_expiring"]
    b.say(connection, c.Pong())
    b.wait(30)
    b.say(connection, c.Pong())
    b.wait(28)
    assert b.closed(connection) is None
    b.wait(2)
    assert b.closed(connection) == 4401


def test_a_refreshed_token_goes_on() -> None:
    """A client that sends a new token in time is neither closed nor warned again at the old one's end."""
    b = Bench()
    identity = TOKENS.identify(b.token("alice", ttl=100), b.now + WALL)
    connection = b.open_as(identity)
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    b.wait(30)
    b.heard(connection)
    b.say(connection, c.Refresh(b.token("alice", ttl=1000), "r"))
    reply, subscriptions = b.heard(connection)
    assert (reply.id, reply.data) == ("r", {"token_expires_at": "2027-01-15T08:33:50Z"})
    assert subscriptions.subscriptions == ["custom.a"]
    for _ in range(8):
        b.wait(20)
        b.say(connection, c.Pong())
    assert b.closed(connection) is None
    assert b.heard(connection) == []


def test_a_refresh_with_fewer_rights_counts_at_once() -> None:
    """When a refreshed token may see less, what it may not see stops at once, even what was about to be sent."""
    b = Bench()
    connection = b.connect("alice", "admin", subscriptions=["gateway_stats", "custom.a", "dns_query_log"])
    b.publish("custom.a")
    b.publish("gateway_stats", {"connections": 1})
    b.publish("dns_query_log", QUERY)
    assert [e.offset for e in b.events(connection)] == [1]
    b.say(connection, c.Refresh(b.token("alice", "viewer"), "r"))
    b.publish("gateway_stats", {"connections": 2})
    b.wait(2)
    reply, subscriptions, *rest = b.heard(connection)
    assert reply.id == "r"
    assert subscriptions.subscriptions == ["custom.a", "dns_query_log"]
    assert [(d.type, d.reason) for d in subscriptions.denied] == [("gateway_stats", "forbidden")]
    assert [(e.offset, e.data.get("client_ip")) for m in rest for e in m.events] == [(3, None)]


def test_a_refresh_with_narrower_scopes_counts_at_once() -> None:
    """When a refreshed token names fewer zones, no event of the others comes any more."""
    b = Bench()
    connection = b.connect("alice", scopes={"zones": ("a.org", "b.org")}, subscriptions=["dns.*"])
    b.publish("zone_created", {"zone": "a.org"})
    b.publish("zone_created", {"zone": "b.org"})
    b.say(connection, c.Refresh(b.token("alice", zones=("a.org",))))
    b.publish("zone_created", {"zone": "a.org"})
    b.wait(2)
    assert [e.offset for e in b.events(connection)] == [1, 3]


def test_a_refresh_with_more_rights_brings_back_what_was_asked_for() -> None:
    """A type that was asked for and denied comes as soon as a new token allows it, without asking again."""
    b = Bench()
    connection = b.connect("alice", "viewer", subscriptions=["gateway_stats", "custom.a"])
    b.say(connection, c.Refresh(b.token("alice", "admin")))
    assert b.heard(connection)[-1].subscriptions == ["custom.a", "gateway_stats"]
    b.publish("gateway_stats", {"connections": 1})
    assert len(b.events(connection)) == 1


def test_a_token_of_another_user_is_refused() -> None:
    """A connection can't become another user's, nor go on with a token that proves nothing."""
    b = Bench()
    connection = b.connect("alice", "viewer", subscriptions=["custom.a"])
    b.say(connection, c.Refresh(b.token("bob", "admin"), 1))
    b.say(connection, c.Refresh("garbage", 2))
    b.say(connection, c.Refresh(b.token("alice", "admin", ttl=-1), 3))
    assert [(e.id, e.code) for e in b.heard(connection)] == [
        (1, "wrong_user"),
        (2, "invalid_token"),
        (3, "token_expired"),
    ]
    assert connection.identity.role == "viewer"


def test_a_token_may_be_refreshed_before_hello() -> None:
    """A client may refresh before it says hello, and then the new rights are those of the welcome."""
    b = Bench()
    connection = b.open("alice", "viewer")
    b.say(connection, c.Refresh(b.token("alice", "admin"), 1))
    b.say(connection, c.Hello(subscriptions=["gateway_stats"]))
    reply, welcome = b.heard(connection)
    assert reply.id == 1
    assert (welcome.role, welcome.subscriptions) == ("admin", ["gateway_stats"])


def test_refreshing_again_and_again_keeps_nothing() -> None:
    """A client that refreshes its token all day leaves no timers behind, and one that is gone leaves none either."""
    b = Bench(message_burst=1000.0)
    connection = b.connect()
    for n in range(300):
        b.say(connection, c.Refresh(b.token("alice", ttl=36_000 + n)))
    assert len(b.shard._timers) <= 10
    for n in range(300):
        b.shard.gone(b.connect(f"user-{n}"))
    b.wait(5)
    assert len(b.shard._timers) <= 100


# --------------------------------------------------------------------------------------------------- coming back


def resumed(b: Bench, cursor: int, epoch: str = "epoch-1", user: str = "alice") -> tuple[c.Welcome, list[int]]:
    connection = b.open(user)
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume(epoch, cursor)))
    b.answer()
    b.wait(1)
    welcome, *rest = b.heard(connection)
    return welcome, [e.offset for m in rest for e in m.events]


def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    """A client that shows its cursor gets everything behind it, its personal events too, and then live events."""
    b = Bench()
    for n in range(10):
        b.publish("custom.a", {"n": n}, user="alice" if n == 5 else "bob" if n == 6 else None)
    welcome, offsets = resumed(b, 3)
    assert (welcome.resumed, welcome.cursor, welcome.reason) == (True, 3, None)
    assert offsets == [4, 5, 6, 8, 9, 10]


def test_a_client_that_missed_much_gets_all_of_it() -> None:
    """What a client has missed comes in as many frames as it takes, none of them over the bound, and others live on."""
    b = Bench()
    for n in range(300):
        b.publish("custom.a", {"n": n, "x": "x" * 2000})
    welcome, offsets = resumed(b, 0)
    assert welcome.resumed
    assert offsets == list(range(1, 301))


def test_a_client_that_missed_nothing() -> None:
    """A client that comes back at once is resumed and gets nothing twice."""
    b = Bench()
    b.publish("custom.a")
    welcome, offsets = resumed(b, 1)
    assert (welcome.resumed, offsets) == (True, [])


@pytest.mark.parametrize(
    ("cursor", "epoch", "reason"), [(40, "epoch-0", "epoch"), (51, "epoch-1", "future"), (5, "epoch-1", "retention")]
)
def test_a_cursor_that_cant_be_resumed_is_refused(cursor: int, epoch: str, reason: str) -> None:
    """A cursor of a lost log, of the future, or of too long ago is a plain no with its reason, and nothing partial."""
    b = Bench(recent=Log(max_events=20))
    b.journal_floor = 10
    for _ in range(50):
        b.publish("custom.a")
    welcome, offsets = resumed(b, cursor, epoch)
    assert (welcome.resumed, welcome.reason, welcome.cursor) == (False, reason, 50)
    assert offsets == []


def test_what_the_recent_log_has_forgotten_comes_from_the_router() -> None:
    """A cursor older than the shard's memory is resumed all the same: the router's part first, then the shard's."""
    b = Bench(recent=Log(max_events=20))
    for n in range(50):
        b.publish("custom.a", user="alice" if n % 5 == 0 else "bob" if n % 5 == 1 else None)
    assert b.shard.log.floor > 10
    welcome, offsets = resumed(b, 3)
    assert (welcome.resumed, welcome.cursor) == (True, 3)
    assert offsets == [n + 1 for n in range(3, 50) if n % 5 != 1]


def test_what_comes_during_a_replay_comes_after_it_and_once() -> None:
    """Live events wait for what was missed, and the seam between them is neither gap nor overlap."""
    b = Bench(recent=Log(max_events=20))
    for _ in range(50):
        b.publish("custom.a")
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 3)))
    for _ in range(30):
        b.publish("custom.a")  # the recent log forgets what it still had when the client came
    assert b.heard(connection) == []
    b.answer()
    b.publish("custom.a")
    b.wait(1)
    welcome, *rest = b.heard(connection)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == list(range(4, 82))


def test_a_replay_that_is_too_large_is_refused() -> None:
    """One client can't have the server send it a day of traffic: it is told so, and starts from the present state."""
    b = Bench(recent=Log(max_events=20), replay_bytes=5_000)
    for _ in range(50):
        b.publish("custom.a", {"x": "x" * 200})
    welcome, offsets = resumed(b, 3)
    assert (welcome.resumed, welcome.reason, offsets) == (False, "too_much", [])
    welcome, offsets = resumed(b, 45)
    assert (welcome.resumed, offsets) == (True, [46, 47, 48, 49, 50])


def test_a_replay_is_measured_by_what_the_client_sees() -> None:
    """Much that a client does not see doesn't count against the little that it does."""
    b = Bench(replay_bytes=2_000)
    for n in range(100):
        b.publish("custom.a", {"x": "x" * 200}, user=None if n % 50 == 0 else "bob")
    welcome, offsets = resumed(b, 0)
    assert (welcome.resumed, offsets) == (True, [1, 51])


def test_replays_take_their_turns() -> None:
    """However many come back at once, the router is asked for a few at a time, and each gets all of its own."""
    b = Bench(recent=Log(max_events=20), replays=2)
    for _ in range(50):
        b.publish("custom.a")
    connections = [b.open(f"user-{n}") for n in range(6)]
    for connection in connections:
        b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 3)))
    assert len(b.asked) == 2
    b.shard.gone(connections[0])
    b.shard.gone(connections[4])
    b.answer()
    b.wait(1)
    for connection in connections[1:4] + connections[5:]:
        _, *rest = b.heard(connection)
        assert [e.offset for m in rest for e in m.events] == list(range(4, 51))


def test_a_client_whose_replay_cannot_be_asked_for_keeps_its_cursor() -> None:
    """While the router is away nobody is told "no" for that: the client is asked to come again, with what it has."""
    b = Bench(recent=Log(max_events=20))
    for _ in range(50):
        b.publish("custom.a")
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 3)))
    b.wait(10)
    [reconnect] = b.heard(connection)
    assert (reconnect.reason, b.closed(connection)) == ("replay_unavailable", 1012)


def test_a_replay_that_takes_too_long_is_too_much() -> None:
    """While the router answers nobody is sent away to come again with an ever older cursor: it is told "no" in time."""
    b = Bench(recent=Log(max_events=20), replays=1)
    for _ in range(50):
        b.publish("custom.a")
    served, waits = b.open("ann"), b.open("bob")
    for connection in (served, waits):
        b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 3)))
    b.wait(4)
    [question] = b.asked
    b.shard.replayed(Replayed(question.request, 4, []), b.now)  # a little at a time
    b.wait(4)
    for connection in (served, waits):
        welcome = b.heard(connection)[0]
        assert (welcome.resumed, welcome.reason) == (False, "too_much")
        assert connection.state is State.live


def test_what_a_client_says_during_its_replay_is_obeyed_after_it() -> None:
    """A client needn't wait for its welcome before it subscribes to more."""
    b = Bench(recent=Log(max_events=20))
    for _ in range(50):
        b.publish("custom.a")
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 48)))
    b.say(connection, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 48)))
    slow = b.open("bob")
    b.say(slow, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 3)))
    b.say(slow, c.Subscribe(["custom.b"], 7))
    b.say(slow, c.Ping(8))
    assert [m.id for m in b.heard(slow)] == [8]
    b.answer()
    b.wait(1)
    assert [m.id for m in b.heard(slow) if isinstance(m, c.Subscriptions)] == [7]
    assert [m.code for m in b.heard(connection) if isinstance(m, c.Error)] == ["already_said_hello"]


def test_a_client_from_a_shard_that_was_ahead_waits_for_this_one() -> None:
    """A cursor that the router knows and this shard has not reached yet is no cursor of the future."""
    b = Bench()
    b.publish("custom.a")
    late = b.event("custom.a")
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 2)))
    b.answer()
    assert b.heard(connection) == []
    b.deliver(late)
    b.publish("custom.a")
    b.wait(1)
    welcome, *rest = b.heard(connection)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == [3]


def test_a_user_from_another_shard_gets_its_own_events_of_before() -> None:
    """What was for one user alone, and went to a shard that has gone, is fetched; nobody else's is."""
    b = Bench((0, 1))
    user = user_who((0, 1), 1)
    b.publish("custom.a")
    for owner in (user, "somebody", user):
        b.event("custom.a", user=owner)  # went to shard 1
    b.shard.deliver(Deliver(b.epoch, 1, b.offset, []), b.now)
    b.ring(0)
    b.publish("custom.a")
    welcome, offsets = resumed(b, 1, user=user)
    assert (welcome.resumed, offsets) == (True, [2, 4, 5])
    welcome, offsets = resumed(b, 2, user=user)
    assert (welcome.resumed, offsets) == (True, [4, 5])


def test_users_who_stayed_are_not_asked_for() -> None:
    """A user whom every ring gave to this shard has its own events here: the router isn't asked."""
    b = Bench((0, 1))
    user = user_who((0, 1), 0)
    b.publish("custom.a", user=user)
    b.ring(0)
    connection = b.open(user)
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 0)))
    assert b.asked == []
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [1]


def test_a_shard_that_starts_late_begins_where_the_router_says() -> None:
    """The log begins behind what the router has kept for it, and the states of before are there for new clients."""
    b = Bench(())
    b.offset = 0
    state = b.event("system_metrics", {"cpu_usage": 1, "host": "ns1"}, key="ns1")
    b.offset = 100
    b.shard.states(States(b.epoch, 100, [state]), b.now)
    b.ring(0)
    assert b.shard.ready
    b.publish("custom.a")
    connection = b.connect("alice", "admin", subscriptions=["system_metrics", "custom.a"])
    assert [e.offset for e in b.events(connection)] == [1]


def test_a_part_of_the_log_that_is_missing_is_asked_for() -> None:
    """A message that was lost on its way is no gap: the shard says hello, and takes nothing until that is answered."""
    b = Bench()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    lost, late = b.event("custom.a"), b.event("custom.a")
    assert not b.shard.deliver(Deliver(b.epoch, 2, 3, [late]), b.now)
    assert b.shard.deliver(Deliver(b.epoch, 3, 3, []), b.now)
    b.ring(0)
    assert b.shard.deliver(Deliver(b.epoch, 1, 3, [lost, late]), b.now)
    b.wait(1)
    assert [e.offset for e in b.events(connection)] == [1, 2, 3]


def test_a_shard_that_joins_doesnt_void_cursors() -> None:
    """When a shard is added, those who stay can still resume."""
    b = Bench((0,))
    user = user_who((0, 1), 0)
    b.publish("custom.a")
    b.publish("custom.a")
    b.ring(0, 1)
    welcome, offsets = resumed(b, 1, user=user)
    assert (welcome.resumed, offsets) == (True, [2])


def test_a_new_client_gets_the_current_state() -> None:
    """Who starts without a cursor gets the newest value of each state it may see, right after the welcome."""
    b = Bench()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    b.publish("system_metrics", {"cpu_usage": 2}, key="ns2")
    b.publish("system_metrics", {"cpu_usage": 3}, key="ns1")
    b.publish("gateway_stats", {"connections": 1}, key="g")
    b.publish("bulk_progress", {"operation_id": "1"}, key="1", user="bob")
    b.publish("bulk_progress", {"operation_id": "2"}, key="2", user="alice")
    b.publish("custom.a")
    connection = b.open()
    b.say(connection, c.Hello(subscriptions=["*"]))
    welcome, state = b.heard(connection)
    assert (welcome.cursor, state.cursor) == (1, 7)  # who is cut off between the two comes back before the states
    assert [e.offset for e in state.events] == [2, 3, 6]
    b.wait(1)
    assert b.heard(connection) == []


def test_a_state_that_may_not_be_seen_any_more_is_not_sent_late() -> None:
    """When rights are taken away while the current state waits for a stuck socket, it is never sent."""
    for role, code in (("viewer", 4413), ("admin", None)):
        b = Bench()
        b.publish("gateway_stats", {"connections": 1}, key="g")
        connection = b.open("alice", "admin")
        b.sockets.stuck.add(connection)
        b.say(connection, c.Ping())
        b.say(connection, c.Hello(subscriptions=["*"]))
        b.say(connection, c.Refresh(b.token("alice", role)))
        assert b.closed(connection) == code
        b.sockets.unstick(connection)
        b.wait(1)
        assert [e.type for e in b.events(connection)] == (["gateway_stats"] if code is None else [])


def test_a_client_that_resumes_gets_no_state_twice() -> None:
    """Who resumes gets what was missed and no snapshot besides; who is refused gets the snapshot instead."""
    b = Bench()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    b.publish("system_metrics", {"cpu_usage": 2}, key="ns1")
    for epoch, expected in (("epoch-1", [2]), ("epoch-0", [2])):
        connection = b.open()
        b.say(connection, c.Hello(subscriptions=["system.*"], resume=c.Resume(epoch, 1)))
        b.wait(1)
        assert [e.offset for e in b.events(connection)] == expected


# ------------------------------------------------------------------------------------------------------- moving


def test_users_who_move_are_sent_away() -> None:
    """When a shard joins, the users it takes over are told to reconnect, get nothing more, and are closed."""
    b = Bench((0,))
    leaver, stayer = user_who((0, 1), 1), user_who((0, 1), 0)
    moving, staying = (b.connect(u, subscriptions=["custom.a"]) for u in (leaver, stayer))
    b.publish("custom.a")
    b.publish("custom.a")  # waits for company while the ring changes
    b.events(moving)
    b.forgetful_ring(0, 1)
    b.publish("custom.a")
    b.publish("custom.a", user=leaver)
    b.wait(0.5)
    [reconnect] = b.heard(moving)
    assert (reconnect.reason, reconnect.after_ms) == ("ring_changed", 0)
    assert len(b.events(staying)) == 3
    b.wait(2)
    assert b.closed(moving) == 4421
    assert b.closed(staying) is None


def test_users_who_move_get_nothing_whatever_they_say() -> None:
    """A client that was told to reconnect and goes on talking gets no event that its next shard would send again."""
    b = Bench((0,))
    users = [f"user-{n}" for n in range(40) if Ring((0, 1)).owner(f"user-{n}") == 1][:4]
    live = [b.connect(u, subscriptions=["custom.a"]) for u in users[:3]]
    waiting = b.open(users[3])
    b.forgetful_ring(0, 1)
    for connection in (*live, waiting):
        assert [type(m) for m in b.heard(connection)] == [c.ReconnectNow]
    b.say(live[0], c.Subscribe(["custom.a", "custom.b"]))
    b.say(live[1], c.Refresh(b.token(users[1])))
    b.say(live[2], c.Unsubscribe(["custom.b"]))
    b.say(waiting, c.Hello(subscriptions=["custom.a"]))
    b.publish("custom.a")
    b.wait(0.9)
    assert [b.heard(x) for x in (*live, waiting)] == [[], [], [], []]
    assert len(b.shard.feeds) == 0


def test_users_who_wait_for_hello_and_move_get_no_defaults() -> None:
    """A client that was told to reconnect before it said hello is not given the defaults when two seconds are over."""
    b = Bench((0,), moves_per_second=0.1)
    users = [f"user-{n}" for n in range(40) if Ring((0, 1)).owner(f"user-{n}") == 1][:2]
    waiting = [b.open(u) for u in users]
    b.forgetful_ring(0, 1)
    b.publish("custom.a")
    b.wait(5)
    assert [[type(m) for m in b.heard(x)] for x in waiting] == [[c.ReconnectNow]] * 2


def test_users_who_move_leave_one_after_the_other() -> None:
    """Users are sent away at a set pace, so that their next shard isn't run over, once for all changes of the ring."""
    b = Bench((0,), moves_per_second=10.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 1][:30]
    moving = [b.connect(u) for u in users]
    b.forgetful_ring(0, 1)
    b.forgetful_ring(0, 1, 2)
    delays = [[m.after_ms for m in b.heard(x)] for x in moving]
    assert sorted(delays) == [[n * 100] for n in range(30)]
    b.wait(1.5)
    assert 1 <= sum(b.closed(x) == 4421 for x in moving) <= 10
    b.wait(4)
    assert all(b.closed(x) == 4421 for x in moving)


def test_users_who_wait_for_their_turn_are_served_until_then() -> None:
    """As long as the router goes on with their own events, they get everything up to their turn, and then nothing."""
    b = Bench((0,), moves_per_second=2.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 1][:3]
    moving = [b.connect(u, subscriptions=["custom.a"]) for u in users]
    b.ring(0, 1)
    assert b.shard.settled == 1
    published: list[list[int]] = [[], [], []]
    got: list[list[int]] = [[], [], []]
    told = [False, False, False]
    for _ in range(20):
        for n, user in enumerate(users):
            published[n].append(b.publish("custom.a", user=user))
        b.wait(0.2)
        for n, connection in enumerate(moving):
            for m in b.heard(connection):
                told[n] = told[n] or isinstance(m, c.ReconnectNow)
                got[n] += [e.offset for e in m.events] if isinstance(m, c.Events) else []
    assert all(told)
    assert all(mine == all_of[: len(mine)] for mine, all_of in zip(got, published, strict=True))
    first, _, last = sorted(map(len, got))
    assert first <= 1
    assert 3 <= last < 20
    assert b.shard.settled == 2
    assert [b.closed(x) for x in moving] == [4421] * 3


def test_a_shard_that_leaves_sends_everybody_away_at_its_pace() -> None:
    """It takes no new users, tells its own one after the other, closes with 1012; done when all sockets are gone."""
    b = Bench((0, 1), moves_per_second=10.0)
    users = [u for u in (f"user-{n}" for n in range(200)) if Ring((0, 1)).owner(u) == 0][:20]
    connections = [b.connect(u) for u in users]
    b.shard.leave(b.now)
    with pytest.raises(Refused) as caught:
        b.shard.admit(b.ticket("late"), b.now)
    assert (caught.value.status, caught.value.code) == (503, "draining")
    b.ring(1)
    b.wait(1)
    assert 5 <= sum(bool(b.heard(x)) for x in connections) <= 15
    assert not b.shard.drained
    b.wait(4)
    assert [b.closed(x) for x in connections] == [1012] * 20
    for connection in connections:
        assert not b.shard.drained, "a socket is there until it is known to be gone"
        b.shard.gone(connection)
    assert b.shard.drained


def test_a_full_address_lets_a_user_take_its_own_place() -> None:
    """Who comes back from an address that is full replaces its older connection there; another user is refused."""
    b = Bench(per_address=1)
    b.address = "192.0.2.7"
    old = b.open("alice")
    new = b.open("alice")
    assert b.closed(old) == 4409
    with pytest.raises(Refused) as refused:
        b.open("alice")  # the old socket is still there, and the next one's would be a third
    assert refused.value.code == "too_many_from_address"
    b.shard.gone(old)
    with pytest.raises(Refused):
        b.open("bob")
    third = b.open("alice")
    assert b.closed(new) == 4409
    assert b.closed(third) is None


def test_a_shard_is_not_drained_while_a_handshake_is_under_way() -> None:
    """Who has been let in has a slot before it is a connection; one that is only kept for somebody holds up nobody."""
    b = Bench()
    admitted = b.shard.admit(b.ticket("alice"), b.now)
    b.shard.leave(b.now)
    assert not b.shard.drained
    b.shard._admission.keep_for("alice", "viewer", b.now)
    b.shard.abandon(admitted.identity, admitted.address)
    assert b.shard._admission.leases.taken == 1
    assert b.shard.drained


def test_a_shard_that_must_end_soon_tells_everybody_in_time() -> None:
    """The grace period of a process counts for more than the pace."""
    b = Bench((0,), moves_per_second=1.0)
    connections = [b.connect(f"user-{n}") for n in range(50)]
    b.shard.leave(b.now, within=2.0)
    b.wait(4)
    assert [b.closed(x) for x in connections] == [1012] * 50


def test_the_same_ring_again_moves_nobody() -> None:
    """A ring that is told twice is told once."""
    b = Bench((0,))
    connection = b.connect()
    b.version -= 1
    b.ring(0)
    b.wait(2)
    assert b.closed(connection) is None
    assert b.heard(connection) == []


@pytest.mark.parametrize("by", ["ring", "deliver"])
def test_a_lost_log_is_a_gap(by: str) -> None:
    """When the log itself was lost, every client is told so and closed to start anew, the stuck ones too."""
    b = Bench()
    connection = b.connect("alice", subscriptions=["custom.a"])
    waiting = b.open("bob")
    blocked = stuck(b, user="carol")
    b.publish("custom.a")
    b.heard(connection)
    b.epoch, b.offset = "epoch-2", 0
    if by == "ring":
        b.ring(0)
    else:
        b.deliver(b.event("custom.a"))
        b.ring(0)
    assert [m.code for m in b.heard(connection)] == ["gap"]
    assert [b.closed(x) for x in (connection, waiting, blocked)] == [4413] * 3
    assert b.shard.connections == set()
    assert len(b.shard.feeds) == 0
    again = b.connect("alice", subscriptions=["custom.a"])
    b.publish("custom.a")
    assert len(b.events(again)) == 1


@pytest.mark.parametrize("before", [0, 3])
def test_a_hole_in_the_log_is_a_gap(before: int) -> None:
    """When the router can't give what comes next any more, every client is told and closed to start anew."""
    b = Bench()
    for _ in range(before):
        b.publish("custom.a")
    connection = b.connect(subscriptions=["custom.a"])
    b.offset += 10
    b.journal_floor = b.offset
    b.version -= 1
    b.ring(0)  # the answer to a hello: what the router says now is all that it has
    b.publish("custom.a")
    assert [m.code for m in b.heard(connection)] == ["gap"]
    assert b.closed(connection) == 4413
    welcome, offsets = resumed(b, before)
    assert (welcome.resumed, welcome.reason, offsets) == (False, "retention", [])


def test_everything_is_closed_before_the_process_ends() -> None:
    """A shard that ends closes every connection with the code that it is given."""
    b = Bench()
    connections = [b.connect("alice"), b.open("bob"), stuck(b, user="carol")]
    b.shard.close_all(CloseCode.restarting)
    assert [b.closed(x) for x in connections] == [1012] * 3
    for connection in connections:
        b.shard.gone(connection)
        b.shard.gone(connection)
    assert {x.state for x in connections} == {State.gone}


def test_the_numbers_are_right() -> None:
    """A shard's statistics count its connections, feeds, events, deliveries and frames."""
    b = Bench()
    for n in range(3):
        b.connect(f"user-{n}", subscriptions=["custom.a"])
    b.connect("other", subscriptions=["custom.b"])
    b.deliver(b.event("custom.a"), b.event("custom.a"), b.event("custom.c"))
    stats = b.shard.stats()
    assert (stats.connections, stats.feeds, stats.admitted, stats.lagging) == (4, 2, 4, 0)
    assert (stats.events, stats.deliveries, stats.frames) == (3, 6, 3)
    assert (stats.offset, stats.oldest) == (3, 0)
    assert stats.bytes > 0
    assert stats.log_bytes == b.shard.log.bytes > 0


# ------------------------------------------------------------------------------------------------------ the lease


def refused(b: Bench, user: str, role: str = "viewer") -> Refused:
    """With what one more is refused."""
    with pytest.raises(Refused) as caught:
        b.shard.admit(b.ticket(user, role), b.now)
    return caught.value


def test_without_a_slot_nobody_is_let_in() -> None:
    """What the lease doesn't grant is refused before it is accepted, with a word when to try again."""
    b = Bench()
    b.lease(viewer=1)
    first = b.connect("alice")
    ticket = b.ticket("bob")
    with pytest.raises(Refused) as caught:
        b.shard.admit(ticket, b.now)
    assert (caught.value.status, caught.value.code) == (503, "over_limit")
    assert caught.value.retry_after
    b.shard.gone(first)
    assert b.shard.admit(ticket, b.now).identity.user == "bob"


def test_a_handshake_that_comes_to_nothing_gives_its_slot_back() -> None:
    """Whoever was admitted and went away before it was accepted leaves its slot to the next."""
    b = Bench()
    b.lease(viewer=1)
    identity = b.shard.admit(b.ticket("alice"), b.now).identity
    refused(b, "bob")
    b.shard.abandon(identity)
    b.connect("bob")


def test_a_slot_is_free_when_the_socket_is_gone_and_not_before() -> None:
    """A connection that is being closed has its slot until its socket has ended."""
    b = Bench()
    b.lease(viewer=1)
    first = b.connect("alice")
    b.raw(first, "x" * (MAX_MESSAGE_BYTES + 1))
    assert b.closed(first) == 1009
    refused(b, "bob")
    b.shard.gone(first)
    b.connect("bob")


def test_who_has_been_idle_longest_gives_way() -> None:
    """A lease that grants less sends away the longest idle of the group, politely, and closes it with 1013."""
    b = Bench()
    users = [b.connect(f"user-{n}", subscriptions=["custom.a"]) for n in range(3)]
    operator = b.connect("operator", "operator")
    for connection in (users[0], users[2]):
        b.wait(1)
        b.say(connection, c.Ping())
    b.wait(1)
    b.say(users[1], c.Pong())  # an answer to a ping is no sign of use
    for connection in users:
        b.heard(connection)
    b.lease(viewer=2, operator=1)
    [told] = b.heard(users[1])
    assert (told.reason, told.after_ms) == ("over_limit", 5000)
    b.wait(1)
    assert [b.closed(x) for x in (*users, operator)] == [None, 1013, None, None]
    refused(b, "late")
    b.publish("custom.a")
    b.wait(1)
    assert [len(b.events(x)) for x in users] == [1, 0, 1]


def test_those_who_go_already_are_counted() -> None:
    """A second lease that grants as little as the first sends nobody else away."""
    b = Bench()
    users = [b.connect(f"user-{n}") for n in range(4)]
    b.lease(viewer=3)
    b.wait(1)
    b.lease(viewer=3)
    b.lease(viewer=2)
    b.wait(1)
    assert sum(b.closed(x) == 1013 for x in users) == 2


def test_a_legacy_duplicate_gives_way_before_anybody_else() -> None:
    """Of a user with several connections of the old frontend one can be done without."""
    b = Bench(per_user=2)
    idle = b.connect("idle")
    b.wait(5)
    older, _ = b.connect("alice"), b.connect("alice")
    older.kind = "legacy"
    b.lease(viewer=2)
    b.wait(1)
    assert (b.closed(older), b.closed(idle)) == (1013, None)


def test_when_the_lease_is_over_users_are_sent_away_before_the_slots_are_somebody_elses() -> None:
    """A shard that does not hear of the router accepts nobody, and is empty when its slots are given to others."""
    b = Bench(leased_for=100.0, heartbeat=600.0)
    users = [b.connect(f"user-{n}") for n in range(10)]
    b.wait(99.9)
    assert b.shard.ready
    b.wait(0.2)
    assert not b.shard.ready
    with pytest.raises(Refused) as caught:
        b.shard.admit(b.ticket("late"), b.now)
    assert caught.value.status == 503
    b.wait(20)
    assert [b.heard(x)[-1].reason for x in users] == ["no_lease"] * 10
    b.wait(4.9)
    assert all(b.closed(x) for x in users)


def test_a_lease_that_comes_back_in_time_lets_the_rest_stay() -> None:
    """When the router is heard again those who were not yet sent away stay, and others are let in."""
    b = Bench(leased_for=100.0, heartbeat=600.0)
    users = [b.connect(f"user-{n}") for n in range(10)]
    b.wait(103)
    gone = sum(x.state in (State.leaving, State.closing) for x in users)
    assert 0 < gone < 10
    b.lease(spare=100, seconds=100.0)
    b.wait(50)
    assert sum(b.closed(x) is not None for x in users) == gone
    b.connect("late")


def test_at_a_full_shard_a_user_comes_back_to_its_own_slot() -> None:
    """A user whose old connection is half dead gets in again with its next attempt, however many others want in."""
    b = Bench()
    b.lease(viewer=1)
    old = b.connect("alice")
    assert refused(b, "alice").retry_after == 1
    assert b.closed(old) == 4409
    refused(b, "bob")
    b.shard.gone(old)
    refused(b, "bob")
    b.connect("alice")
    refused(b, "bob")


def test_a_used_ticket_ends_nobodys_connection() -> None:
    """At a full shard a ticket from a log neither lets in nor makes room for itself."""
    b = Bench()
    b.lease(viewer=1)
    ticket = b.ticket("alice")
    connection = b.shard.open(b.shard.admit(ticket, b.now).identity, Codec.json, None, b.now)
    with pytest.raises(InvalidToken):
        b.shard.admit(ticket, b.now)
    assert b.closed(connection) is None


def test_a_refreshed_token_moves_the_slot_to_the_new_group_if_there_is_one() -> None:
    """Another role counts to another group as soon as that has room; until then the connection stays in the old one."""
    b = Bench()
    b.lease(spare=1, viewer=1)
    connection = b.connect("alice")
    b.say(connection, c.Refresh(b.token("alice", "operator")))
    assert b.shard.slots(b.now).used == {"operator": 1}
    b.connect("bob")
    b.say(connection, c.Refresh(b.token("alice", "viewer")))
    assert b.shard.slots(b.now).used == {"operator": 1, "viewer": 1}
    b.shard.gone(connection)
    assert b.shard.slots(b.now).used == {"viewer": 1}


# --------------------------------------------------------------------------------------------------- of one user


def test_with_a_limit_of_two_the_newest_two_stay() -> None:
    """The third connection of a user ends the first, and what is for the user reaches both that are left."""
    b = Bench(per_user=2)
    first, second, third = [b.connect(subscriptions=["custom.a"]) for _ in range(3)]
    assert [b.closed(x) for x in (first, second, third)] == [4409, None, None]
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert [len(b.events(x)) for x in (second, third)] == [1, 1]
    b.shard.gone(second)
    b.publish("custom.a", user="alice")
    b.wait(1)
    assert [len(b.events(x)) for x in (second, third)] == [0, 1]


def test_with_reject_the_first_two_stay() -> None:
    """Where newer connections are refused, the limit is as high."""
    b = Bench(per_user=2, on_duplicate="reject")
    b.connect()
    b.connect()
    assert refused(b, "alice").code == "duplicate_connection"


def test_the_router_hears_of_users_who_come_while_they_move() -> None:
    """For some time after a ring change each newcomer is told of, since another shard may still have it."""
    b = Bench((0,), per_user=2)
    b.connect("alice")
    b.connect("alice")
    assert b.came == [Came("alice", 1), Came("alice", 2)]
    b.wait(100)
    b.connect("bob")
    assert len(b.came) == 2
    b.ring(0, 1)
    b.connect(user_who((0, 1), 0))
    assert len(b.came) == 3


def test_newer_connections_elsewhere_end_older_ones_here() -> None:
    """Of the user's connections here as many stay as the limit leaves; one that was told to leave is left alone."""
    b = Bench((0,), per_user=2, moves_per_second=0.5)
    user = user_who((0, 1), 1)
    first, second = b.connect(user), b.connect(user)
    b.shard.elsewhere(Elsewhere(user, 1))
    assert [b.closed(x) for x in (first, second)] == [4409, None]
    b.ring(0, 1)
    b.wait(0.5)
    assert second.state is State.leaving
    b.shard.elsewhere(Elsewhere(user, 2))
    assert b.closed(second) is None
    b.shard.elsewhere(Elsewhere("nobody", 2))


def test_messages_are_counted_for_the_user() -> None:
    """A second connection gives a user no more messages, and another user none the less."""
    b = Bench(per_user=2, message_burst=5.0, message_rate=1.0)
    first, second = b.connect(), b.connect()
    for connection in (first, second, first):
        b.say(connection, c.Ping())
    b.say(second, c.Ping(9))
    assert (b.heard(second)[-1].code, b.heard(first)[-1].id) == ("rate_limited", None)
    other = b.connect("bob")
    b.say(other, c.Ping(1))
    assert b.heard(other)[0].id == 1


@pytest.mark.parametrize("codec", Codec)
def test_who_answers_pings_pays_nothing_for_another_connections_flood(codec: Codec) -> None:
    """One connection floods and is closed; the user's other one has only answered pings, and hears of nothing."""
    b = Bench(per_user=2, message_burst=5.0, message_rate=0.001, heartbeat=1.0)
    quiet, flood = b.connect(codec=codec), b.connect()
    for _ in range(14):
        b.say(flood, c.Ping())
    assert b.closed(flood) == 4400
    for _ in range(30):
        b.wait(1.0)
        b.say(quiet, c.Pong(time=b.now))
    assert (b.heard(quiet), b.closed(quiet)) == ([], None)


def test_only_as_many_pongs_are_free_as_there_were_pings() -> None:
    """Pongs that nobody has asked for are messages like others."""
    b = Bench(message_burst=10.0, message_rate=0.001, heartbeat=10.0)
    connection = b.connect()
    for _ in range(5):  # it answers none of these, and says something else instead
        b.wait(10.0)
        b.say(connection, c.Ping())
    assert len(b.heard(connection)) == 5
    for _ in range(FREE_PONGS + 4):  # hello was the first of the burst
        b.say(connection, c.Pong())
    assert b.heard(connection) == []
    b.say(connection, c.Pong())
    assert b.heard(connection)[0].code == "rate_limited"


def test_coming_back_gives_nobody_more_messages() -> None:
    """Who has spent its burst is told so on its next connection, too; that one's hello is heard all the same."""
    b = Bench(message_burst=5.0, message_rate=1.0)
    for _ in range(3):
        connection = b.connect()
        for n in range(5):
            b.say(connection, c.Ping(n))
        assert b.heard(connection)[-1].code == "rate_limited"
        b.shard.gone(connection)
    connection = b.connect()
    b.say(connection, c.Ping(1))
    assert b.heard(connection)[-1].code == "rate_limited"
    b.wait(60)
    b.shard.gone(connection)
    connection = b.connect()
    b.say(connection, c.Ping(1))
    assert b.heard(connection)[0].id == 1


def test_subscription_changes_have_a_rate_of_their_own() -> None:
    """Changes beyond it are answered with `rate_limited` and how long to wait; ten in a minute close with 4400."""
    b = Bench(subscription_burst=2.0, subscription_rate=0.5)
    connection = b.connect(subscriptions=[])
    b.say(connection, c.Subscribe(["custom.a"], 1))
    b.say(connection, c.Unsubscribe(["custom.a"], 2))
    answer, error = b.heard(connection)
    assert (answer.id, error.id, error.code, error.retry_after) == (1, 2, "rate_limited", 2.0)
    b.wait(2)
    b.say(connection, c.Subscribe(["custom.b"], 3))
    assert b.heard(connection)[0].subscriptions == ["custom.a", "custom.b"]
    for _ in range(9):
        b.say(connection, c.Subscribe(["custom.b"]))
    assert b.closed(connection) == 4400
