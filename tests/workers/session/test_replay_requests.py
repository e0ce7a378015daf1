"""Clients that come back for much: in which order, in what parts, and how often."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.backplane.messages import LogBatch, ReplayResponse
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.protocol import messages as c
from solowire.workers.connections.connection import Connection, State
from solowire.workers.session import replay_requests
from solowire.workers.session.replay_requests import MEASURED_A_STEP, RECORDS_A_STEP, REST, TURN_SECONDS
from tests.support.shard_harness import ShardHarness, find_user, reconnect_client


def long_ago(events: int = 50, **limits: Any) -> ShardHarness:
    """A shard whose recent log holds the last twenty events or fewer."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20), **limits)
    for _ in range(events):
        b.publish("custom.a")
    return b


def whole_answer(b: ShardHarness) -> ReplayResponse:
    """The router's answer, in one part, to the only question."""
    [question] = b.replay_requests
    b.replay_requests.clear()
    return b._make_response(question, 10**6)


def live(b: ShardHarness, user: str = "honest") -> Connection:
    return b.connect(user, subscriptions=["custom.live"])


def code_of(b: ShardHarness, connection: Connection) -> str:
    """Of the only message that it got: an error's, or `welcome`."""
    [message] = [m for m in b.read_messages(connection) if not isinstance(m, c.Events)]
    return message.code if isinstance(message, c.Error) else "welcome"


def leaves_at_once(b: ShardHarness, cursor: int, user: str = "six") -> str | None:
    """A client that asks for what it missed and goes; the error's code, if it got one."""
    connection = b.open_connection(user)
    b.say(connection, c.Hello(subscriptions=["custom.*"], resume=c.Resume(b.epoch, cursor)))
    errors = [m.code for m in b.read_messages(connection) if isinstance(m, c.Error)]
    b.shard.on_closed(connection)
    return errors[0] if errors else None


# ----------------------------------------------------------------------------------------------------- live first


def test_a_live_event_waits_for_no_replay() -> None:
    """What the router has answered is taken in by turns: an event that comes behind it is sent before."""
    b = long_ago(10 * RECORDS_A_STEP)
    honest = live(b)
    back = reconnect_client(b, 3)
    b.shard.on_replay_response(whole_answer(b), b.now)
    b.publish("custom.live", priority="critical")
    assert len(b.read_events(honest)) == 1
    assert back.state is State.resuming
    b.answer_requests()
    b.wait(1)
    welcome, *rest = b.read_messages(back)
    assert welcome.resumed
    assert [e.offset for m in rest for e in m.events] == list(range(4, 10 * RECORDS_A_STEP + 2))


def test_to_take_a_part_of_the_log_is_not_the_time_for_replays() -> None:
    """A Deliver is acked when it has been taken, however much lies ready for those who come back."""
    b = long_ago(10 * RECORDS_A_STEP)
    reconnect_client(b, 3)
    b.shard.on_replay_response(whole_answer(b), b.now)
    [replay] = b.shard._handshake.replays._ready.values()
    taken = replay.consumed_count
    assert taken <= RECORDS_A_STEP
    for _ in range(10):
        b.publish("custom.live")
    assert replay.consumed_count == taken
    b.shard.run(b.now)
    assert replay.consumed_count == taken + RECORDS_A_STEP


def test_after_each_turn_there_is_a_rest() -> None:
    """Turns for those who come back are a share of the shard's time, by the clock."""
    b = long_ago(10 * RECORDS_A_STEP)
    replays = b.shard._handshake.replays
    clock = iter(range(1000))
    b.shard.clock.stopwatch = lambda: float(next(clock))
    reconnect_client(b, 3)
    b.shard.on_replay_response(whole_answer(b), b.now)
    assert b.shard._handshake.due_at == pytest.approx(b.now + 1 + REST)
    [replay] = replays._ready.values()
    b.shard.run(b.now + 1)
    assert replay.consumed_count == RECORDS_A_STEP
    b.shard.run(b.now + 1 + REST)
    assert replay.consumed_count == 2 * RECORDS_A_STEP


