"""The file of a journal on disk: made, judged, written anew without what is no longer kept, and set aside if damaged.

What it keeps true: a file under a journal's name is a whole one, whenever the process is killed. No file that was there
is ever overwritten or emptied: one that can't be trusted is set aside under a new name, loudly, one of a newer version
is refused, and one that is written anew keeps all that retention keeps.

To look for damage all of a file is read. One that was closed in order, and is as it was then, is not looked at again:
what it was like stands in a note beside it (`-clean`), which is there only while nobody has it open.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

from solowire.errors import ConfigError
from solowire.router.log.journal import Trimmed

logger = structlog.get_logger("solowire.router")

VERSION = 1
APPLICATION_ID = 0x534C5752  # "SLWR", for `file` and for us
PAGE_BYTES = 4096
LAST_OFFSET = 2**53
INCREMENTAL = 2  # what PRAGMA auto_vacuum says of it

FREE_PAGES = 256
"""So many free pages are not given back, nor is an eighth of those in use: the next events take them."""
COMPACTED_BYTES = 2 * 2**30
"""A file that keeps more is not written anew at the start: that takes 2 to 5 s for each GB."""
QUICK_BYTES = 256 * 2**20
"""Nor is one that keeps more than this, if it can give its pages back while it is used."""

# An index holds the rowid, which is the offset, after its own columns: this is (user, offset) and (state, offset).
SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
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


class DamagedError(Exception):
    """The file can't be trusted."""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """By one thread at a time, be it another than opened it."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, timeout=1.0, uri=True, isolation_level=None, check_same_thread=False)


def check_file(path: Path) -> bool:
    """Whether there is a journal, and it is sound and ours. Changes nothing. Raises DamagedError, ConfigError."""
    if not path.exists():
        if _has_wal(path):
            raise DamagedError("the file is gone, but its -wal is there")
        return False
    with path.open("r+b"):
        pass  # says more plainly than SQLite what is wrong, if it can't be opened
    if not path.stat().st_size:
        raise DamagedError("the file is empty")
    is_clean = _is_as_it_was_closed(path)
    # Read only, so that a newer version's file is not even brought up to date from its WAL.
    with contextlib.closing(connect(path, "ro")) as db, reveal_damage():
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise DamagedError("not a journal of Solowire's")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise ConfigError(
                f"journal {path}: written by a newer Solowire (format {version}, this one reads {VERSION}); "
                "install that again, or move the file away to begin a new log"
            )
        found = "ok" if is_clean else db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise DamagedError(" ".join(str(found).split()))
        db.execute("SELECT offset, at, id, user, state, body FROM events LIMIT 1").fetchall()
        if not db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone():
            raise DamagedError("it has no epoch")
    return True


