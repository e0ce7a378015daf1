"""What subscriptions cost is charged to their user by size: told by a shard on sockets in memory."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import msgspec
import pytest

from solowire.model.subscriptions import MAX_HINTS, MAX_NAME_CHARACTERS, MAX_PATTERNS, MAX_VALUES
from solowire.protocol import messages as c
from solowire.workers.connections.connection import Connection, State
from solowire.workers.session.inbound_limits import CHANGE_ITEMS, MAX_ERROR_CHARACTERS, MAX_ITEMS
from tests.support.shard_harness import ShardHarness

MANY = 190


def zones(of: object, many: int = MANY) -> dict[str, list[str]]:
    return {"zone": [f"{of}-{n}.example" for n in range(many)]}


def each_its_own(names: list[str], many: int) -> dict[str, dict[str, list[str]]]:
    return {name: zones(name, many) for name in names}


def said(b: ShardHarness, connection: Connection, message: Any) -> Any:
    """The first answer."""
    b.say(connection, message)
    return b.read_messages(connection)[0]


def code_of(answer: Any) -> str | None:
    return answer.code if isinstance(answer, c.Error) else None


def test_a_large_change_costs_as_many_small_ones() -> None:
    """So that a flood of large ones is over sooner; and it is told when the next may come."""
    b = ShardHarness(session__subscription_burst=10.0, session__subscription_rate=1.0)
    small, large = b.connect("small", subscriptions=[]), b.connect("large", subscriptions=[])
    for n in range(5):
        assert code_of(said(b, small, c.Subscribe([f"custom.a{n}"]))) is None
    filters = {**zones("z"), "topic": [f"t{n}" for n in range(MANY)]}
    for n in range(2):
        assert code_of(said(b, large, c.Subscribe([f"custom.a{n}"], filter=filters))) is None
    for n in range(2, 6):
        answer = said(b, large, c.Subscribe([f"custom.a{n}"], filter=filters))
    assert (answer.code, answer.message) == ("rate_limited", "one user may send 1 subscription changes a second")
    assert "SOLOWIRE_SESSION__SUBSCRIPTION_RATE" in answer.hint
    assert answer.retry_after > 0
    b.wait(answer.retry_after)
    assert code_of(said(b, large, c.Subscribe(["custom.a2"], filter=filters))) is None


def test_what_a_change_results_in_counts() -> None:
    """A short message costs as much as all that has to be looked at again for it, whatever it says itself."""
    b = ShardHarness(session__subscription_burst=30.0, session__subscription_rate=1.0)
    names = [f"custom.a{n}" for n in range(100)]
    connection = b.connect(subscriptions=names, filters=each_its_own(names, 9))
    short: list[Any] = [
        c.Subscribe(["custom.more"]),
        c.Unsubscribe(["custom.more"]),
        c.Refresh(b.sign_token("alice")),
        c.Subscribe(["custom.more"]),
        c.Subscribe(["custom.more"]),
        c.Refresh(b.sign_token("alice")),
    ]
    answers = [said(b, connection, message) for message in short]
    assert [code_of(answer) for answer in answers[:2]] == [None, None]
    assert code_of(answers[-1]) == "rate_limited"


def test_what_a_wildcard_results_in_counts() -> None:
    """A filter by many attributes means another thing for nearly every event type: that is paid for after it."""
    b = ShardHarness(session__subscription_burst=10.0, session__subscription_rate=1.0)
    connection = b.connect(role="admin", subscriptions=[])
    filter = {a: [f"{a}{n}" for n in range(150)] for a in ("zone", "actor", "view", "operation_id", "name")}
    assert code_of(said(b, connection, c.Subscribe(["*"], filter=filter))) is None
    answer = said(b, connection, c.Subscribe(["custom.a"]))
    assert answer.code == "rate_limited"
    assert answer.retry_after > 10


def test_growing_step_by_step_is_paid_for_at_each_step() -> None:
    """Whoever adds a little each time has all of it worked out again each time, and charged."""
    b = ShardHarness(session__subscription_burst=60.0, session__subscription_rate=0.1)
    connection = b.connect(subscriptions=[])
    obeyed = items = 0
    for n in range(9):
        answer = said(b, connection, c.Subscribe([f"custom.a{n}"], filter=zones(n, 110)))
        if isinstance(answer, c.Subscriptions):
            obeyed += 1
            items += obeyed * 110
    for _ in range(60):
        obeyed += code_of(said(b, connection, c.Unsubscribe(["custom.none"]))) is None
        items += 990
        connection.strikes = None
    assert items > 60 * CHANGE_ITEMS
    assert obeyed < 30


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_large_first_hello_waits_for_its_turn(large: bool) -> None:
    """One beyond the rate is refused and may be said again in time; a small one is heard whatever was said before."""
    b = ShardHarness(
        session__subscription_burst=4.0, session__subscription_rate=0.5, limits__max_connections_per_user=2
    )
    first = b.connect(subscriptions=[])
    for n in range(5):
        b.say(first, c.Subscribe([f"custom.a{n}"]))
    second = b.open_connection()
    filters = {"custom.a": {**zones("z"), "topic": [f"t{n}" for n in range(MANY)]}} if large else {}
    hello = c.Hello(7, ["custom.a"], filters=filters)
    answer = said(b, second, hello)
    if not large:
        assert isinstance(answer, c.Welcome)
        return
    assert (answer.code, answer.id) == ("rate_limited", 7)
    assert answer.retry_after > 2  # longer than a client has by itself
    b.wait(answer.retry_after)
    assert second.state is State.awaiting_hello
    welcome = said(b, second, hello)
    assert isinstance(welcome, c.Welcome)
    assert welcome.subscriptions == ["custom.a"]


def test_who_never_says_it_again_begins_with_the_defaults() -> None:
    """The time for a hello is longer after one too many, and it ends."""
    b = ShardHarness(
        session__subscription_burst=1.0,
        session__subscription_rate=1.0,
        session__hello_timeout_s=2.0,
        limits__max_connections_per_user=2,
    )
    b.connect(subscriptions=["custom.a"])
    connection = b.open_connection()
    b.say(connection, c.Hello(1, ["custom.a"], filter={**zones("z"), "topic": [f"t{n}" for n in range(MANY)]}))
    [error] = b.read_messages(connection)
    assert error.code == "rate_limited"
    b.wait(error.retry_after + 1.9)
    assert connection.state is State.awaiting_hello
    b.wait(0.2)
    assert connection.state.name == State.live.name


def test_one_user_has_a_bounded_number_of_values() -> None:
    """Over all its connections together; the others of the shard are not concerned, and who leaves makes room."""
    b = ShardHarness(session__subscription_burst=1e6, limits__max_connections_per_user=99, session__message_burst=1e6)
    filter = {a: [f"{a}{n}" for n in range(MANY)] for a in ("zone", "actor", "view", "operation_id", "name")}
    made = []
    for _ in range(99):
        connection = b.open_connection(role="admin")
        answer = said(b, connection, c.Hello(1, ["*"], filter=filter))
        if isinstance(answer, c.Error):
            break
        made.append(connection)
    assert answer.code == "too_many"
    assert str(MAX_ITEMS) in answer.message
    assert 2 <= len(made) < 20
    assert sum(c.item_count for c in made) <= MAX_ITEMS + made[0].item_count
    assert isinstance(said(b, b.open_connection("bob", role="admin"), c.Hello(1, ["*"], filter=filter)), c.Welcome)
    for gone in made:
        b.shard.on_closed(gone)
    assert isinstance(said(b, connection, c.Hello(1, ["*"], filter=filter)), c.Welcome)


def test_one_connection_has_a_bounded_number_of_values() -> None:
    """In one hello, or one message after the other; what was there before goes on."""
    b = ShardHarness(session__subscription_burst=1e6)
    names = [f"custom.a{n}" for n in range(MAX_VALUES // MANY)]
    connection = b.open_connection()
    answer = said(b, connection, c.Hello(1, [*names, "custom.b"], filters=each_its_own([*names, "custom.b"], MANY)))
    assert (answer.code, answer.id) == ("too_many", 1)
    welcome = said(b, connection, c.Hello(2, names, filters=each_its_own(names, MANY)))
    assert welcome.subscriptions == names
    answer = said(b, connection, c.Subscribe(["custom.b"], 3, filter=zones("b")))
    assert (answer.code, answer.id) == ("too_many", 3)
    answer = said(b, connection, c.Subscribe(["custom.b"], filter=zones(names[0])))
    assert answer.subscriptions == [*names, "custom.b"]


def test_a_long_message_counts_for_several() -> None:
    """Whatever is in it: reading it is what it costs."""
    b = ShardHarness(session__message_burst=20.0, session__message_rate=1.0)
    connection = b.connect(subscriptions=[])
    long = msgspec.json.encode({"type": "ping", "id": 1, "nobody-reads": ["x"] * 15_000}).decode()
    answers = []
    for _ in range(4):
        b.send_raw(connection, long)
        answers += b.read_messages(connection)
    assert [code_of(answer) for answer in answers] == [None, None, "rate_limited", "rate_limited"]
    assert answers[-1].retry_after > 1


# ------------------------------------------------------------------------------------------------ what is answered


def test_unknown_names_are_told_once_and_not_kept() -> None:
    """Neither in the shard's memory, nor in each answer that comes later."""
    b = ShardHarness(session__subscription_burst=1e6, session__message_burst=1e6)
    connection = b.connect(subscriptions=["nosuch.type", "custom.a"])
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(MAX_PATTERNS + 10):
        answer = said(b, connection, c.Subscribe([f"{n}" + "x" * 60_000]))
        assert [d.reason for d in answer.denied] == ["unknown_type"]
        b.sockets.sent[connection].clear()
        b._read[connection] = 0
        b.audit_lines.clear()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < 200_000
    assert answer.subscriptions == ["custom.a"]
    assert list(connection.wanted) == ["custom.a"]


