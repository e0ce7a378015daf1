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

A feed decides and returns; who calls it sends. `Feeds` finds the feeds that an event matches without looking at those
it doesn't: by type, and by the value of one condition. That index may name a feed in vain, so `Feed.accepts` has the
last word.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

import msgspec

from solowire.access import View
from solowire.catalog import Catalog
from solowire.client_protocol import MAX_FRAME_BYTES, Codec
from solowire.events import Priority
from solowire.log import Entry, Log
from solowire.subscriptions import CUSTOM, Selection

C = TypeVar("C", bound=Hashable)
"""A connection: the feed only ever holds on to it."""

FLUSH_AT_BYTES = MAX_FRAME_BYTES // 2
"""A feed with this much pending is flushed without waiting: so frames stay well below their bound."""

MAX_EVENTS_BYTES = MAX_FRAME_BYTES - 128
"""What a frame's events may take, its head apart."""

NEXT_FRAME_SECONDS = 0.001
"""When a connection that has just got a full frame may get the next: one a turn, so that others get theirs."""

SCAN_ENTRIES = 10_000
"""How many entries of the log one frame may look through for a connection that is behind: bounds a turn's time."""


_NOTHING: frozenset[str] = frozenset()


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
        longest: float = self.normal if priority is Priority.normal else getattr(self, priority.value)
        return min(longest, connections * self.per_connection)


class FeedKey(msgspec.Struct, frozen=True):
    """What makes two connections the same feed. hidden: the fields that redaction takes out, by event type."""

    selection: Selection
    hidden: tuple[tuple[str, frozenset[str]], ...]
    codec: Codec


