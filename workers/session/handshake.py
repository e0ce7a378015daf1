"""The handshake of a connection: its hello, what it has missed, its welcome.

What it keeps true: a connection begins once, with its hello or, when its time is over, without one; but nobody begins
who has said nothing at all, not even the answer to a WebSocket ping that every library gives by itself. A cursor is
resumed from in full, or refused with a reason: what this shard lacks for it comes from the router (`replay`), within
`replay.timeout_s`. Whoever has had too much of the log read for it is told when to come again (`replay_budget`),
and keeps its cursor. The welcome, what was missed or the present states, and then what is live go to the socket in
this order; and no cursor that is told is ahead of what the client has got by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import ceil

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.backplane.messages import ReplayResponse
from solowire.errors import InvalidMessage
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.frame_builder import FeedFilter
from solowire.fanout.reader import MAX_PENDING_REPLIES
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import Identity, Role
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import Wanted, resolve
from solowire.protocol.messages import REPLAYING, STATES_FORGOTTEN, Hello, Notice, Reconnect, Resume, Welcome
from solowire.runtime.settings.replay_settings import ReplaySettings
from solowire.runtime.settings.session_settings import SessionSettings
from solowire.workers.clock import Clock
from solowire.workers.connections.audit_events import ConnectionAudit
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import TimerKind, Timers
from solowire.workers.delivery.dispatcher import UNREAD, Dispatcher
from solowire.workers.delivery.known_rings import KnownRings
from solowire.workers.session.inbound_limits import initial_subscriptions
from solowire.workers.session.replay_budget import ReplayBudget
from solowire.workers.session.replay_requests import RECENT, ReplayScheduler, ReplayTask

REPLAY_CHECK_SECONDS = 2.5
"""How often a replay that takes long is looked at. If the router was silent between two looks, its client is sent away
to try again; else it is told that it goes on.
"""
MAX_REPLAY_CHECKS = 3
"""At a question so often. If it is not answered then, while others are, it never will be: the journal can't be read."""

HELLO_RECORDS = 100
"""What each hello costs of a user's budget, whatever is read for it."""
STATES, STATES_HELD_BACK = 5, 20
"""To look for the states that a client begins with takes as long as a record for so many, for one that resumes."""

LATE_SECONDS = 0.1
"""A timer that comes later than this tells of a loop that was held up, and of messages that wait to be read."""


