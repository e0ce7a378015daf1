"""An index of where in the log the events with a value of an attribute, of a type or for a user are.

    log       1 ……… 32768 | 32769 ……… 65536 | 65537 … 70000 | 70001 …
              segment 0     segment 32768     open, in memory  not looked at yet

A segment says of each term of its events (`index_terms`) at which of its offsets it stands. All of a segment is written
at once, in the order of its terms, so that it costs an event little; a question looks into each segment of its range,
which takes some microseconds, and finds the offsets together. A segment is full with so many events, or with so many
bytes of values: nobody's values make the open one large.

What it keeps true: it is made of the log and of nothing else, so a file that can't be trusted, is of another epoch or
of another log with the same epoch is made anew. What it has covered it knows all of: between `start` and `covered`
whatever is not found is not wanted. What is found need not be: it is judged again. Segments that the log has trimmed go
with the next `trim`.

Everything here is for one thread. Errors of SQLite are passed on: `HistoryReader` then does without, and begins anew.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from solowire.backplane.messages import HistoryClause
from solowire.model.catalog import FAMILY
from solowire.router.history.index_terms import (
    OWNED,
    OWNERS,
    TYPES,
    find_prefix_end,
    make_plain_term,
    make_value_term,
)
from solowire.router.history.open_segment import OpenSegment
from solowire.router.log.journal import Record

VERSION = 1
SEGMENT_EVENTS = 32_768
"""Less would cost a question more, more the memory of the open segment, and the time of a start. 65,536 at most."""

SEGMENT_BYTES = 32 * 2**20
"""One that takes so much in memory is sealed early, whatever values its events have: usual ones take a quarter."""

MAX_VALUES = 128
"""A condition with more values than that isn't looked up: what the rest of the clause finds is judged one by one."""

MAX_PLACES = SEGMENT_EVENTS // 4
"""What is in more places of a segment than that is not looked up: to look at all of it is about as quick."""

MAX_BROAD = 4096
"""So many are remembered of those, so that each part of an answer does not find it out anew."""

FEW_PLACES = 64
"""To read and judge so many records takes no longer than to read the places of a type."""

FREE_PAGES = 256

SCHEMA = f"""
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE segments (start INTEGER PRIMARY KEY, last INTEGER NOT NULL, last_at REAL NOT NULL,
                       is_owned INTEGER NOT NULL);
CREATE TABLE postings (segment INTEGER NOT NULL, term BLOB NOT NULL, places BLOB NOT NULL,
                       PRIMARY KEY (segment, term)) WITHOUT ROWID;
CREATE TABLE meta (epoch TEXT NOT NULL);
PRAGMA user_version = {VERSION};
"""

# It can be made anew, so it is never waited for: a power failure costs some segments at the most.
TUNING = """
PRAGMA synchronous = NORMAL;
PRAGMA secure_delete = OFF;
PRAGMA cache_size = -8192;
PRAGMA mmap_size = 1073741824;
PRAGMA journal_size_limit = 16777216;
"""

# A row holds the places of all terms from its own on, up to the next row's.
_ROWS = """
SELECT places FROM postings WHERE segment = ?1 AND term < ?3
AND term >= coalesce((SELECT max(term) FROM postings WHERE segment = ?1 AND term <= ?2), ?2)
"""

Part = tuple[int, int, Sequence[int] | None]
"""From behind an offset up to another: where the wanted events may be, in order; None: anywhere."""


