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

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import dropwhile
from typing import Generic, TypeVar

import msgspec

from solowire.fanout.aggregation import SUMMARY_BYTES
from solowire.fanout.catch_up import COMPACTED_BYTES, MAX_EVENTS_BYTES, Frame, Lag, Reading
from solowire.fanout.conflation import Pacing
from solowire.fanout.frame_builder import NOTHING, FeedKey, Parts
from solowire.fanout.recent_log import Entry, Log
from solowire.fanout.snapshot import Snapshot
from solowire.model.access import View
from solowire.model.catalog import Catalog
from solowire.model.events import Priority
from solowire.model.subscriptions import Selection
from solowire.protocol.messages import MAX_FRAME_BYTES, Codec

C = TypeVar("C", bound=Hashable)
"""A connection: the feed only ever holds on to it."""

FLUSH_AT_BYTES = MAX_FRAME_BYTES // 2
"""A feed with this much pending is flushed without waiting: so frames stay well below their bound."""

NEXT_FRAME_SECONDS = 0.001
"""When a connection that has just got a full frame may get the next: one a turn, so that others get theirs."""


_NORMAL = Priority.normal  # an enumeration looks its members up by name, each time


class FlushDelays(msgspec.Struct, frozen=True):
    """How long, in seconds, an event of each priority may wait for company, at most.

    Waiting only pays where frames are many: a shard waits `per_connection` for each connection that it has, so that its
    frames cost a few percent of a core at the most, while with one connection an event goes out as it comes.
    """

    critical: float = 0.0
    high: float = 0.02
    normal: float = 0.1
    low: float = 1.0
    per_connection: float = 0.001

    def of(self, priority: Priority, connections: int) -> float:
        """For a shard with so many connections."""
        # Nearly all are normal: the attribute's name is looked up only for the others.
        longest: float = self.normal if priority is _NORMAL else getattr(self, priority.value)
        shortest = connections * self.per_connection
        return shortest if shortest < longest else longest


def feed_key(selection: Selection, view: View, codec: Codec, catalog: Catalog) -> FeedKey:
    """The key of the feed for `selection` (already judged by `view`) under `view` and `codec`."""
    hidden = []
    for name, _ in selection:
        event_type = catalog.declared(name)
        fields = view.hidden(event_type) if event_type is not None else frozenset()
        if fields:
            hidden.append((name, fields))
    return FeedKey(selection, tuple(hidden), codec)


