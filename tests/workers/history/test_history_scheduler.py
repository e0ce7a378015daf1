"""Pages of history in a shard: who may ask, what a page holds, when it ends, and what becomes of it meanwhile."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.backplane.messages import HistoryResponse, Revocation
from solowire.errors import InvalidHistoryQuery, RequestError, RequestRejected, TokenRevoked
from solowire.model.access import Identity
from solowire.protocol import messages as c
from solowire.protocol.history_query import parse_history
from solowire.protocol.messages import Codec
from solowire.workers.history.history_page import HistoryPage, HistoryTask
from tests.support.shard_harness import QUERY, TOKENS, WALL, ShardHarness


class Asker:
    """Asks a shard, and keeps what it is answered."""

    def __init__(self, b: ShardHarness, user: str = "alice", role: str = "viewer", **scopes: Any) -> None:
        self.b = b
        self.identity: Identity = TOKENS.identify(b.sign_token(user, role, **scopes), b.now + WALL)
        self.outcomes: list[HistoryPage | RequestError] = []

    def ask(self, max_bytes: int = 2**20, key: object = None, **fields: Any) -> HistoryTask:
        b = self.b
        query = parse_history(fields, b.shard.log.catalog, now=b.now + WALL, max_limit=5000)
        return b.shard.history.start_task(
            self.identity,
            query,
            Codec.json,
            lambda outcome, now: self.outcomes.append(outcome),
            max_bytes=max_bytes,
            now=b.now,
            key=key,
        )

    def page(self, **fields: Any) -> HistoryPage:
        self.ask(**fields)
        self.b.answer_history()
        outcome = self.outcomes[-1]
        assert isinstance(outcome, HistoryPage), outcome
        return outcome


def offsets(page: HistoryPage) -> list[int]:
    return [msgspec.json.decode(event)["offset"] for event in page.events]


def refused(asker: Asker, **fields: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        asker.ask(**fields)
    return caught.value


@given(
    st.lists(st.sampled_from(["a", "b", "own", "others", "hidden"]), max_size=30),
    st.integers(1, 12),
    st.booleans(),
    st.integers(1, 7),
)
def test_pages_together_hold_what_a_live_connection_gets(
    kinds: list[str], limit: int, is_descending: bool, at_a_time: int
) -> None:
    """Whatever the log holds, and however it comes in parts: history is what came live, once and in order."""
    b = ShardHarness()
    live = b.connect(subscriptions=["custom.a", "dns_query_log"], filter={"topic": ["x"]})
    for kind in kinds:
        match kind:
            case "own" | "others":
                b.publish("custom.a", {"topic": "x"}, user="alice" if kind == "own" else "bob")
            case "hidden":
                b.publish("dns_query_log", QUERY)
            case _:
                b.publish("custom.a", {"topic": "x" if kind == "a" else "y"})
    b.wait(2)
    got = [(e.offset, e.data) for e in b.read_events(live)]
    asker, found, after = Asker(b), [], None
    while True:
        asker.ask(
            types=["custom.a", "dns_query_log"],
            filter={"topic": ["x"]},
            limit=limit,
            after=after,
            order="desc" if is_descending else "asc",
        )
        b.answer_history(at_a_time)
        page = asker.outcomes.pop()
        assert isinstance(page, HistoryPage)
        assert len(page.events) <= limit
        found += [(e["offset"], e["data"]) for e in map(msgspec.json.decode, page.events)]
        if page.complete:
            break
        after = page.next
        b.now += 1.0
    assert found == (got[::-1] if is_descending else got)


def test_a_page_ends_with_its_bytes() -> None:
    """A page is no larger than it may be, oldest or newest first; an event that is has a page to itself."""
    b = ShardHarness()
    for _ in range(10):
        b.publish("custom.a", {"x": "y" * 1000})
    asker = Asker(b)

    def ask(max_bytes: int, after: str | None, order: str) -> HistoryPage:
        asker.ask(max_bytes=max_bytes, types=["custom.a"], after=after, order=order)
        b.answer_history(at_a_time=100)
        page = asker.outcomes.pop()
        assert isinstance(page, HistoryPage)
        assert not page.complete
        return page

    for max_bytes, order, pages in (
        (3000, "asc", [[1, 2], [3, 4]]),
        (3000, "desc", [[10, 9], [8, 7]]),
        (500, "asc", [[1], [2]]),
    ):
        first = ask(max_bytes, None, order)
        assert sum(map(len, map(bytes, first.events))) <= max_bytes or len(first.events) == 1
        assert [offsets(first), offsets(ask(max_bytes, first.next, order))] == pages


def test_a_page_ends_with_its_time() -> None:
    """A question that takes long is answered with what was found by then, and goes on from there."""
    b = ShardHarness(history__timeout_s=5.0)
    for n in range(6):
        b.publish("custom.a" if n in (1, 5) else "custom.b")
    asker = Asker(b)
    asker.ask(types=["custom.a"])
    b.shard.on_history_response(b.make_history_part(b.history_requests.pop(), 3), b.now)
    b.wait(5.0)
    page = asker.outcomes[0]
    assert isinstance(page, HistoryPage)
    assert (offsets(page), page.complete, page.next) == ([2], False, "epoch-1:3")
    assert not b.history_requests  # it was cancelled
    assert offsets(asker.page(types=["custom.a"], after=page.next)) == [6]


def test_a_router_that_says_nothing_is_said() -> None:
    """Who waits for a router that is away gets 503, and may ask again."""
    b = ShardHarness(history__timeout_s=5.0)
    asker = Asker(b)
    asker.ask()
    b.wait(5.0)
    [outcome] = asker.outcomes
    assert isinstance(outcome, RequestRejected)
    assert (outcome.status, outcome.code, outcome.retry_after) == (503, "router_unavailable", 1.0)


def test_who_is_told_of_a_page_may_give_up_the_others() -> None:
    """Also those whose time is over with it: of what is given up nobody is told, and all places are free again."""
    b = ShardHarness(history__timeout_s=5.0, history__max_per_user=3)
    asker, key, told = Asker(b), object(), []

    def give_up(outcome: HistoryPage | RequestError, now: float) -> None:
        told.append(outcome)
        b.shard.history.cancel_tasks(key)

    query = parse_history({}, b.shard.log.catalog, now=b.now + WALL, max_limit=5000)
    for _ in range(3):
        b.shard.history.start_task(asker.identity, query, Codec.json, give_up, max_bytes=2**20, now=b.now, key=key)
    b.wait(5.0)
    [outcome] = told
    assert isinstance(outcome, RequestRejected)
    assert (outcome.code, len(b.shard.history), b.history_requests) == ("router_unavailable", 0, [])
    assert asker.page().complete


def test_a_router_that_has_begun_anew_is_asked_again() -> None:
    """What the router was asked before its restart is asked of the new one."""
    b = ShardHarness()
    b.publish("custom.a")
    asker = Asker(b)
    asker.ask(types=["custom.a"])
    b.history_requests.clear()
    b.send_ring(0, since=0)
    b.answer_history()
    page = asker.outcomes[0]
    assert isinstance(page, HistoryPage)
    assert offsets(page) == [1]


def test_a_user_has_a_rate_and_a_number_at_a_time() -> None:
    """One too many is told when to come; others are not touched, and nor is who waits as told."""
    b = ShardHarness(history__rate=1.0, history__burst=3.0, history__max_per_user=2)
    asker = Asker(b)
    asker.ask()
    asker.ask()
    error = refused(asker)
    assert (error.status, error.code, error.retry_after) == (429, "history_rate_limited", 1.0)
    b.answer_history()
    asker.page()
    error = refused(asker)
    assert error.status == 429
    assert error.retry_after == pytest.approx(1.0)
    Asker(b, "bob").page()
    b.now += 1.0
    asker.page()
    assert b.shard.history.rejected_count == 2


def test_a_shard_asks_for_a_few_at_a_time() -> None:
    """More questions than that wait, and come in their turn; one that nobody waits for gives its place."""
    b = ShardHarness(history__max_concurrent=2)
    askers = [Asker(b, f"user-{n}") for n in range(4)]
    tasks = [asker.ask() for asker in askers]
    assert [q.user for q in b.history_requests] == ["user-0", "user-1"]
    b.shard.history.cancel_task(tasks[0])
    b.wait(0)
    assert [q.user for q in b.history_requests] == ["user-1", "user-2"]
    b.answer_history()
    assert [len(asker.outcomes) for asker in askers] == [0, 1, 1, 1]
    assert len(b.shard.history) == 0


def test_who_has_no_place_comes_before_who_has_one() -> None:
    """However many questions one user has waiting, another's first is begun with the next place."""
    b = ShardHarness(history__max_concurrent=2, history__max_per_user=4)
    greedy = Asker(b, "greedy")
    tasks = [greedy.ask() for _ in range(4)]
    Asker(b, "modest").ask()
    assert [q.user for q in b.history_requests] == ["greedy", "greedy"]
    b.shard.history.cancel_task(tasks[0])
    b.wait(0)
    assert [q.user for q in b.history_requests] == ["greedy", "modest"]


