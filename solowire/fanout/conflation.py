"""Conflation of states: the value of one key is sent at most once per interval, and in the end the newest.

    first, or an interval since the last ──► sent at once
    sooner                               ──► held back; the newest of them is *released* when the interval ends
    critical                             ──► sent at once, and counts as sent

What it keeps true: the newest value of each key is sent, or held back and due. The log has them all at their own
offsets, so what is released is older than what has been sent since. Releases are numbered: who has seen all up to one
number lacks those behind it, and of each key only the newest matters, so they are kept as long as their number is among
the newest `max_keys`. `newest_forgotten_release` is the newest number that is not.

A client that comes back may lack a state that was held back where it was before. `possibly_missed` says which, from
when this shard's log was where the client stands; where that is not known, it says yes.

Bounded: `max_keys` keys, of which the one that has been quiet longest is forgotten, and released before if need be; so
it is when what is held back takes more than `max_bytes`. Of releases twice as many bytes are kept, so that no number of
them that is made at once is forgotten before it is sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from operator import itemgetter

import msgspec

from solowire.fanout.recent_log import Entry
from solowire.model.events import Priority
from solowire.runtime.settings.shard_settings import ConflationSettings

Key = tuple[str, str, str | None]

MARK_SECONDS = 1.0
MAX_MARKS = 900
LATE_SECONDS = 10.0
"""By how much a shard may be behind another in the log, and a frame behind its events, for `possibly_missed`."""


class SupersededStates(msgspec.Struct, frozen=True, gc=False):
    """States of one key that are never sent: how many, and the last of them, whose feeds are those of all."""

    last: Entry
    state_count: int


class _ConflatedKey:
    """One key.

    deferred: its newest value, if that has to wait. superseded_count: how many waited before it since the last that was
    sent, and are not charged to anybody yet. is_queued: it is among those that are due.
    """

    __slots__ = ("came_at", "deferred", "is_queued", "sent_at", "superseded_count")

    def __init__(self) -> None:
        self.sent_at = float("-inf")
        self.came_at = float("-inf")
        self.deferred: Entry | None = None
        self.superseded_count = 0
        self.is_queued = False


class Conflator:
    """Of one shard, for all its feeds. Times in seconds, monotonic."""

    def __init__(
        self, settings: ConflationSettings | None = None, *, max_keys: int = 10_000, max_bytes: int = 32 * 2**20
    ) -> None:
        self.newest_release = 0  # the newest release's number
        self.newest_forgotten_release = 0
        self._settings = settings or ConflationSettings()
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._held_bytes = self._released_bytes = 0
        self._keys: dict[Key, _ConflatedKey] = {}  # in the order of freshness
        self._due: list[tuple[float, int, Key, _ConflatedKey]] = []  # a key at most once
        self._order = count()
        self._overdue: list[tuple[Key, Entry, int]] = []
        self._released: dict[Key, tuple[int, Entry]] = {}  # in the order of their numbers
        self._own: dict[str, int] = {}  # user → the newest release for that user alone
        self._marks: deque[tuple[int, float]] = deque(maxlen=MAX_MARKS)  # the log's position, at some time

    def reset(self) -> None:
        """Another log: what was held back is void."""
        self._held_bytes = self._released_bytes = 0
        self._keys.clear()
        self._due.clear()
        self._overdue.clear()
        self._released.clear()
        self._own.clear()
        self._marks.clear()

    def offer(self, entry: Entry, now: float) -> tuple[bool, SupersededStates | None]:
        """Whether a state may be sent at once, and which are never sent because of it.

        Those are named as far as that is to be said now: while one takes the place of another that the same feeds
        accept, they are only counted.
        """
        interval = self._settings.interval_for(entry.event.type)
        if not interval:
            return True, None
        paced = self._keys.pop(entry.state_key, None) or _ConflatedKey()
        self._keys[entry.state_key] = paced
        paced.came_at = now
        older, paced.deferred = paced.deferred, None
        at_once = entry.event.priority is Priority.critical or now >= paced.sent_at + interval
        overtaken = None
        if older is not None:
            self._held_bytes -= older.size
            paced.superseded_count += 1
            if at_once or older.event.attributes != entry.event.attributes:
                overtaken = SupersededStates(older, paced.superseded_count)
                paced.superseded_count = 0
        if at_once:
            paced.sent_at = now
        else:
            paced.deferred = entry
            self._held_bytes += entry.size
            entry.is_deferred = True
            if not paced.is_queued:
                self._queue(entry.state_key, paced)
        self._enforce_bounds()
        return at_once, overtaken

    def _queue(self, key: Key, paced: _ConflatedKey) -> None:
        paced.is_queued = True
        heappush(self._due, (paced.sent_at + self._settings.interval_for(key[0]), next(self._order), key, paced))

    def _enforce_bounds(self) -> None:
        while len(self._keys) > self._max_keys or self._held_bytes > self._max_bytes:
            key = next(iter(self._keys))
            paced = self._keys.pop(key)
            if paced.deferred is not None:
                self._held_bytes -= paced.deferred.size
                self._overdue.append((key, paced.deferred, paced.superseded_count))
        if len(self._due) > 2 * self._max_keys:  # most are of keys that have been forgotten
            self._due = [due for due in self._due if self._keys.get(due[2]) is due[3]]
            heapify(self._due)

    @property
    def due_at(self) -> float | None:
        """When `due_values` has something to do; None if nothing is held back."""
        if self._overdue:
            return float("-inf")
        return self._due[0][0] if self._due else None

    def due_values(self, now: float) -> list[tuple[int, Entry, int]]:
        """The states that are to be sent now: each with its number, and how many it has overtaken."""
        released = [(self._record_release(key, entry), entry, overtaken) for key, entry, overtaken in self._overdue]
        self._overdue.clear()
        while self._due and self._due[0][0] <= now:
            _, _, key, paced = heappop(self._due)
            paced.is_queued = False
            if paced.deferred is None or self._keys.get(key) is not paced:
                continue  # a critical one went instead of it, or the key has been forgotten
            if now < paced.sent_at + self._settings.interval_for(key[0]):
                self._queue(key, paced)  # a critical one went in between
                continue
            entry, paced.deferred = paced.deferred, None
            self._held_bytes -= entry.size
            paced.sent_at = now
            released.append((self._record_release(key, entry), entry, paced.superseded_count))
            paced.superseded_count = 0
        return released

    def _record_release(self, key: Key, entry: Entry) -> int:
        entry.is_deferred = False
        self.newest_release += 1
        _, before = self._released.pop(key, (0, None))
        self._released_bytes += entry.size - (before.size if before is not None else 0)
        self._released[key] = (self.newest_release, entry)
        if key[2] is not None:
            self._own[key[2]] = self.newest_release
        while len(self._released) > self._max_keys or self._released_bytes > 2 * self._max_bytes:
            self.newest_forgotten_release, oldest = self._released.pop(next(iter(self._released)))
            self._released_bytes -= oldest.size
            if self._own.get(oldest.event.user or "") == self.newest_forgotten_release:
                del self._own[oldest.event.user or ""]
        return self.newest_release

    def has_release_for(self, user: str, seen: int) -> bool:
        """Whether one for this user alone is behind number `seen`."""
        return self._own.get(user, 0) > seen

    def releases_since(self, seen: int) -> list[tuple[int, Entry]]:
        """The releases behind number `seen`, oldest first."""
        found = []
        for number, entry in reversed(self._released.values()):
            if number <= seen:
                break
            found.append((number, entry))
        found.reverse()
        return found

    # ------------------------------------------------------------------------------------------- who comes back

    def mark_position(self, position: int, now: float) -> None:
        """The log has come to `position`."""
        if not self._marks or now - self._marks[-1][1] >= MARK_SECONDS:
            self._marks.append((position, now))

    def possibly_missed(self, latest: list[Entry], cursor: int) -> Iterator[Entry]:
        """Which of these present states a client may not have got although its cursor is behind them."""
        at = bisect_right(self._marks, cursor, key=itemgetter(0))
        reached = self._marks[at - 1][1] if at else float("-inf")  # the log was not there before
        for entry in latest:
            interval = self._settings.interval_for(entry.event.type)
            if not interval or entry.is_deferred or entry.offset > cursor or entry.event.priority is Priority.critical:
                continue
            paced = self._keys.get(entry.state_key)
            if paced is None or paced.came_at == float("-inf") or paced.came_at + interval + LATE_SECONDS > reached:
                yield entry