class Handshake:
    """Begins connections: hello, replay, welcome.

    replays: what has to be asked of the router for those who come back.
    """

    def __init__(
        self,
        recent_log: RecentLog,
        conflator: Conflator,
        dispatcher: Dispatcher,
        sockets: Sockets,
        timers: Timers,
        audit: ConnectionAudit,
        budget: ReplayBudget,
        rings: KnownRings,
        clock: Clock,
        *,
        roles: Mapping[str, Role],
        catalog: Catalog,
        session: SessionSettings,
        replay: ReplaySettings,
    ) -> None:
        self._log = recent_log
        self._conflator = conflator
        self._dispatcher = dispatcher
        self._sockets = sockets
        self._timers = timers
        self._connection_audit = audit
        self._budget = budget
        self._roles = roles
        self._catalog = catalog
        self._session_settings = session
        self._replay_timeout_s = replay.timeout_s
        self._resumed: list[Connection] = []
        self._response_count = 0  # of the router, to what was asked for those who come back
        self.replays = ReplayScheduler(
            recent_log,
            rings,
            clock,
            concurrent=replay.max_concurrent,
            max_bytes=replay.max_bytes,
            record_rank=budget.record_seconds,
        )

    def start_timer(self, connection: Connection, now: float) -> None:
        """Gives an accepted connection its time for a hello."""
        connection.hello_due_at = now + self._session_settings.hello_timeout_s
        self._timers.schedule(connection.hello_due_at, TimerKind.hello, connection)

    def on_hello(self, connection: Connection, hello: Hello, now: float) -> None:
        """Welcomes it, at once or when what it has missed is here. Raises InvalidMessage, and nothing has begun."""
        wanted = initial_subscriptions(connection, hello, self._roles, self._catalog)
        wait = self._budget.delay_for(connection.identity.user, self._estimate_cost(hello), now)
        if wait:
            raise InvalidMessage(
                "replay_limited",
                "too much of the log was read for you within a short time",
                "keep your cursor and come again; seldom, and without resume for the present states alone, is sooner",
                retry_after=round(wait, 3),
            )
        connection.wanted = wanted
        self._start(connection, hello, now)

    def start_with(self, connection: Connection, wanted: Wanted, now: float) -> None:
        """Begins without a hello, for a client that knows none: with the present states of what it wants."""
        connection.wanted = wanted
        self._start(connection, Hello(), now)

    def _start(self, connection: Connection, hello: Hello, now: float) -> None:
        rank = self._budget.charge(connection.identity.user, self._estimate_cost(hello), now)
        cursor = self._find_cursor(hello.resume)
        if cursor is None:
            self._welcome(connection, hello, None, "epoch" if hello.resume is not None else None, now)
            return
        if cursor < self._log.unsendable_until:
            self._welcome(connection, hello, None, "retention", now)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        key = build_feed_key(resolved.selection, connection.view, connection.codec, self._catalog)
        connection.become(State.resuming)
        self._timers.schedule(now + REPLAY_CHECK_SECONDS, TimerKind.replay, connection)
        cost = self._count_unread(cursor)
        matcher = FeedFilter(key, self._catalog)
        self.replays.start(ReplayTask(connection, hello, cursor, matcher, cost=cost, rank=rank, began=now))
        self.welcome_finished(now)

    def _estimate_cost(self, hello: Hello) -> int:
        """How many records of the log are read for it, as far as can be told, and all else that it takes."""
        states, cursor = self._log.state_count, self._find_cursor(hello.resume)
        if cursor is None:
            return HELLO_RECORDS + states // STATES
        return HELLO_RECORDS + states // STATES_HELD_BACK + self._count_unread(cursor)

    def _find_cursor(self, resume: Resume | None) -> int | None:
        """Where in this log a client stands; None for one that says nothing, or of another log than this.

        Of a log from whose backup this one was restored the cursors are good as far as the backup went.
        """
        if resume is None:
            return None
        if resume.epoch == self._log.epoch:
            return resume.cursor
        return resume.cursor if resume.cursor <= self._log.earlier_epochs.get(resume.epoch, -1) else None

    def _count_unread(self, cursor: int) -> int:
        return max(0, self._log.start_offset - cursor) + self._log.count_after(cursor) // RECENT

    def _refund(self, replay: ReplayTask) -> None:
        """Its user doesn't pay for what was not read in the end."""
        self._budget.refund(replay.user, replay.cost, ceil(replay.read_count))

    def show_alive(self, connection: Connection, now: float) -> None:
        """It has answered a ping: if its time for a hello is over, it begins with the defaults of its role."""
        if connection.state is State.awaiting_hello and now >= connection.hello_due_at:
            self._start_with_defaults(connection, now)

    def on_replay_response(self, message: ReplayResponse, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._response_count += 1
        self.replays.on_response(message)
        self.welcome_finished(now)

    def on_log_advanced(self, now: float) -> None:
        """The log's position has moved."""
        self.replays.on_log_advanced()
        self.welcome_finished(now)

    def cancel(self, connection: Connection) -> None:
        """Nothing is to be fetched for it any more."""
        replay = self.replays.cancel(connection)
        if replay is not None:
            self._refund(replay)

    @property
    def due_at(self) -> float:
        """When `run` has something to do; infinity if never."""
        return self.replays.due_at

    def run(self, now: float) -> None:
        """A turn of work for those who come back, if it is time."""
        self.replays.run(now)
        self.welcome_finished(now)

    def check_hello(self, connection: Connection, now: float) -> None:
        """Its time for a hello is over, or was when the timer was set."""
        if connection.state is not State.awaiting_hello:
            return
        late = now - connection.hello_due_at
        if late < 0:
            self._timers.schedule(
                connection.hello_due_at, TimerKind.hello, connection
            )  # its hello was one too many: it waits
        elif late > LATE_SECONDS:
            # It is this process that was late: the hello may be here, and not read yet.
            connection.hello_due_at = now + late
            self._timers.schedule(connection.hello_due_at, TimerKind.hello, connection)
        elif connection.last_message_at == connection.opened_at:
            self._sockets.ping(connection)  # it has said nothing at all: nobody gets events who can't speak
        else:
            self._start_with_defaults(connection, now)

    def _start_with_defaults(self, connection: Connection, now: float) -> None:
        hello = Hello()
        connection.wanted = initial_subscriptions(connection, hello, self._roles, self._catalog)
        self._start(connection, hello, now)

    def welcome_finished(self, now: float) -> None:
        """Welcomes those for whom all is here that they have missed, or can't be had."""
        for replay, refusal in self.replays.take_finished():
            self._finish_replay(replay, refusal, now)

    def _finish_replay(self, replay: ReplayTask, refusal: str | None, now: float) -> None:
        connection = replay.connection
        if connection.state is not State.resuming or connection.reader.is_lost:
            return  # it has gone meanwhile
        if refusal is not None:
            self._refund(replay)
            self._budget.charge(replay.user, self._log.state_count // STATES, now)
        self._welcome(connection, replay.hello, replay if refusal is None else None, refusal, now)
        self._resumed.append(connection)

    def take_resumed(self) -> Iterable[Connection]:
        """Those who have come back and begun: what they have said meanwhile is to be obeyed."""
        if not self._resumed:
            return ()
        resumed, self._resumed = self._resumed, []
        return resumed

    def check_replay(self, connection: Connection, now: float) -> bool:
        """What is missed has not come yet; whether it can't be had at present, and the client is to be sent away.

        That is when the router is silent: the client keeps its cursor, and comes again with it. Else it waits, and is
        told so, for as long as `replay.timeout_s`; then it is too much, for it or for all who come back now: one who
        came again would have missed more still.
        """
        replay = self.replays.find(connection)
        if connection.state is not State.resuming or replay is None:
            return False
        waits = self.replays.is_waiting(replay)
        replay.unanswered_checks += replay.request is not None
        if (
            waits and replay.seen_response_count == self._response_count
        ) or replay.unanswered_checks > MAX_REPLAY_CHECKS:
            return True
        if now - replay.began_at >= self._replay_timeout_s:
            self.replays.cancel(connection)
            self._finish_replay(replay, "too_much", now)
        else:
            if replay.seen_response_count >= 0 or not waits:
                text = "what you have missed is still being read: the welcome comes when all of it is here"
                self._dispatcher.send_reply(connection, Notice(REPLAYING, text), now)
            replay.seen_response_count = self._response_count if waits else -1
            self._timers.schedule(now + REPLAY_CHECK_SECONDS, TimerKind.replay, connection)
        return False

    def _welcome(
        self, connection: Connection, hello: Hello, replay: ReplayTask | None, refusal: str | None, now: float
    ) -> None:
        """Begins: with what was missed, if there is a replay, else with the present states."""
        if len(connection.reader.pending_replies) >= MAX_PENDING_REPLIES:
            self._dispatcher.lose(connection, UNREAD)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        connection.become(State.live)
        position = self._log.position
        cursor, full_until = (replay.cursor, position) if replay is not None else (position, 0)
        connection.reader.stand_at(cursor, self._conflator.newest_release, full_until=full_until)
        feed = self._dispatcher.join_feed(connection, resolved.selection, now)
        if replay is not None:
            cursor_shown = replay.hello.resume.cursor if replay.hello.resume else 0
            frames = [
                self._deferred_frames(feed, connection.identity.user, cursor_shown),
                feed.build_frames(replay.fragments, replay.cursor),
            ]
        else:
            # A cursor says what has arrived: one that is cut off before the states must come back for them.
            before, states = feed.build_state_frames(connection.identity.user, self._log.position)
            frames = [self._tell_forgotten(connection, feed), states]
            cursor_shown = self._log.position if before is None else before
        welcome = Welcome(
            session=connection.session,
            user=connection.identity.user,
            role=connection.identity.role,
            epoch=self._log.epoch,
            cursor=cursor_shown,
            resumed=replay is not None,
            subscriptions=resolved.names,
            denied=resolved.denied,
            heartbeat_s=self._session_settings.heartbeat_interval_s,
            reconnect=Reconnect(self._session_settings.reconnect_min_ms, self._session_settings.reconnect_max_ms),
            token_expires_at=format_token_end(connection.identity),
            reason=refusal,
            id=hello.id,
        )
        self._dispatcher.send_initial(connection, [connection.codec.encode(welcome), *frames], now)
        self._connection_audit.record_subscribed(connection, resolved)
        self._dispatcher.run(now)

    def _tell_forgotten(self, connection: Connection, feed: Feed[Connection]) -> Iterator[str | bytes]:
        """A notice, if not all present states of what the feed wants are remembered."""
        names = ", ".join(sorted(name for name in self._log.forgotten_types if feed.filter.has_type(name)))
        if not names:
            return iter(())
        text = f"there are more states than are remembered; of these types some are missing until they change: {names}"
        return iter([connection.codec.encode(Notice(STATES_FORGOTTEN, text))])

    def _deferred_frames(self, feed: Feed[Connection], user: str, cursor: int) -> Iterator[str | bytes]:
        """The states that the client may not have got where it was, because they were held back there."""
        lacks = (
            e
            for e in self._conflator.possibly_missed(self._log.latest_states(), cursor)
            if e.event.user in (None, user)
        )
        return feed.build_older_frames(lacks, cursor)


def format_token_end(identity: Identity) -> str | None:
    """When its token ends, as clients are told it; None if that never is."""
    return None if identity.expires is None else format_unix_time(identity.expires, "seconds")
