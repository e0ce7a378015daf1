"""How a connection begins, and how one comes back: told by a shard on sockets in memory."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.backplane.messages import LogBatch, ReplayResponse
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity
from solowire.protocol import messages as c
from solowire.protocol.close_codes import CloseCode
from solowire.workers.connections.connection import Connection, State
from tests.support.shard_harness import ShardHarness, codec_of, find_user, reconnect_client, resume_client

# ---------------------------------------------------------------------------------------------------------------- hello


def test_a_shard_that_was_held_up_waits_for_the_hello_that_long_again() -> None:
    """A timer that comes late says nothing of the client: its hello may be here, unread, and is still its beginning."""
    b = ShardHarness()
    connection = b.open_connection("ann")
    b.now += 5.0
    b.shard.run(b.now)
    assert connection.state is State.awaiting_hello
    b.say(connection, c.Hello(subscriptions=["custom.a"], id=7))
    [welcome] = [m for m in b.read_messages(connection) if isinstance(m, c.Welcome)]
    assert welcome.id == 7
    silent = b.open_connection("bob")
    b.now += 5.0
    b.wait(4.0)
    assert silent.state is State.live


def test_hello_is_answered_with_a_welcome() -> None:
    """The welcome says all that a client needs: who it is, where it stands, what it gets and what not."""
    b = ShardHarness()
    b.publish("custom.a")
    connection = b.open_connection("alice", "viewer")
    b.say(connection, c.Hello("h", ["custom.a", "gateway_stats", "nosuch"]))
    [welcome] = b.read_messages(connection)
    assert (welcome.user, welcome.role, welcome.id, welcome.session) == ("alice", "viewer", "h", "session-1")
    assert (welcome.epoch, welcome.cursor, welcome.resumed, welcome.reason) == ("epoch-1", 1, False, None)
    assert welcome.subscriptions == ["custom.a"]
    assert [(d.type, d.reason) for d in welcome.denied] == [("gateway_stats", "forbidden"), ("nosuch", "unknown_type")]
    assert welcome.token_expires_at == "2027-01-15T18:16:40Z"
    assert (welcome.heartbeat_s, welcome.reconnect) == (25.0, c.Reconnect(500, 20_000))


def test_hello_twice_is_an_error() -> None:
    """A second hello is answered with an error, and the connection goes on as it was."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.say(connection, c.Hello("again", ["custom.b"]))
    [error] = b.read_messages(connection)
    assert (error.code, error.id) == ("duplicate_hello", "again")
    b.publish("custom.a")
    assert len(b.read_events(connection)) == 1


def test_without_hello_the_defaults_apply() -> None:
    """A client whose user says nothing, such as `wscat`, gets the defaults of its role after two seconds."""
    b = ShardHarness()
    connection = b.open_connection("alice", "viewer")
    b.wait(1.9)
    assert b.read_messages(connection) == []
    b.wait(0.2)
    [welcome] = b.read_messages(connection)
    assert welcome.resumed is False
    assert "record_created" in welcome.subscriptions
    assert "custom.*" in welcome.subscriptions
    assert "gateway_stats" not in welcome.subscriptions


def silent(b: ShardHarness, user: str = "alice") -> Connection:
    """A connection that says nothing, not even what every library of WebSockets says by itself."""
    connection = b.open_connection(user)
    b.sockets.silent.add(connection)
    return connection


def test_who_has_said_nothing_at_all_gets_nothing() -> None:
    """Neither a welcome nor states nor events, however long it waits; it is cut as any other that is not there."""
    b = ShardHarness()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    connection, other = silent(b), b.open_connection("bob")
    for _ in range(10):
        b.wait(3.0)
        b.publish("custom.a")
        b.publish("custom.b", user="alice")
        assert all(isinstance(m, c.Ping) for m in said_to(b, connection))
        b.say(other, c.Pong())
    assert connection.state is State.awaiting_hello
    b.wait(60.0)
    assert b.close_code(connection) == CloseCode.no_heartbeat
    assert {e.type for e in b.read_events(other)} == {"system_metrics", "custom.a"}


def said_to(b: ShardHarness, connection: Connection) -> list[Any]:
    return [codec_of(connection).decode_server(frame) for frame in b.sockets.sent.get(connection, [])]


