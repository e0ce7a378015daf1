"""The zones as they were when their last changes were told, on disk: SQLite, one file per watched server.

What it keeps true:

* A zone's serial and its records change in one transaction, after the gateway has the events (`save_steps`,
  `replace_content`): so after a kill at any moment, what was not told is told again, with the same ids.
* A whole zone is loaded beside the held one, under a content number of its own, and takes its place in one
  transaction. What a kill leaves half loaded is removed at the next start.
* One process holds the file; a second one gets a ConfigError.
* Memory is bounded by what is asked for: zones stay on disk.

It is used by one thread at a time. Methods raise sqlite3.Error where the disk fails.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import structlog

from solowire.errors import ConfigError
from solowire.sources.bind9.zones.zone_change import Action, ChangeTally, HeldRRsets, RRsetChange
from solowire.sources.bind9.zones.zone_identity import ZoneEra, ZoneName
from solowire.sources.bind9.zones.zone_record import SOA, RRsetKey, ZoneRecord

FORMAT = 1
_DELETED_AT_ONCE = 20_000

_SCHEMA = """
CREATE TABLE zone (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, view TEXT NOT NULL, content INTEGER, soa BLOB, era BLOB,
    is_gone INTEGER NOT NULL DEFAULT 0, is_new INTEGER NOT NULL DEFAULT 0, UNIQUE (name, view));
