"""The router's log on disk: SQLite in WAL mode, fsynced with every commit.

What it keeps true, beside what `solowire.router.log.journal` promises: what `commit` has returned for is there after
the process was killed or the power failed; epoch and offsets go on after a restart, for which the newest record is
never trimmed; ids within the window are known again. A group that can't be written is forgotten as a whole, with its
ids, and the next one is tried as if nothing had happened; nor is anything kept that stands in a file which somebody has
removed or replaced (`is_gone`). No file that was there is ever overwritten or emptied: one
that can't be trusted is set aside under a new name, loudly, and one of a newer version is refused. What retention no
longer keeps is given back to the disk but for an eighth of the rest, which the next events take: by each commit a
little, and at the start as a whole where that is quick, or where the file was made before the other could be done
(`compact_file`).

    events  offset → at (unix seconds), id, user, state, body. Offsets stand without a hole from floor + 1 to last
    meta    epoch; up to where the log was trimmed, with the latest time of that, as trimmed; the router's own words as
            note.NAME

A row of which a part is not what it should be is read all the same, with an empty body: offsets go on, and a shard
passes over what is no event. Rows that are gone are a hole: what is older is given up when the file is opened.

Where clients and shards stand is nearly always the newest end, so it is held in memory as well and their reads never
touch the disk. Everything here is synchronous, for one thread, and bounded: a commit trims a small chunk at the most.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import structlog

from solowire.backplane.messages import PublishedEvent
from solowire.errors import ConfigError
from solowire.model.events import is_same_event
from solowire.router.log.journal import JournalHole, JournalReader, JournalSize, JournalUnavailable, Record
from solowire.router.log.journal_file import APPLICATION_ID as APPLICATION_ID
from solowire.router.log.journal_file import (
    FREE_PAGES,
    INCREMENTAL,
    PAGE_BYTES,
    DamagedError,
    check_file,
    check_offsets,
    compact_file,
    connect,
    create_file,
    drop_note,
    error_code,
    explain_error,
    find_trimmed,
    is_damage,
    note_clean,
    reveal_damage,
    set_aside,
    write_trimmed,
)
from solowire.router.log.journal_file import VERSION as VERSION
from solowire.router.log.known_ids import MAX_IDS, AppendResult, IsSame, KnownIds, id_key
from solowire.router.log.sqlite_reader import COLUMNS, SqliteReader, decode_any
from solowire.router.log.sqlite_reader import LONGEST_BODY as LONGEST_BODY
from solowire.router.log.state_selection import SizedState, choose_states, type_of_state

logger = structlog.get_logger("solowire.router")

TRIM_ROWS = 1_000
TRIM_PAUSE_SECONDS = 1.0
"""After a commit that failed and may have done so for its trim, which must not be tried with every group then."""

FAR_OVER_ROWS, MANY_ROWS = 100_000, 5_000
"""With so many over the retention, as when it has been lowered, so many are trimmed at a time (some 10 ms)."""

RELEASED_PAGES = 256
"""Given back to the disk with each commit, at most: 1 MB, in a millisecond; four times as many where nothing came."""

TAIL_RECORDS, TAIL_BYTES = 50_000, 64 * 2**20

# secure_delete is on in Debian's SQLite and would write every page that a trim frees. The WAL is copied into the file
# every 1,000 pages, which a commit has to wait for: more would wait longer, less would do it too often.
TUNING = """
PRAGMA synchronous = FULL;
PRAGMA secure_delete = OFF;
PRAGMA cache_size = -32768;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = 67108864;
"""

LAST_RUN = """
SELECT offset FROM events AS first WHERE NOT EXISTS (SELECT 1 FROM events WHERE offset = first.offset - 1)
ORDER BY offset DESC LIMIT 1
"""

MANY_STATES, LATEST_OFFSETS = 20_000, 100_000
"""Where there are more states than that, only those are found that were heard of within so many of the last offsets: to
look for the newest of 5 million would hold up the router for a quarter of a minute, each time that a shard starts."""

# Steps from name to name along the index, since there may be few states with many records each.
NAMES = f"""
WITH RECURSIVE names (name) AS (
    SELECT min(state) FROM events WHERE state IS NOT NULL
    UNION ALL SELECT (SELECT min(state) FROM events WHERE state > name) FROM names WHERE name IS NOT NULL
    LIMIT {MANY_STATES + 2}
)"""  # noqa: S608

# Not the bodies: those of 10,000 states may be hundreds of megabytes, and hold the router up for seconds.
STATE_COLUMNS = f"""offset, CAST(state AS BLOB),
CASE WHEN typeof(body) = 'blob' AND length(body) <= {LONGEST_BODY} THEN length(body) ELSE 0 END"""

STATE_COUNT = f"{NAMES} SELECT count(name) FROM names"  # noqa: S608

# Of the newest offset of each.
STATES = f"""{NAMES}, newest (place) AS (
    SELECT (SELECT max(offset) FROM events WHERE state = name) FROM names WHERE name IS NOT NULL
)
SELECT {STATE_COLUMNS} FROM newest JOIN events ON offset = place WHERE place <= ?
"""  # noqa: S608

LATEST_STATES = f"""
WITH newest (place) AS (
    SELECT max(offset) FROM events NOT INDEXED
    WHERE offset > (SELECT max(offset) FROM events) - {LATEST_OFFSETS} AND state IS NOT NULL GROUP BY state
)
SELECT {STATE_COLUMNS} FROM newest JOIN events ON offset = place WHERE place <= ?
"""  # noqa: S608

STATES_AT_ONCE = 500
"""Bodies read by one statement."""

_Row = tuple[int, float, str, str | None, str | None, bytes]


class SqliteJournal:
    """The log in the file `path`, with its -wal and -shm beside it.

    One process at a time: `solowire.router.server` sees to it.

    new_epoch: taken if there is no log to go on with. max_age: seconds, max_bytes: of the file, max_events: what is
    kept at most, give or take a chunk. window: seconds for which ids are remembered. is_same: as `KnownIds` has it.
    report: told what takes long while it is opened. Another thread may do that. Raises ConfigError.
    """

    def __init__(
        self,
        path: Path,
        *,
        new_epoch: str,
        max_age: float,
        max_events: int,
        max_bytes: int,
        window: float,
        now: float,
        is_same: IsSame = is_same_event,
        report: Callable[[str], object] = lambda step: None,
    ) -> None:
        self._path = path
        self._report = report
        self._is_sound = True
        self._max_age = max_age
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._window = window
        self._group: list[_Row] = []
        self._ids = KnownIds(window, self._read_body, is_same)
        self._unsaved: set[str] = set()  # names of notes
        self._trim_at = float("-inf")
        self._path = path
        try:
            try:
                self._open(path, new_epoch, now)
            except DamagedError as damage:
                set_aside(path, str(damage), now)
                self._open(path, new_epoch, now)
        except (OSError, sqlite3.Error, DamagedError) as error:
            reason = error.strerror if isinstance(error, OSError) else explain_error(error)
            raise ConfigError(f"journal {path}: {reason}; make it readable and writable, or move it away") from None
        self._tail: list[Record] = []
        self._tail_floor = self._last
        self._tail_bytes = 0

    def _open(self, path: Path, new_epoch: str, now: float) -> None:
        self._report("looking for damage")
        found = check_file(path)
        drop_note(path)
        if not found:
            create_file(path, new_epoch)
        else:
            self._report("giving back room")
            compact_file(path, self._max_age, self._max_events, self._max_bytes, now)
        self._db = connect(path, "rw")
        try:
            self._db.executescript(TUNING)
            self._releases = self._db.execute("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL
            with reveal_damage():
                self._load(now)
        except BaseException:
            self._db.close()
            raise
        # By their names: to open the files a second time would, when that is closed, drop SQLite's locks on them.
        self._files = [(name, _identify_file(name)) for name in (str(path), f"{path}-wal")]

    @property
    def is_gone(self) -> bool:
        """Whether the file, or its -wal, that is written to is not the one under its name. Costs a microsecond each."""
        return any(found is not None and _identify_file(name) != found for name, found in self._files)

    def _check_present(self) -> None:
        if self.is_gone:
            raise JournalUnavailable(
                "the journal's file is gone",
                f"publish requests are rejected: put back {self._path} with its -wal, or restart the router, and a "
                "new log begins",
            )

    def _load(self, now: float) -> None:
        ask = self._db.execute
        words: dict[str, bytes] = dict(ask("SELECT name, value FROM meta"))
        self.epoch = words["epoch"].decode()
        self._notes = {name[5:]: value for name, value in words.items() if name.startswith("note.")}
        first, last = check_offsets(self._db) or (0, 0)
        if first and ask("SELECT count(*) FROM events").fetchone()[0] != last - first + 1:
            [first] = ask(LAST_RUN).fetchone()
            logger.critical(
                "journal_gap_detected", log_begins=first, hint="records before are missing: what is older is given up"
            )
        self._last: int = last
        self._floor: int = first - 1 if first else 0
        self._oldest_at = self._read_time(self._floor + 1)
        self._report("reading the ids of the last minutes")
        # Backwards, so that what is read is what is wanted, however long the log.
        newest_first = ask("SELECT at, id, offset FROM events ORDER BY offset DESC LIMIT ?", (MAX_IDS,))
        for at, rows in groupby(newest_first, lambda row: float(row[0])):
            if at < now - self._window:
                break
            # The id of a damaged row is nobody's.
            known = ((id_key(id) if isinstance(id, str) else b"", offset) for _, id, offset in rows)
            self._ids.load_request(at, known)

    @property
    def last_offset(self) -> int:
        return self._last

    @property
    def start_offset(self) -> int:
        return self._floor

    @property
    def pending_count(self) -> int:
        return len(self._group)

    def measure_size(self) -> JournalSize:
        used = sum(_measure_file(f"{self._path}{part}") for part in ("", "-wal"))
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            return JournalSize(used, self._max_bytes, 0)
        return JournalSize(used, self._max_bytes, disk.f_bavail * disk.f_frsize)

    def append(self, events: Sequence[PublishedEvent], now: float, publisher: str = "") -> AppendResult:
        last_offset = self._last + len(self._group)
        appended = self._ids.assign_offsets(events, publisher, last_offset, now)
        for event, offset in zip(events, appended.offsets, strict=True):
            if offset > last_offset:
                last_offset = offset
                self._group.append((offset, now, event.id, event.user, event.state, event.body))
        return appended

    def _read_body(self, offset: int) -> bytes | None:
        if offset > self._last:
            return self._group[offset - self._last - 1][-1]
        try:
            found = self.read(offset - 1, 1) if offset > self._floor else ()
        except JournalUnavailable:
            return None
        return found[0].body if found else None

    def commit(self, now: float) -> None:
        """One transaction, and one fsync, for the group and a chunk of what is over the retention.

        A group that was written while the file went is in the log of this process all the same, and is not given out
        twice; but it is not acknowledged, and its ids are answered for only if the file comes back.
        """
        group, self._group = self._group, []
        try:
            self._check_present()
            self._store_group(group, now)
        except (sqlite3.Error, JournalUnavailable) as error:
            self._ids.forget_group(self._last)
            if isinstance(error, JournalUnavailable):
                raise
            raise self._make_unavailable(error) from None
        self._ids.keep_group()
        self._ids.forget_old(now)
        if group:
            self._check_present()

    def _store_group(self, group: list[_Row], now: float) -> None:
        trims = now >= self._trim_at
        try:
            upto = self._find_trim_offset(len(group), now) if trims else self._floor
            release = self._pages_to_release(RELEASED_PAGES if group else 4 * RELEASED_PAGES) if trims else 0
            if group or self._unsaved or upto > self._floor or release:
                self._write(group, upto, release)
            if release and not self._pages_to_release(1):
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()  # only then the file becomes shorter
        except sqlite3.Error as error:
            if not group or not trims:
                raise
            # To delete takes room in the WAL, too. Where there is some for the group alone, publishers come first.
            self._trim_at = now + TRIM_PAUSE_SECONDS
            self._write(group, self._floor)
            logger.warning(
                "journal_trim_failed", reason=explain_error(error), hint="make room on its disk; publishing goes on"
            )

    def _find_trim_offset(self, arriving: int, now: float) -> int:
        """Up to which offset the log is to be trimmed now, a chunk at the most; `start_offset` if nothing is over."""
        floor, kept = self._floor, self._last - self._floor
        chunk = min(max(TRIM_ROWS, 2 * arriving), kept + arriving - 1)
        over = kept + arriving - self._max_events
        used = self._used_bytes()
        if used > self._max_bytes:
            over = max(over, math.ceil((used - self._max_bytes) / used * kept))
        if over > FAR_OVER_ROWS:
            chunk = min(max(chunk, MANY_ROWS), kept + arriving - 1)
        if self._oldest_at < now - self._max_age:
            young = "SELECT offset FROM events WHERE offset > ? AND offset <= ? AND at >= ? ORDER BY offset LIMIT 1"
            found = self._db.execute(young, (floor, floor + chunk, now - self._max_age)).fetchone()
            over = max(over, found[0] - floor - 1 if found else chunk)
        return floor + max(0, min(over, chunk))

    def _used_bytes(self) -> int:
        pages, free = self._pages()
        return (pages - free) * PAGE_BYTES

    def _pages(self) -> tuple[int, int]:
        """How many the file has, and how many of them are free."""
        ask = self._db.execute
        return int(ask("PRAGMA page_count").fetchone()[0]), int(ask("PRAGMA freelist_count").fetchone()[0])

    def _pages_to_release(self, most: int) -> int:
        """How many pages to give back to the disk now."""
        if not self._releases:
            return 0
        pages, free = self._pages()
        return max(0, min(most, free - max(FREE_PAGES, (pages - free) // 8)))

    def _write(self, group: list[_Row], upto: int, release: int = 0) -> None:
        """Writes pending events in one transaction. release: pages to give back to the disk."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", group)
            for name in self._unsaved:
                if name in self._notes:
                    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note.{name}", self._notes[name]))
                else:
                    db.execute("DELETE FROM meta WHERE name = ?", (f"note.{name}",))
            if upto > self._floor:
                if trimmed := find_trimmed(db, self._floor, upto):
                    write_trimmed(db, trimmed)
                db.execute("DELETE FROM events WHERE offset <= ?", (upto,))
            for _ in range(release):  # one at a time: Python's module takes a single step of a statement
                db.execute("PRAGMA incremental_vacuum(1)")
            oldest_at = self._read_time(upto + 1) if upto > self._floor or self._last == 0 else self._oldest_at
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite ends it by itself after some errors
                db.execute("ROLLBACK")
            raise
        self._floor, self._oldest_at = upto, oldest_at
        self._unsaved.clear()
        if group:
            self._last = group[-1][0]
            self._extend_tail([Record(offset, user, body) for offset, _, _, user, _, body in group])

    def _read_time(self, offset: int) -> float:
        found = self._db.execute("SELECT at FROM events WHERE offset = ?", (offset,)).fetchone()
        return float(found[0]) if found else math.inf

    def _extend_tail(self, records: list[Record]) -> None:
        """Adds to the tail; over its bounds it loses a tenth more than it must, so that it is rarely moved."""
        self._tail += records
        self._tail_bytes += sum(len(record.body) for record in records)
        if len(self._tail) <= TAIL_RECORDS and self._tail_bytes <= TAIL_BYTES:
            return
        drop = 0
        while len(self._tail) - drop > TAIL_RECORDS * 9 // 10 or self._tail_bytes > TAIL_BYTES * 9 // 10:
            self._tail_bytes -= len(self._tail[drop].body)
            drop += 1
        del self._tail[:drop]
        self._tail_floor += drop

    def read(self, after: int, limit: int) -> Sequence[Record]:
        """Raises JournalUnavailable, as all reads do."""
        after = max(after, self._floor)
        if after >= self._tail_floor:
            start = after - self._tail_floor
            return self._tail[start : start + limit]
        found = self._find(
            f"SELECT {COLUMNS} FROM events WHERE offset > ? ORDER BY offset LIMIT ?",  # noqa: S608
            after,
            limit,
        )
        if limit > 0 and (not found or found[-1].offset != after + len(found)):
            whole = sum(record.offset == after + place for place, record in enumerate(found, 1))
            raise JournalHole(after + whole, found[whole].offset - 1 if whole < len(found) else self._tail_floor)
        return found

    def _read_tail(self, after: int, upto: int) -> Sequence[Record]:
        """Records of this range, all of it or none; also for another thread, which finds the tail as it is just now."""
        start = after - self._tail_floor
        found = self._tail[start : upto - after + start] if start >= 0 else []
        # Between the two looks the tail may have been cut.
        return found if found and found[0].offset == after + 1 and found[-1].offset == upto else []

    def read_user(self, user: str, after: int, upto: int, limit: int) -> Sequence[Record]:
        where = "user = ? AND offset > ? AND offset <= ?"
        return self._find(
            f"SELECT {COLUMNS} FROM events WHERE {where} ORDER BY offset LIMIT ?",  # noqa: S608
            user,
            after,
            upto,
            limit,
        )

    def latest_states(self, upto: int, max_states: int, max_bytes: int) -> Sequence[Record]:
        try:
            [count] = self._db.execute(STATE_COUNT).fetchone()
            rows = self._db.execute(STATES if count <= MANY_STATES else LATEST_STATES, (upto,)).fetchall()
        except sqlite3.Error as error:
            raise self._make_unavailable(error) from None
        sized = (SizedState(at, type_of_state(decode_any(name)), size) for at, name, size in rows)
        chosen = choose_states(sized, max_states, max_bytes)
        found: list[Record] = []
        for first in range(0, len(chosen), STATES_AT_ONCE):
            places = chosen[first : first + STATES_AT_ONCE]
            marks = ",".join("?" * len(places))
            found += self._find(f"SELECT {COLUMNS} FROM events WHERE offset IN ({marks}) ORDER BY offset", *places)  # noqa: S608
        return found

    def _find(self, query: str, *values: object) -> list[Record]:
        try:
            return self._read_records(query, values)
        except sqlite3.Error as error:
            if error_code(error) is not None:
                raise self._make_unavailable(error) from None
        # Python's own, of text that is no UTF-8: a user of another name is nobody, and all others are as they were.
        self._db.text_factory = decode_any
        try:
            return self._read_records(query, values)
        except sqlite3.Error as error:
            raise self._make_unavailable(error) from None
        finally:
            self._db.text_factory = str

    def _read_records(self, query: str, values: Sequence[object]) -> list[Record]:
        return [Record(*row) for row in self._db.execute(query, values)]

    def put_metadata_item(self, name: str, value: bytes) -> None:
        """On disk at once if it can be, else with the next group that can."""
        self.put_metadata({name: value})

    def put_metadata(self, values: Mapping[str, bytes | None]) -> bool:
        """One transaction, and one fsync."""
        for name, value in values.items():
            if value is None:
                self._notes.pop(name, None)
            else:
                self._notes[name] = value
            self._unsaved.add(name)
        if self.is_gone:
            return False
        with contextlib.suppress(sqlite3.Error):
            self._write([], self._floor)
        return not self._unsaved

    def get_metadata_item(self, name: str) -> bytes | None:
        return self._notes.get(name)

    def get_metadata(self, prefix: str) -> dict[str, bytes]:
        return {name: value for name, value in self._notes.items() if name.startswith(prefix)}

    def open_reader(self) -> JournalReader:
        return SqliteReader(self._path, lambda: self._floor, self._read_tail)

    def close(self) -> None:
        """Forgets the open group. Raises nothing: all that was kept is in the files, whatever becomes of the WAL."""
        is_sound = self._is_sound and not self.is_gone
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
            if is_sound:
                note_clean(self._path)

    def _make_unavailable(self, error: sqlite3.Error) -> JournalUnavailable:
        self._is_sound = self._is_sound and not is_damage(error)
        return JournalUnavailable(explain_error(error))


def _identify_file(name: str) -> tuple[int, int] | None:
    """Device and inode of the file under a name; None if there is none."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _measure_file(name: str) -> int:
    """What a file takes on its disk, in bytes; 0 where there is none."""
    try:
        return os.stat(name).st_blocks * 512
    except OSError:
        return 0