def test_answers_to_what_is_wrong_are_not_much_longer_than_the_question() -> None:
    """Many short names that don't exist, one that is very long, a type that isn't one: what is said back has bounds."""
    b = ShardHarness()
    connection = b.connect(subscriptions=[])

    def lengths(message: Any) -> tuple[int, int]:
        raw = message if isinstance(message, str) else msgspec.json.encode(message).decode()
        before = len(b.sockets.sent[connection])
        b.send_raw(connection, raw)
        return len(raw), sum(map(len, b.sockets.sent[connection][before:]))

    question, answer = lengths(c.Subscribe([f"{n:x}" for n in range(MAX_PATTERNS)]))
    assert answer < 10 * question
    _, answer = lengths(c.Subscribe(["x" * 60_000]))
    assert answer < MAX_NAME_CHARACTERS + 200
    _, answer = lengths('{"type":"' + "x" * 60_000 + '"}')
    assert answer < MAX_ERROR_CHARACTERS + 200
    _, answer = lengths(c.Subscribe(["*"], filter={"y" * 60_000: ["x"]}))
    assert answer < MAX_ERROR_CHARACTERS + 500
    _, answer = lengths(c.Subscribe(["*"], filter={"zone": ["x" * 60_000]}))
    assert answer < MAX_ERROR_CHARACTERS + 200


