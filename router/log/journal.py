"""The router's log, behind a small interface, and its in-memory form.

What it keeps true: offsets of one epoch grow by one from 1 and are never given twice to what was kept; whatever is
behind `start_offset` can be read; an event whose id was seen within the window is a duplicate, if it is the same
publisher's or says the same, and gets the offset that it has already (`known_ids`).

Events are appended to an open group and kept by `commit`: until then nobody can read them, and a group that can't be
kept is forgotten as a whole. `solowire.router.log.sqlite_journal` keeps them on disk; the one here loses its log with
its process, and therefore begins a new epoch with each start. Both run the suite in `tests/router/log/test_journal.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from solowire.backplane.messages import PublishedEvent
from solowire.model.events import is_same_event
from solowire.router.log.known_ids import AppendResult, IsSame, KnownIds
from solowire.router.log.state_selection import SizedState, choose_states, type_of_state


class Record(NamedTuple):
    """One event in the log. user: whose alone it is, or None."""

    offset: int
    user: str | None
    body: bytes


class Bounds(NamedTuple):
    """Everything behind `start` and up to `last` is kept."""

    start: int
    last: int


class Trimmed(NamedTuple):
    """What is gone: all up to `offset`, and nothing of that was taken later than `latest_at` (unix seconds)."""

    offset: int
    latest_at: float


class JournalSize(NamedTuple):
    """What a journal takes, in bytes.

    max_bytes: as the retention allows. free_bytes: on its disk; infinite in memory.
    """

    used_bytes: int
    max_bytes: int
    free_bytes: float


class JournalUnavailable(Exception):
    """The open group could not be kept: nobody may be told that it was. The journal goes on. hint: the way out."""

    def __init__(self, reason: str, hint: str = "publish requests are rejected until it is available again") -> None:
        super().__init__(reason)
        self.hint = hint


class JournalHole(JournalUnavailable):
    """Records are missing, for good. upto: behind this offset the log goes on."""

    def __init__(self, after: int, upto: int) -> None:
        super().__init__(f"the journal is damaged: records behind {after} are missing")
        self.upto = upto


class Journal(Protocol):
    """What the router needs of its log. Times are unix seconds: they outlive the process."""

    @property
    def epoch(self) -> str: ...

    @property
    def last_offset(self) -> int:
        """The newest offset that is kept, 0 before the first."""

    @property
    def start_offset(self) -> int:
        """Everything that is kept after this offset can be read."""

    @property
    def pending_count(self) -> int:
        """How many events stand in the open group."""

    @property
    def is_gone(self) -> bool:
        """Whether its file is not under its name any more, so that nothing that is written to it would be kept."""

    def measure_size(self) -> JournalSize:
        """How large it is now, what is only for a moment in its -wal included."""

    def append(self, events: Sequence[PublishedEvent], now: float, publisher: str = "") -> AppendResult:
        """Puts them in the open group, which `commit` keeps. publisher: whose they are, "" for the router itself."""

    def commit(self, now: float) -> None:
        """Keeps the open group, and forgets what is over the retention, a part at a time. Raises JournalUnavailable."""

    def read(self, after: int, limit: int) -> Sequence[Record]:
        """At most `limit` records behind `after`, which is not below `start_offset`. Raises JournalHole."""

    def read_user(self, user: str, after: int, upto: int, limit: int) -> Sequence[Record]:
        """At most `limit` of this user's own records behind `after`, up to and with `upto`."""

    def latest_states(self, upto: int, max_states: int, max_bytes: int) -> Sequence[Record]:
        """The newest record of each state up to and with `upto`, in their order.

        At most so many, with at most so many bytes of bodies: of each event type its fair share (`state_selection`).
        Where there are very many states, those that nobody has heard of for long may be left out.
        """

    def put_metadata_item(self, name: str, value: bytes) -> None:
        """Remembers a word of the router's own, if it can: what is lost of it costs nothing but time."""

    def put_metadata(self, values: Mapping[str, bytes | None]) -> bool:
        """Remembers several such words, and forgets those that are None; whether all of that is kept now.

        What can't be kept at once is kept with the next group that can.
        """

    def get_metadata_item(self, name: str) -> bytes | None:
        """The word remembered last under `name`, in this process or an earlier one."""

    def get_metadata(self, prefix: str) -> dict[str, bytes]:
        """All words whose names begin so."""

    def open_reader(self) -> JournalReader:
        """For another thread, which calls this and all that it gives. Raises JournalUnavailable."""

    def close(self) -> None: ...