def test_who_answers_late_begins_then() -> None:
    """With the defaults, once, and with what is live from then on; a sign before its time is over begins nothing."""
    b = ShardHarness()
    connection = silent(b)
    b.wait(1.0)
    b.shard.show_alive(connection, b.now)
    assert b.read_messages(connection) == []
    b.wait(5.0)
    b.publish("custom.a")
    assert b.read_messages(connection) == []
    b.shard.show_alive(connection, b.now)
    b.shard.show_alive(connection, b.now)
    [welcome] = b.read_messages(connection)
    assert (welcome.cursor, welcome.resumed) == (1, False)
    assert "custom.*" in welcome.subscriptions
    b.publish("custom.a")
    b.wait(1.0)
    assert [e.offset for e in b.read_events(connection)] == [2]


def test_a_hello_that_comes_after_its_time_is_still_a_hello() -> None:
    """As long as it has not begun without: what it asks for counts, and not the defaults."""
    b = ShardHarness()
    connection = silent(b)
    b.wait(5.0)
    b.say(connection, c.Hello(subscriptions=["custom.b"], id=7))
    b.shard.show_alive(connection, b.now)
    [welcome] = b.read_messages(connection)
    assert (welcome.id, welcome.subscriptions) == (7, ["custom.b"])


def test_another_message_after_its_time_is_a_sign_as_well() -> None:
    """It is answered, and then its client begins with the defaults."""
    b = ShardHarness()
    connection = silent(b)
    b.wait(5.0)
    b.say(connection, c.Ping(3))
    b.shard.show_alive(connection, b.now)
    pong, welcome = b.read_messages(connection)
    assert isinstance(pong, c.Pong)
    assert "custom.*" in welcome.subscriptions


def test_only_who_has_said_nothing_is_asked_for_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: who has said something else in time begins without, and who has begun is not asked."""
    b = ShardHarness()
    asked: list[Connection] = []
    monkeypatch.setattr(b.sockets, "ping", asked.append)
    quiet, talks, begun = b.open_connection("alice"), b.open_connection("bob"), b.open_connection("cid")
    b.wait(1.0)
    b.say(talks, c.Ping(1))
    b.say(begun, c.Hello())
    b.wait(20.0)
    assert asked == [quiet]
    assert [connection.state for connection in (quiet, talks, begun)] == [State.awaiting_hello, State.live, State.live]


def test_who_goes_while_it_is_asked_for_a_sign_is_forgotten() -> None:
    """A sign that comes then begins nothing."""
    b = ShardHarness()
    connection = silent(b)
    b.wait(5.0)
    b.shard.on_closed(connection)
    b.shard.show_alive(connection, b.now)
    assert b.read_messages(connection) == []
    assert b.shard.is_empty


def test_hello_with_no_subscriptions_gets_none() -> None:
    """An empty list means nothing, and is not the same as no list."""
    b = ShardHarness()
    connection = b.open_connection()
    b.say(connection, c.Hello(subscriptions=[]))
    [welcome] = b.read_messages(connection)
    assert welcome.subscriptions == []
    b.publish("custom.a")
    b.wait(2)
    assert b.read_messages(connection) == []


def test_subscribe_before_hello_is_an_error() -> None:
    """Who subscribes before hello is told to say hello, and can still do it."""
    b = ShardHarness()
    connection = b.open_connection()
    b.say(connection, c.Subscribe(["custom.a"], "s"))
    b.say(connection, c.Unsubscribe(["custom.a"], "u"))
    assert [(e.code, e.id) for e in b.read_messages(connection)] == [("hello_required", "s"), ("hello_required", "u")]
    b.say(connection, c.Hello(subscriptions=["custom.a"]))
    assert isinstance(b.read_messages(connection)[0], c.Welcome)


def test_a_bad_hello_can_be_said_again() -> None:
    """A hello with a filter that means nothing is refused, and the next one counts."""
    b = ShardHarness()
    connection = b.open_connection()
    b.say(connection, c.Hello(1, ["custom.a"], {"nosuch": ["x"]}))
    assert [(e.code, e.id) for e in b.read_messages(connection)] == [("invalid_filter", 1)]
    b.say(connection, c.Hello(2, ["custom.a"]))
    assert b.read_messages(connection)[0].id == 2


def test_a_token_that_ends_in_the_far_future_is_welcome() -> None:
    """A connection whose identity has no end, or the latest one there can be, is welcomed like any other."""
    for expires in (None, 253_402_300_799.0):
        b = ShardHarness()
        connection = b.open_as(Identity("alice", "viewer", (), {}, expires))
        b.say(connection, c.Hello())
        assert isinstance(b.read_messages(connection)[0], c.Welcome)


# --------------------------------------------------------------------------------------------------- coming back


def forgetful(**limits: Any) -> ShardHarness:
    """A shard that has had fifty events, and of them only the last twenty are in its recent log."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20), **limits)
    for _ in range(50):
        b.publish("custom.a")
    return b


