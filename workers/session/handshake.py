"""How a connection begins: its hello, what it has missed, its welcome.

What it keeps true: a connection begins once, with its hello or, when its time is over, without one; but nobody begins
who has said nothing at all, not even the answer to a WebSocket ping that every library gives by itself. A cursor is
resumed from in full, or refused with a reason: what this shard lacks for it comes from the router (`replay`), within
`Limits.replay_timeout`. Whoever has had too much of the log read for it is told when to come again (`replay_budget`),
and keeps its cursor. The welcome, what was missed or the present states, and then what is live go to the socket in
this order; and no cursor that is told is ahead of what the client has got by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from math import ceil

from solowire.backplane import messages as backplane
from solowire.backplane.messages import Replayed
from solowire.errors import InvalidMessage
from solowire.fanout.catch_up import Lag
from solowire.fanout.conflation import Pacing
from solowire.fanout.feed import Feed, feed_key
from solowire.fanout.recent_log import Log
from solowire.model.access import Role
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import resolve
from solowire.protocol.messages import REPLAYING, Hello, Notice, Reconnect, Welcome
from solowire.workers.config import Limits
from solowire.workers.connections.audit_events import Trail
from solowire.workers.connections.connection import MAX_ANSWERS, Connection, State
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.timers import Timers
from solowire.workers.delivery.dispatcher import UNREAD, Delivering
from solowire.workers.session.inbound_limits import first_wanted
from solowire.workers.session.replay_budget import ReplayBudget
from solowire.workers.session.replay_requests import RECENT, Replay, Replays

LOOK_SECONDS = 2.5
"""How often a replay that takes long is looked at. If the router was silent between two looks, its client is sent away
to try again; else it is told that it goes on.
"""
LOOKS = 3
"""At a question so often. If it is not answered then, while others are, it never will be: the journal can't be read."""

HELLO_RECORDS = 100
"""What each hello costs of a user's budget, whatever is read for it."""
STATES, STATES_HELD_BACK = 5, 20
"""To look for the states that a client begins with takes as long as a record for so many, for one that resumes."""

LATE_SECONDS = 0.1
"""A timer that comes later than this tells of a loop that was held up, and of messages that wait to be read."""


