"""Replays for old clients: paced, page by page, one for each user, and never ahead of a socket that is busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import Any

import msgspec
import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import RequestError, RequestRejected
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import ROLES, Identity, make_view
from solowire.model.subscriptions import parse_wanted
from solowire.protocol.dialect_codec import DialectCodec
from solowire.protocol.history_query import HistoryQuery
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.timers import Timers
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.dialect_pages import DialectPages
from solowire.workers.history.dialect_replays import DialectReplays
from solowire.workers.history.history_page import HistoryJudge, HistoryPage, HistoryTask
from solowire.workers.history.history_scheduler import Done
from tests.domains.dns.legacy.page import read_frame
from tests.support.factories import event
from tests.support.memory_sockets import MemorySockets
from tests.support.shard_harness import DIALECT, OLD_PATH

START = "2026-01-01T00:00:00Z"
END = "2026-01-01T01:00:00Z"
UNIX = 1_800_000_000.0  # long after
DETAILS = {"name": "morning", "since": START, "until": END, "speed": 60.0, "types": ["record_created"], "filter": {}}


class FakePages(DialectPages):
    """Pages that are answered when the test says so, and with what it says."""

    def __init__(self) -> None:
        self.questions: list[tuple[Mapping[str, Any], str | None]] = []
        self.waiting: list[Done] = []
        self.cancelled: list[HistoryTask] = []
        self.error: RequestError | None = None

    def fetch_page(
        self,
        connection: Connection,
        codec: DialectCodec,
        question: Mapping[str, Any],
        after: str | None,
        done: Done,
        now: float,
    ) -> HistoryTask:
        if self.error is not None:
            raise self.error
        self.questions.append((question, after))
        self.waiting.append(done)
        query = HistoryQuery()
        log = RecentLog(catalog=CATALOG)
        judge = HistoryJudge(parse_wanted(["*"], None, None, CATALOG), make_view(connection.identity), codec, log)
        return HistoryTask(connection.identity, query, judge, key=connection, max_bytes=1, now=now)

    def cancel_page(self, task: HistoryTask) -> None:
        self.cancelled.append(task)


class Place:
    def __init__(self) -> None:
        self.now = 100.0
        self.history = FakePages()
        self.sockets = MemorySockets()
        self.connections: set[Connection] = set()
        self.timers = Timers(self.connections)
        log = RecentLog(catalog=CATALOG)
        self.replays = DialectReplays(self.history, make_dispatcher(log, self.sockets), self.sockets, self.timers)
        path = DIALECT.find_path(OLD_PATH)
        assert path is not None
        self.session = DIALECT.open_session(path, is_admin=False)
        self._names = count(1)
        self.page = self.open()

    def open(self, user: str = "alice") -> Connection:
        codec = DialectCodec(self.session.make_translator("view"), "legacy")
        connection = Connection(
            f"s{next(self._names)}", Identity(user, "viewer", ROLES["viewer"].permissions), codec, None
        )
        connection.become(State.live)
        self.connections.add(connection)
        return connection

    def make_codec(self, replay_id: str) -> DialectCodec:
        return DialectCodec(self.session.make_past_translator(["record_created"], ("replay", replay_id)), "legacy")

    def start(self, connection: Connection | None = None, **details: Any) -> Mapping[str, Any]:
        return self.replays.start_replay(
            connection or self.page, self.make_codec, {**DETAILS, **details}, self.now, UNIX
        )

    def answer(self, *minutes: int, next: str | None = None) -> None:
        """A page with a record at each of these minutes."""
        codec = self.make_codec("replay-1")
        fragments = []
        for minute in minutes:
            happened = event("record_created", {"zone": "example.com", "name": f"m{minute}", "type": "A"})
            stamped = happened.__class__(**{**fields_of(happened), "timestamp": f"2026-01-01T00:{minute:02}:00Z"})
            fragment = codec.translate_event(
                stamped, {"zone": "example.com", "name": f"m{minute}", "type": "A"}, minute
            )
            assert fragment is not None
            fragments.append(fragment)
        self.history.waiting.pop(0)(HistoryPage([msgspec.Raw(f) for f in fragments], next, next is None), self.now)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.timers.due_at) is not None and at <= end:
            self.now = max(self.now, at)
            while (due := self.timers.pop_due(self.now)) is not None:
                self.replays.advance_replay(due[1], self.now)
        self.now = end

    def sent(self, connection: Connection | None = None) -> list[str]:
        batches = self.sockets.sent.get(connection or self.page, [])
        return [read_frame(text.decode())["data"]["name"] for batch in batches for text in batch.split(b"\n")]  # type: ignore[arg-type,union-attr]


def fields_of(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_events_come_at_the_pace_at_which_they_came() -> None:
    """A minute of then is a second of now, at sixty times the speed."""
    p = Place()
    answer = p.start()
    assert (answer["name"], answer["status"]) == ("morning", "running")
    p.answer(0, 1, 2, 10)
    p.wait(0.5)
    assert p.sent() == ["m0"]
    p.wait(1.0)
    assert p.sent() == ["m0", "m1"]
    p.wait(10)
    assert p.sent() == ["m0", "m1", "m2", "m10"]
    found = p.replays.describe_replay(p.page, answer["replay_id"])
    assert (found["status"], found["progress"], found["processed_events"], found["total_events"]) == (
        "completed",
        100.0,
        4,
        4,
    )


def test_an_event_of_a_clock_that_is_ahead_holds_nobody_up() -> None:
    """It comes at the end of what is replayed, and not when its publisher's clock would have it."""
    p = Place()
    replay_id = p.start(until="2026-01-01T00:05:00Z")["replay_id"]
    p.answer(0, 30, 1)
    p.wait(4.9)
    assert p.sent() == ["m0"]
    p.wait(0.2)
    assert p.sent() == ["m0", "m30", "m1"]
    assert p.replays.describe_replay(p.page, replay_id)["status"] == "completed"