def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    """A client that shows its cursor gets everything behind it, its personal events too, and then live events."""
    b = ShardHarness()
    for n in range(10):
        b.publish("custom.a", {"n": n}, user="alice" if n == 5 else "bob" if n == 6 else None)
    welcome, offsets = resume_client(b, 3)
    assert (welcome.resumed, welcome.cursor, welcome.reason) == (True, 3, None)
    assert offsets == [4, 5, 6, 8, 9, 10]


def test_a_client_that_missed_much_gets_all_of_it() -> None:
    """What a client has missed comes in as many frames as it takes, none of them over the bound, and others live on."""
    b = ShardHarness()
    for n in range(300):
        b.publish("custom.a", {"n": n, "x": "x" * 2000})
    welcome, offsets = resume_client(b, 0)
    assert welcome.resumed
    assert offsets == list(range(1, 301))


def test_a_client_that_missed_nothing() -> None:
    """A client that comes back at once is resumed and gets nothing twice."""
    b = ShardHarness()
    b.publish("custom.a")
    welcome, offsets = resume_client(b, 1)
    assert (welcome.resumed, offsets) == (True, [])


@pytest.mark.parametrize(
    ("cursor", "epoch", "reason"), [(40, "epoch-0", "epoch"), (51, "epoch-1", "future"), (5, "epoch-1", "retention")]
)
def test_a_cursor_that_cant_be_resumed_is_refused(cursor: int, epoch: str, reason: str) -> None:
    """A cursor of a lost log, of the future, or of too long ago is a plain no with its reason, and nothing partial."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    b.journal_floor = 10
    for _ in range(50):
        b.publish("custom.a")
    welcome, offsets = resume_client(b, cursor, epoch)
    assert (welcome.resumed, welcome.reason, welcome.cursor) == (False, reason, 50)
    assert offsets == []


@pytest.mark.parametrize(("cursor", "resumed"), [(40, True), (3, True), (41, False)])
def test_a_cursor_of_the_log_before_a_restore_is_good_as_far_as_the_backup_went(cursor: int, resumed: bool) -> None:
    """Behind its end offsets were given anew to other events: who stands there is told that it has missed something."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    for _ in range(50):
        b.publish("custom.a")
    b.shard.log.earlier_epochs = {"epoch-0": 40}
    welcome, offsets = resume_client(b, cursor, "epoch-0")
    assert (welcome.resumed, welcome.reason, welcome.epoch) == (resumed, None if resumed else "epoch", "epoch-1")
    assert offsets == (list(range(cursor + 1, 51)) if resumed else [])


def test_what_the_recent_log_has_forgotten_comes_from_the_router() -> None:
    """A cursor older than the shard's memory is resumed all the same: the router's part first, then the shard's."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    for n in range(50):
        b.publish("custom.a", user="alice" if n % 5 == 0 else "bob" if n % 5 == 1 else None)
    assert b.shard.log.start_offset > 10
    welcome, offsets = resume_client(b, 3)
    assert (welcome.resumed, welcome.cursor) == (True, 3)
    assert offsets == [n + 1 for n in range(3, 50) if n % 5 != 1]


def test_what_comes_during_a_replay_comes_after_it_and_once() -> None:
    """Live events wait for what was missed, and the seam between them is neither gap nor overlap."""
    b = forgetful()
    connection = reconnect_client(b, 3)
    for _ in range(30):
        b.publish("custom.a")  # the recent log forgets what it still had when the client came
    assert b.read_messages(connection) == []
    b.answer_requests()
    b.publish("custom.a")
    b.wait(1)
    welcome, *rest = b.read_messages(connection)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == list(range(4, 82))


def test_a_replay_that_is_too_large_is_refused() -> None:
    """One client can't have the server send it a day of traffic: it is told so, and starts from the present state."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20), replay__max_bytes=5_000)
    for _ in range(50):
        b.publish("custom.a", {"x": "x" * 200})
    welcome, offsets = resume_client(b, 3)
    assert (welcome.resumed, welcome.reason, offsets) == (False, "too_much", [])
    welcome, offsets = resume_client(b, 45)
    assert (welcome.resumed, offsets) == (True, [46, 47, 48, 49, 50])


