"""A shard's part in traces: from the arrival of an event to its first and its last write to a socket.

What it keeps true: only an event that the router says is recorded is followed, MAX_FOLLOWED at a time and for
FOLLOW_SECONDS; at that bound a new one is not followed, and counted. It has one span for the wait until its first frame
(`flush`), and beneath it one for the first write of such a frame and one for the last, whatever number of feeds and
connections gets it. Whoever is behind and can't be given it in the same turn reads it later from the log, and is not
waited for. A shard that follows nothing asks once for each frame of a feed, and never for a connection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from solowire.fanout.feed import Feed
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.reader import Reader
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.observability.tracer import Span, Tracer
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.sockets import Sockets
from solowire.workers.connections.users import UserRegistry

MAX_FOLLOWED = 256
FOLLOW_SECONDS = 10


class FollowedEvent:
    """An event whose span has begun. feeds: whose flush it waits for; for one user: of the user's connections.

    first, last: when its first and its last write began and ended; None before there was one.
    """

    __slots__ = ("began_at", "connection_count", "feed_count", "feeds", "first", "last", "offset", "span", "user")

    def __init__(self, entry: Entry, span: Span, began_at: int, feeds: set[Feed[Connection]]) -> None:
        self.offset = entry.offset
        self.user = entry.event.user
        self.span = span
        self.began_at = began_at
        self.feeds = feeds
        self.feed_count = len(feeds)
        self.connection_count = 0
        self.first: tuple[int, int] | None = None
        self.last: tuple[int, int] | None = None


class DeliveryTraces:
    """Of one shard. followed: those that wait for a flush, the oldest first."""

    def __init__(
        self,
        tracer: Tracer,
        recent_log: RecentLog,
        feeds: FeedIndex[Connection],
        users: UserRegistry,
        sockets: Sockets,
    ) -> None:
        self._tracer = tracer
        self._log = recent_log
        self._feeds = feeds
        self._users = users
        self._sockets = sockets
        self.followed: list[FollowedEvent] = []
        # Of the flush that is under way: when it began, who was behind and where, its write (began, first ended, last
        # ended), and to how many.
        self._flush_began_at = 0
        self._behind: list[tuple[Reader, int]] = []
        self._write: tuple[int, int, int] | None = None
        self._connection_count = 0

    def follow(self, traces: Iterable[tuple[int, str]]) -> None:
        """These events, (offset, traceparent), have come and are on their way to the feeds."""
        at = self._tracer.read_clock()
        for offset, traceparent in traces:
            entry = self._log.next_entry(offset - 1)
            if entry is None or entry.offset != offset:
                continue  # it was passed over
            if len(self.followed) >= MAX_FOLLOWED:
                self._tracer.drop_span()
                continue
            try:
                feeds = self._find_feeds(entry)
            except Exception:  # noqa: S112 - the event router has told of it, and passed it over
                continue
            span = self._tracer.start_span("flush", traceparent, at)
            if span is None:
                continue
            event = FollowedEvent(entry, span, at, feeds)
            event.feeds = {feed for feed in event.feeds if self._is_pending(event, feed)}
            if event.feeds:
                self.followed.append(event)
            else:
                self._finish(event, at)

    def _find_feeds(self, entry: Entry) -> set[Feed[Connection]]:
        user = entry.event.user
        if user is None:
            return self._feeds.matching(entry)
        own = {connection.feed for connection in self._list_connections(user) if connection.feed is not None}
        return {feed for feed in own if feed.filter.accepts(entry)}

    def _list_connections(self, user: str) -> list[Connection]:
        known = self._users.get(user)
        return known.connections if known is not None else []

    def _is_pending(self, event: FollowedEvent, feed: Feed[Connection]) -> bool:
        """Whether the feed has not sent it yet."""
        if event.user is None:
            return feed.head.offset < event.offset
        readers = (feed.behind.get(connection) for connection in self._list_connections(event.user))
        return any(reader is not None and reader.offset < event.offset for reader in readers)

    def begin_flush(self, feed: Feed[Connection]) -> None:
        """The feed is about to be flushed."""
        self._flush_began_at = self._tracer.read_clock()
        self._behind = [(reader, reader.offset) for reader in feed.unparked.values()]
        self._write = None
        self._connection_count = 0

    def send(self, frame: str | bytes, connections: Collection[Connection]) -> list[Connection]:
        """As `Sockets.send`, and takes the time of the first connection's write and of the last one's."""
        began_at = self._tracer.read_clock()
        busy = self._sockets.send(frame, islice(connections, 1))
        first_at = last_at = self._tracer.read_clock()
        if len(connections) > 1:
            busy += self._sockets.send(frame, islice(connections, 1, None))
            last_at = self._tracer.read_clock()
        self._write = (began_at, first_at, last_at)
        self._connection_count = len(connections) - len(busy)
        return busy

    def end_flush(self, feed: Feed[Connection]) -> None:
        """The feed has been flushed: who of it could be given something has it."""
        finished = []
        for event in self.followed:
            if feed not in event.feeds or self._is_pending(event, feed):
                continue
            event.feeds.discard(feed)
            self._note_write(event)
            if not event.feeds:
                finished.append(event)
        if finished:
            at = self._tracer.read_clock()
            self.followed = [event for event in self.followed if event.feeds]
            for event in finished:
                self._finish(event, at)

    def _note_write(self, event: FollowedEvent) -> None:
        """Takes note of the writes of this flush in which the event was."""
        # Whom an event is for alone is behind on purpose; some others are, and were given it all the same.
        caught_up_count = sum(before < event.offset <= reader.offset for reader, before in self._behind)
        writes: list[tuple[int, int]] = []
        if event.user is None and self._write is not None:
            began_at, first_at, last_at = self._write
            writes += [(began_at, first_at), (began_at, last_at)]
            event.connection_count += self._connection_count
        if caught_up_count:
            writes.append((self._flush_began_at, self._tracer.read_clock()))
            event.connection_count += caught_up_count
        if writes:
            event.first = event.first or writes[0]
            event.last = writes[-1]

    def forget_old(self) -> None:
        """Follows no longer what has waited for so long: it has been held back, or its feed has gone."""
        at = self._tracer.read_clock()
        while self.followed and self.followed[0].began_at < at - FOLLOW_SECONDS * 1_000_000_000:
            self._finish(self.followed.pop(0), at)

    def _finish(self, event: FollowedEvent, at: int) -> None:
        first, last = event.first, event.last
        event.span.end(
            at if first is None else first[0],
            {
                "solowire.offset": event.offset,
                "solowire.feed_count": event.feed_count,
                "solowire.connection_count": event.connection_count,
            },
        )
        for name, write in (("first write", first), ("last write", last)):
            if write is None:
                continue
            span = self._tracer.start_span(name, event.span.traceparent, write[0])
            if span is not None:
                span.end(write[1], {})