class JournalReader(Protocol):
    """Reads what a journal has kept, in a thread of its own: the journal's is never held up by it.

    All of it raises JournalUnavailable. Records that are trimmed meanwhile are left out: `bounds`, asked before and
    behind a reading, says what was there for all of its time; within `hold` nothing is trimmed for this reader.
    """

    def hold(self) -> AbstractContextManager[object]:
        """While it lasts, what is read is of one moment, as far as the journal can do that."""

    def bounds(self) -> Bounds: ...

    def read(self, after: int, upto: int, limit: int, *, is_descending: bool = False) -> Sequence[Record]:
        """At most `limit` records behind `after` and up to `upto`: the first of them, or the last, newest first."""

    def read_at(self, offsets: Iterable[int]) -> Sequence[Record]:
        """The records at these offsets, in their order, without those that are not kept."""

    def read_time(self, offset: int) -> float | None:
        """When the log took the record (unix seconds); None if it is not kept."""

    def read_trimmed_at(self, start: int) -> float | None:
        """The latest time at which the log took a record that is trimmed; None if that isn't known.

        start: of the bounds. What is known of less than all up to there is not given.
        """

    def close(self) -> None: ...


def find_last_before(reader: JournalReader, at: float) -> int:
    """The newest offset that the log took before `at`, by the clock that it had then; `start` if there is none.

    Where that clock was set back meanwhile, one of the offsets at which it showed that time.
    """
    low, high = reader.bounds()
    while low < high:
        middle = (low + high + 1) // 2
        taken_at = reader.read_time(middle)
        if taken_at is None or taken_at < at:  # None: it was trimmed meanwhile
            low = middle
        else:
            high = middle - 1
    return low


class MemoryJournal:
    """A bounded log in memory. window: seconds for which ids are remembered. is_same: as `KnownIds` has it."""

    is_gone = False

    def __init__(
        self, epoch: str, *, max_events: int, max_bytes: int, window: float, is_same: IsSame = is_same_event
    ) -> None:
        self.epoch = epoch
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._records: deque[Record] = deque()
        self._user_records: defaultdict[str, deque[Record]] = defaultdict(
            deque
        )  # those of them that are one user's alone
        self._group: list[tuple[Record, str | None]] = []  # with the name of the state, if it is one
        self._bytes = 0
        self._last_offset = 0
        self._ids = KnownIds(window, self._read_body, is_same)
        self._states: dict[str, Record] = {}
        self._state_names: deque[tuple[int, str]] = deque()  # of the records that are states, oldest first
        self._metadata: dict[str, bytes] = {}
        self._group_times: list[tuple[int, float]] = []
        self._times: deque[tuple[int, float]] = deque()  # from which offset on records were taken at that time
        self._trimmed: Trimmed | None = None

    @property
    def last_offset(self) -> int:
        return self._last_offset

    @property
    def start_offset(self) -> int:
        return self._last_offset - len(self._records)

    @property
    def pending_count(self) -> int:
        return len(self._group)

    def measure_size(self) -> JournalSize:
        return JournalSize(self._bytes, self._max_bytes, math.inf)

    def append(self, events: Sequence[PublishedEvent], now: float, publisher: str = "") -> AppendResult:
        last_offset = self._last_offset + len(self._group)
        appended = self._ids.assign_offsets(events, publisher, last_offset, now)
        for event, offset in zip(events, appended.offsets, strict=True):
            if offset > last_offset:
                last_offset = offset
                self._group.append((Record(offset, event.user, event.body), event.state))
                if not self._group_times or self._group_times[-1][1] != now:
                    self._group_times.append((offset, now))
        return appended

    def _read_body(self, offset: int) -> bytes | None:
        first = self.start_offset + 1
        if offset < first:
            return None
        kept = len(self._records)
        place = offset - first
        return self._records[place].body if place < kept else self._group[place - kept][0].body

    def commit(self, now: float) -> None:
        self._times += self._group_times
        self._group_times.clear()
        for record, state in self._group:
            self._records.append(record)
            self._bytes += len(record.body)
            if record.user is not None:
                self._user_records[record.user].append(record)
            if state is not None:
                self._states[state] = record
                self._state_names.append((record.offset, state))
        self._last_offset += len(self._group)
        self._group.clear()
        while len(self._records) > self._max_events or self._bytes > self._max_bytes:
            self._note_trimmed(self._records[0].offset)  # first, so that a reader never knows too little
            gone = self._records.popleft()
            self._bytes -= len(gone.body)
            if gone.user is not None:
                own = self._user_records[gone.user]
                own.popleft()
                if not own:
                    del self._user_records[gone.user]
        while len(self._times) > 1 and self._times[1][0] <= self.start_offset + 1:
            self._times.popleft()
        while self._state_names and self._state_names[0][0] <= self.start_offset:
            offset, state = self._state_names.popleft()
            if self._states[state].offset == offset:  # else it has a newer value
                del self._states[state]
        self._ids.keep_group()
        self._ids.forget_old(now)

    def _note_trimmed(self, offset: int) -> None:
        """The oldest record goes now."""
        while len(self._times) > 1 and self._times[1][0] <= offset:
            self._times.popleft()
        at = self._times[0][1]
        self._trimmed = Trimmed(offset, at if self._trimmed is None else max(at, self._trimmed.latest_at))

    def read(self, after: int, limit: int) -> Sequence[Record]:
        start = max(0, after - self.start_offset)
        # Readers stand near the new end, and a deque finds those places fast.
        return [self._records[i] for i in range(start, min(start + limit, len(self._records)))]

    def read_user(self, user: str, after: int, upto: int, limit: int) -> Sequence[Record]:
        own = self._user_records.get(user, deque())
        first, last = (bisect_right(own, offset, key=_offset_of) for offset in (after, upto))
        return [own[i] for i in range(first, min(first + limit, last))]

    def latest_states(self, upto: int, max_states: int, max_bytes: int) -> Sequence[Record]:
        floor = self.start_offset
        found = {r.offset: (name, r) for name, r in self._states.items() if floor < r.offset <= upto}
        sized = (SizedState(at, type_of_state(name), len(record.body)) for at, (name, record) in found.items())
        return [found[at][1] for at in choose_states(sized, max_states, max_bytes)]

    def put_metadata_item(self, name: str, value: bytes) -> None:
        self.put_metadata({name: value})

    def put_metadata(self, values: Mapping[str, bytes | None]) -> bool:
        for name, value in values.items():
            if value is None:
                self._metadata.pop(name, None)
            else:
                self._metadata[name] = value
        return True

    def get_metadata_item(self, name: str) -> bytes | None:
        return self._metadata.get(name)

    def get_metadata(self, prefix: str) -> dict[str, bytes]:
        return {name: value for name, value in self._metadata.items() if name.startswith(prefix)}

    def open_reader(self) -> JournalReader:
        return _MemoryReader(self._records, self._times, lambda: self._trimmed)

    def close(self) -> None:
        pass


