"""The router's log, behind a small interface, and its in-memory form.

What it keeps true: offsets of one epoch grow by one from 1 and are never given twice; whatever is behind `floor` can be
read; an event id seen within the window is a duplicate and gets the offset that it has already. The in-memory journal
loses its log with its process, and therefore begins a new epoch with each start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from solowire.backplane import PublishedEvent

MAX_IDS = 2_000_000
"""Above this the window is shorter than set: about 400 MB go to ids then."""


class Record(NamedTuple):
    """One event in the log. user: whose alone it is, or None."""

    offset: int
    user: str | None
    body: bytes


class Appended(NamedTuple):
    """offsets: one for each event, in their order. duplicates: the indexes of those that were there already."""

    offsets: list[int]
    duplicates: list[int]


class Journal(Protocol):
    """What the router needs of its log."""

    @property
    def epoch(self) -> str: ...

    @property
    def last(self) -> int:
        """The newest offset, 0 before the first."""

    @property
    def floor(self) -> int:
        """Everything after this offset can be read."""

    def append(self, events: Sequence[PublishedEvent], now: float) -> Appended:
        """Puts them in the log, all or none."""

    def read(self, after: int, limit: int) -> Sequence[Record]:
        """At most `limit` records behind `after`, which is not below `floor`."""


class MemoryJournal:
    """A bounded log in memory. window: seconds for which ids are remembered, of MAX_IDS events at the most."""

    def __init__(self, epoch: str, *, max_events: int, max_bytes: int, window: float) -> None:
        self.epoch = epoch
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._window = window
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._last = 0
        self._offset_of: dict[str, int] = {}
        self._ids: deque[tuple[float, str]] = deque()

    @property
    def last(self) -> int:
        return self._last

    @property
    def floor(self) -> int:
        return self._last - len(self._records)

    def append(self, events: Sequence[PublishedEvent], now: float) -> Appended:
        self._forget_ids(now)
        offsets: list[int] = []
        duplicates: list[int] = []
        for index, event in enumerate(events):
            known = self._offset_of.get(event.id)
            if known is not None:
                duplicates.append(index)
                offsets.append(known)
                continue
            self._last += 1
            self._records.append(Record(self._last, event.user, event.body))
            self._bytes += len(event.body)
            self._offset_of[event.id] = self._last
            self._ids.append((now, event.id))
            offsets.append(self._last)
        while len(self._records) > self._max_events or self._bytes > self._max_bytes:
            self._bytes -= len(self._records.popleft().body)
        return Appended(offsets, duplicates)

    def read(self, after: int, limit: int) -> Sequence[Record]:
        start = max(0, after - self.floor)
        # Readers stand near the new end, and a deque finds those places fast.
        return [self._records[i] for i in range(start, min(start + limit, len(self._records)))]

    def _forget_ids(self, now: float) -> None:
        while self._ids and (self._ids[0][0] < now - self._window or len(self._ids) > MAX_IDS):
            del self._offset_of[self._ids.popleft()[1]]
