"""Replays for clients of a dialect: what has happened once, sent again at the pace at which it came, or a multiple.

What it keeps true: a replay is judged by the user's present view, page after page (`DialectPages`), and holds one page
of events; a user has one that runs, whatever the number of its connections, and it ends with its connection. Nothing
is sent to a socket that is busy: its replay waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

from solowire.errors import RequestError, RequestRejected
from solowire.protocol.dialect_codec import DialectCodec
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import TimerKind, Timers
from solowire.workers.delivery.dispatcher import Dispatcher
from solowire.workers.history.dialect_pages import DialectPages
from solowire.workers.history.history_page import HistoryPage, HistoryTask

BUSY_SECONDS = 0.1
FRAMES_A_TURN = 100
STEP_SECONDS = 0.02
"""After so many frames others have their turn."""


class Replay:
    """One replay.

    since, until: unix seconds. status: `running`, `completed`, `stopped` or `failed`. sent_count: events.
    """

    def __init__(self, id: str, connection: Connection, codec: DialectCodec, question: Mapping[str, Any]) -> None:
        self.id = id
        self.connection = connection
        self.codec = codec
        self.question = question
        self.name = str(question.get("name", ""))
        self.speed = float(question["speed"])
        self.since, self.until = float(question["since_unix"]), float(question["until_unix"])
        self.status = "running"
        self.reason = ""  # why it has failed
        self.sent_count = 0
        self.waiting: deque[tuple[float, bytes]] = deque()  # when it happened, and the fragment
        self.next_page: str | None = None
        self.is_last = False  # there is no page behind what waits
        self.task: HistoryTask | None = None  # the page that was asked for, and has not come
        self.began_at = 0.0  # monotonic
        self.reached_at = self.since  # up to where it has been sent

    def find_due_at(self, happened: float) -> float:
        """When what happened then is to be sent."""
        return self.began_at + max(0.0, happened - self.since) / self.speed

    def describe(self) -> dict[str, Any]:
        """As far as is known: the total grows with each page."""
        length = self.until - self.since
        done = 1.0 if self.status == "completed" or length <= 0 else (self.reached_at - self.since) / length
        return {
            "replay_id": self.id,
            "name": self.name,
            "status": self.status,
            "progress": round(100 * min(1.0, max(0.0, done)), 1),
            "total_events": self.sent_count + len(self.waiting),
            "processed_events": self.sent_count,
            **({"reason": self.reason} if self.reason else {}),
        }


class DialectReplays:
    """All replays of a shard. pages: where events come from. Times are seconds, monotonic, unless they say unix."""

    def __init__(self, pages: DialectPages, dispatcher: Dispatcher, sockets: Sockets, timers: Timers) -> None:
        self._pages = pages
        self._dispatcher = dispatcher
        self._sockets = sockets
        self._timers = timers
        self._ids = count(1)
        self._replays: dict[str, Replay] = {}  # by user: the last one, as long as its connection is there

    def start_replay(
        self,
        connection: Connection,
        make_codec: Callable[[str], DialectCodec],
        details: Mapping[str, Any],
        now: float,
        unix: float,
    ) -> Mapping[str, Any]:
        """Begins one; what the client is answered. make_codec: of the replay's id."""
        user = connection.identity.user
        running = self._replays.get(user)
        if running is not None and running.status == "running":
            return _make_fault("replay_running", f"one replay runs for you already: {running.id}; stop it first")
        since, until = _read_time(details["since"]), unix
        if details.get("until") is not None:
            until = _read_time(details["until"]) or float("-inf")
        if since is None or since >= until:
            hint = "start_time and end_time are times such as 2026-12-01T10:00:00Z, the earlier first"
            return _make_fault("invalid_message", hint)
        replay_id = f"{connection.session}-{next(self._ids)}"
        question = {**details, "since_unix": since, "until_unix": min(until, unix)}
        replay = Replay(replay_id, connection, make_codec(replay_id), question)
        replay.began_at = now
        try:
            self._fetch_page(replay, now)
        except RequestError as error:
            return _make_fault(error.code, f"{error.message}: {error.hint}")
        self._replays[user] = replay
        return {"replay_id": replay.id, "name": replay.name, "status": "running"}

    def stop_replay(self, connection: Connection, replay_id: str | None) -> Mapping[str, Any]:
        """Ends the user's replay, on whichever of its connections; what the client is answered."""
        replay = self._find_replay(connection, replay_id)
        stopped = replay is not None and replay.status == "running"
        if replay is not None and stopped:
            self._end_replay(replay, "stopped")
        return {"success": stopped, "replay_id": replay.id if replay is not None else replay_id}

    def describe_replay(self, connection: Connection, replay_id: str | None) -> Mapping[str, Any]:
        """How far the user's last replay is."""
        replay = self._find_replay(connection, replay_id)
        if replay is None:
            return _make_fault("no_such_replay", "there is no replay of yours; start_replay begins one")
        return replay.describe()

    def forget_connection(self, connection: Connection) -> None:
        """It has ended, and its replay with it."""
        replay = self._replays.get(connection.identity.user)
        if replay is not None and replay.connection is connection:
            del self._replays[connection.identity.user]
            self._end_replay(replay, "stopped")

    def _find_replay(self, connection: Connection, replay_id: str | None) -> Replay | None:
        replay = self._replays.get(connection.identity.user)
        return replay if replay is not None and replay_id in (None, replay.id) else None

    def _end_replay(self, replay: Replay, status: str) -> None:
        if replay.status == "running":
            replay.status = status
            replay.waiting.clear()
            if replay.task is not None:
                self._pages.cancel_page(replay.task)

    def _fetch_page(self, replay: Replay, now: float) -> None:
        """Asks for the next page. Raises RequestError."""

        def take_page(page: HistoryPage | RequestError, then: float) -> None:
            replay.task = None
            if replay.status != "running":
                return
            if isinstance(page, RequestError):
                self._handle_rejection(replay, page, then)
                return
            replay.next_page, replay.is_last = page.next, page.complete
            for fragment in map(bytes, page.events):
                replay.waiting.append((self._read_moment(replay, fragment), fragment))
            self._timers.schedule(then, TimerKind.dialect_replay, replay.connection)

        replay.task = self._pages.fetch_page(
            replay.connection, replay.codec, replay.question, replay.next_page, take_page, now
        )

    def _read_moment(self, replay: Replay, fragment: bytes) -> float:
        """When the event happened, by its publisher's clock; where it doesn't say, when the one before it did.

        One of a clock that is ahead comes at the end of the replay: it must not hold up those behind it for longer.
        """
        moment = _read_time(replay.codec.read_timestamp(fragment))
        before = replay.waiting[-1][0] if replay.waiting else replay.reached_at
        return before if moment is None else min(moment, replay.until)

    def advance_replay(self, connection: Connection, now: float) -> None:
        """Sends what is due of the connection's replay, and sees to the rest."""
        replay = self._replays.get(connection.identity.user)
        if replay is None or replay.connection is not connection or replay.status != "running":
            return
        if connection.state is not State.live:
            return
        if self._sockets.is_busy(connection) or connection.reader.pending_replies:
            self._timers.schedule(now + BUSY_SECONDS, TimerKind.dialect_replay, connection)
            return
        due: list[bytes] = []
        while replay.waiting and len(due) < FRAMES_A_TURN and replay.find_due_at(replay.waiting[0][0]) <= now:
            replay.reached_at, fragment = replay.waiting.popleft()
            due.append(fragment)
        replay.sent_count += len(due)
        if due:
            self._dispatcher.send_frame(connection, replay.codec.encode_events(0, due), now)
        if replay.waiting:
            due_at = max(now + STEP_SECONDS, replay.find_due_at(replay.waiting[0][0]))
            self._timers.schedule(due_at, TimerKind.dialect_replay, connection)
        elif replay.is_last:
            self._end_replay(replay, "completed")
        elif replay.task is None:
            try:
                self._fetch_page(replay, now)
            except RequestError as error:
                self._handle_rejection(replay, error, now)

    def _handle_rejection(self, replay: Replay, error: RequestError, now: float) -> None:
        """A page was refused, at once or later: it is asked for again when that is said, else the replay has failed."""
        wait = error.retry_after if isinstance(error, RequestRejected) else None
        if wait is None:
            replay.reason = error.message
            self._end_replay(replay, "failed")
        else:
            self._timers.schedule(now + max(wait, BUSY_SECONDS), TimerKind.dialect_replay, replay.connection)


def _make_fault(code: str, message: str) -> dict[str, Any]:
    return {"error": code, "message": message}


def _read_time(text: object) -> float | None:
    """Unix seconds; None for what is no time, or none that can be written in UTC. One without an offset is in UTC."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