def test_the_first_that_are_denied_have_a_hint() -> None:
    """All are named with the reason."""
    b = ShardHarness()
    answer = said(b, b.connect(subscriptions=[]), c.Subscribe([f"nosuch{n}" for n in range(50)]))
    assert [d.type for d in answer.denied] == [f"nosuch{n}" for n in range(50)]
    assert [bool(d.hint) for d in answer.denied] == [True] * MAX_HINTS + [False] * (50 - MAX_HINTS)


def test_connections_that_want_the_same_hold_the_same() -> None:
    """In whatever words, and with a scope or a filter that comes to the same: one feed, one selection."""
    b = ShardHarness()
    one = b.connect("one", subscriptions=["dns.*"], filter={"zone": ["a.example", "b.example"], "view": ["v"]})
    two = b.connect(
        "two",
        subscriptions=["zone_created", "dns.*"],
        filter={"view": ["v", "v"], "zone": ["B.example.", "x.y.a.example", "A.example", "c.b.example"]},
    )
    three = b.connect(
        "three", subscriptions=["dns.*"], filter={"view": ["v"]}, scopes={"zone": ("b.example", "a.example")}
    )
    four = b.connect(
        "four",
        subscriptions=["dns.*"],
        filter={"view": ["v"], "zone": ["example"]},
        scopes={"zone": ("b.example", "a.example", "z.a.example")},
    )
    for other in (two, three, four):
        assert other.feed is one.feed
        assert other.selection is one.selection
    assert len(b.shard.feeds) == 1
