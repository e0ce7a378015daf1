"""How a connection begins: its hello, what it has missed, its welcome.

What it keeps true: a connection begins once, with its hello or, when its time is over, without one; but nobody begins
who has said nothing at all, not even the answer to a WebSocket ping that every library gives by itself. A cursor is
resumed from in full, or refused with a reason: what this shard lacks for it comes from the router (`replay`), within
REPLAY_SECONDS. The welcome, what was missed or the present states, and then what is live go to the socket in this
order; and no cursor that is told is ahead of what the client has got by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from solowire import backplane
from solowire.access import Role
from solowire.backplane import Replayed
from solowire.catalog import Catalog
from solowire.client_protocol import Hello, Reconnect, Welcome
from solowire.compaction import Lag
from solowire.feed import Feed, feed_key
from solowire.log import Log
from solowire.pacing import Pacing
from solowire.subscriptions import resolve
from workers.connection import MAX_ANSWERS, Connection, State
from workers.delivery import UNREAD, Delivering
from workers.limits import Limits
from workers.listening import first_wanted
from workers.replay import Replay, Replays
from workers.sockets import Sockets
from workers.timers import Timers
from workers.trail import Trail

REPLAY_SECONDS = 5.0
"""How long a client waits for what the router is asked for, before it is sent away to try again."""

LATE_SECONDS = 0.1
"""A timer that comes later than this tells of a loop that was held up, and of messages that wait to be read."""


class Beginning:
    """ask, epoch, whole_from: as in `Replays`. begun(connection, now): called after the welcome of one that resumed.

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
        *,
        roles: Mapping[str, Role],
        catalog: Catalog,
        limits: Limits,
        ask: Callable[[backplane.Replay], bool],
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
        self._roles = roles
        self._catalog = catalog
        self._limits = limits
        self._epoch = epoch
        self._begun = begun
        self._unavailable = unavailable
        self._now = 0.0  # of the call that is under way, for what calls back
        self._heard_at = float("-inf")  # when the router answered a question for what was missed last
        self._replays = Replays(
            recent,
            concurrent=limits.replays,
            max_bytes=limits.replay_bytes,
            ask=ask,
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
        connection.wanted = first_wanted(connection, hello, self._roles, self._catalog)
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
        self._timers.at(now + REPLAY_SECONDS, self._replay_late, connection)
        self._now = now
        self._replays.start(Replay(connection, hello, resume.cursor, Feed(key, self._log)))

    def show_alive(self, connection: Connection, now: float) -> None:
        """It has answered a ping: if its time for a hello is over, it begins with the defaults of its role."""
        if connection.state is State.waiting and now >= connection.hello_by:
            self.begin(connection, Hello(), now)

    def answered(self, message: Replayed, now: float) -> None:
        """What the router says to a question for a client that comes back."""
        self._heard_at = self._now = now
        self._replays.answered(message)

    def moved_on(self, now: float) -> None:
        """The log's position has moved."""
        self._now = now
        self._replays.moved_on()

    def drop(self, connection: Connection) -> None:
        """Nothing is to be fetched for it any more."""
        self._replays.drop(connection)

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
            self.begin(connection, Hello(), now)

    def _replayed(self, replay: Replay, refusal: str | None) -> None:
        now, connection = self._now, replay.connection
        self._welcome(connection, replay.hello, replay if refusal is None else None, refusal, now)
        self._begun(connection, now)

    def _replay_late(self, connection: Connection, now: float) -> None:
        """What was missed does not come in time.

        If the router answers, it is too much, for it or for all who come back now: one who came again would have missed
        more still. If it doesn't, the client keeps its cursor, and comes again with it.
        """
        if connection.state is not State.resuming:
            return
        replay = self._replays.of(connection)
        if replay is None or now - self._heard_at > REPLAY_SECONDS:
            self._unavailable(connection, now)
            return
        self._replays.drop(connection)
        self._now = now
        self._replayed(replay, "too_much")

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
            frames = self._held_back(feed, connection.identity.user, told)
            if replay.fragments:
                frames += feed.frames_of(replay.fragments, replay.cursor)
        else:
            # A cursor says what has arrived: one that is cut off before the states must come back for them.
            before, frames = feed.states(connection.identity.user, self._log.position)
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

    def _held_back(self, feed: Feed[Connection], user: str, cursor: int) -> list[str | bytes]:
        """The states that the client may not have got where it was, because they were held back there."""
        lacks = (e for e in self._pacing.may_lack(self._log.latest(), cursor) if e.event.user in (None, user))
        return feed.older_frames(lacks, cursor)


def rfc3339(unix: float | None) -> str | None:
    """A time as clients are told it."""
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
