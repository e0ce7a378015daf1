"""Feeds: all connections of a shard that may see and want exactly the same, and where each of them stands.

                    position                       log.position
      ─────────────────┼──────── pending ───────────────┤
      behind ▲    ▲    ▲ current: most connections

What it keeps true:

* A connection of a feed is either *current*: it has got all of the feed up to `position`, which is its cursor, or
  *behind*, with a cursor of its own. Advancing a thousand current connections is one assignment.
* `pending` is what of the log matches the feed behind `position`. It holds references, not copies, and it is emptied
  by every flush; nothing is ever queued for a connection. One that is behind reads the log from its cursor.
* A frame is built once for all connections that stand at the same place. Only an event for one user alone makes its
  connection fall behind on purpose, so that its frame can hold what the others' must not.
* Offsets in the frames of one connection only ever grow.

A feed decides and returns; who calls it sends.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from typing import Any, Generic, TypeVar

from solowire.fanout.aggregation import SUMMARY_BYTES, AggregationStream
from solowire.fanout.catch_up import COMPACTED_BYTES, MAX_EVENTS_BYTES, CatchUp, Frame
from solowire.fanout.conflation import Conflator
from solowire.fanout.frame_builder import NOTHING, FeedFilter, FeedKey, FrameBuilder
from solowire.fanout.reader import Counts, FeedHead, Reader, Signal, make_counts
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.fanout.snapshot import Snapshot
from solowire.model.access import View
from solowire.model.catalog import Catalog
from solowire.model.subscriptions import Selection
from solowire.protocol.dialect_codec import AnyCodec
from solowire.protocol.messages import MAX_FRAME_BYTES

C = TypeVar("C", bound=Hashable)
"""A connection: the feed only ever holds on to it."""

FLUSH_AT_BYTES = MAX_FRAME_BYTES // 2
"""A feed with this much pending is flushed without waiting: so frames stay well below their bound."""

NEXT_FRAME_SECONDS = 0.001
"""When a connection that has just got a full frame may get the next: one a turn, so that others get theirs."""


def build_feed_key(selection: Selection, view: View, codec: AnyCodec, catalog: Catalog) -> FeedKey:
    """The key of the feed for `selection` (already judged by `view`) under `view` and `codec`."""
    hidden = []
    for name, _ in selection:
        event_type = catalog.get_declared(name)
        fields = view.hidden_fields(event_type) if event_type is not None else frozenset()
        if fields:
            hidden.append((name, fields))
    return FeedKey(selection, tuple(hidden), codec)


class Feed(Generic[C]):
    """One feed. The time is an argument, in seconds of one monotonic clock.

    filter: what it wants and may see. position: up to where its current connections have it. last_release,
    reported_omitted: as in `Reader`, of these. newest_release: the newest release that the feed accepts. omitted: how
    many of each type were left out of it.
    """

    __slots__ = (
        "_catch_up",
        "_codec",
        "_collects_until",
        "_conflator",
        "_has_pending",
        "_hides",
        "_log",
        "_pending",
        "_pending_bytes",
        "_pending_dropped",
        "_plain",
        "_snapshot",
        "behind",
        "current",
        "filter",
        "flush_at",
        "flush_now",
        "flushed_at",
        "key",
        "largest_bytes",
        "last_release",
        "newest_release",
        "omitted",
        "position",
        "reported_omitted",
        "streams",
        "summaries_sent",
        "unparked",
    )

    def __init__(self, key: FeedKey, log: RecentLog, conflator: Conflator | None = None) -> None:
        self.key = key
        self.filter = FeedFilter(key, log.catalog)
        self._log = log
        self._conflator = Conflator() if conflator is None else conflator
        self._catch_up = CatchUp(self.filter, log, self._conflator)
        self._codec = key.codec  # of frames that hold nothing of one user's own; all others are plain
        self._plain = key.codec.without_deflate
        self._hides = bool(key.hidden)
        self._snapshot: Snapshot | None = None
        self.position = log.position
        self.last_release = self._conflator.newest_release
        self.newest_release = 0
        self.omitted: Counts = ()
        self.reported_omitted: Counts = ()
        self.streams: Mapping[str, AggregationStream[Any]] = {}  # by event type
        self.current: dict[C, Reader] = {}
        self.behind: dict[C, Reader] = {}
        self.unparked: dict[C, Reader] = {}  # those of them whose socket is free; who comes first is next
        self.flush_at: float | None = None
        self.flushed_at = float("-inf")
        self.largest_bytes = 0  # bytes of the largest frame that all its current connections got; kept by who sends
        self._collects_until = float("inf")  # what its flows have collected since `position` waits for that
        self.summaries_sent: dict[str, int] = {}  # of each of its flows: how many it has sent or had no use for
        self.flush_now = False  # the next flush doesn't wait for the end of an interval
        self._pending: list[tuple[int, bytes]] = []  # offset, fragment
        self._pending_bytes = 0
        self._pending_dropped = False  # not all that comes next is pending: nobody was current when it came
        self._has_pending = False  # something is pending or skipped, here or in a flow

    def __len__(self) -> int:
        return len(self.current) + len(self.behind)

    # ------------------------------------------------------------------------------------------------- members

    def add_connection(self, connection: C, reader: Reader, now: float, *, apart: bool = False) -> bool:
        """Adds a connection, which stands where its reader says; as `wake`.

        apart: it can't share the next frame, because the log has something for it alone or its answers come first.
        """
        if not self._has_pending and not self.behind:
            self.position = self._log.position  # nothing of the feed lies between: all of it moves on for free
        if self.last_release >= self.newest_release:
            self.last_release = self._conflator.newest_release
        if reader.last_release < self.last_release:
            self.newest_release = self._conflator.newest_release  # one from before there was this feed may be for it
        reader.reported_omitted = self.reported_omitted
        if self._is_level(reader) and not apart and not reader.is_blocked:
            self.current[connection] = reader
            reader.was_busy = False
            return False
        reader.handle(Signal.apart)
        self.behind[connection] = reader
        if not reader.is_blocked:
            self.unparked[connection] = reader
        return self.wake(now)

    def _is_level(self, reader: Reader) -> bool:
        return (
            not self._pending_dropped
            and reader.offset == self.position
            and reader.last_release >= min(self.last_release, self.newest_release)
        )

    def remove_connection(self, connection: C) -> None:
        """Takes a connection out; its reader then says where it stands."""
        reader = self.current.pop(connection, None)
        if reader is not None:
            reader.leave_head(self.head, Signal.level)
            return
        reader = self.behind.pop(connection)
        self.unparked.pop(connection, None)
        reader.handle(Signal.level)

    def park(self, connection: C, head: FeedHead | None = None) -> None:
        """Its socket is busy, or answers wait for it: nobody looks at it until `unpark`.

        head: where it stands if it is current; by default where the feed stands now.
        """
        reader = self.current.pop(connection, None)
        if reader is not None:
            reader.leave_head(self.head if head is None else head, Signal.busy)
            self.behind[connection] = reader
        else:
            self.unparked.pop(connection, None)
            self.behind[connection].handle(Signal.busy)

    def unpark(self, connection: C) -> None:
        """Its socket is free, and nothing waits for it."""
        reader = self.behind[connection]
        reader.handle(Signal.writable)
        self.unparked[connection] = reader

    def _set_apart(self, connection: C) -> Reader | None:
        """Its next frame can't be the others'; None if it had a place of its own before."""
        reader = self.current.pop(connection, None)
        if reader is not None:
            reader.leave_head(self.head, Signal.apart)
            self.behind[connection] = self.unparked[connection] = reader
        return reader

    def cursor_of(self, connection: C) -> int:
        reader = self.behind.get(connection)
        if reader is not None:
            return reader.offset
        return self.position if self._has_pending else self._log.position

    @property
    def head(self) -> FeedHead:
        """Where current connections stand. A quiet feed's `position` may be older than the log itself."""
        log = self._log
        offset = self.position if self._has_pending else log.position
        lost = offset < log.start_offset
        return FeedHead(offset, self.last_release, self.newest_release, self.reported_omitted, lost)

    def join_streams(self, streams: Mapping[str, AggregationStream[Any]]) -> None:
        """Its flows, by event type; none when it is dropped."""
        self.streams = self._catch_up.streams = streams
        self.summaries_sent = {name: flow.summary_count for name, flow in streams.items()}

    # --------------------------------------------------------------------------------------------------- flushing

    def add(self, entry: Entry, delay: float, now: float) -> bool:
        """Takes an entry that the feed accepts and that is for all its connections; as `wake`."""
        if self.current:
            # Once for every event and feed: a call less is a tenth of what that costs.
            fragment = self.filter.encode_for(entry) if self._hides else entry.get_fragment(self._plain, NOTHING)
            if fragment is None:
                return False
            self._pending.append((entry.offset, fragment))
            self._pending_bytes += len(fragment) + 1
        else:
            self._pending_dropped = True  # those who are behind read it from the log
        if not self._has_pending:
            self._has_pending = True
            self.position = entry.offset - 1  # nothing of the feed lies between, and the log may forget what does
        if self._pending_bytes >= FLUSH_AT_BYTES:
            return self.wake(now)
        # Written out, because `max` and `wake` would double what it costs.
        at = self.flushed_at + delay
        if at < now:
            at = now
        if self.flush_at is None or at < self.flush_at:
            self.flush_at = at
            return True
        return False

    def add_personal(self, connection: C, entry: Entry, delay: float, now: float) -> bool:
        """Notes that `entry` is for this connection alone: it falls behind, on purpose; as `wake`."""
        reader = self._set_apart(connection)
        if reader is not None and not self._has_pending:
            reader.offset = entry.offset - 1
        self.flush_now = True
        return self.wake(max(now, self.flushed_at + delay))

    def defer_until(self, offset: int, until: float) -> bool:
        """A flow has collected the event at `offset`; as `wake`."""
        if not self._has_pending:
            self._has_pending = True
            self.position = offset - 1
        self._collects_until = min(self._collects_until, until)
        return self.wake(until)

    def release_state(self, number: int, connection: C | None, delay: float, now: float) -> bool:
        """A state that was held back is to be sent, to one connection or all; as `wake`."""
        self.newest_release = number
        self.flush_now = True
        if connection is not None:
            self._set_apart(connection)
        return self.wake(max(now, self.flushed_at + delay))

    def count_omitted(self, name: str, states: int) -> None:
        """So many states that the feed accepts are never sent: newer ones have overtaken them."""
        counts = dict(self.omitted)
        counts[name] = counts.get(name, 0) + states
        self.omitted = make_counts(counts)

    def wake(self, at: float) -> bool:
        """Makes the feed due at `at`, unless it is due sooner; returns whether that changed anything."""
        if self.flush_at is None or at < self.flush_at:
            self.flush_at = at
            return True
        return False

    def build_frames(self, pieces: Sequence[tuple[int, bytes]], upto: int) -> Iterator[str | bytes]:
        """Frames of these (offset, fragment) in their order, made as they are taken; their reader then is at `upto`.

        Each says how far it goes itself, so that one who is cut off between two of them comes back for the rest alone.
        """
        taken = 0
        for run in _cut(fragment for _, fragment in pieces):
            taken += len(run)
            yield self._plain.encode_events(upto if taken == len(pieces) else pieces[taken - 1][0], run)

    def build_older_frames(self, entries: Iterable[Entry], cursor: int) -> Iterator[str | bytes]:
        """Frames of those of these that the feed wants, for one who stands further on, at `cursor`, and stays there.

        They are made as they are taken. A count of zero in `compacted` says that events of the type are out of order.
        """
        wanted = sorted((entry for entry in entries if self.filter.accepts(entry)), key=_offset_of)
        types = dict.fromkeys((entry.event.type for entry in wanted), 0)
        fragments = (fragment for entry in wanted if (fragment := self.filter.encode_for(entry)) is not None)
        return (self._plain.encode_events(cursor, run, types) for run in _cut(fragments))

    def build_state_frames(self, user: str, upto: int) -> tuple[int | None, Iterator[str | bytes]]:
        """The offset before the oldest of the present states that the feed wants, if any, and the frames of all.

        The frames are made as they are taken; most once for all of the feed's connections, unless `user` has states of
        its own.
        """
        snapshot, version, latest = self._snapshot, self._log.states_version, self._log.latest_states()
        mine = any(e.event.user == user for e in latest)
        if mine or snapshot is None or snapshot.version != version:
            wanted = (e for e in latest if e.event.user in (None, user) and self.filter.accepts(e))
            entries = list(dropwhile(lambda e: self.filter.encode_for(e) is None, sorted(wanted, key=_offset_of)))
            snapshot = Snapshot(version, entries, self._codec, self._plain, shared=not mine)
            if not mine:
                self._snapshot = snapshot
        return snapshot.before, snapshot.frames(self.filter, upto)

    def forget_states(self) -> None:
        """It is dropped: whoever holds on to it does not hold on to what its connections began with."""
        self._snapshot = None

    def flush(self, now: float) -> Frame:
        """What all current connections get now: everything pending. Moves `position`, and with it their cursors.

        Who could not be given the frame is then handed to `park`, with the `head` from before.
        """
        self.flush_at = None
        if self.streams and self._rotate_streams(now):
            empty = not self._pending and not self._pending_dropped
            waits = self._has_pending and empty and not self.flush_now and now < self._collects_until
            if waits and not self._has_unsent_summary():
                self.wake(self._collects_until)  # it is due for one that is behind: the others' interval goes on
                return Frame(self.position, None)
            return self._flush_compacted(now) if self.current else self._skip(now)
        if not self.current:
            return self._skip(now)
        if self.last_release < self.newest_release or self.omitted != self.reported_omitted:
            return self._flush_compacted(now)
        self.flush_now = False
        pending = self._pending
        if self._pending_bytes <= MAX_EVENTS_BYTES:
            self._pending, self._pending_bytes = [], 0
            self._has_pending = False
            self.position = self._log.position
        else:
            taken = len(next(_cut(f for _, f in pending)))
            pending = self._take_pending(taken)
            self.position = pending[-1][0]
            self.flush_at = now + NEXT_FRAME_SECONDS
        if pending or self.behind:
            self.flushed_at = now
        if not pending:
            return Frame(self.position, None)
        return Frame(self.position, self._codec.encode_events(self.position, [f for _, f in pending]), len(pending))

    def _skip(self, now: float) -> Frame:
        """As `flush`, when nobody is current: those who are behind may read up to here."""
        self._pending, self._pending_bytes = [], 0
        self._has_pending = self._pending_dropped = self.flush_now = False
        self._collects_until = float("inf")
        self.position = self._log.position
        self.last_release = max(self.last_release, self.newest_release)
        self.reported_omitted = self.omitted
        for flow in self.streams.values():
            flow.mark_sent(self)
            self.summaries_sent[flow.name] = flow.summary_count
        self.flushed_at = now
        return Frame(self.position, None)

    def _take_pending(self, taken: int) -> list[tuple[int, bytes]]:
        head = self._pending[:taken]
        del self._pending[:taken]
        self._pending_bytes -= sum(len(f) + 1 for _, f in head)
        return head

    def _rotate_streams(self, now: float) -> bool:
        """Begins the next interval of its flows where it is time; whether one of them has something."""
        collected = False
        for flow in self.streams.values():
            if flow.has_pending(self.summaries_sent[flow.name]):
                collected = True
                flow.rotate(now)
                if flow.is_active:
                    self.wake(flow.ends_at)
        return collected

    def _has_unsent_summary(self) -> bool:
        return any(self.summaries_sent[flow.name] < flow.summary_count for flow in self.streams.values())

    def has_pending_below(self, floor: int) -> bool:
        """Whether something that its current connections have not got is about to leave the log."""
        return self._has_pending and self.position < floor

    def _flush_compacted(self, now: float) -> Frame:
        """As `flush`, while something is summed up, was held back or has been left out."""
        parts = FrameBuilder(COMPACTED_BYTES)
        before = self.head
        self.position = before.offset
        if self.last_release < self.newest_release:
            self.last_release = self._catch_up.add_released(
                parts, self.last_release, self._log.position, None, self._conflator.newest_release
            )
            parts.needs_sort = True
        flows = [
            flow
            for flow in self.streams.values()
            if flow.has_pending(self.summaries_sent[flow.name]) and parts.reserve_summary()
        ]
        taken = 0
        for offset, fragment in self._pending:
            if parts.is_full or not parts.add(offset, fragment):
                break
            taken += 1
        head = self._take_pending(taken) if taken else []
        self.flush_now = False
        if not parts.is_full:
            self._collects_until = float("inf")
            self.position = self._log.position
            self._has_pending = False
        elif head:
            self.position = head[-1][0]
        for flow in flows:
            digest = flow.digest_between(before.offset, self.position, self.summaries_sent[flow.name])
            if digest is not None:
                parts.add_digest(flow.name, digest, self.filter)
                self.summaries_sent[flow.name] = flow.count_summaries_until(self.position)
            else:
                parts.bytes_left += SUMMARY_BYTES
        if parts.is_full:
            self.wake(now + NEXT_FRAME_SECONDS)
        else:
            for flow in self.streams.values():
                flow.mark_sent(self)
        if parts.pieces:
            parts.add_omitted(self.omitted, self.reported_omitted)
            self.reported_omitted = self.omitted
        if parts.pieces or parts.compacted or self.behind:
            self.flushed_at = now
        return self._catch_up.build_frame(parts, self.position, self.last_release, self.reported_omitted, 0)

    def read_frame(self, reader: Reader, user: str | None = None, *, compacted: bool = False) -> Frame:
        """What one that is behind gets next; as `CatchUp.read_frame`."""
        head = FeedHead(self.position, self.last_release, self.newest_release, self.reported_omitted, False)
        return self._catch_up.read_frame(reader, head, user, compacted=compacted)

    def mark_delivered(self, connection: C, frame: Frame, *, apart: bool = False) -> bool:
        """Takes note that a connection that is behind was given this; whether it is current now.

        apart: as for `add_connection`.
        """
        reader = self.behind[connection]
        self.unparked.pop(connection, None)  # who is still behind goes to the end, so that all get their turn
        reader.offset, reader.last_release = frame.cursor, frame.last_release
        reader.reported_omitted = frame.reported_omitted
        if self._is_level(reader) and not apart:
            del self.behind[connection]
            self.current[connection] = reader
            reader.was_busy = False
            reader.handle(Signal.level)
            return True
        self.unparked[connection] = reader
        return False


def _cut(fragments: Iterable[bytes]) -> Iterator[list[bytes]]:
    """`fragments` in runs that fit a frame each; one that is larger by itself is a run of its own."""
    run: list[bytes] = []
    size = 0
    for fragment in fragments:
        size += len(fragment) + 1
        if run and size > MAX_EVENTS_BYTES:
            yield run
            run, size = [], len(fragment) + 1
        run.append(fragment)
    if run:
        yield run


def _offset_of(entry: Entry) -> int:
    return entry.offset
