"""The router's log on disk: SQLite in WAL mode, fsynced with every commit.

What it keeps true, beside what `router.journal` promises: what `commit` has returned for is there after the process was
killed or the power failed; epoch and offsets go on after a restart, for which the newest record is never trimmed; ids
within the window are known again. A group that can't be written is forgotten as a whole, with its ids, and the next
one is tried as if nothing had happened. No file that was there is ever overwritten or emptied: one that can't be
trusted is set aside under a new name, loudly, and one of a newer version is refused.

    events  offset → at (unix seconds), id, user, state, body. Offsets stand without a hole from floor + 1 to last
    meta    epoch, and the router's own words as note.NAME

Where clients and shards stand is nearly always the newest end, so it is held in memory as well and their reads never
touch the disk. Everything here is synchronous, for one thread, and bounded: a commit trims a small chunk at the most.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import structlog

from router.journal import MAX_IDS, Appended, JournalUnavailable, Record
from solowire.backplane import PublishedEvent
from solowire.errors import ConfigError

log = structlog.get_logger("solowire.router")

VERSION = 1
APPLICATION_ID = 0x534C5752  # "SLWR", for `file` and for us

TRIM_ROWS = 1_000
TRIM_PAUSE_SECONDS = 1.0
"""After a commit that failed and may have done so for its trim, which must not be tried with every group then."""

TAIL_RECORDS, TAIL_BYTES = 50_000, 64 * 2**20

# An index holds the rowid, which is the offset, after its own columns: this is (user, offset) and (state, offset).
SCHEMA = f"""
PRAGMA page_size = 4096;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE events (offset INTEGER PRIMARY KEY, at REAL NOT NULL, id TEXT NOT NULL, user TEXT, state TEXT,
                     body BLOB NOT NULL);
CREATE INDEX of_user ON events (user) WHERE user IS NOT NULL;
CREATE INDEX of_state ON events (state) WHERE state IS NOT NULL;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

# secure_delete is on in Debian's SQLite and would write every page that a trim frees. The WAL is copied into the file
# every 1,000 pages, which a commit has to wait for: more would wait longer, less would do it too often.
TUNING = """
PRAGMA synchronous = FULL;
PRAGMA secure_delete = OFF;
PRAGMA cache_size = -32768;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = 67108864;
"""

# Steps from name to name along the index, since there may be few states with many records each.
STATES = """
WITH RECURSIVE names (name) AS (
    SELECT min(state) FROM events WHERE state IS NOT NULL
    UNION ALL SELECT (SELECT min(state) FROM events WHERE state > name) FROM names WHERE name IS NOT NULL
), newest (place) AS (
    SELECT (SELECT max(offset) FROM events WHERE state = name) FROM names WHERE name IS NOT NULL
)
SELECT offset, user, body FROM newest JOIN events ON offset = place WHERE place <= ? ORDER BY offset DESC LIMIT ?
"""

_Row = tuple[int, float, str, str | None, str | None, bytes]

_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # ERROR: no such table
_REASONS = {
    sqlite3.SQLITE_FULL: "the journal's disk is full",
    sqlite3.SQLITE_READONLY: "the journal is read-only",
    sqlite3.SQLITE_IOERR: "the journal's disk has an I/O error",
    sqlite3.SQLITE_CORRUPT: "the journal is damaged",
    sqlite3.SQLITE_NOTADB: "the journal is damaged",
    sqlite3.SQLITE_BUSY: "another process has locked the journal",
    sqlite3.SQLITE_CANTOPEN: "the journal's files can't be opened",
}


class _DamagedError(Exception):
    """The file can't be trusted."""