def test_a_replay_is_measured_by_what_the_client_sees() -> None:
    """Much that a client does not see doesn't count against the little that it does."""
    b = ShardHarness(replay__max_bytes=2_000)
    for n in range(100):
        b.publish("custom.a", {"x": "x" * 200}, user=None if n % 50 == 0 else "bob")
    welcome, offsets = resume_client(b, 0)
    assert (welcome.resumed, offsets) == (True, [1, 51])


def test_replays_take_their_turns() -> None:
    """However many come back at once, the router is asked for a few at a time, and each gets all of its own."""
    b = forgetful(replay__max_concurrent=2)
    connections = [reconnect_client(b, 3, user=f"user-{n}") for n in range(6)]
    assert len(b.replay_requests) == 2
    b.shard.on_closed(connections[0])
    b.shard.on_closed(connections[4])
    b.answer_requests()
    b.wait(1)
    for connection in connections[1:4] + connections[5:]:
        _, *rest = b.read_messages(connection)
        assert [e.offset for m in rest for e in m.events] == list(range(4, 51))


def test_a_client_whose_replay_cannot_be_asked_for_keeps_its_cursor() -> None:
    """While the router is away nobody is told "no" for that: the client is asked to come again, with what it has."""
    b = forgetful()
    connection = reconnect_client(b, 3)
    b.wait(10)
    [reconnect] = b.read_messages(connection)
    assert (reconnect.reason, b.close_code(connection)) == ("replay_unavailable", 1012)


def test_what_a_router_was_asked_before_it_began_anew_is_asked_again() -> None:
    """A router that restarts forgets who is coming back: the shard asks the same again when it has said hello."""
    b = forgetful()
    connection = reconnect_client(b, 3)
    [question] = b.replay_requests
    b.replay_requests.clear()
    b.send_ring(0, since=0)
    assert b.replay_requests == [question]
    b.answer_requests()
    b.wait(1)
    welcome, *rest = b.read_messages(connection)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == list(range(4, 51))


def test_a_client_whose_question_alone_is_not_answered_keeps_its_cursor() -> None:
    """A part of the log that can't be read is no reason for a "no": its client comes again, while others get theirs."""
    b = forgetful()
    unlucky = reconnect_client(b, 3, user="ann")
    b.replay_requests.clear()
    for n in range(12):
        other = reconnect_client(b, 10, user=f"user-{n}")
        b.answer_requests()
        b.wait(1)
        assert b.read_messages(other)[0].resumed
    assert [m.reason for m in b.read_messages(unlucky) if isinstance(m, c.ReconnectNow)] == ["replay_unavailable"]
    assert b.close_code(unlucky) == 1012


def test_a_replay_that_takes_too_long_is_too_much() -> None:
    """While the router answers nobody is sent away to come again with an ever older cursor: it is told "no" in time."""
    b = forgetful(replay__max_concurrent=1, replay__timeout_s=15)
    served, waits = reconnect_client(b, 3, user="ann"), reconnect_client(b, 3, user="bob")
    for upto in range(4, 9):
        b.wait(2.9)
        [question] = b.replay_requests.copy()
        b.replay_requests.clear()
        assert count_notices(b, served) == count_notices(b, waits)
        b.shard.on_replay_response(ReplayResponse(question.request, upto, []), b.now)  # a little at a time
    b.wait(4)
    for connection in (served, waits):
        [welcome] = [m for m in b.read_messages(connection) if not isinstance(m, c.Notice)]
        assert (welcome.resumed, welcome.reason) == (False, "too_much")
        assert connection.state is State.live


def count_notices(b: ShardHarness, connection: Any) -> int:
    """How many notices the connection got since the last look, and nothing else: that its replay goes on."""
    messages = b.read_messages(connection)
    assert [m.code for m in messages] == [c.REPLAYING] * len(messages)
    return len(messages)


def test_what_a_client_says_during_its_replay_is_obeyed_after_it() -> None:
    """A client needn't wait for its welcome before it subscribes to more."""
    b = forgetful()
    connection = b.open_connection()
    b.say(connection, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 48)))
    b.say(connection, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 48)))
    slow = b.open_connection("bob")
    b.say(slow, c.Hello(subscriptions=["custom.a"], resume=c.Resume("epoch-1", 3)))
    b.say(slow, c.Subscribe(["custom.b"], 7))
    b.say(slow, c.Ping(8))
    assert [m.id for m in b.read_messages(slow)] == [8]
    b.answer_requests()
    b.wait(1)
    assert [m.id for m in b.read_messages(slow) if isinstance(m, c.Subscriptions)] == [7]
    assert [m.code for m in b.read_messages(connection) if isinstance(m, c.Error)] == ["duplicate_hello"]