class AttributeIndex:
    """An index of the log by the values of attributes, in SQLite.

    path: of its file; None keeps it in memory. epoch: the log's. start: behind which a new one begins. unindexed:
    attributes that nothing is looked up by.
    """

    def __init__(self, path: Path | None, epoch: str, start: int, unindexed: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._unindexed = unindexed
        self._db = self._connect(" ".join((epoch, *sorted(unindexed))))  # with others left out it is another index
        rows = self._db.execute("SELECT start, last, is_owned FROM segments ORDER BY start").fetchall()
        self._segments: list[tuple[int, int]] = [(first, last) for first, last, _ in rows]  # oldest first
        self._broad: OrderedDict[int, None] = OrderedDict()  # keys of what is in too many places, the latest last
        self._owned = {first for first, _, is_owned in rows if is_owned}  # segments with events for one user alone
        self.start_offset = self._segments[0][0] if self._segments else start
        self._open_segment = OpenSegment(self._segments[-1][1] if self._segments else start, unindexed)
        self.covered_offset = self._open_segment.start_offset

    def _connect(self, epoch: str) -> sqlite3.Connection:
        if self._path is not None:
            db = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
            try:
                if db.execute("PRAGMA user_version").fetchone()[0] == VERSION and db.execute(
                    "SELECT epoch FROM meta"
                ).fetchall() == [(epoch,)]:
                    db.executescript(TUNING)
                    return db
            except sqlite3.DatabaseError:
                pass
            db.close()
            remove_files(self._path)
        db = sqlite3.connect(self._path or ":memory:", timeout=1.0, isolation_level=None)
        if self._path is not None:
            self._path.chmod(0o600)
        db.executescript(SCHEMA)
        db.execute("INSERT INTO meta VALUES (?)", (epoch,))
        db.execute("COMMIT")
        db.executescript(TUNING)
        return db

    def close(self) -> None:
        self._db.close()

    @property
    def last_sealed(self) -> tuple[int, float] | None:
        """The newest offset of a segment that is written, and when the log took it."""
        found = self._db.execute("SELECT last, last_at FROM segments ORDER BY start DESC LIMIT 1").fetchone()
        return None if found is None else (int(found[0]), float(found[1]))

    @property
    def room_count(self) -> int:
        """How many records the open segment still takes; 0 if it has to be sealed first."""
        return (
            self._open_segment.start_offset + SEGMENT_EVENTS - self.covered_offset
            if self._open_segment.byte_count < SEGMENT_BYTES
            else 0
        )

    def add_records(self, records: Sequence[Record], upto: int) -> None:
        """Takes what lies behind `covered_offset` and up to `upto`, no more than `room_count`.

        It is less where SEGMENT_BYTES are full.
        """
        for offset, owner, body in records:
            self._open_segment.add_record(offset, owner, body)
            if self._open_segment.byte_count >= SEGMENT_BYTES:
                self.covered_offset = offset
                return
        self.covered_offset = upto

    def seal_segment(self, last_at: float) -> None:
        """Writes the open segment, and begins the next. last_at: when the log took the newest record of it."""
        segment = (self._open_segment.start_offset, self.covered_offset)
        rows = sorted(
            (segment[0], term, array("H", places).tobytes()) for term, places in self._open_segment.list_rows()
        )
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT INTO postings VALUES (?, ?, ?)", rows)
            self._db.execute(
                "INSERT INTO segments VALUES (?, ?, ?, ?)", (*segment, last_at, self._open_segment.is_owned)
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._segments.append(segment)
        if self._open_segment.is_owned:
            self._owned.add(segment[0])
        self._open_segment = OpenSegment(self.covered_offset, self._unindexed)

    def forget_trimmed(self, start: int) -> None:
        """Forgets a segment of which the log, which begins behind `start`, has nothing any more; one at a time."""
        if not self._segments or self._segments[0][1] > start:
            return
        oldest = self._segments[0][0]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM postings WHERE segment = ?", (oldest,))
        self._db.execute("DELETE FROM segments WHERE start = ?", (oldest,))
        self._db.execute("COMMIT")
        del self._segments[0]
        self._owned.discard(oldest)
        self.start_offset = self._segments[0][0] if self._segments else self._open_segment.start_offset
        [free] = self._db.execute("PRAGMA freelist_count").fetchone()
        [pages] = self._db.execute("PRAGMA page_count").fetchone()
        if free > max(FREE_PAGES, pages // 4):
            self._db.execute("PRAGMA incremental_vacuum").fetchall()

    # ----------------------------------------------------------------------------------------- questions

    def find_parts(
        self, user: str, clauses: Sequence[HistoryClause] | None, after: int, upto: int, *, is_descending: bool
    ) -> Iterator[Part]:
        """Where what `user` may want of the log behind `after` and up to `upto` can be: part by part, in order.

        clauses: None means all events. Parts of which it knows nothing come too, as anywhere.
        """
        parts = self._split_range(after, upto)
        for low, high, segment in reversed(parts) if is_descending else parts:
            if segment is None:
                yield low, high, None
                continue
            places = self._find_places(segment, user, clauses)
            if places is None:
                yield low, high, None
                continue
            base = segment + 1
            first, last = bisect_left(places, low + 1 - base), bisect_left(places, high + 1 - base)
            found = [base + place for place in places[first:last]]
            yield low, high, found[::-1] if is_descending else found

    def _split_range(self, after: int, upto: int) -> list[tuple[int, int, int | None]]:
        """The range in parts, each with the segment that it lies in; None where nothing is known."""
        parts: list[tuple[int, int, int | None]] = []
        if after < self.start_offset:
            parts.append((after, min(upto, self.start_offset), None))
        whole = [*self._segments, (self._open_segment.start_offset, self.covered_offset)]
        for start, last in whole[max(0, bisect_left(whole, (after, 0)) - 1) :]:
            low, high = max(after, start), min(upto, last)
            if start >= upto:
                break
            if low < high:
                parts.append((low, high, start))
        if upto > self.covered_offset:
            parts.append((max(after, self.covered_offset), upto, None))
        return parts

    def _find_places(self, segment: int, user: str, clauses: Sequence[HistoryClause] | None) -> list[int] | None:
        """Where in a segment what is wanted can be, sorted; None if that is anywhere."""
        others: set[int] = set()
        if segment == self._open_segment.start_offset:
            others = self._open_segment.find_others(user)
        elif segment in self._owned:
            others = self._read_exactly(segment, OWNED) - set().union(
                *self._list_places(segment, make_plain_term(OWNERS, user))
            )
        if clauses is None:
            if len(others) * 2 < SEGMENT_EVENTS:
                return None
            return sorted(set(range(SEGMENT_EVENTS)).difference(others))
        found: set[int] = set()
        for clause in clauses:
            met = self._find_clause(segment, clause)
            if met is None:
                return None
            found |= met
        return sorted(found - others)

    def _find_clause(self, segment: int, clause: HistoryClause) -> set[int] | None:
        """None if it is about as quick to look at all of the segment."""
        met: set[int] | None = None
        # Few values first. When few places are left, they are judged, rather than that more is read.
        for name, values, are_names in sorted(clause.conditions, key=_count_values):
            if name not in self._unindexed and (met is None or len(met) > FEW_PLACES):
                met = _intersect(met, self._find_values(segment, name, values, are_names=are_names))
        if clause.types and (met is None or len(met) > FEW_PLACES):
            met = _intersect(met, self._find_values(segment, "", clause.types, are_names=False))
        return met

    def _find_values(self, segment: int, attribute: str, values: Sequence[str], *, are_names: bool) -> set[int] | None:
        """Where one of the values is; types for the attribute "". None if that is in too many places."""
        if len(values) > MAX_VALUES:
            return None
        if segment == self._open_segment.start_offset:
            open_places = (
                self._open_segment.find_values(attribute, values, are_names=are_names)
                if attribute
                else self._open_segment.find_types(values)
            )
            return open_places if len(open_places) <= MAX_PLACES else None
        key = hash((segment, attribute, are_names, *values))  # one that is met by chance costs a look at the segment
        if key in self._broad:
            self._broad.move_to_end(key)
            return None
        found: set[int] = set()
        for value in values:
            if attribute:
                term, is_prefix = make_value_term(attribute, value), are_names
            else:
                term, is_prefix = make_plain_term(TYPES, value.removesuffix("*")), value == FAMILY
            for places in self._list_places(segment, term, find_prefix_end(term) if is_prefix else None):
                found.update(places)
                if len(found) > MAX_PLACES:
                    self._broad[key] = None
                    if len(self._broad) > MAX_BROAD:
                        self._broad.popitem(last=False)
                    return None
        return found

    def _list_places(self, segment: int, first: bytes, below: bytes | None = None) -> Iterator[Sequence[int]]:
        """All places of the terms from one on and below the other, by default of the one alone, and maybe some more."""
        for [places] in self._db.execute(_ROWS, (segment, first, below or first + b"\0")):
            yield array("H", places)

    def _read_exactly(self, segment: int, term: bytes) -> set[int]:
        query = "SELECT places FROM postings WHERE segment = ? AND term = ?"
        found = self._db.execute(query, (segment, term)).fetchone()
        return set(array("H", found[0])) if found is not None else set()


def _intersect(known: set[int] | None, more: set[int] | None) -> set[int] | None:
    """None is everywhere."""
    if known is None or more is None:
        return more if known is None else known
    return known & more


def _count_values(condition: tuple[str, list[str], bool]) -> int:
    return len(condition[1])


def remove_files(path: Path) -> None:
    """The index begins anew."""
    for part in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{part}").unlink(missing_ok=True)