def test_the_time_of_a_page_begins_with_its_place() -> None:
    """However long a question has waited for it, it has all of its time then."""
    b = ShardHarness(history__max_concurrent=1, history__timeout_s=5.0, history__max_wait_s=4.0)
    first, second = Asker(b, "ann"), Asker(b, "bob")
    task = first.ask()
    second.ask()
    b.wait(3.5)
    b.shard.history.cancel_task(task)
    b.wait(4.9)
    assert [q.user for q in b.history_requests] == ["bob"]
    assert not second.outcomes
    b.answer_history()
    assert isinstance(second.outcomes.pop(), HistoryPage)


def test_who_gets_no_place_in_time_is_told() -> None:
    """Nobody waits without an end for what others ask, and nothing is asked for who has given up."""
    b = ShardHarness(history__max_concurrent=1, history__timeout_s=30.0, history__max_wait_s=4.0)
    first, second = Asker(b, "ann"), Asker(b, "bob")
    first.ask()
    second.ask()
    b.wait(3.9)
    assert not second.outcomes
    b.wait(0.2)
    [busy] = second.outcomes
    assert isinstance(busy, RequestRejected)
    assert (busy.status, busy.code, busy.retry_after) == (503, "history_busy", 2.0)
    assert [q.user for q in b.history_requests] == ["ann"]