class Feed(Reading, Generic[C]):
    """One feed. The time is an argument, in seconds of one monotonic clock."""

    __slots__ = (
        "_collects_until",
        "_pending",
        "_pending_bytes",
        "_skipped",
        "_snapshot",
        "_waits",
        "behind",
        "current",
        "due",
        "flushed_at",
        "largest",
        "reading",
        "summed",
        "urgent",
    )

    def __init__(self, key: FeedKey, log: Log, pacing: Pacing | None = None) -> None:
        super().__init__(key, log, Pacing() if pacing is None else pacing)
        self._snapshot: Snapshot | None = None
        self.current: set[C] = set()
        self.behind: dict[C, Lag] = {}
        self.reading: dict[C, Lag] = {}  # those of them that are not set aside; who comes first is next
        self.due: float | None = None
        self.flushed_at = float("-inf")
        self.largest = 0  # bytes of the largest frame that all its current connections got; kept by who sends
        self._collects_until = float("inf")  # what its flows have collected since `position` waits for that
        self.summed: dict[str, int] = {}  # of each of its flows: how many summaries it has sent or had no use for
        self.urgent = False  # the next flush doesn't wait for the end of an interval
        self._pending: list[tuple[int, bytes]] = []  # offset, fragment
        self._pending_bytes = 0
        self._skipped = False  # not all that comes next is pending: nobody was current when it came
        self._waits = False  # something is pending or skipped, here or in a flow

    def __len__(self) -> int:
        return len(self.current) + len(self.behind)

    # ------------------------------------------------------------------------------------------------- members

    def join(self, connection: C, lag: Lag, now: float, *, apart: bool = False) -> bool:
        """Adds a connection that stands there; as `wake`.

        apart: it can't share the next frame, because the log has something for it alone or its answers come first.
        """
        if not self._waits and not self.behind:
            self.position = self._log.position  # nothing of the feed lies between: all of it moves on for free
        if self.seen >= self.released:
            self.seen = self._pacing.last
        if lag.seen < self.seen:
            self.released = self._pacing.last  # one from before there was this feed may be for it
        lag.told = self.told
        if self._is_level(lag) and not apart:
            self.current.add(connection)
            return False
        self.behind[connection] = self.reading[connection] = lag
        return self.wake(now)

    def _is_level(self, lag: Lag) -> bool:
        return not self._skipped and lag.cursor == self.position and lag.seen >= min(self.seen, self.released)

    def leave(self, connection: C) -> Lag:
        """Takes a connection out; returns where it stands."""
        if connection in self.current:
            self.current.discard(connection)
            return self.place
        self.reading.pop(connection, None)
        return self.behind.pop(connection, None) or self.place

    def set_aside(self, connection: C) -> None:
        """Its socket takes nothing: nobody looks at it until `take_up`, if it is behind."""
        self.reading.pop(connection, None)

    def take_up(self, connection: C) -> None:
        lag = self.behind.get(connection)
        if lag is not None:
            self.reading[connection] = lag

    def cursor_of(self, connection: C) -> int:
        lag = self.behind.get(connection)
        return self._reached if lag is None else lag.cursor

    def lags(self) -> Iterator[tuple[C, Lag]]:
        """All who are not current, and where each of them stands."""
        yield from self.behind.items()

    def hold(self, connection: C) -> None:
        """Sets a connection aside that has answers waiting: it catches up behind them."""
        self.reading.pop(connection, None)
        if connection in self.current:
            self.current.discard(connection)
            lag = self.behind[connection] = self.place
            lag.busy = True

    @property
    def place(self) -> Lag:
        """Where current connections stand."""
        log = self._log
        reached = self.position if self._waits else log.position  # once for every flush: written out
        return Lag(reached, self.seen, self.told, 0, False, 0, reached < log.floor)

    @property
    def _reached(self) -> int:
        """A quiet feed's `position` may be older than the log itself."""
        return self.position if self._waits else self._log.position

    # --------------------------------------------------------------------------------------------------- flushing

    def add(self, entry: Entry, delay: float, now: float) -> bool:
        """Takes an entry that the feed accepts and that is for all its connections; as `wake`."""
        if self.current:
            # Once for every event and feed: a call less is a tenth of what that costs.
            fragment = self.fragment(entry) if self._hidden else entry.fragment(self._plain, NOTHING)
            if fragment is None:
                return False
            self._pending.append((entry.offset, fragment))
            self._pending_bytes += len(fragment) + 1
        else:
            self._skipped = True  # those who are behind read it from the log
        if not self._waits:
            self._waits = True
            self.position = entry.offset - 1  # nothing of the feed lies between, and the log may forget what does
        if self._pending_bytes >= FLUSH_AT_BYTES:
            return self.wake(now)
        # Written out, because `max` and `wake` would double what it costs.
        at = self.flushed_at + delay
        if at < now:
            at = now
        if self.due is None or at < self.due:
            self.due = at
            return True
        return False

    def add_for(self, connection: C, entry: Entry, delay: float, now: float) -> bool:
        """Notes that `entry` is for this connection alone: it falls behind, on purpose; as `wake`."""
        if connection in self.current:
            self.current.discard(connection)
            lag = self.behind[connection] = self.reading[connection] = self.place
            if not self._waits:
                lag.cursor = entry.offset - 1
        self.urgent = True
        return self.wake(max(now, self.flushed_at + delay))

    def waits_for(self, offset: int, until: float) -> bool:
        """A flow has collected the event at `offset`; as `wake`."""
        if not self._waits:
            self._waits = True
            self.position = offset - 1
        self._collects_until = min(self._collects_until, until)
        return self.wake(until)

    def release(self, number: int, connection: C | None, delay: float, now: float) -> bool:
        """A state that was held back is to be sent, to one connection or all; as `wake`."""
        self.released = number
        self.urgent = True
        if connection in self.current and connection is not None:
            self.current.discard(connection)
            self.behind[connection] = self.reading[connection] = self.place
        return self.wake(max(now, self.flushed_at + delay))

    def leave_out(self, name: str, states: int) -> None:
        """So many states that the feed accepts are never sent: newer ones have overtaken them."""
        self.left = {**self.left, name: self.left.get(name, 0) + states}  # `told` and lags hold on to the one before

    def wake(self, at: float) -> bool:
        """Makes the feed due at `at`, unless it is due sooner; returns whether that changed anything."""
        if self.due is None or at < self.due:
            self.due = at
            return True
        return False

    def frames_of(self, pieces: Sequence[tuple[int, bytes]], upto: int) -> Iterator[str | bytes]:
        """Frames of these (offset, fragment) in their order, made as they are taken; their reader then is at `upto`.

        Each says how far it goes itself, so that one who is cut off between two of them comes back for the rest alone.
        """
        taken = 0
        for run in _cut(fragment for _, fragment in pieces):
            taken += len(run)
            yield self._plain.events(upto if taken == len(pieces) else pieces[taken - 1][0], run)

    def older_frames(self, entries: Iterable[Entry], cursor: int) -> Iterator[str | bytes]:
        """Frames of those of these that the feed wants, for one who stands further on, at `cursor`, and stays there;
        made as they are taken. A count of zero in `compacted` says that events of the type are out of order.
        """
        wanted = sorted((entry for entry in entries if self.accepts(entry)), key=_offset_of)
        types = dict.fromkeys((entry.event.type for entry in wanted), 0)
        fragments = (fragment for entry in wanted if (fragment := self.fragment(entry)) is not None)
        return (self._plain.events(cursor, run, types) for run in _cut(fragments))

    def states(self, user: str, upto: int) -> tuple[int | None, Iterator[str | bytes]]:
        """The offset before the oldest of the present states that the feed wants, if any, and the frames of all, which
        are made as they are taken; most once for all of the feed's connections, unless `user` has states of its own.
        """
        snapshot, version, latest = self._snapshot, self._log.states_version, self._log.latest()
        mine = any(e.event.user == user for e in latest)
        if mine or snapshot is None or snapshot.version != version:
            wanted = (e for e in latest if e.event.user in (None, user) and self.accepts(e))
            entries = list(dropwhile(lambda e: self.fragment(e) is None, sorted(wanted, key=_offset_of)))
            snapshot = Snapshot(version, entries, self._codec, self._plain, shared=not mine)
            if not mine:
                self._snapshot = snapshot
        return snapshot.before, snapshot.frames(self, upto)

    def forget_states(self) -> None:
        """It is dropped: whoever holds on to it does not hold on to what its connections began with."""
        self._snapshot = None

    def flush(self, now: float) -> Frame:
        """What all current connections get now: everything pending. Moves `position`, and with it their cursors.

        Who could not be given the frame is then handed to `fell_behind`, with the `place` from before.
        """
        self.due = None
        if self.flows and self._roll(now):
            empty = not self._pending and not self._skipped
            waits = self._waits and empty and not self.urgent and now < self._collects_until
            if waits and not self._owes_summary():
                self.wake(self._collects_until)  # it is due for one that is behind: the others' interval goes on
                return Frame(self.position, None)
            return self._flush_compacted(now) if self.current else self._skip(now)
        if not self.current:
            return self._skip(now)
        if self.seen < self.released or self.left is not self.told:
            return self._flush_compacted(now)
        self.urgent = False
        pending = self._pending
        if self._pending_bytes <= MAX_EVENTS_BYTES:
            self._pending, self._pending_bytes = [], 0
            self._waits = False
            self.position = self._log.position
        else:
            taken = len(next(_cut(f for _, f in pending)))
            pending = self._take(taken)
            self.position = pending[-1][0]
            self.due = now + NEXT_FRAME_SECONDS
        if pending or self.behind:
            self.flushed_at = now
        if not pending:
            return Frame(self.position, None)
        return Frame(self.position, self._codec.events(self.position, [f for _, f in pending]), len(pending))

    def _skip(self, now: float) -> Frame:
        """As `flush`, when nobody is current: those who are behind may read up to here."""
        self._pending, self._pending_bytes = [], 0
        self._waits = self._skipped = self.urgent = False
        self._collects_until = float("inf")
        self.position = self._log.position
        self.seen = max(self.seen, self.released)
        self.told = self.left
        for flow in self.flows.values():
            flow.is_level(self)
            self.summed[flow.name] = flow.summed
        self.flushed_at = now
        return Frame(self.position, None)

    def _take(self, taken: int) -> list[tuple[int, bytes]]:
        head = self._pending[:taken]
        del self._pending[:taken]
        self._pending_bytes -= sum(len(f) + 1 for _, f in head)
        return head

    def _roll(self, now: float) -> bool:
        """Begins the next interval of its flows where it is time; whether one of them has something."""
        collected = False
        for flow in self.flows.values():
            if flow.waits(self.summed[flow.name]):
                collected = True
                flow.roll(now)
                if flow.active:
                    self.wake(flow.ends)
        return collected

    def _owes_summary(self) -> bool:
        return any(self.summed[flow.name] < flow.summed for flow in self.flows.values())

    def waits_below(self, floor: int) -> bool:
        """Whether something that its current connections have not got is about to leave the log."""
        return self._waits and self.position < floor

    def _flush_compacted(self, now: float) -> Frame:
        """As `flush`, while something is summed up, was held back or has been left out."""
        parts = Parts(COMPACTED_BYTES)
        before = self.place
        self.position = before.cursor
        if self.seen < self.released:
            self.seen = self.put_released(parts, self.seen, self._log.position, None, self._pacing.last)
            parts.sorts = True
        flows = [flow for flow in self.flows.values() if flow.waits(self.summed[flow.name]) and parts.reserve()]
        taken = 0
        for offset, fragment in self._pending:
            if parts.full or not parts.put(offset, fragment):
                break
            taken += 1
        head = self._take(taken) if taken else []
        self.urgent = False
        if not parts.full:
            self._collects_until = float("inf")
            self.position = self._log.position
            self._waits = False
        elif head:
            self.position = head[-1][0]
        for flow in flows:
            digest = flow.between(before.cursor, self.position, self.summed[flow.name])
            if digest is not None:
                parts.put_digest(flow.name, digest, self)
                self.summed[flow.name] = flow.summed_upto(self.position)
            else:
                parts.room += SUMMARY_BYTES
        if parts.full:
            self.wake(now + NEXT_FRAME_SECONDS)
        else:
            for flow in self.flows.values():
                flow.is_level(self)
        if parts.pieces:
            parts.tell(self.left, self.told)
            self.told = self.left
        if parts.pieces or parts.compacted or self.behind:
            self.flushed_at = now
        return self._frame(parts, self.position, self.seen, self.told, 0)

    def fell_behind(self, connections: Iterable[C], before: Lag) -> None:
        """These connections were still busy: they stay where they were."""
        for connection in connections:
            self.current.discard(connection)
            lag = Lag(before.cursor, before.seen, before.told, busy=True, lost=before.lost)
            self.behind[connection] = self.reading[connection] = lag

    def caught_up(self, connection: C, frame: Frame, *, apart: bool = False) -> bool:
        """The connection, which is behind, has been given this; whether it is current now. apart: as for `join`."""
        lag = self.behind[connection]
        self.reading.pop(connection, None)  # who is still behind goes to the end, so that all get their turn
        lag.cursor, lag.seen, lag.told = frame.cursor, frame.seen, frame.told
        if self._is_level(lag) and not apart:
            del self.behind[connection]
            self.current.add(connection)
            return True
        self.reading[connection] = lag
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