CREATE TABLE listing (is_complete INTEGER);
CREATE TABLE author_notes (only INTEGER PRIMARY KEY CHECK (only = 1), notes BLOB NOT NULL);
CREATE TABLE content (number INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE record (
    content INTEGER NOT NULL, owner BLOB NOT NULL, type INTEGER NOT NULL, data BLOB NOT NULL, shown BLOB,
    ttl INTEGER NOT NULL, PRIMARY KEY (content, owner, type, data)) WITHOUT ROWID;
CREATE TABLE difference (
    content INTEGER NOT NULL, owner BLOB NOT NULL, type INTEGER NOT NULL, is_before INTEGER NOT NULL,
    is_after INTEGER NOT NULL, PRIMARY KEY (content, owner, type)) WITHOUT ROWID;
"""

_DIFFER = """
SELECT owner, type FROM record AS one WHERE content = ? AND NOT EXISTS (
    SELECT 1 FROM record AS two WHERE two.content = ? AND two.owner = one.owner AND two.type = one.type
    AND two.data = one.data AND two.ttl = one.ttl)
"""

logger = structlog.get_logger()


class HeldZone(msgspec.Struct, frozen=True, kw_only=True):
    """A zone of the file. content, soa: None until its records are held. is_gone: it was deleted; its era is kept.

    is_new: nobody has been told yet that it was created.
    """

    number: int
    name: ZoneName
    content: int | None
    soa: ZoneRecord | None
    era: ZoneEra | None
    is_gone: bool
    is_new: bool

    @property
    def serial(self) -> int | None:
        """Of the held records; None if there are none."""
        return None if self.soa is None else int.from_bytes(self.soa.data[-20:-16], "big")  # before four other numbers


class ZoneStore:
    """The file of one server. address: as the settings name it. Raises ConfigError if it can't be had."""

    def __init__(self, state_dir: Path, address: str) -> None:
        safe = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in address)
        self.path = state_dir / f"zones-{safe}.sqlite"
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ConfigError(
                f"the zones can't be kept in {state_dir}: {error.strerror}; choose another directory with --state-dir"
            ) from None
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._explain(error) from None
            self.set_aside(error)
            try:
                self._db = self._open()
            except sqlite3.Error as again:
                raise self._explain(again) from None

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN EXCLUSIVE")
            [found] = db.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise ConfigError(
                    f"the zones in {self.path} are of a newer version; run that one, or remove the file to begin anew"
                )
            if found == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _explain(self, error: sqlite3.Error) -> ConfigError:
        if "locked" in str(error):
            return ConfigError(f"another agent watches these zones already, with {self.path}; end that one first")
        return ConfigError(
            f"the zones can't be kept in {self.path}: {error}; choose another directory with --state-dir"
        )

    def set_aside(self, error: sqlite3.Error) -> None:
        """Puts a damaged file out of the way, so that the next start begins anew. Raises ConfigError."""
        aside = self.path.with_suffix(".damaged")
        try:
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as refused:
            raise ConfigError(
                f"{self.path} is damaged ({error}), and it can't be set aside: {refused.strerror}; remove it"
            ) from None
        logger.error(
            "zone_state_damaged",
            path=str(aside),
            reason=str(error),
            hint="set aside: changes since it was written are missed",
        )

    def interrupt(self) -> None:
        """Has what is under way in another thread end with an error; to be called from any thread."""
        with suppress(sqlite3.ProgrammingError):  # it is closed
            self._db.interrupt()

    def close(self) -> None:
        """Gives the file back. Closing twice does no harm."""
        with suppress(sqlite3.Error):
            self._db.execute("SELECT 1")  # else an `interrupt` of before keeps it from emptying its log
        self._db.close()

    # ------------------------------------------------------------------------------------------ zones

    def list_zones(self) -> list[HeldZone]:
        """All zones, those that are gone too."""
        rows = self._db.execute(
            "SELECT number, name, view, content, soa, era, is_gone, is_new FROM zone ORDER BY number"
        )
        return [
            HeldZone(
                number=number,
                name=ZoneName(name, view or None),
                content=content,
                soa=None if soa is None else _unpack_soa(soa),
                era=None if era is None else msgspec.msgpack.decode(era, type=ZoneEra),
                is_gone=bool(is_gone),
                is_new=bool(is_new),
            )
            for number, name, view, content, soa, era, is_gone, is_new in rows
        ]

    def add_zones(self, names: Iterable[ZoneName], *, is_new: bool) -> list[HeldZone]:
        """Adds zones without records, or takes up ones that are gone: with the era that they have. Returns them."""
        wanted = set(names)
        with _Transaction(self._db):
            self._db.executemany(
                "INSERT INTO zone (name, view, is_new) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET is_gone = 0, is_new = excluded.is_new",
                ((name.zone, name.view or "", is_new) for name in wanted),
            )
        return [zone for zone in self.list_zones() if zone.name in wanted]

    def mark_told(self, zone: HeldZone) -> HeldZone:
        """Notes that the zone's creation has been told; returns the zone as it is held then."""
        self._db.execute("UPDATE zone SET is_new = 0 WHERE number = ?", (zone.number,))
        return msgspec.structs.replace(zone, is_new=False)

    def has_listing(self) -> bool:
        """Whether all zones of the server have been listed once: those that come later are new ones."""
        return self._db.execute("SELECT 1 FROM listing").fetchone() is not None

    def mark_listed(self) -> None:
        """Notes that they have been."""
        self._db.execute("INSERT INTO listing VALUES (1)")

    def mark_gone(self, zone: HeldZone, era: ZoneEra | None) -> None:
        """Forgets a zone's records. era: of the zone, if it comes again."""
        packed = None if era is None else msgspec.msgpack.encode(era)
        self._db.execute(
            "UPDATE zone SET is_gone = 1, is_new = 0, content = NULL, soa = NULL, era = ? WHERE number = ?",
            (packed, zone.number),
        )
        self.remove_content(zone.content)

    def remove_zone(self, zone: HeldZone) -> None:
        """Removes all that is held of a zone."""
        self._db.execute("DELETE FROM zone WHERE number = ?", (zone.number,))
        self.remove_content(zone.content)

    def save_notes(self, notes: bytes) -> None:
        """Keeps the lines of the update log that wait for their steps."""
        self._db.execute("INSERT OR REPLACE INTO author_notes VALUES (1, ?)", (notes,))

    def load_notes(self) -> bytes | None:
        """Those lines; None if none were kept."""
        row = self._db.execute("SELECT notes FROM author_notes").fetchone()
        return None if row is None else bytes(row[0])

    # ------------------------------------------------------------------------------------------ steps

    def read_rrsets(self, content: int, keys: Iterable[RRsetKey]) -> HeldRRsets:
        """The held records of RRsets, none where there are none."""
        return {key: {record.data: record for record in self._read_rrset(content, key)} for key in keys}

    def save_steps(self, zone: HeldZone, rrsets: HeldRRsets, soa: ZoneRecord, era: ZoneEra | None) -> HeldZone:
        """Writes down RRsets as they are now, and the zone's serial; returns the zone as it is held then."""
        with _Transaction(self._db):
            for key, records in rrsets.items():
                self._db.execute(
                    "DELETE FROM record WHERE content = ? AND owner = ? AND type = ?", (zone.content, *key)
                )
                self._add_records(cast(int, zone.content), records.values())
            return self._set_serial(zone, zone.content, soa, era)

    # ------------------------------------------------------------------------------------------ whole zones

    def begin_content(self) -> int:
        """A number for the records of a whole zone."""
        return cast(int, self._db.execute("INSERT INTO content DEFAULT VALUES").lastrowid)

    def add_records(self, content: int, records: Sequence[ZoneRecord]) -> None:
        """Adds records of a whole zone."""
        with _Transaction(self._db):
            self._add_records(content, records)

    def compare_content(self, old: int, new: int, left_out: frozenset[str]) -> ChangeTally:
        """Finds the RRsets that differ; `read_changes` lists them then."""
        with _Transaction(self._db):
            self._db.execute("DELETE FROM difference WHERE content = ?", (new,))
            has = "EXISTS (SELECT 1 FROM record WHERE content = ? AND owner = found.owner AND type = found.type)"
            self._db.execute(
                f"INSERT INTO difference SELECT ?, owner, type, {has}, {has} FROM ({_DIFFER} UNION {_DIFFER}) AS found",  # noqa: S608 - constants
                (new, old, new, old, new, new, old),
            )
        tally = ChangeTally()
        actions: dict[tuple[int, int], Action] = {(0, 1): "created", (1, 1): "updated", (1, 0): "deleted"}
        for type, is_before, is_after, count in self._db.execute(
            "SELECT type, is_before, is_after, count(*) FROM difference WHERE content = ? GROUP BY 1, 2, 3", (new,)
        ):
            tally.count_change(actions[is_before, is_after], type, left_out, count)
        return tally

    def read_changes(self, old: int, new: int, after: RRsetKey | None, limit: int) -> list[RRsetChange]:
        """The next RRsets that differ, in canonical order. after: the last one of the answer before."""
        owner, type = after or (b"", -1)
        rows = self._db.execute(
            "SELECT owner, type FROM difference WHERE content = ? AND (owner, type) > (?, ?) ORDER BY owner, type "
            "LIMIT ?",
            (new, owner, type, limit),
        ).fetchall()
        keys = [RRsetKey(*row) for row in rows]
        return [RRsetChange(k, tuple(self._read_rrset(old, k)), tuple(self._read_rrset(new, k))) for k in keys]

    def replace_content(self, zone: HeldZone, content: int, soa: ZoneRecord, era: ZoneEra | None) -> HeldZone:
        """Puts a whole zone in the place of the held one; returns the zone as it is held then."""
        with _Transaction(self._db):
            found = self._set_serial(zone, content, soa, era)
        if zone.content != content:
            self.remove_content(zone.content)
        return found

    def count_records(self, content: int) -> int:
        """Records of a zone, without its SOA."""
        [count] = self._db.execute("SELECT count(*) FROM record WHERE content = ?", (content,)).fetchone()
        return int(count)

    def remove_content(self, content: int | None) -> None:
        """Removes the records of a whole zone."""
        if content is None:
            return
        self._db.execute("DELETE FROM difference WHERE content = ?", (content,))
        while True:  # one after another: so the file of what is not yet in the database stays small
            removed = self._db.execute(
                "DELETE FROM record WHERE content = ?1 AND (owner, type, data) IN "
                "(SELECT owner, type, data FROM record WHERE content = ?1 LIMIT ?2)",
                (content, _DELETED_AT_ONCE),
            ).rowcount
            if removed < _DELETED_AT_ONCE:
                break
        self._db.execute("DELETE FROM content WHERE number = ?", (content,))

    def remove_leftovers(self) -> None:
        """Removes what a kill has left half loaded."""
        for [content] in self._db.execute("SELECT number FROM content").fetchall():
            self.remove_leftover(content)

    def remove_leftover(self, content: int) -> None:
        """Removes the records of a whole zone if they are not those of a held one."""
        if self._db.execute("SELECT 1 FROM zone WHERE content = ?", (content,)).fetchone() is None:
            self.remove_content(content)

    # ------------------------------------------------------------------------------------------ rows

    def _read_rrset(self, content: int, key: RRsetKey) -> list[ZoneRecord]:
        rows = self._db.execute(
            "SELECT data, shown, ttl FROM record WHERE content = ? AND owner = ? AND type = ? ORDER BY data",
            (content, *key),
        )
        return [ZoneRecord(key.owner, key.type, data, shown, ttl) for data, shown, ttl in rows]

    def _add_records(self, content: int, records: Iterable[ZoneRecord]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO record (content, owner, type, data, shown, ttl) VALUES (?, ?, ?, ?, ?, ?)",
            ((content, *record) for record in records),
        )

    def _set_serial(self, zone: HeldZone, content: int | None, soa: ZoneRecord, era: ZoneEra | None) -> HeldZone:
        packed = None if era is None else msgspec.msgpack.encode(era)
        self._db.execute(
            "UPDATE zone SET content = ?, soa = ?, era = ? WHERE number = ?",
            (content, _pack_soa(soa), packed, zone.number),
        )
        return msgspec.structs.replace(zone, content=content, soa=soa, era=era)


class _Transaction:
    """`with _Transaction(db):` — all of the block, or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _pack_soa(soa: ZoneRecord) -> bytes:
    return msgspec.msgpack.encode([soa.owner, soa.data, soa.shown, soa.ttl])


def _unpack_soa(packed: bytes) -> ZoneRecord:
    owner, data, shown, ttl = msgspec.msgpack.decode(packed, type=tuple[bytes, bytes, bytes | None, int])
    return ZoneRecord(owner, int(SOA), data, shown, ttl)