def test_a_page_ends_with_its_token() -> None:
    """Whoever is revoked is told so at once, whether the page is under way or waits; others go on."""
    b = ShardHarness(history__max_concurrent=1)
    ann, bob, late = Asker(b, "ann"), Asker(b, "bob"), Asker(b, "ann")
    for asker in (ann, bob, late):
        asker.ask()
    b.shard.revoke([Revocation("r1", "ann", None, None, WALL, WALL + 1e6, "admin")], b.now)
    for asker in (ann, late):
        [refused] = asker.outcomes
        assert isinstance(refused, TokenRevoked)
        assert refused.code == "token_revoked"
    assert [q.user for q in b.history_requests] == ["bob"]
    b.answer_history()
    assert isinstance(bob.outcomes.pop(), HistoryPage)


def test_who_asks_on_and_on_gives_way_to_live_events() -> None:
    """The same pages take several times as long while live events come, and come all the same."""
    idle_s, live_s = (time_pages(is_live=is_live) for is_live in (False, True))
    assert 3.5 < live_s / idle_s < 5.0  # (16 + 1) to (3 + 1)


def time_pages(*, is_live: bool) -> float:
    """How long many pages take of a shard whose stopwatch says that each look at it takes 0.1 ms."""
    b = ShardHarness(history__rate=1e6, history__burst=1e6)
    for _ in range(1000):
        b.publish("custom.a", {})
    b.wait(2.0)
    ticks = count(1)
    b.shard.clock.stopwatch = lambda: next(ticks) * 0.0001
    asker, began = Asker(b), b.now
    for _ in range(20):
        asker.ask()
        while len(b.shard.history):
            if is_live:
                b.shard.history.record_live_events(b.now)
            if b.history_requests:
                b.shard.on_history_response(b.make_history_part(b.history_requests.pop(0), 100), b.now)
            else:
                b.now = max(b.now + 0.0001, b.shard.history.due_at)
                b.shard.run(b.now)
    assert sum(len(page.events) for page in asker.outcomes if isinstance(page, HistoryPage)) == 20 * 1000
    return b.now - began