def feed_key(selection: Selection, view: View, codec: Codec, catalog: Catalog) -> FeedKey:
    """The key of the feed for `selection` (already judged by `view`) under `view` and `codec`."""
    hidden = []
    for name, _ in selection:
        event_type = catalog.get(name)
        fields = view.hidden(event_type) if event_type is not None else frozenset()
        if fields:
            hidden.append((name, fields))
    return FeedKey(selection, tuple(hidden), codec)


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One WebSocket message. payload: None if nothing was to be sent. cursor: where its receiver then stands."""

    cursor: int
    payload: str | bytes | None
    events: int = 0


class Feed(Generic[C]):
    """One feed. The time is an argument, in seconds of one monotonic clock."""

    __slots__ = (
        "_codec",
        "_hidden",
        "_log",
        "_pending",
        "_pending_bytes",
        "_selection",
        "_snapshot",
        "behind",
        "current",
        "due",
        "flushed_at",
        "key",
        "largest",
        "position",
    )

    def __init__(self, key: FeedKey, log: Log) -> None:
        self.key = key
        self.position = log.position
        # The states' version, the offset before the oldest, all frames but the last, and the pieces of the last.
        self._snapshot: tuple[int, int | None, list[str | bytes], list[tuple[int, bytes]]] | None = None
        self.current: set[C] = set()
        self.behind: dict[C, int] = {}
        self.due: float | None = None
        self.flushed_at = float("-inf")
        self.largest = 0  # bytes of the largest frame that all its current connections got; kept by who sends
        self._log = log
        self._codec = key.codec
        self._selection = dict(key.selection)
        self._hidden = dict(key.hidden)
        self._pending: list[tuple[int, bytes]] = []  # offset, fragment
        self._pending_bytes = 0

    def __len__(self) -> int:
        return len(self.current) + len(self.behind)

    # ------------------------------------------------------------------------------------------------ matching

    def accepts(self, entry: Entry) -> bool:
        """Whether the feed wants `entry`, redaction apart."""
        for name in entry.names:
            conditions = self._selection.get(name)
            if conditions is not None:
                return all(not values.isdisjoint(entry.terms.get(attr, ())) for attr, values in conditions)
        return False

    def fragment(self, entry: Entry) -> bytes | None:
        """`entry` as this feed's connections may see it; None if nothing is left of it."""
        return entry.fragment(self._codec, self._hidden_of(entry) if self._hidden else _NOTHING)

    def _hidden_of(self, entry: Entry) -> frozenset[str]:
        for name in entry.names:
            if name in self._hidden:
                return self._hidden[name]
        return _NOTHING

    # ------------------------------------------------------------------------------------------------- members

    def join(self, connection: C, cursor: int, now: float, *, apart: bool = False) -> bool:
        """Adds a connection that has got everything up to `cursor`; as `wake`.

        apart: it can't share the next frame, because the log has something for it alone or its answers come first.
        """
        if not self._pending and not self.behind:
            self.position = self._log.position  # nothing of the feed lies between: all of it moves on for free
        if cursor == self.position and not apart:
            self.current.add(connection)
            return False
        self.behind[connection] = cursor
        return self.wake(now)

    def leave(self, connection: C) -> int:
        """Takes a connection out; returns its cursor."""
        if connection in self.current:
            self.current.discard(connection)
            return self._reached
        return self.behind.pop(connection, self._reached)

    def cursor_of(self, connection: C) -> int:
        return self.behind.get(connection, self._reached)

    def hold(self, connection: C) -> None:
        """Keeps the next frame from a connection that has answers waiting: it catches up behind them."""
        if connection in self.current:
            self.current.discard(connection)
            self.behind[connection] = self._reached

    @property
    def _reached(self) -> int:
        """Where current connections stand: a quiet feed's `position` may be older than the log itself."""
        return self.position if self._pending else self._log.position

    # --------------------------------------------------------------------------------------------------- flushing

    def add(self, entry: Entry, delay: float, now: float) -> bool:
        """Takes an entry that the feed accepts and that is for all its connections; as `wake`."""
        fragment = self.fragment(entry)
        if fragment is None:
            return False
        if not self._pending:
            self.position = entry.offset - 1  # nothing of the feed lies between, and the log may forget what does
        self._pending.append((entry.offset, fragment))
        self._pending_bytes += len(fragment) + 1
        if self._pending_bytes >= FLUSH_AT_BYTES:
            return self.wake(now)
        # Once for every event and feed: written out, because `max` and `wake` would double what it costs.
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
            self.behind[connection] = self.position if self._pending else entry.offset - 1
        return self.wake(max(now, self.flushed_at + delay))

    def wake(self, at: float) -> bool:
        """Makes the feed due at `at`, unless it is due sooner; returns whether that changed anything."""
        if self.due is None or at < self.due:
            self.due = at
            return True
        return False

    def frames_of(self, pieces: Sequence[tuple[int, bytes]], upto: int) -> list[str | bytes]:
        """Frames of these (offset, fragment) in their order. Their reader then stands at `upto`.

        Each says how far it goes itself, so that one who is cut off between two of them comes back for the rest alone.
        """
        runs = list(_cut([fragment for _, fragment in pieces]))
        reached = (pieces[at - 1][0] for at in accumulate(map(len, runs)))
        return [
            self._codec.events(upto if run is runs[-1] else offset, run)
            for run, offset in zip(runs, reached, strict=True)
        ]

    def states(self, user: str, upto: int) -> tuple[int | None, list[str | bytes]]:
        """The present value of each state that the feed wants, in frames, and the offset before the oldest, if any.

        All but the last frame are made once for all of the feed's connections, unless `user` has states of its own.
        """
        version, latest = self._log.states_version, self._log.latest()
        mine = any(e.event.user == user for e in latest)
        if mine or self._snapshot is None or self._snapshot[0] != version:
            entries = (e for e in latest if e.event.user in (None, user) and self.accepts(e))
            pieces = sorted((e.offset, f) for e in entries if (f := self.fragment(e)) is not None)
            runs = list(_cut([fragment for _, fragment in pieces]))
            last = len(pieces) - len(runs[-1]) if runs else 0
            shared = self.frames_of(pieces[:last], pieces[last - 1][0]) if last else []
            snapshot = (version, pieces[0][0] - 1 if pieces else None, shared, pieces[last:])
            if not mine:
                self._snapshot = snapshot
        else:
            snapshot = self._snapshot
        return snapshot[1], snapshot[2] + self.frames_of(snapshot[3], upto)

    def flush(self, now: float) -> Frame:
        """What all current connections get now: everything pending. Moves `position`, and with it their cursors.

        Who could not be given the frame is then handed to `fell_behind`, with the position from before.
        """
        self.due = None
        pending = self._pending
        if self._pending_bytes <= MAX_EVENTS_BYTES:
            self._pending, self._pending_bytes = [], 0
            self.position = self._log.position
        else:
            pending = self._take_a_frame()
            self.position = pending[-1][0]
            self.due = now + NEXT_FRAME_SECONDS
        if pending or self.behind:
            self.flushed_at = now
        if not pending:
            return Frame(self.position, None)
        return Frame(self.position, self._codec.events(self.position, [f for _, f in pending]), len(pending))

    def _take_a_frame(self) -> list[tuple[int, bytes]]:
        taken = len(next(_cut([f for _, f in self._pending])))
        head, self._pending = self._pending[:taken], self._pending[taken:]
        self._pending_bytes = sum(len(f) + 1 for _, f in self._pending)
        return head

    def fell_behind(self, connections: Iterable[C], cursor: int) -> None:
        """These connections were still busy: they stay at `cursor`."""
        for connection in connections:
            self.current.discard(connection)
            self.behind[connection] = cursor

    def caught_up(self, connection: C, cursor: int, *, apart: bool = False) -> None:
        """The connection, which is behind, has been given everything up to `cursor`. apart: as for `join`."""
        if cursor == self.position and not apart:
            del self.behind[connection]
            self.current.add(connection)
        else:
            self.behind[connection] = cursor

    def read(self, cursor: int, user: str | None) -> Frame:
        """One frame for a connection that stands at `cursor`; at most MAX_FRAME_BYTES of what lies up to `position`.

        user: whose personal events belong in it; None builds the frame that all share who have none.
        """
        if cursor >= self.position:
            return Frame(cursor, None)  # it came from further on, while more than a frame was pending here
        fragments: list[bytes] = []
        size = 0
        reached = cursor
        for scanned, entry in enumerate(self._log.after(cursor)):
            if entry.offset > self.position:
                reached = self.position
                break
            if scanned == SCAN_ENTRIES:
                break
            owner = entry.event.user
            if (owner is None or owner == user) and self.accepts(entry):
                fragment = self.fragment(entry)
                if fragment is not None:
                    size += len(fragment) + 1
                    if fragments and size > MAX_EVENTS_BYTES:
                        break
                    fragments.append(fragment)
            reached = entry.offset
        else:
            reached = self.position
        if not fragments:
            return Frame(reached, None)
        return Frame(reached, self._codec.events(reached, fragments), len(fragments))