class _MemoryReader:
    """Reads while the journal's thread writes: every single look at a deque is whole, and is checked by its offset."""

    def __init__(
        self, records: deque[Record], times: deque[tuple[int, float]], read_trimmed: Callable[[], Trimmed | None]
    ) -> None:
        self._records = records
        self._times = times
        self._read_trimmed = read_trimmed

    def hold(self) -> AbstractContextManager[object]:
        return nullcontext()

    def bounds(self) -> Bounds:
        try:
            first, last = self._records[0].offset, self._records[-1].offset
        except IndexError:
            return Bounds(0, 0)
        return Bounds(first - 1, last)

    def read(self, after: int, upto: int, limit: int, *, is_descending: bool = False) -> Sequence[Record]:
        start, last = self.bounds()
        first, last = max(after, start) + 1, min(upto, last)
        if is_descending:
            return self.read_at(range(last, max(first, last - limit + 1) - 1, -1))
        return self.read_at(range(first, min(last, first + limit - 1) + 1))

    def read_at(self, offsets: Iterable[int]) -> Sequence[Record]:
        found = (self._find(offset) for offset in offsets)
        return [record for record in found if record is not None]

    def _find(self, offset: int) -> Record | None:
        while True:
            try:
                place = offset - self._records[0].offset
                if place < 0:
                    return None
                record = self._records[place]
            except IndexError:
                return None
            if record.offset == offset:  # else the oldest went between the two looks
                return record

    def read_time(self, offset: int) -> float | None:
        if self._find(offset) is None:
            return None
        times = self._times.copy()
        at = bisect_right(times, offset, key=_first_of)
        return times[at - 1][1] if at else None

    def read_trimmed_at(self, start: int) -> float | None:
        trimmed = self._read_trimmed()
        return trimmed.latest_at if trimmed is not None and trimmed.offset >= start else None

    def close(self) -> None:
        pass


def _first_of(time: tuple[int, float]) -> int:
    return time[0]


def _offset_of(record: Record) -> int:
    return record.offset