def note_clean(path: Path) -> None:
    """Notes that the file was closed in order, and is sound. What can't be noted costs the next start some time."""
    with contextlib.suppress(OSError):
        if _has_wal(path):
            return  # somebody has it open still
        note = _name_note(path)
        with open(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(_describe_file(path))


def drop_note(path: Path) -> None:
    """The file is in use from here on. Raises OSError: then the note would be wrong."""
    _name_note(path).unlink(missing_ok=True)


def _is_as_it_was_closed(path: Path) -> bool:
    try:
        return _name_note(path).read_text("ascii") == _describe_file(path) and not _has_wal(path)
    except (OSError, UnicodeDecodeError):
        return False


def _has_wal(path: Path) -> bool:
    wal = Path(f"{path}-wal")
    return wal.exists() and wal.stat().st_size > 0


def _name_note(path: Path) -> Path:
    return Path(f"{path}-clean")


def _describe_file(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def check_offsets(db: sqlite3.Connection) -> tuple[int, int] | None:
    """The first and the last offset, None if there are no records. Raises DamagedError for what none can be."""
    first, last = db.execute("SELECT (SELECT min(offset) FROM events), (SELECT max(offset) FROM events)").fetchone()
    if first is None:
        return None
    if not 0 < first <= last <= LAST_OFFSET:
        raise DamagedError(f"offsets from {first} to {last}")
    return first, last


@contextlib.contextmanager
def reveal_damage() -> Iterator[None]:
    """Tells what is wrong with the file from what is wrong with its surroundings."""
    try:
        yield
    except sqlite3.Error as error:
        code = error_code(error)
        if code in _DAMAGE or code is None:  # None: Python's own, of text that is no UTF-8
            raise DamagedError(str(error)) from None
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"its content is not a journal's: {error}") from None


def find_trimmed(db: sqlite3.Connection, floor: int, upto: int) -> Trimmed | None:
    """What is to be remembered once nothing is kept up to `upto`. floor: up to where nothing is kept now."""
    known = read_trimmed(db)
    query = "SELECT max(at) FROM events WHERE offset <= ? AND typeof(at) = 'real'"
    [latest_at] = db.execute(query, (upto,)).fetchone()
    if latest_at is None:
        return known  # of damaged rows there is nothing to say: what is known is of less than all
    if known is not None and known.offset >= floor:
        latest_at = max(latest_at, known.latest_at)
    return Trimmed(upto, latest_at)


def read_trimmed(db: sqlite3.Connection) -> Trimmed | None:
    """What was remembered last. An older version trims without remembering it: it may be of less than all."""
    for [value] in db.execute("SELECT value FROM meta WHERE name = 'trimmed'"):
        with contextlib.suppress(AttributeError, ValueError):
            offset, latest_at = value.split()
            found = Trimmed(int(offset), float(latest_at))
            return found if math.isfinite(found.latest_at) else None
    return None


def write_trimmed(db: sqlite3.Connection, trimmed: Trimmed) -> None:
    """Remembers it, within a transaction."""
    value = f"{trimmed.offset} {trimmed.latest_at!r}".encode()
    db.execute("INSERT OR REPLACE INTO main.meta VALUES ('trimmed', ?)", (value,))


def create_file(path: Path, epoch: str) -> None:
    """Under another name first: a file under its own name is a whole one, whenever the process was killed."""
    draft = Path(f"{path}.new")
    for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm"), Path(f"{draft}-journal")):
        leftover.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    with contextlib.closing(connect(draft, "rw")) as db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO meta VALUES ('epoch', ?)", (epoch.encode(),))
        db.execute("COMMIT")
    draft.rename(path)


def compact_file(path: Path, max_age: float, max_events: int, max_bytes: int, now: float) -> None:
    """Writes a file anew without what retention no longer keeps, if that makes it much shorter, and is done soon.

    The records that stay are copied under another name first, which takes the file's place when it is whole: a crash
    leaves one of the two. Without room for it the file stays as it is. Raises DamagedError.
    """
    with contextlib.closing(connect(path, "rw")) as db, reveal_damage():
        ask = db.execute
        found = check_offsets(db)
        if found is None:
            return
        first, last = found
        size = ask("PRAGMA page_count").fetchone()[0] * PAGE_BYTES
        used = size - ask("PRAGMA freelist_count").fetchone()[0] * PAGE_BYTES
        kept = last - first + 1
        floor = max(first - 1, last - max_events, first - 1 + math.ceil(kept * max(0.0, 1 - max_bytes / used)))
        young = ask("SELECT offset FROM events WHERE offset > ? AND at >= ? LIMIT 1", (floor, now - max_age)).fetchone()
        floor = min(last, young[0] if young else last) - 1
        expected = used * (last - floor) // kept
        if size <= expected + max(expected // 8, FREE_PAGES * PAGE_BYTES):
            return
        shrinks = ask("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL
        if expected > (QUICK_BYTES if shrinks else COMPACTED_BYTES):
            if not shrinks:
                hint = "it is used for new events; to have it back, move the journal away: a new log begins"
                logger.warning("journal_shrink_skipped", journal=str(path), bytes=size, needed=expected, hint=hint)
            return
        if ask("SELECT count(*) FROM events").fetchone()[0] != kept:
            return  # what is before a hole is given up bit by bit, as the hole is told of
        epoch = ask("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0].decode()
        trimmed = find_trimmed(db, first - 1, floor)
        ask("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    draft = Path(f"{path}.new")
    try:
        create_file(draft, epoch)
        with contextlib.closing(connect(draft, "rw")) as db:
            db.execute("ATTACH ? AS old", (f"{path.absolute().as_uri()}?mode=ro",))
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR REPLACE INTO main.meta SELECT name, value FROM old.meta")
            if trimmed is not None:
                write_trimmed(db, trimmed)
            db.execute("INSERT INTO main.events SELECT * FROM old.events WHERE offset > ? ORDER BY offset", (floor,))
            db.execute("COMMIT")
            db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)").fetchone()
        if any(wal.exists() and wal.stat().st_size for wal in (Path(f"{draft}-wal"), Path(f"{path}-wal"))):
            raise OSError(0, "a -wal is left")
        draft.rename(path)
    except (OSError, sqlite3.Error) as error:
        hint = "the file stays as it is: make room for a copy of what it keeps, and start again"
        logger.warning("journal_shrink_failed", journal=str(path), reason=str(error), hint=hint)
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)
        return
    logger.info(
        "journal_shrunk", journal=str(path), was_bytes=size, bytes=path.stat().st_size, trimmed=floor + 1 - first
    )


def set_aside(path: Path, damage: str, now: float) -> None:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = ("", "-wal", "-shm")
    aside, more = f"{path}.damaged-{stamp}", 1
    while any(Path(aside + part).exists() for part in parts):
        more += 1
        aside = f"{path}.damaged-{stamp}.{more}"
    for part in parts:  # the file before its -wal: a journal that lost its newest records must not look sound
        if Path(f"{path}{part}").exists():
            Path(f"{path}{part}").rename(aside + part)
    logger.critical(
        "journal_damaged",
        journal=str(path),
        set_aside=aside,
        damage=damage,
        hint="a new log begins: what clients and shards have missed of the old one is lost to them",
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it tells of a file that can't be trusted."""
    return error_code(error) in _DAMAGE


def error_code(error: sqlite3.Error) -> int | None:
    extended: int | None = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def explain_error(error: Exception) -> str:
    code = error_code(error) if isinstance(error, sqlite3.Error) else None
    return _REASONS.get(code or 0, str(error))