def test_a_turn_takes_steps_until_its_time_is_over() -> None:
    """A turn is as many steps as fit its time, and is not one of microseconds, which would be mostly rest."""
    b = long_ago(10 * RECORDS_A_STEP)
    replays = b.shard._handshake.replays
    clock = (n * TURN_SECONDS / 3 for n in range(1000))
    b.shard.clock.stopwatch = lambda: next(clock)
    reconnect_client(b, 3)
    b.shard.on_replay_response(whole_answer(b), b.now)
    [replay] = replays._ready.values()
    assert replay.consumed_count == 3 * RECORDS_A_STEP
    b.shard.run(b.now + 1)
    assert replay.consumed_count == 6 * RECORDS_A_STEP
    b.shard.run(b.now + 2)
    b.shard.run(b.now + 3)
    assert not replays._ready


def test_what_is_here_is_measured_by_turns() -> None:
    """Whether a client that missed much can have it is found out a little at a time, and so said to be too much."""
    events = 4 * MEASURED_A_STEP
    for replay_bytes, reason in ((events * 150, "too_much"), (events * 300, None)):
        b = ShardHarness(replay__max_bytes=replay_bytes)
        for _ in range(events):
            b.publish("custom.a", {"x": "x" * 30})
        honest = live(b)
        back = reconnect_client(b, 0)
        assert back.state is State.resuming
        b.publish("custom.live", priority="critical")
        assert len(b.read_events(honest)) == 1
        assert back.state is State.resuming
        b.wait(1)
        welcome, *rest = b.read_messages(back)
        assert (welcome.resumed, welcome.reason) == (reason is None, reason)
        if reason is None:
            assert [e.offset for m in rest for e in m.events] == list(range(1, b.offset + 1))


# ------------------------------------------------------------------------------------------------------- in turn


def test_what_was_asked_for_one_that_has_gone_is_taken_back() -> None:
    """A client that leaves, or is replaced by another of its user, leaves no question at the router."""
    b = long_ago()
    b.shard.on_closed(reconnect_client(b, 3, user="ann"))
    assert b.replay_requests == []
    older = reconnect_client(b, 3, user="bob")
    newer = reconnect_client(b, 4, user="bob")
    assert b.close_code(older) == 4409
    assert [q.prev_offset for q in b.replay_requests] == [4]
    b.answer_requests()
    b.wait(1)
    assert b.read_messages(newer)[0].resumed


def test_a_user_has_one_replay_at_a_time() -> None:
    """However many connections a user has: others' replays are not kept waiting by them."""
    b = long_ago(limits__max_connections_per_user=5, replay__max_concurrent=3)
    mine = [reconnect_client(b, 3, user="ann") for _ in range(4)]
    assert len(b.replay_requests) == 1
    other = reconnect_client(b, 3, user="bob")
    assert [q.user for q in b.replay_requests] == ["ann", "bob"]
    b.answer_requests()
    b.wait(1)
    assert all(b.read_messages(connection)[0].resumed for connection in (*mine, other))


def test_who_had_the_least_read_comes_first() -> None:
    """Of those who wait it is not the first, nor the one who comes most often, but who has had the least of the log."""
    b = long_ago(replay__max_concurrent=1)
    for _ in range(3):
        reconnect_client(b, 3, user="often")
        b.answer_requests()
    reconnect_client(b, 3, user="first")
    often, seldom = reconnect_client(b, 3, user="often"), reconnect_client(b, 3, user="seldom")
    order = []
    while b.replay_requests:
        order.append(b.replay_requests[0].user)
        b.shard.on_replay_response(whole_answer(b), b.now)
        b.wait(0)
    assert order == ["first", "seldom", "often"]
    assert b.read_messages(often)[0].resumed
    assert b.read_messages(seldom)[0].resumed