class SqliteJournal:
    """The log in the file `path`, with its -wal and -shm beside it. One process at a time: `router.server` sees to it.

    new_epoch: taken if there is no log to go on with. max_age: seconds, max_bytes: of the file, max_events: what is
    kept at most, give or take a chunk. window: seconds for which ids are remembered. Raises ConfigError.
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
    ) -> None:
        self._max_age = max_age
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._window = window
        self._group: list[_Row] = []
        self._group_ids: list[tuple[float, list[str]]] = []
        self._offset_of: dict[str, int] = {}
        self._ids: deque[tuple[float, list[str]]] = deque()  # oldest first; those of one request stand together
        self._unsaved: set[str] = set()  # names of notes
        self._trim_at = float("-inf")
        try:
            try:
                self._open(path, new_epoch, now)
            except _DamagedError as damage:
                _set_aside(path, str(damage), now)
                self._open(path, new_epoch, now)
        except (OSError, sqlite3.Error, _DamagedError) as error:
            reason = error.strerror if isinstance(error, OSError) else _reason(error)
            raise ConfigError(f"journal {path}: {reason}; make it readable and writable, or move it away") from None
        self._tail: list[Record] = []
        self._tail_floor = self._last
        self._tail_bytes = 0

    def _open(self, path: Path, new_epoch: str, now: float) -> None:
        if not _check(path):
            _create(path, new_epoch)
        self._db = _connect(path, "rw")
        try:
            self._db.executescript(TUNING)
            with _damage():
                self._load(now)
        except BaseException:
            self._db.close()
            raise

    def _load(self, now: float) -> None:
        ask = self._db.execute
        words: dict[str, bytes] = dict(ask("SELECT name, value FROM meta"))
        self.epoch = words["epoch"].decode()
        self._notes = {name[5:]: value for name, value in words.items() if name.startswith("note.")}
        first, last = ask("SELECT (SELECT min(offset) FROM events), (SELECT max(offset) FROM events)").fetchone()
        self._last: int = last or 0
        self._floor: int = first - 1 if first else 0
        self._oldest_at = self._at(self._floor + 1)
        # Backwards, so that what is read is what is wanted, however long the log.
        newest_first = ask("SELECT at, id, offset FROM events ORDER BY offset DESC LIMIT ?", (MAX_IDS,))
        for at, rows in groupby(newest_first, lambda row: float(row[0])):
            if at < now - self._window:
                break
            self._ids.appendleft(
                (at, [id for _, id, offset in rows if self._offset_of.setdefault(id, offset) == offset])
            )

    @property
    def last(self) -> int:
        return self._last

    @property
    def floor(self) -> int:
        return self._floor

    @property
    def open(self) -> int:
        return len(self._group)

    def append(self, events: Sequence[PublishedEvent], now: float) -> Appended:
        offsets: list[int] = []
        duplicates: list[int] = []
        fresh: list[str] = []
        offset = self._last + len(self._group)
        for index, event in enumerate(events):
            known = self._offset_of.get(event.id)
            if known is not None:
                duplicates.append(index)
                offsets.append(known)
                continue
            offset += 1
            self._group.append((offset, now, event.id, event.user, event.state, event.body))
            self._offset_of[event.id] = offset
            fresh.append(event.id)
            offsets.append(offset)
        if fresh:
            self._group_ids.append((now, fresh))
        return Appended(offsets, duplicates)

    def commit(self, now: float) -> None:
        """One transaction, and one fsync, for the group and a chunk of what is over the retention."""
        group, self._group = self._group, []
        ids, self._group_ids = self._group_ids, []
        try:
            self._keep(group, now)
        except sqlite3.Error as error:
            for _, forgotten in ids:
                for id in forgotten:
                    del self._offset_of[id]
            raise JournalUnavailable(_reason(error)) from None
        self._ids.extend(ids)
        while self._ids and (self._ids[0][0] < now - self._window or len(self._offset_of) > MAX_IDS):
            for id in self._ids.popleft()[1]:
                del self._offset_of[id]

    def _keep(self, group: list[_Row], now: float) -> None:
        trims = now >= self._trim_at
        try:
            upto = self._due(len(group), now) if trims else self._floor
            if group or self._unsaved or upto > self._floor:
                self._write(group, upto)
        except sqlite3.Error as error:
            if not group or not trims:
                raise
            # To delete takes room in the WAL, too. Where there is some for the group alone, publishers come first.
            self._trim_at = now + TRIM_PAUSE_SECONDS
            self._write(group, self._floor)
            log.warning("journal_not_trimmed", reason=_reason(error), hint="make room on its disk; publishing goes on")

    def _due(self, arriving: int, now: float) -> int:
        """Up to which offset the log is to be trimmed now, a chunk at the most; `floor` if nothing is over."""
        floor, kept = self._floor, self._last - self._floor
        chunk = min(max(TRIM_ROWS, 2 * arriving), kept + arriving - 1)
        over = kept + arriving - self._max_events
        used = self._used_bytes()
        if used > self._max_bytes:
            over = max(over, math.ceil((used - self._max_bytes) / used * kept))
        if self._oldest_at < now - self._max_age:
            young = "SELECT offset FROM events WHERE offset > ? AND offset <= ? AND at >= ? ORDER BY offset LIMIT 1"
            found = self._db.execute(young, (floor, floor + chunk, now - self._max_age)).fetchone()
            over = max(over, found[0] - floor - 1 if found else chunk)
        return floor + max(0, min(over, chunk))

    def _used_bytes(self) -> int:
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _write(self, group: list[_Row], upto: int) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", group)
            for name in self._unsaved:
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note.{name}", self._notes[name]))
            if upto > self._floor:
                db.execute("DELETE FROM events WHERE offset <= ?", (upto,))
            oldest_at = self._at(upto + 1) if upto > self._floor or self._last == 0 else self._oldest_at
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite ends it by itself after some errors
                db.execute("ROLLBACK")
            raise
        self._floor, self._oldest_at = upto, oldest_at
        self._unsaved.clear()
        if group:
            self._last = group[-1][0]
            self._hold([Record(offset, user, body) for offset, _, _, user, _, body in group])

    def _at(self, offset: int) -> float:
        found = self._db.execute("SELECT at FROM events WHERE offset = ?", (offset,)).fetchone()
        return float(found[0]) if found else math.inf

    def _hold(self, records: list[Record]) -> None:
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
            "SELECT offset, user, body FROM events WHERE offset > ? ORDER BY offset LIMIT ?", after, limit
        )
        if limit > 0 and (not found or found[-1].offset != after + len(found)):
            raise JournalUnavailable(f"the journal is damaged: records behind {after} are missing")
        return found

    def read_personal(self, user: str, after: int, upto: int, limit: int) -> Sequence[Record]:
        where = "user = ? AND offset > ? AND offset <= ?"
        return self._find(
            f"SELECT offset, user, body FROM events WHERE {where} ORDER BY offset LIMIT ?",  # noqa: S608
            user,
            after,
            upto,
            limit,
        )

    def states(self, upto: int, limit: int) -> Sequence[Record]:
        return self._find(STATES, upto, limit)[::-1]

    def _find(self, query: str, *values: object) -> list[Record]:
        try:
            return [Record(*row) for row in self._db.execute(query, values)]
        except sqlite3.Error as error:
            raise JournalUnavailable(_reason(error)) from None

    def note(self, name: str, value: bytes) -> None:
        """On disk at once if it can be, else with the next group that can."""
        self._notes[name] = value
        self._unsaved.add(name)
        with contextlib.suppress(sqlite3.Error):
            self._write([], self._floor)

    def recall(self, name: str) -> bytes | None:
        return self._notes.get(name)

    def close(self) -> None:
        """Forgets the open group. Raises nothing: all that was kept is in the files, whatever becomes of the WAL."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", timeout=1.0, uri=True, isolation_level=None)


