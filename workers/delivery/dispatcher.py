"""Delivery: what of the log goes to which sockets, and when.

What it keeps true:

* A feed is flushed when it is due, and its frame is handed at once to all its connections that stand there.
* No connection is waited for. One that is busy falls behind in its cursor, and is looked at again every 20 ms; one that
  takes nothing for `stalled` seconds is closed. What it gets next is read from the log when its socket is free, one
  frame at a time, so that others get theirs.
* No event overtakes an answer. MAX_PENDING_REPLIES answers wait for a busy socket at most; at that bound it is closed.
* The log drops nothing that a connection may still get: what waits is flushed first, what one lags behind is counted,
  and when a durable event that one lacks is gone, that one is told and closed.
* What can't be sent to a feed, for a reason that nobody has thought of, is passed over: its connections come back for
  what there is now, and all others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

import structlog

from solowire.algorithms.histogram import Histogram
from solowire.fanout.catch_up import Frame
from solowire.fanout.conflation import Conflator
from solowire.fanout.feed import NEXT_FRAME_SECONDS, Feed, build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.reader import MAX_PENDING_REPLIES, Action, Answer, FeedHead, Reader, Signal
from solowire.fanout.recent_log import RecentLog
from solowire.model.subscriptions import Selection
from solowire.protocol.messages import Notice, ServerMessage
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.sockets import Sockets
from solowire.workers.delivery.delivery_traces import DeliveryTraces
from solowire.workers.delivery.slow_consumers import FRAME_READS, SEND_READS, TURN_SECONDS, SlowConsumers

logger = structlog.get_logger("solowire.shard")

BLOCKED_CHECK_SECONDS = 0.02

UNREAD = "you don't read the answers to what you ask"

REPLY_FLUSH_BYTES = 256 * 1024
"""Of a replay, at a time. A socket that has taken that gets more at once: the log goes on meanwhile."""


MADE_BYTES = REPLY_FLUSH_BYTES // 8
"""Of them a frame that is made when it is handed over counts as so many at least."""


class Dispatcher:
    """Of one shard. stalled: seconds. totals: where it counts.

    latency: of each frame its oldest event's, for each connection. blocked: the connections for which something waits
    until their socket is free. traces: of events that are recorded, if any are.
    """

    def __init__(
        self,
        recent_log: RecentLog,
        conflator: Conflator,
        feeds: FeedIndex[Connection],
        sockets: Sockets,
        totals: Counter[str],
        *,
        stalled: float,
        clock: Clock,
        traces: DeliveryTraces | None = None,
    ) -> None:
        self._clock = clock
        self._traces = traces
        self.latency = Histogram()
        self.blocked: dict[Connection, Reader] = {}
        self._log = recent_log
        self._conflator = conflator
        self._feeds = feeds
        self._sockets = sockets
        self._totals = totals
        self._stalled_s = stalled
        self._lost: dict[Connection, None] = {}
        self._latency_cache: tuple[int, float, float | None] = (
            -1,
            0.0,
            None,
        )  # cursor, time: how late what comes next is
        self._blocked_check_at: float | None = None
        self._slow_consumers = SlowConsumers()
        self._order = count()
        self._due_feeds: list[tuple[float, int, Feed[Connection]]] = []

    def find_lagging(self) -> set[Connection]:
        """Who is behind its feed, whether its socket is busy or it waits for its turn. Looks at all who are behind."""
        late = {c for feed in self._feeds for c, reader in feed.behind.items() if reader.offset < feed.position}
        return late.union(self.blocked)

    # -------------------------------------------------------------------------------------------------- members

    def rejoin_feed(self, connection: Connection, selection: Selection, now: float) -> bool:
        """Has a connection that left its feed go on in another, from where it stands.

        False where that is gone from the log: nobody has counted for the new feed, so the connection is lost.
        """
        reader = connection.reader
        if reader.is_lost or reader.offset < self._log.start_offset:
            self.lose(connection)
            return False
        reader.stand_at(reader.offset, reader.last_release, full_until=reader.full_until, was_busy=reader.was_busy)
        self.join_feed(connection, selection, now)
        return True

    def join_feed(self, connection: Connection, selection: Selection, now: float) -> Feed[Connection]:
        """From now on it gets what its view allows of `selection`, from where its reader stands."""
        feed = self._feeds.get(build_feed_key(selection, connection.view, connection.codec, self._log.catalog))
        connection.feed = feed
        connection.selection = feed.key.selection  # which all hold that want and may see the same
        reader = connection.reader
        apart = bool(reader.pending_replies) or self._log.has_personal_after(connection.identity.user, reader.offset)
        if feed.add_connection(connection, reader, now, apart=apart):
            self.schedule_feed(feed)
        return feed

    def leave_feed(self, connection: Connection) -> None:
        """It gets no more events; its reader says where it stands."""
        feed = connection.feed
        if feed is not None:
            feed.remove_connection(connection)
            connection.feed = None
            if not len(feed):
                self._feeds.drop(feed)

    def forget_connection(self, connection: Connection) -> None:
        """It has ended."""
        self.leave_feed(connection)
        connection.reader.forget_replies()  # a timer may hold on to it for an hour
        self.blocked.pop(connection, None)
        self._slow_consumers.discard(connection)

    # ----------------------------------------------------------------------------------------------------- feeds

    def schedule_feed(self, feed: Feed[Connection]) -> None:
        """The feed is due sooner than it was."""
        if feed.flush_at is not None:
            heappush(self._due_feeds, (feed.flush_at, next(self._order), feed))

    def trim_log(self, now: float) -> None:
        """Lets the log drop what is over its bounds, when nobody depends on it any more."""
        floor = self._log.start_offset_after_trim()
        if floor is None:
            return
        lagging: dict[Feed[Connection], list[tuple[Reader, str]]] = {}
        for feed in list(self._feeds):
            while feed.has_pending_below(floor) and len(feed):
                feed.flush_now = True
                self._flush(feed, now)
            readers = [
                (reader, connection.identity.user)
                for connection, reader in feed.behind.items()
                if reader.offset < floor and not reader.is_lost
            ]
            if readers:
                lagging[feed] = readers
        if lagging:
            oldest = min(reader.offset for readers in lagging.values() for reader, _ in readers)
            dropped = self._feeds.collect_trimmed(set(lagging), oldest, floor)
            for feed, readers in lagging.items():
                dropped.count_for(feed, readers, floor)
                if feed.wake(now):
                    self.schedule_feed(feed)
        gone = self._log.trim()
        if gone and lagging:
            self._feeds.mark_lost(gone, lagging)

    def _flush(self, feed: Feed[Connection], now: float) -> None:
        try:
            self._send_pending(feed, now)
        except Exception:
            logger.exception("flush_failed", position=self._log.position, hint="what lies up to there is passed over")
            self._log.unsendable_until = self._log.position  # nobody is to come back for it
            self.lose_all(
                [*feed.current, *feed.behind], "events between can't be sent: come back for the current state"
            )

    def _send_pending(self, feed: Feed[Connection], now: float) -> None:
        traces = self._traces if self._traces is not None and self._traces.followed else None
        if traces is not None:
            traces.begin_flush(feed)
        before = feed.head
        frame = feed.flush(now)
        if frame.payload is not None and feed.current:
            busy = (self._sockets if traces is None else traces).send(frame.payload, feed.current)
            self._count_sent(frame, len(feed.current) - len(busy), before.offset, now)
            feed.largest_bytes = max(feed.largest_bytes, len(frame.payload))
            for connection in busy:
                self._block(connection, now, before)
        if feed.unparked:
            self._catch_up(feed, now)
        if traces is not None:
            traces.end_flush(feed)
        self.schedule_feed(feed)

    def _catch_up(self, feed: Feed[Connection], now: float) -> None:
        """One frame for each connection that is behind and whose socket is free; built once for each place."""
        frames: dict[object, Frame] = {}
        more = starved = False
        for connection, reader in list(feed.unparked.items()):
            if self._sockets.is_busy(connection):
                reader.note_busy()
                self._block(connection, now)
                continue
            if reader.last_release < min(self._conflator.newest_forgotten_release, feed.newest_release):
                reader.handle(Signal.lost)
            action = reader.next_action
            if action is Action.close:
                self.lose(connection)
                continue
            slow = action is Action.compact
            if (slow or reader.was_busy) and not self._slow_consumers.has_budget(now):
                starved = True
                continue
            if reader.was_busy and reader.is_in_full and self._log.is_near_start(reader.offset):
                reader.full_until = 0  # what can be summed up is, before all of it falls out of the log
            frame = self._build_frame(frames, feed, connection, reader, slow)
            if frame.is_full and reader.was_busy and not slow and not reader.is_in_full:
                slow = True
                self._mark_slow(connection, now)
                frame = self._build_frame(frames, feed, connection, reader, slow)
            if frame.payload is not None:
                self._sockets.queue(frame.payload, connection)
                self._count_sent(frame, 1, reader.offset, now)
                if slow or reader.was_busy:
                    self._slow_consumers.spend(SEND_READS)
            apart = self._log.has_personal_after(connection.identity.user, frame.cursor)
            level = feed.mark_delivered(connection, frame, apart=apart)
            # One that stands further on than the feed waits for its flush.
            more = more or (not level and (frame.is_full or frame.cursor < feed.position))
        if more and feed.unparked:
            feed.wake(now + NEXT_FRAME_SECONDS)
        elif starved and feed.unparked:
            feed.wake(now + TURN_SECONDS)

    def _build_frame(
        self,
        frames: dict[object, Frame],
        feed: Feed[Connection],
        connection: Connection,
        reader: Reader,
        slow: bool,
    ) -> Frame:
        user = connection.identity.user
        own = (
            self._log.has_personal_after(user, reader.offset)
            or self._conflator.has_release_for(user, reader.last_release)
            or reader.offset < reader.trimmed_until
        )
        key = (reader.make_frame_key(), user if own else None, slow)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = feed.read_frame(reader, key[1], compacted=slow)
            if slow or reader.was_busy:
                self._slow_consumers.spend(FRAME_READS + frame.scanned_count)
        return frame

    def _mark_slow(self, connection: Connection, now: float) -> None:
        connection.reader.handle(Signal.overfull)
        self._slow_consumers.add(connection, now)
        self._totals["slow_consumers"] += 1
        behind = self._log.count_after(connection.reader.offset)
        text = "you read too slowly: events are summed up and left out until you have caught up"
        self.send_reply(connection, Notice("slow_consumer", text, active=True, behind=behind), now)

    def _report_recovered(self, now: float) -> None:
        for connection in self._slow_consumers.take_recovered(now, self._sockets):
            text = "you have caught up: everything is sent again"
            self.send_reply(connection, Notice("slow_consumer", text, active=False), now)

    def lose(self, connection: Connection, text: str = "you were too slow: events between are lost") -> None:
        """What it has not read is gone here: it is told, past all that still waits for it, and gets nothing more.

        It is then one of those that `take_lost` returns. It may come back.
        """
        if connection not in self._lost:
            self._sockets.queue(connection.codec.encode(Notice("gap", text)), connection)
            connection.reader.handle(Signal.lost)
            self.forget_connection(connection)
            self._lost[connection] = None

    def lose_all(self, connections: Iterable[Connection], text: str) -> None:
        """As `lose`, for each of these."""
        for connection in connections:
            self.lose(connection, text)

    def take_lost(self) -> Iterable[Connection]:
        """Those who are to be closed as too slow, once each."""
        if not self._lost:
            return ()
        lost, self._lost = self._lost, {}
        return lost

    def _count_sent(self, frame: Frame, connections: int, cursor: int, now: float) -> None:
        """Counts a frame that was sent.

        cursor: where they stood. The frame is as late as the oldest event in it, which comes next there.
        """
        if cursor != self._latency_cache[0] or now != self._latency_cache[1]:
            # Feeds and connections that stand at the same place come one after the other: looked up once.
            oldest = self._log.next_entry(cursor)
            taken = oldest.event.taken if oldest is not None else 0.0
            unix = self._clock.to_unix(now)
            self._latency_cache = (cursor, now, max(0.0, unix - taken) if taken else None)
            if taken and oldest is not None and oldest.event.traceparent is not None:
                self.latency.note_trace(max(0.0, unix - taken), oldest.event.traceparent, unix)
        late = self._latency_cache[2]
        if late is not None:
            self.latency.add(late, connections)
        totals = self._totals
        totals["frames"] += connections
        totals["deliveries"] += connections * frame.event_count
        totals["sent_bytes"] += connections * len(frame.payload or "")
        if frame.omitted_count:
            totals["omitted_events"] += connections * frame.omitted_count

    # --------------------------------------------------------------------------------------------------- answers

    def send_reply(self, connection: Connection, message: ServerMessage, now: float) -> bool:
        """Sends an answer or a notice, or keeps it while the socket is busy; False if that closed the connection."""
        return self.send_frame(connection, connection.codec.encode(message), now)

    def send_frame(self, connection: Connection, frame: str | bytes, now: float) -> bool:
        """As `send_reply`, for what is written already; nothing is sent where nothing is to be said."""
        reader = connection.reader
        if not frame or (not reader.pending_replies and not self._sockets.send(frame, (connection,))):
            return True
        if len(reader.pending_replies) - reader.initial_count >= MAX_PENDING_REPLIES:
            self.lose(connection, UNREAD)
            return False
        reader.queue_replies((frame,))
        self._block(connection, now)  # no event may overtake the answer
        return True

    def send_initial(self, connection: Connection, frames: Iterable[Answer], now: float) -> None:
        """Sends a connection that has just joined what it begins with: the welcome, and the states or the replay."""
        reader = connection.reader
        reader.queue_replies(frames)
        reader.initial_count = len(reader.pending_replies)
        if not self._sockets.is_busy(connection):
            self._send_replies(connection)
        if reader.pending_replies:
            self._block(connection, now)

    def _send_replies(self, connection: Connection) -> None:
        """Sends of what waits for a connection whose socket is free as much as it takes at a time."""
        reader, size = connection.reader, 0
        while reader.pending_replies and size < REPLY_FLUSH_BYTES:
            frame, made = reader.take_reply()
            if frame is not None:
                # One that is made now takes a while, however small it is when it is compressed.
                size += max(len(frame), MADE_BYTES) if made else len(frame)
                self._sockets.queue(frame, connection)

    # --------------------------------------------------------------------------------------------------- blocked

    def _block(self, connection: Connection, now: float, head: FeedHead | None = None) -> None:
        """Its socket is busy, or answers wait for it. head: as for `Feed.park`."""
        if connection not in self.blocked:
            self.blocked[connection] = connection.reader
            connection.reader.blocked_since = now
        if connection.feed is not None:
            connection.feed.park(connection, head)
        else:
            connection.reader.handle(Signal.busy)
        if self._blocked_check_at is None:
            self._blocked_check_at = now + BLOCKED_CHECK_SECONDS

    def on_writable(self, connection: Connection, now: float) -> None:
        """Its socket has taken some of what it was busy with. Events wait for the next look, answers don't."""
        reader = self.blocked.get(connection)
        if reader is not None:
            reader.blocked_since = now
            if reader.pending_replies and not self._sockets.is_busy(connection):
                self._send_replies(connection)

    def _check_blocked(self, now: float) -> None:
        for connection, reader in list(self.blocked.items()):
            if self._sockets.is_busy(connection):
                if now - reader.blocked_since > self._stalled_s:
                    self.lose(connection, f"your connection took nothing for {self._stalled_s:g} s")
                continue
            if reader.next_action is Action.send_replies:
                self._send_replies(connection)
                if reader.pending_replies:
                    reader.blocked_since = now
                    continue
            del self.blocked[connection]
            if connection.feed is None:
                reader.handle(Signal.writable)
                reader.handle(Signal.level)
                continue
            connection.feed.unpark(connection)
            if connection.feed.wake(now):
                self.schedule_feed(connection.feed)
        self._blocked_check_at = now + BLOCKED_CHECK_SECONDS if self.blocked else None

    # ------------------------------------------------------------------------------------------------------ time

    @property
    def due_at(self) -> float:
        """When `run` has something to do; infinity if never."""
        due = self._due_feeds[0][0] if self._due_feeds else inf
        if self._blocked_check_at is not None and self._blocked_check_at < due:
            due = self._blocked_check_at
        if self._slow_consumers.due_at is not None and self._slow_consumers.due_at < due:
            due = self._slow_consumers.due_at
        return due

    def run(self, now: float) -> None:
        """Looks at those who were busy or slow, and flushes the feeds that are due."""
        if self._blocked_check_at is not None and now >= self._blocked_check_at:
            self._check_blocked(now)
        if self._slow_consumers.due_at is not None and now >= self._slow_consumers.due_at:
            self._report_recovered(now)
        while self._due_feeds and self._due_feeds[0][0] <= now:
            due, _, feed = heappop(self._due_feeds)
            if feed.flush_at == due:  # else it was flushed since, and is in the heap again if it has to be
                self._flush(feed, now)