class Beginning:
    """ask, stopwatch, epoch, whole_from: as in `Replays`.

    begun(connection, now): called after the welcome of one that resumed.

    unavailable(connection, now): called when what was missed can't be had at present.
    """

    def __init__(
        self,
        recent: Log,
        pacing: Pacing,
        delivery: Delivering,
        sockets: Sockets,
        timers: Timers,
        trail: Trail,
        budget: ReplayBudget,
        *,
        roles: Mapping[str, Role],
        catalog: Catalog,
        limits: Limits,
        ask: Callable[[backplane.Replay | backplane.ReplayCancel], bool],
        stopwatch: Callable[[], float] | None,
        epoch: Callable[[], str],
        whole_from: Callable[[str], int],
        begun: Callable[[Connection, float], None],
        unavailable: Callable[[Connection, float], None],
    ) -> None:
        self._log = recent
        self._pacing = pacing
        self._delivery = delivery
        self._sockets = sockets
        self._timers = timers
        self._trail = trail
        self._budget = budget
        self._roles = roles
        self._catalog = catalog
        self._limits = limits
        self._epoch = epoch
        self._begun = begun
        self._unavailable = unavailable
        self._now = 0.0  # of the call that is under way, for what calls back
        self._answers = 0  # of the router, to what was asked for those who come back
        self._replays = Replays(
            recent,
            concurrent=limits.replays,
            max_bytes=limits.replay_bytes,
            ask=ask,
            stopwatch=stopwatch,
            record_rank=budget.record_seconds,
            epoch=epoch,
            whole_from=whole_from,
            done=self._replayed,
        )

    def expect(self, connection: Connection, now: float) -> None:
        """Gives an accepted connection its time for a hello."""
        connection.hello_by = now + self._limits.hello_timeout
        self._timers.at(connection.hello_by, self._no_hello, connection)

    def begin(self, connection: Connection, hello: Hello, now: float) -> None:
        """Welcomes it, at once or when what it has missed is here. Raises InvalidMessage, and nothing has begun."""
        wanted = first_wanted(connection, hello, self._roles, self._catalog)
        wait = self._budget.wait(connection.identity.user, self._cost(hello), now)
        if wait:
            raise InvalidMessage(
                "replay_limited",
                "too much of the log was read for you within a short time",
                "keep your cursor and come again; seldom, and without resume for the present states alone, is sooner",
                retry_after=round(wait, 3),
            )
        connection.wanted = wanted
        self._begin(connection, hello, now)

    def _begin(self, connection: Connection, hello: Hello, now: float) -> None:
        rank = self._budget.charge(connection.identity.user, self._cost(hello), now)
        resume = hello.resume
        if resume is None or resume.epoch != self._epoch():
            self._welcome(connection, hello, None, "epoch" if resume is not None else None, now)
            return
        if resume.cursor < self._log.unsendable_upto:
            self._welcome(connection, hello, None, "retention", now)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        key = feed_key(resolved.selection, connection.view, connection.codec, self._catalog)
        connection.become(State.resuming)
        self._timers.at(now + LOOK_SECONDS, self._look_at_replay, connection)
        self._now = now
        cost = self._to_read(resume.cursor)
        matcher = Feed[Connection](key, self._log)
        self._replays.start(Replay(connection, hello, resume.cursor, matcher, cost=cost, rank=rank, began=now))

    def _cost(self, hello: Hello) -> int:
        """How many records of the log are read for it, as far as can be told, and all else that it takes."""
        states, resume = self._log.state_count, hello.resume
        if resume is None or resume.epoch != self._epoch():
            return HELLO_RECORDS + states // STATES
        return HELLO_RECORDS + states // STATES_HELD_BACK + self._to_read(resume.cursor)

    def _to_read(self, cursor: int) -> int:
        return max(0, self._log.floor - cursor) + self._log.count_after(cursor) // RECENT

    def _give_back(self, replay: Replay) -> None:
        """Its user doesn't pay for what was not read in the end."""
        self._budget.refund(replay.user, replay.cost, ceil(replay.read))

    def show_alive(self, connection: Connection, now: float) -> None:
        """It has answered a ping: if its time for a hello is over, it begins with the defaults of its role."""
        if connection.state is State.waiting and now >= connection.hello_by:
            self._begin_with_defaults(connection, now)

    def answered(self, message: Replayed, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._answers += 1
        self._now = now
        self._replays.answered(message)

    def ask_again(self, now: float) -> None:
        """The router has answered a hello."""
        self._now = now
        self._replays.ask_again()

    def moved_on(self, now: float) -> None:
        """The log's position has moved."""
        self._now = now
        self._replays.moved_on()

    def drop(self, connection: Connection) -> None:
        """Nothing is to be fetched for it any more."""
        replay = self._replays.drop(connection)
        if replay is not None:
            self._give_back(replay)

    @property
    def due(self) -> float:
        """When `run` has something to do; infinity if never."""
        return self._replays.due

    def run(self, now: float) -> None:
        """A turn of work for those who come back, if it is time."""
        self._now = now
        self._replays.run(now)

    def _no_hello(self, connection: Connection, now: float) -> None:
        if connection.state is not State.waiting:
            return
        late = now - connection.hello_by
        if late < 0:
            self._timers.at(connection.hello_by, self._no_hello, connection)  # its hello was one too many: it waits
        elif late > LATE_SECONDS:
            # It is this process that was late: the hello may be here, and not read yet.
            connection.hello_by = now + late
            self._timers.at(connection.hello_by, self._no_hello, connection)
        elif connection.heard_at == connection.opened:
            self._sockets.ping(connection)  # it has said nothing at all: nobody gets events who can't speak
        else:
            self._begin_with_defaults(connection, now)

    def _begin_with_defaults(self, connection: Connection, now: float) -> None:
        hello = Hello()
        connection.wanted = first_wanted(connection, hello, self._roles, self._catalog)
        self._begin(connection, hello, now)

    def _replayed(self, replay: Replay, refusal: str | None) -> None:
        now, connection = self._now, replay.connection
        if refusal is not None:
            self._give_back(replay)
            self._budget.charge(replay.user, self._log.state_count // STATES, now)
        self._welcome(connection, replay.hello, replay if refusal is None else None, refusal, now)
        self._begun(connection, now)

    def _look_at_replay(self, connection: Connection, now: float) -> None:
        """What is missed has not come yet.

        If the router is silent, the client keeps its cursor, and comes again with it. Else it waits, and is told so,
        for as long as `Limits.replay_timeout`; then it is too much, for it or for all who come back now: one who came
        again would have missed more still.
        """
        replay = self._replays.of(connection)
        if connection.state is not State.resuming or replay is None:
            return
        waits = self._replays.waits(replay)
        replay.unanswered += replay.request is not None
        if (waits and replay.answers == self._answers) or replay.unanswered > LOOKS:
            self._unavailable(connection, now)
        elif now - replay.began >= self._limits.replay_timeout:
            self._replays.drop(connection)
            self._now = now
            self._replayed(replay, "too_much")
        else:
            if replay.answers >= 0 or not waits:
                text = "what you have missed is still being read: the welcome comes when all of it is here"
                self._delivery.say(connection, Notice(REPLAYING, text), now)
            replay.answers = self._answers if waits else -1
            self._timers.at(now + LOOK_SECONDS, self._look_at_replay, connection)

    def _welcome(
        self, connection: Connection, hello: Hello, replay: Replay | None, refusal: str | None, now: float
    ) -> None:
        """Begins: with what was missed, if there is a replay, else with the present states."""
        if len(connection.answers) >= MAX_ANSWERS:
            self._delivery.too_late(connection, UNREAD)
            return
        resolved = resolve(connection.wanted, connection.view, self._catalog)
        connection.become(State.live)
        lag = Lag(replay.cursor if replay else self._log.position, self._pacing.last)
        if replay is not None:
            lag.whole_upto = self._log.position
        feed = self._delivery.join(connection, resolved.selection, lag, now)
        if replay is not None:
            told = replay.hello.resume.cursor if replay.hello.resume else 0
            frames = [
                self._held_back(feed, connection.identity.user, told),
                feed.frames_of(replay.fragments, replay.cursor),
            ]
        else:
            # A cursor says what has arrived: one that is cut off before the states must come back for them.
            before, states = feed.states(connection.identity.user, self._log.position)
            frames = [states]
            told = self._log.position if before is None else before
        welcome = Welcome(
            session=connection.session,
            user=connection.identity.user,
            role=connection.identity.role,
            epoch=self._epoch(),
            cursor=told,
            resumed=replay is not None,
            subscriptions=resolved.names,
            denied=resolved.denied,
            heartbeat_s=self._limits.heartbeat,
            reconnect=Reconnect(self._limits.reconnect_min_ms, self._limits.reconnect_max_ms),
            token_expires_at=rfc3339(connection.identity.expires),
            reason=refusal,
            id=hello.id,
        )
        self._delivery.begin_with(connection, [connection.codec.encode(welcome), *frames], now)
        self._trail.subscribed(connection, resolved)
        self._delivery.run(now)

    def _held_back(self, feed: Feed[Connection], user: str, cursor: int) -> Iterator[str | bytes]:
        """The states that the client may not have got where it was, because they were held back there."""
        lacks = (e for e in self._pacing.may_lack(self._log.latest(), cursor) if e.event.user in (None, user))
        return feed.older_frames(lacks, cursor)


def rfc3339(unix: float | None) -> str | None:
    """A time as clients are told it."""
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