def _cut(fragments: list[bytes]) -> Iterator[list[bytes]]:
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


class Feeds(Generic[C]):
    """All feeds of a shard, found by their key or by what matches an entry."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._feeds: dict[FeedKey, Feed[C]] = {}
        self._index: dict[_Slot, set[Feed[C]]] = {}  # feeds that accept whatever is found there
        self._candidates: dict[_Slot, set[Feed[C]]] = {}  # feeds that have further conditions

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed[C]]:
        return iter(self._feeds.values())

    def get(self, key: FeedKey) -> Feed[C]:
        """The feed of this key; made if there is none."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(key, self._log)
            for slot, sure in _slots(key):
                (self._index if sure else self._candidates).setdefault(slot, set()).add(feed)
        return feed

    def drop(self, feed: Feed[C]) -> None:
        """Forgets a feed that has no connections left."""
        if self._feeds.pop(feed.key, None) is None:
            return
        for slot, sure in _slots(feed.key):
            index = self._index if sure else self._candidates
            index[slot].discard(feed)
            if not index[slot]:
                del index[slot]

    def matching(self, entry: Entry) -> set[Feed[C]]:
        """The feeds that accept `entry`. Costs what it finds, and nothing for feeds of other types or values."""
        found: set[Feed[C]] = set()
        index, candidates = self._index, self._candidates
        for name in entry.names:
            everything = (name, "", "")
            found.update(index.get(everything, ()))
            for feed in candidates.get(everything, ()):
                if feed.accepts(entry):
                    found.add(feed)
            for attribute, values in entry.terms.items():
                for value in values:
                    slot = (name, attribute, value)
                    found.update(index.get(slot, ()))
                    for feed in candidates.get(slot, ()):
                        if feed.accepts(entry):
                            found.add(feed)
        return found


_Slot = tuple[str, str, str]
"""Event type, attribute, value; the latter two are empty for a feed that wants all events of the type."""


def _slots(key: FeedKey) -> Iterator[tuple[_Slot, bool]]:
    """Where the feed stands in the index, and whether what is found there needs no second look."""
    # `custom.*` says nothing about a custom type that is named beside it.
    shadowed = any(name.startswith("custom.") and name != CUSTOM for name, _ in key.selection)
    for name, conditions in key.selection:
        sure = not (shadowed and name == CUSTOM)
        if conditions:
            attribute, values = min(conditions, key=_width)  # one is enough to find it by: the narrowest
            for value in values:
                yield (name, attribute, value), sure and len(conditions) == 1
        else:
            yield (name, "", ""), sure


def _width(condition: tuple[str, frozenset[str]]) -> int:
    return len(condition[1])