def _check(path: Path) -> bool:
    """Whether there is a journal, and it is sound and ours. Changes nothing. Raises _DamagedError, ConfigError."""
    wal = Path(f"{path}-wal")
    if not path.exists():
        if wal.exists() and wal.stat().st_size:
            raise _DamagedError("the file is gone, but its -wal is there")
        return False
    with path.open("r+b"):
        pass  # says more plainly than SQLite what is wrong, if it can't be opened
    if not path.stat().st_size:
        raise _DamagedError("the file is empty")
    # Read only, so that a newer version's file is not even brought up to date from its WAL.
    with contextlib.closing(_connect(path, "ro")) as db, _damage():
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise _DamagedError("not a journal of Solowire's")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise ConfigError(
                f"journal {path}: written by a newer Solowire (format {version}, this one reads {VERSION}); "
                "install that again, or move the file away to begin a new log"
            )
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _DamagedError(" ".join(str(found).split()))
        db.execute("SELECT offset, at, id, user, state, body FROM events LIMIT 1").fetchall()
        if not db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone():
            raise _DamagedError("it has no epoch")
    return True


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Tells what is wrong with the file from what is wrong with its surroundings."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in _DAMAGE or code is None:  # None: Python's own, of text that is no UTF-8
            raise _DamagedError(str(error)) from None
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _DamagedError(f"its content is not a journal's: {error}") from None


def _create(path: Path, epoch: str) -> None:
    """Under another name first: a file under its own name is a whole one, whenever the process was killed."""
    draft = Path(f"{path}.new")
    for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm"), Path(f"{draft}-journal")):
        leftover.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    with contextlib.closing(_connect(draft, "rw")) as db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO meta VALUES ('epoch', ?)", (epoch.encode(),))
        db.execute("COMMIT")
    draft.rename(path)


def _set_aside(path: Path, damage: str, now: float) -> None:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = ("", "-wal", "-shm")
    aside, more = f"{path}.damaged-{stamp}", 1
    while any(Path(aside + part).exists() for part in parts):
        more += 1
        aside = f"{path}.damaged-{stamp}.{more}"
    for part in parts:  # the file before its -wal: a journal that lost its newest records must not look sound
        if Path(f"{path}{part}").exists():
            Path(f"{path}{part}").rename(aside + part)
    log.critical(
        "journal_damaged",
        journal=str(path),
        set_aside=aside,
        damage=damage,
        hint="a new log begins: what clients and shards have missed of the old one is lost to them",
    )


def _code(error: sqlite3.Error) -> int | None:
    extended: int | None = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _reason(error: Exception) -> str:
    code = _code(error) if isinstance(error, sqlite3.Error) else None
    return _REASONS.get(code or 0, str(error))