def test_a_long_replay_keeps_no_short_one_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has all places for much, and gets nothing of it, leaves them to one who missed less, and goes on then."""
    monkeypatch.setattr(replay_requests, "YIELD_RECORDS", 40)
    b = long_ago(events=1000, replay__max_concurrent=2)
    longest = [reconnect_client(b, 3, user=f"long-{n}") for n in range(2)]
    short = reconnect_client(b, 900, user="short")
    assert [q.user for q in b.replay_requests] == ["long-0", "long-1"]
    b.shard.on_replay_response(b._make_response(b.replay_requests.pop(0), 50), b.now)
    b.wait(0)
    assert [q.user for q in b.replay_requests] == ["long-1", "short"]
    b.shard.on_replay_response(b._make_response(b.replay_requests.pop(1), 10**6), b.now)
    b.wait(0)
    assert b.read_messages(short)[0].resumed
    assert [(q.user, q.prev_offset) for q in b.replay_requests] == [("long-1", 3), ("long-0", 53)]
    b.answer_requests(at_a_time=200)
    b.wait(1)
    for connection in longest:
        welcome, *rest = b.read_messages(connection)
        assert welcome.resumed
        assert [e.offset for m in rest for e in m.events] == list(range(4, 1001))


# ---------------------------------------------------------------------------------------------------- the budget


def test_who_comes_and_goes_is_told_when_to_come_again() -> None:
    """Who has the log read for it in a loop, and stays for none of it, has its budget; then it keeps its cursor."""
    b = long_ago(events=1000, replay__rate=100, replay__burst=5_000)
    answers: list[Any] = []
    while len(answers) < 100 and (code := leaves_at_once(b, 3)) is None:
        answers.append(code)
        b.replay_requests.clear()
    assert 4 <= len(answers) < 10
    back = b.open_connection("six")
    b.say(back, c.Hello(7, ["custom.*"], resume=c.Resume(b.epoch, 3)))
    [error] = b.read_messages(back)
    assert (error.code, error.id, back.state) == ("replay_limited", 7, State.awaiting_hello)
    assert 0 < error.retry_after <= 20
    other = reconnect_client(b, 3, user="honest")
    b.answer_requests()
    b.wait(1)
    assert b.read_messages(other)[0].resumed
    b.wait(error.retry_after)
    welcome = b.read_messages(back)[0]
    assert (welcome.resumed, welcome.id) == (False, None)  # it has waited here for longer than a hello may take
    b.shard.on_closed(back)
    b.wait(2)
    again = reconnect_client(b, 3, user="six")
    b.answer_requests()
    b.wait(1)
    assert b.read_messages(again)[0].resumed


def test_who_says_hello_again_and_again_is_told_so_too() -> None:
    """The states that a client begins with cost something, and so does a hello; without one it begins all the same."""
    b = ShardHarness(replay__rate=100, replay__burst=1_000)
    for n in range(500):
        b.publish("system_metrics", {"cpu_usage": 1}, key=f"ns{n}")
    codes = []
    for _ in range(8):
        connection = b.open_connection("six")
        b.say(connection, c.Hello(subscriptions=["system.*"]))
        codes.append(code_of(b, connection))
        b.shard.on_closed(connection)
    assert codes[0] == "welcome"
    assert codes[-1] == "replay_limited"
    silent = b.open_connection("six")
    b.wait(2.1)
    assert isinstance(b.read_messages(silent)[0], c.Welcome)


def test_one_that_lost_its_connection_pays_once() -> None:
    """What was not read yet when a client went is given back: it comes again and gets all that it missed."""
    b = long_ago(events=8_000, replay__rate=100, replay__burst=12_000)
    for _ in range(3):
        b.shard.on_closed(reconnect_client(b, 3))
        b.replay_requests.clear()
    back = reconnect_client(b, 3)
    b.answer_requests(at_a_time=1000)
    b.wait(1)
    assert b.read_messages(back)[0].resumed


def test_a_refused_replay_costs_nothing_but_its_answer() -> None:
    """A cursor older than the log costs what was read for it, which is nothing."""
    b = long_ago(events=1000, replay__rate=100, replay__burst=5_000)
    b.journal_floor = 500
    for _ in range(3):
        back = reconnect_client(b, 3)
        b.answer_requests()
        assert b.read_messages(back)[0].reason == "retention"
    back = reconnect_client(b, 600)
    b.answer_requests()
    b.wait(1)
    assert b.read_messages(back)[0].resumed


def test_own_events_of_before_are_put_in_by_turns() -> None:
    """A user who has moved here gets its own events, however many, and others' live ones don't wait for them."""
    b = ShardHarness((0, 1))
    user = find_user((0, 1), 1)
    b.publish("custom.a")
    for _ in range(300):
        b.make_event("custom.a", user=user)  # went to shard 1
    b.shard.on_batch(LogBatch(b.epoch, 1, b.offset, []), b.now)
    b.change_ring(0)
    honest = live(b, find_user((0, 1), 0))
    back = reconnect_client(b, 1, user=user)
    b.shard.on_replay_response(whole_answer(b), b.now)
    b.publish("custom.live", priority="critical")
    assert len(b.read_events(honest)) == 1
    assert back.state is State.resuming
    b.wait(1)
    assert [e.offset for e in b.read_events(back)] == list(range(2, 303))