def test_a_question_that_is_none_counts_as_one() -> None:
    """To read it costs as much as to answer it: whoever asks badly has the same rate."""
    b = ShardHarness(history__rate=1.0, history__burst=2.0)
    history = b.shard.history
    for _ in range(2):
        history.check_rate("alice", b.now)
        history.charge_rejected("alice", b.now)
    with pytest.raises(RequestRejected, match="pages of history a second"):
        history.check_rate("alice", b.now)


def test_too_many_questions_are_refused() -> None:
    """The waiting has a bound."""
    b = ShardHarness()
    for n in range(256):
        Asker(b, f"user-{n}").ask()
    error = refused(Asker(b, "one-more"))
    assert (error.status, error.code) == (503, "history_busy")


def test_what_is_gone_is_told_with_what_is_left() -> None:
    """The router's refusals become answers that name the way out."""
    b = ShardHarness()
    b.offset, b.journal_floor = 9, 5
    asker = Asker(b)
    asker.ask(since="epoch-1:3")
    b.answer_history()
    gone = asker.outcomes.pop()
    assert isinstance(gone, RequestRejected)
    assert (gone.status, gone.code) == (410, "history_gone")
    assert gone.members == {"oldest": {"position": "epoch-1:5", "timestamp": "1970-01-01T00:00:01.500Z"}}
    asker.ask(since="epoch-1:3", until="epoch-1:77")
    [question] = b.history_requests
    b.shard.on_history_response(HistoryResponse(question.request, "epoch-1", 5, 9, 0, [], "future"), b.now)
    future = asker.outcomes.pop()
    assert isinstance(future, InvalidHistoryQuery)
    assert set(future.faults) == {"until"}


def test_what_nobody_may_see_is_forbidden() -> None:
    """A question of which nothing may be shown, or by who may not connect, is refused before anything is read."""
    b = ShardHarness()
    assert refused(Asker(b), types=["audit_event"]).status == 403
    assert refused(Asker(b, role="publisher")).status == 403
    assert not b.history_requests
    page = Asker(b).page(types=["audit_event", "custom.a"])
    assert [(d.type, d.reason) for d in page.denied] == [("audit_event", "forbidden")]


def test_the_router_is_told_what_to_look_for() -> None:
    """Types with one filter come together; scopes are part of it; who wants everything says so."""
    b = ShardHarness()
    Asker(b, zones=("example.com",)).ask(types=["record_created", "record_updated", "custom.a"])
    [question] = b.history_requests
    assert [(clause.types, clause.conditions) for clause in question.clauses or []] == [
        (["custom.a", "record_created", "record_updated"], [("zone", ["example.com"], True)])
    ]
    Asker(b, "root", "admin").ask()
    assert b.history_requests[-1].clauses is None


def test_a_socket_that_closes_is_asked_for_no_more() -> None:
    """The question of a connection that has gone is cancelled, here and at the router."""
    b = ShardHarness()
    connection = b.connect()
    b.say(connection, c.FetchHistory("q"))
    assert b.history_requests
    b.shard.on_closed(connection)
    assert not b.history_requests
    assert len(b.shard.history) == 0


def test_a_page_made_under_other_rights_is_not_sent() -> None:
    """Whose rights change while a page is made has to ask again."""
    b = ShardHarness()
    connection = b.connect(role="operator")
    b.publish("custom.a")
    b.say(connection, c.FetchHistory("q"))
    b.say(connection, c.Refresh(b.sign_token("alice", "viewer")))
    b.read_messages(connection)
    b.answer_history()
    [error] = [m for m in b.read_messages(connection) if isinstance(m, c.Error)]
    assert (error.id, error.code) == ("q", "rights_changed")


def test_a_socket_s_question_comes_after_its_hello() -> None:
    """As `subscribe`; and what is wrong with it is told with its id."""
    b = ShardHarness()
    connection = b.open_connection()
    b.say(connection, c.FetchHistory("early"))
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("early", "hello_required")
    connection = b.connect(user="bob")
    b.say(connection, c.FetchHistory("wrong", since="x", limit=-1))
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("wrong", "invalid_query")
    b.journal_floor = b.offset = 3
    b.say(connection, c.FetchHistory("gone", since="epoch-1:1"))
    b.answer_history()
    [error] = b.read_messages(connection)
    assert (error.id, error.code) == ("gone", "history_gone")
    assert "epoch-1:3" in error.hint
