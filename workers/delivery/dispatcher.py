"""Delivery: what of the log goes to which sockets, and when.

What it keeps true:

* A feed is flushed when it is due, and its frame is handed at once to all its connections that stand there.
* No connection is waited for. One that is busy falls behind in its cursor, and is looked at again every 20 ms; one that
  takes nothing for `stalled` seconds is closed. What it gets next is read from the log when its socket is free, one
  frame at a time, so that others get theirs.
* No event overtakes an answer. Of answers, MAX_ANSWERS wait for a busy socket at most; at that bound it is closed.
* The log drops nothing that a connection may still get: what waits is flushed first, what one lags behind is counted,
  and when a durable event that one lacks is gone, that one is told and closed.
* What can't be sent to a feed, for a reason that nobody has thought of, is passed over: its connections come back for
  what there is now, and all others go on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

import structlog

from solowire.algorithms.histogram import Histogram
from solowire.fanout.catch_up import Frame, Lag
from solowire.fanout.conflation import Pacing
from solowire.fanout.feed import NEXT_FRAME_SECONDS, Feed, feed_key
from solowire.fanout.feed_index import Feeds
from solowire.fanout.recent_log import Log
from solowire.model.subscriptions import Selection
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Notice, ServerMessage
from solowire.workers.connections.connection import MAX_ANSWERS, Answer, Connection
from solowire.workers.connections.sockets import Sockets
from solowire.workers.delivery.slow_consumers import FRAME_READS, SEND_READS, TURN_SECONDS, SlowReaders

log = structlog.get_logger("solowire.shard")

BLOCKED_LOOK_SECONDS = 0.02

UNREAD = "you don't read the answers to what you ask"

HAND_OVER_BYTES = 256 * 1024
"""Of a replay, at a time. A socket that has taken that gets more at once: the log goes on meanwhile."""


MADE_BYTES = HAND_OVER_BYTES // 8
"""Of them a frame that is made when it is handed over counts as so many at least."""


class Delivering:
    """Of one shard. stalled: seconds. wall_offset: what to add to a monotonic time to get unix seconds; may be set.

    totals: where it counts. close(connection, code): called when one can't follow. latency: of each frame its oldest
    event's, for each connection. blocked: the connections whose socket is busy with an older frame, and since when.
    """

    def __init__(
        self,
        recent: Log,
        pacing: Pacing,
        feeds: Feeds[Connection],
        sockets: Sockets,
        totals: Counter[str],
        *,
        stalled: float,
        wall_offset: float,
        close: Callable[[Connection, CloseCode], None],
    ) -> None:
        self.wall_offset = wall_offset
        self.latency = Histogram()
        self.blocked: dict[Connection, float] = {}
        self._log = recent
        self._pacing = pacing
        self._feeds = feeds
        self._sockets = sockets
        self._totals = totals
        self._stalled = stalled
        self._close = close
        self._timed: tuple[int, float, float | None] = (-1, 0.0, None)  # cursor, time: how late what comes next is
        self._looks_again: float | None = None
        self._slow = SlowReaders()
        self._order = count()
        self._due_feeds: list[tuple[float, int, Feed[Connection]]] = []

    def lagging(self) -> set[Connection]:
        """Who is behind its feed, whether its socket is busy or it waits for its turn. Looks at all who are behind."""
        late = {c for feed in self._feeds for c, lag in feed.lags() if lag.cursor < feed.position}
        return late.union(self.blocked)

    # -------------------------------------------------------------------------------------------------- members

    def join(self, connection: Connection, selection: Selection, lag: Lag, now: float) -> Feed[Connection]:
        """From now on it gets what its view allows of `selection`, from where it stands."""
        feed = self._feeds.get(feed_key(selection, connection.view, connection.codec, self._log.catalog))
        connection.feed = feed
        connection.selection = feed.key.selection  # which all hold that want and may see the same
        apart = bool(connection.answers) or self._log.has_for(connection.identity.user, lag.cursor)
        if feed.join(connection, lag, now, apart=apart):
            self.schedule(feed)
        if connection in self.blocked:
            feed.set_aside(connection)
        return feed

    def leave(self, connection: Connection) -> Lag:
        """It gets no more events; returns where it stands."""
        feed = connection.feed
        if feed is None:
            return Lag(self._log.position, self._pacing.last)
        lag = feed.leave(connection)
        connection.feed = None
        if not len(feed):
            self._feeds.drop(feed)
        return lag

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        self.leave(connection)
        connection.answers, connection.backlog = (), 0  # a timer may hold on to it for an hour
        self.blocked.pop(connection, None)
        self._slow.discard(connection)

    # ----------------------------------------------------------------------------------------------------- feeds

    def schedule(self, feed: Feed[Connection]) -> None:
        """The feed is due sooner than it was."""
        if feed.due is not None:
            heappush(self._due_feeds, (feed.due, next(self._order), feed))

    def trim(self, now: float) -> None:
        """Lets the log drop what is over its bounds, when nobody depends on it any more."""
        floor = self._log.floor_when_trimmed()
        if floor is None:
            return
        lagging: dict[Feed[Connection], list[tuple[Lag, str]]] = {}
        for feed in list(self._feeds):
            while feed.waits_below(floor) and len(feed):
                feed.urgent = True
                self._flush(feed, now)
            lags = [(lag, c.identity.user) for c, lag in feed.behind.items() if not lag.lost and lag.cursor < floor]
            if lags:
                lagging[feed] = lags
        if lagging:
            oldest = min(lag.cursor for lags in lagging.values() for lag, _ in lags)
            dropped = self._feeds.dropped(set(lagging), oldest, floor)
            for feed, lags in lagging.items():
                feed.forget(lags, dropped, floor)
                if feed.wake(now):
                    self.schedule(feed)
        gone = self._log.trim()
        if gone and lagging:
            self._feeds.lose(gone, lagging)

    def _flush(self, feed: Feed[Connection], now: float) -> None:
        try:
            self._send_pending(feed, now)
        except Exception:
            log.exception("flush_failed", position=self._log.position, hint="what lies up to there is passed over")
            self._log.unsendable_upto = self._log.position  # nobody is to come back for it
            for connection in [*feed.current, *feed.behind]:
                self.too_late(connection, "events between can't be sent: come back for the current state")

    def _send_pending(self, feed: Feed[Connection], now: float) -> None:
        before = feed.place
        frame = feed.flush(now)
        if frame.payload is not None and feed.current:
            busy = self._sockets.send(frame.payload, feed.current)
            sent = len(feed.current) - len(busy)
            self._sent(frame, sent, before.cursor, now)
            feed.largest = max(feed.largest, len(frame.payload))
            if busy:
                feed.fell_behind(busy, before)
                self._block(busy, now)
                for connection in busy if len(self._slow) else ():
                    self._slow.fell_behind(connection)
        if feed.reading:
            self._catch_up(feed, now)
        self.schedule(feed)

    def _catch_up(self, feed: Feed[Connection], now: float) -> None:
        """One frame for each connection that is behind and whose socket is free; built once for each place."""
        frames: dict[object, Frame] = {}
        more = starved = False
        for connection, lag in list(feed.reading.items()):
            if self._sockets.busy(connection):
                lag.busy = True
                self._block((connection,), now)
                continue
            if lag.lost or lag.seen < min(self._pacing.forgotten, feed.released):
                self.too_late(connection)
                continue
            slow = connection in self._slow
            if (slow or lag.busy) and not self._slow.may_read(now):
                starved = True
                continue
            if lag.busy and lag.is_whole and self._log.is_old(lag.cursor):
                lag.whole_upto = 0  # what can be summed up is, before all of it falls out of the log
            frame = self._frame(frames, feed, connection, lag, slow)
            if frame.full and lag.busy and not slow and not lag.is_whole:
                slow = True
                self._slow_down(connection, lag, now)
                frame = self._frame(frames, feed, connection, lag, slow)
            if frame.payload is not None:
                self._sockets.queue(frame.payload, connection)
                self._sent(frame, 1, lag.cursor, now)
                if slow or lag.busy:
                    self._slow.has_read(SEND_READS)
            apart = self._log.has_for(connection.identity.user, frame.cursor)
            level = feed.caught_up(connection, frame, apart=apart)
            # One that stands further on than the feed waits for its flush.
            more = more or (not level and (frame.full or frame.cursor < feed.position))
        if more and feed.reading:
            feed.wake(now + NEXT_FRAME_SECONDS)
        elif starved and feed.reading:
            feed.wake(now + TURN_SECONDS)

    def _frame(
        self, frames: dict[object, Frame], feed: Feed[Connection], connection: Connection, lag: Lag, slow: bool
    ) -> Frame:
        user = connection.identity.user
        own = self._log.has_for(user, lag.cursor) or self._pacing.has_for(user, lag.seen) or lag.cursor < lag.forgotten
        key = (lag.place(), user if own else None, slow)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = feed.read(lag, key[1], compacted=slow)
            if slow or lag.busy:
                self._slow.has_read(FRAME_READS + frame.scanned)
        return frame

    def _slow_down(self, connection: Connection, lag: Lag, now: float) -> None:
        self._slow.add(connection, now)
        self._totals["slow"] += 1
        behind = self._log.count_after(lag.cursor)
        text = "you read too slowly: events are summed up and left out until you have caught up"
        self.say(connection, Notice("slow_consumer", text, active=True, behind=behind), now)

    def _look_at_slow(self, now: float) -> None:
        for connection in self._slow.recovered(now, self._sockets.busy):
            text = "you have caught up: everything is sent again"
            self.say(connection, Notice("slow_consumer", text, active=False), now)

    def too_late(self, connection: Connection, text: str = "you were too slow: events between are lost") -> None:
        """What it has not read is gone here: it is told, past all that still waits for it, and may come back."""
        self._sockets.queue(connection.codec.encode(Notice("gap", text)), connection)
        self._close(connection, CloseCode.too_slow)

    def _sent(self, frame: Frame, connections: int, cursor: int, now: float) -> None:
        """cursor: where they stood. The frame is as late as the oldest event in it, which comes next there."""
        if cursor != self._timed[0] or now != self._timed[1]:
            # Feeds and connections that stand at the same place come one after the other: looked up once.
            oldest = self._log.first_after(cursor)
            taken = oldest.event.taken if oldest is not None else 0.0
            self._timed = (cursor, now, max(0.0, now + self.wall_offset - taken) if taken else None)
        late = self._timed[2]
        if late is not None:
            self.latency.add(late, connections)
        totals = self._totals
        totals["frames"] += connections
        totals["deliveries"] += connections * frame.events
        totals["bytes"] += connections * len(frame.payload or "")
        if frame.left:
            totals["compacted"] += connections * frame.left

    # --------------------------------------------------------------------------------------------------- answers

    def say(self, connection: Connection, message: ServerMessage, now: float) -> bool:
        """Sends an answer or a notice, or keeps it while the socket is busy; False if that closed the connection."""
        frame = connection.codec.encode(message)
        if not connection.answers and not self._sockets.send(frame, (connection,)):
            return True
        if len(connection.answers) - connection.backlog >= MAX_ANSWERS:
            self.too_late(connection, UNREAD)
            return False
        connection.keep_answers((frame,))
        if connection.feed is not None:
            connection.feed.hold(connection)  # no event may overtake the answer
        self._block((connection,), now)
        return True

    def begin_with(self, connection: Connection, frames: Iterable[Answer], now: float) -> None:
        """Sends a connection that has just joined what it begins with: the welcome, and the states or the replay."""
        connection.keep_answers(frames)
        connection.backlog = len(connection.answers)
        if self._sockets.busy(connection):
            self._block((connection,), now)
        else:
            self._hand_over(connection, now)
        if connection.answers and connection.feed is not None:
            connection.feed.hold(connection)

    def _block(self, connections: Iterable[Connection], now: float) -> None:
        for connection in connections:
            self.blocked.setdefault(connection, now)
            if connection.feed is not None:
                connection.feed.set_aside(connection)
        if self._looks_again is None:
            self._looks_again = now + BLOCKED_LOOK_SECONDS

    def _hand_over(self, connection: Connection, now: float) -> None:
        """Sends of what waits for a connection whose socket is free as much as it takes at a time."""
        size = 0
        waiting = connection.answers
        while isinstance(waiting, deque) and waiting and size < HAND_OVER_BYTES:
            first = waiting[0]
            frame = first if isinstance(first, (str, bytes)) else next(first, None)
            if frame is None or frame is first:
                waiting.popleft()
                connection.backlog = max(0, connection.backlog - 1)
            if frame is not None:
                # One that is made now takes a while, however small it is when it is compressed.
                size += len(frame) if frame is first else max(len(frame), MADE_BYTES)
                self._sockets.queue(frame, connection)
        if connection.answers:
            self._block((connection,), now)
        else:
            connection.answers = ()

    def took(self, connection: Connection, now: float) -> None:
        """Its socket has taken some of what it was busy with. Events wait for the next look, answers don't."""
        if connection in self.blocked:
            self.blocked[connection] = now
            if connection.answers and not self._sockets.busy(connection):
                self._hand_over(connection, now)

    def _look_at_blocked(self, now: float) -> None:
        for connection, since in list(self.blocked.items()):
            if self._sockets.busy(connection):
                if now - since > self._stalled:
                    self.too_late(connection, f"your connection took nothing for {self._stalled:g} s")
                continue
            del self.blocked[connection]
            self._hand_over(connection, now)
            if connection in self.blocked:
                continue
            if connection.feed is not None:
                connection.feed.take_up(connection)
                if connection.feed.wake(now):
                    self.schedule(connection.feed)
        self._looks_again = now + BLOCKED_LOOK_SECONDS if self.blocked else None

    # ------------------------------------------------------------------------------------------------------ time

    @property
    def due(self) -> float:
        """When `run` has something to do; infinity if never."""
        due = self._due_feeds[0][0] if self._due_feeds else inf
        if self._looks_again is not None and self._looks_again < due:
            due = self._looks_again
        if self._slow.due is not None and self._slow.due < due:
            due = self._slow.due
        return due

    def run(self, now: float) -> None:
        """Looks at those who were busy or slow, and flushes the feeds that are due."""
        if self._looks_again is not None and now >= self._looks_again:
            self._look_at_blocked(now)
        if self._slow.due is not None and now >= self._slow.due:
            self._look_at_slow(now)
        while self._due_feeds and self._due_feeds[0][0] <= now:
            due, _, feed = heappop(self._due_feeds)
            if feed.due == due:  # else it was flushed since, and is in the heap again if it has to be
                self._flush(feed, now)