def test_one_page_after_the_other() -> None:
    """The next one is asked for when what there is has been sent, from where the last one ended."""
    p = Place()
    p.start()
    p.answer(0, 1, next="e:2")
    assert len(p.history.questions) == 1
    p.wait(2)
    assert [after for _, after in p.history.questions] == [None, "e:2"]
    p.answer(5)
    p.wait(60)
    assert p.sent() == ["m0", "m1", "m5"]


def test_a_user_has_one_that_runs() -> None:
    """On whichever of its connections; when it is over another may begin."""
    p = Place()
    first = p.start()
    second = p.open()
    assert p.start(second)["error"] == "replay_running"
    assert p.start(p.open("bob"))["status"] == "running"
    assert p.replays.stop_replay(second, first["replay_id"]) == {"success": True, "replay_id": first["replay_id"]}
    assert [task.key for task in p.history.cancelled] == [p.page]
    assert p.start(second)["status"] == "running"


def test_one_that_was_stopped_sends_no_more() -> None:
    p = Place()
    replay_id = p.start()["replay_id"]
    p.answer(0, 10)
    p.wait(0.1)
    p.replays.stop_replay(p.page, None)
    p.wait(60)
    assert p.sent() == ["m0"]
    assert p.replays.describe_replay(p.page, replay_id)["status"] == "stopped"
    assert p.replays.stop_replay(p.page, replay_id)["success"] is False


def test_a_page_that_comes_after_the_stop_is_nothing() -> None:
    p = Place()
    p.start()
    p.replays.stop_replay(p.page, None)
    p.answer(0)
    p.wait(1)
    assert p.sent() == []


def test_a_connection_that_ends_takes_its_replay_along() -> None:
    p = Place()
    p.start()
    p.replays.forget_connection(p.page)
    assert [task.key for task in p.history.cancelled] == [p.page]
    assert p.replays.describe_replay(p.open(), None)["error"] == "no_such_replay"


def test_a_busy_socket_is_waited_for() -> None:
    p = Place()
    p.sockets.stuck.add(p.page)
    p.start()
    p.answer(0, 1)
    p.wait(0.5)
    assert p.sent() == ["m0"]
    p.wait(30)
    assert p.sent() == ["m0"]
    p.sockets.unstick(p.page)
    p.wait(1)
    assert p.sent() == ["m0", "m1"]


@pytest.mark.parametrize(
    "details",
    [
        {"since": "yesterday"},
        {"until": "soon"},
        {"since": END, "until": START},
        {"since": START, "until": START},
        {"since": "0001-01-01T00:00:00+23:59"},  # a year before the first, in UTC
    ],
)
def test_times_that_are_none_are_refused(details: dict[str, Any]) -> None:
    p = Place()
    assert p.start(**details)["error"] == "invalid_message"
    assert p.history.questions == []


def test_history_that_can_not_be_had() -> None:
    """At the beginning it is said; later the replay has failed, and says so when it is asked."""
    p = Place()
    p.history.error = RequestRejected(429, "too_many_questions", "you ask too much", "wait", 1.0)
    assert p.start()["error"] == "too_many_questions"
    p.history.error = None
    replay_id = p.start()["replay_id"]
    p.history.waiting.pop()(RequestRejected(410, "too_old", "that is no longer kept", ""), p.now)
    assert p.replays.describe_replay(p.page, replay_id)["status"] == "failed"


def test_one_that_asks_too_fast_goes_on_later() -> None:
    p = Place()
    replay_id = p.start()["replay_id"]
    p.answer(0, next="e:1")
    p.history.error = RequestRejected(429, "too_many_questions", "you ask too much", "wait", 2.0)
    p.wait(1)
    assert p.replays.describe_replay(p.page, replay_id)["status"] == "running"
    p.history.error = None
    p.wait(2)
    assert [after for _, after in p.history.questions] == [None, "e:1"]


@pytest.mark.parametrize("asked", [[None, "e:1", "e:1"], [None, None]], ids=["in the midst", "at the beginning"])
def test_a_page_that_is_refused_for_now_is_asked_for_again(asked: list[str | None]) -> None:
    """Such as while the router starts again: the same page, when it may be."""
    p = Place()
    replay_id = p.start()["replay_id"]
    if len(asked) > 2:
        p.answer(0, next="e:1")
    p.wait(1)
    p.history.waiting.pop()(RequestRejected(503, "router_unavailable", "not now", "wait", 2.0), p.now)
    p.wait(1.9)
    assert len(p.history.waiting) == 0
    p.wait(0.2)
    assert [after for _, after in p.history.questions] == asked
    p.answer(5)
    p.wait(60)
    assert p.sent()[-1] == "m5"
    assert p.replays.describe_replay(p.page, replay_id)["status"] == "completed"


def test_a_page_is_asked_for_once() -> None:
    """What was to come of a replay that was stopped makes nobody ask for the next one's page again."""
    p = Place()
    p.start()
    p.answer(0, 10)
    p.wait(0.1)
    p.replays.stop_replay(p.page, None)
    p.start()
    p.wait(60)
    assert len(p.history.questions) == 2
    p.answer(0, 1)
    p.wait(2)
    assert p.sent() == ["m0", "m0", "m1"]


def make_dispatcher(log: RecentLog, sockets: MemorySockets) -> Dispatcher:
    conflator = Conflator()
    feeds: FeedIndex[Connection] = FeedIndex(log, conflator)
    return Dispatcher(log, conflator, feeds, sockets, Counter(), stalled=30.0, clock=Clock(0.0))