def test_a_client_from_a_shard_that_was_ahead_waits_for_this_one() -> None:
    """A cursor that the router knows and this shard has not reached yet is no cursor of the future."""
    b = ShardHarness()
    b.publish("custom.a")
    late = b.make_event("custom.a")
    connection = b.open_connection()
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 2)))
    b.answer_requests()
    assert b.read_messages(connection) == []
    b.deliver(late)
    b.publish("custom.a")
    b.wait(1)
    welcome, *rest = b.read_messages(connection)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == [3]


def test_a_user_from_another_shard_gets_its_own_events_of_before() -> None:
    """What was for one user alone, and went to a shard that has gone, is fetched; nobody else's is."""
    b = ShardHarness((0, 1))
    user = find_user((0, 1), 1)
    b.publish("custom.a")
    for owner in (user, "somebody", user):
        b.make_event("custom.a", user=owner)  # went to shard 1
    b.shard.on_batch(LogBatch(b.epoch, 1, b.offset, []), b.now)
    b.change_ring(0)
    b.publish("custom.a")
    welcome, offsets = resume_client(b, 1, user=user)
    assert (welcome.resumed, offsets) == (True, [2, 4, 5])
    welcome, offsets = resume_client(b, 2, user=user)
    assert (welcome.resumed, offsets) == (True, [4, 5])


def test_users_who_stayed_are_not_asked_for() -> None:
    """A user whom every ring gave to this shard has its own events here: the router isn't asked."""
    b = ShardHarness((0, 1))
    user = find_user((0, 1), 0)
    b.publish("custom.a", user=user)
    b.change_ring(0)
    connection = b.open_connection(user)
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume("epoch-1", 0)))
    assert b.replay_requests == []
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [1]


def test_a_new_client_gets_the_current_state() -> None:
    """Who starts without a cursor gets the newest value of each state it may see, right after the welcome."""
    b = ShardHarness()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    b.publish("system_metrics", {"cpu_usage": 2}, key="ns2")
    b.publish("system_metrics", {"cpu_usage": 3}, key="ns1")
    b.publish("gateway_stats", {"connections": 1}, key="g")
    b.publish("bulk_progress", {"operation_id": "1"}, key="1", user="bob")
    b.publish("bulk_progress", {"operation_id": "2"}, key="2", user="alice")
    b.publish("custom.a")
    connection = b.open_connection()
    b.say(connection, c.Hello(subscriptions=["*"]))
    welcome, state = b.read_messages(connection)
    assert (welcome.cursor, state.cursor) == (1, 7)  # who is cut off between the two comes back before the states
    assert [e.offset for e in state.events] == [2, 3, 6]
    b.wait(1)
    assert b.read_messages(connection) == []


def test_a_state_that_may_not_be_seen_any_more_is_not_sent_late() -> None:
    """When rights are taken away while the current state waits for a stuck socket, it is never sent."""
    for role, code in (("viewer", 4413), ("admin", None)):
        b = ShardHarness()
        b.publish("gateway_stats", {"connections": 1}, key="g")
        connection = b.open_connection("alice", "admin")
        b.sockets.stuck.add(connection)
        b.say(connection, c.Ping())
        b.say(connection, c.Hello(subscriptions=["*"]))
        b.say(connection, c.Refresh(b.sign_token("alice", role)))
        assert b.close_code(connection) == code
        b.sockets.unstick(connection)
        b.wait(1)
        assert [e.type for e in b.read_events(connection)] == (["gateway_stats"] if code is None else [])


def test_a_client_that_resumes_gets_no_state_twice() -> None:
    """Who resumes gets what was missed and no snapshot besides; who is refused gets the snapshot instead."""
    b = ShardHarness()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    b.publish("system_metrics", {"cpu_usage": 2}, key="ns1")
    for epoch, expected in (("epoch-1", [2]), ("epoch-0", [2])):
        connection = b.open_connection()
        b.say(connection, c.Hello(subscriptions=["system.*"], resume=c.Resume(epoch, 1)))
        b.wait(1)
        assert [e.offset for e in b.read_events(connection)] == expected
