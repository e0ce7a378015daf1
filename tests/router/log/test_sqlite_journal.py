"""What only the journal on disk has: restarts, kills, damage, a full disk, retention of a file."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from solowire.backplane.messages import PublishedEvent
from solowire.errors import ConfigError
from solowire.model.events import name_state
from solowire.router.log import journal_file
from solowire.router.log.journal import JournalHole, JournalUnavailable, Record
from solowire.router.log.sqlite_journal import RELEASED_PAGES, TRIM_ROWS, VERSION, SqliteJournal
from tests.support.examples import examples
from tests.support.requirements import reject_machine

NOW = 1_790_000_000.0  # 2026-09-21
STAMP = "20260921T141320Z"
SOURCES = Path(__file__).resolve().parents[2]


def open_journal(
    path: Path,
    *,
    epoch: str = "epoch-1",
    max_age: float = 3600.0,
    max_events: int = 10**6,
    max_bytes: int = 2**30,
    window: float = 600.0,
    now: float = NOW,
) -> SqliteJournal:
    return SqliteJournal(
        path, new_epoch=epoch, max_age=max_age, max_events=max_events, max_bytes=max_bytes, window=window, now=now
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


def some(count: int, begin: int = 1, size: int = 20) -> list[PublishedEvent]:
    """Events whose offset, in a new log, is the number in their id and body."""
    return [PublishedEvent(f"id-{n}", None, b"%d" % n + b"." * size) for n in range(begin, begin + count)]


def keep(journal: SqliteJournal, events: list[PublishedEvent], now: float = NOW) -> list[int]:
    offsets = journal.append(events, now).offsets
    journal.commit(now)
    return offsets


def read_all(journal: SqliteJournal) -> list[Record]:
    return list(journal.read(journal.start_offset, 10**6))


def is_whole(journal: SqliteJournal) -> bool:
    """Everything from floor to last is there, once, and is what was published at its offset."""
    records = read_all(journal)
    right = all(r.body.startswith(b"%d." % r.offset) for r in records)
    return right and [r.offset for r in records] == list(range(journal.start_offset + 1, journal.last_offset + 1))


# ---------------------------------------------------------------------------------------------------------- restarts


def test_a_restart_goes_on(path: Path) -> None:
    """Epoch, offsets, records, duplicates and notes are as before; the new epoch that was offered is not taken."""
    with closing(open_journal(path, epoch="first")) as journal:
        keep(journal, some(3))
        journal.put_metadata_item("ring", b"\x01\x02")
        before = read_all(journal)
    with closing(open_journal(path, epoch="second")) as journal:
        assert (journal.epoch, journal.last_offset, journal.start_offset, journal.pending_count) == ("first", 3, 0, 0)
        assert read_all(journal) == before
        assert journal.get_metadata_item("ring") == b"\x01\x02"
        assert journal.append(some(4), NOW + 1) == ([1, 2, 3, 4], [0, 1, 2])


def test_after_a_restart_ids_are_known_for_the_rest_of_their_window(path: Path) -> None:
    """The window counts from the event, in wall-clock time, so that it passes while the router is away."""
    with closing(open_journal(path, window=10.0)) as journal:
        keep(journal, some(2), NOW)
        keep(journal, some(2, begin=3), NOW + 5)
    with closing(open_journal(path, window=10.0, now=NOW + 12)) as journal:
        assert journal.append(some(4), NOW + 12) == ([5, 6, 3, 4], [2, 3])
        journal.commit(NOW + 16)  # forgets those of NOW + 5 too: they came from the file with their time
        assert journal.append(some(2, begin=3), NOW + 16) == ([7, 8], [])


def test_an_id_that_was_taken_twice_is_known_by_its_newest_offset(path: Path) -> None:
    """Two records with one id, the first older than the window of then, are no trouble to a longer window of now."""
    with closing(open_journal(path, window=1.0)) as journal:
        keep(journal, some(1), NOW)
        journal.commit(NOW + 2)
        assert keep(journal, some(1), NOW + 2) == [2]
    with closing(open_journal(path, window=600.0, now=NOW + 3)) as journal:
        assert journal.append(some(1), NOW + 3) == ([2], [0])
        journal.commit(NOW + 700)
        assert journal.append(some(1), NOW + 700) == ([3], [])


def test_offsets_go_on_when_everything_is_too_old(path: Path) -> None:
    """The newest record outlives the retention: without it, offsets would begin again within the same epoch."""
    with closing(open_journal(path, max_age=10.0)) as journal:
        keep(journal, some(5))
    for _ in range(2):
        with closing(open_journal(path, max_age=10.0, now=NOW + 100)) as journal:
            journal.commit(NOW + 100)
            assert (journal.start_offset, journal.last_offset) == (4, 5)
    with closing(open_journal(path, max_age=10.0, now=NOW + 100)) as journal:
        assert keep(journal, some(1, begin=6), NOW + 100) == [6]
        assert (journal.start_offset, journal.last_offset) == (5, 6)


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    """Events may be secret: neither the file nor its WAL can be read by others."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(1))
        for part in path.parent.iterdir():
            assert stat.S_IMODE(part.stat().st_mode) & 0o077 == 0, part


def test_what_was_half_made_is_made_anew(path: Path) -> None:
    """A process killed while it made its first journal leaves a draft that is in nobody's way."""
    Path(f"{path}.new").write_bytes(b"half a header")
    Path(f"{path}.new-journal").write_bytes(b"half a page")
    with closing(open_journal(path)) as journal:
        keep(journal, some(1))
    assert {part.name for part in path.parent.iterdir()} == {path.name, f"{path.name}-clean"}


def test_every_commit_is_fsynced(path: Path) -> None:
    """WAL and synchronous=FULL are really in force (PRAGMAs that aren't understood are ignored by SQLite)."""
    with closing(open_journal(path)) as journal:
        db = journal._db
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA secure_delete").fetchone() == (0,)


# ------------------------------------------------------------------------------------------------------------- kills

CHILD = """
import os, sys, time
from pathlib import Path
from unittest import mock
from solowire.router.log.sqlite_journal import SqliteJournal
from solowire.backplane.messages import PublishedEvent

journal = SqliteJournal(Path(sys.argv[1]), new_epoch="new", max_age=1e9, max_events=3000, max_bytes=2**40,
                        window=600.0, now=time.time())
while True:
    first = journal.last_offset + 1
    group = [PublishedEvent(f"id-{n}", None, b"%d." % n) for n in range(first, first + 40)]
    journal.append(group, time.time())
    journal.commit(time.time())
    os.write(1, b"%d\\n" % journal.last_offset)
"""


def test_nothing_acknowledged_is_lost_by_kills(path: Path) -> None:
    """Killed eight times in mid-work, trimming included: what was acknowledged is there, without a hole, once."""
    acked = 0
    with closing(open_journal(path)):
        pass
    for kill in range(8):
        with subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, cwd=SOURCES) as child:
            assert child.stdout is not None
            for _ in range(30 + 7 * kill):
                acked = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            acked = max([acked, *map(int, child.stdout.read().split(b"\n")[:-1])])
        with capture_logs() as logs, closing(open_journal(path, epoch="other", max_events=3000)) as journal:
            assert journal.epoch == "epoch-1"
            assert acked <= journal.last_offset <= acked + 40
            assert is_whole(journal)
            assert journal.append(some(1, begin=journal.last_offset), NOW).duplicates == [0]
        assert logs == []


# ---------------------------------------------------------------------------------------------------- quick starts


def is_read_whole(path: Path) -> bool:
    """Whether the file is looked through for damage when it is opened now."""
    asked: list[str] = []
    connect = journal_file.connect

    def connect_traced(path: Path, mode: str) -> sqlite3.Connection:
        made = connect(path, mode)
        made.set_trace_callback(asked.append)
        return made

    with mock.patch.object(journal_file, "connect", connect_traced):
        assert journal_file.check_file(path)
    return any("quick_check" in statement for statement in asked)


def test_a_journal_that_was_closed_in_order_is_not_read_whole_again(path: Path) -> None:
    """To look for damage takes a large one many seconds; while it is in use, and after a kill, nothing says that it is
    sound.
    """
    journal = open_journal(path)
    keep(journal, some(1000))
    assert is_read_whole(path)
    journal.close()
    assert not is_read_whole(path)
    with closing(open_journal(path)) as journal:
        assert is_whole(journal)
        assert is_read_whole(path)
        killed = path.with_name("killed.sqlite3")
        for part in ("", "-wal"):
            shutil.copy2(f"{path}{part}", f"{killed}{part}")
    assert is_read_whole(killed)


@pytest.mark.parametrize("change", ["touched", "copied", "written"])
def test_a_file_that_is_not_as_it_was_closed_is_read_whole(path: Path, change: str) -> None:
    """Whatever has had the file meanwhile: a restored copy, a tool, a disk that was repaired."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(1000))
    if change == "touched":
        os.utime(path)
    elif change == "copied":
        shutil.copy2(path, f"{path}.copy")
        os.replace(f"{path}.copy", path)
    else:
        with path.open("r+b") as file:
            file.seek(5 * 4096)
            file.write(b"\xff" * 4096)
    assert change == "written" or is_read_whole(path)
    open_journal(path).close()
    assert bool(list(path.parent.glob("*.damaged-*"))) == (change == "written")


def test_a_journal_that_was_found_damaged_in_use_is_read_whole(path: Path) -> None:
    """It was closed in order, but nobody may rely on it."""
    journal = open_journal(path)
    keep(journal, some(1000))
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with mock.patch.object(journal, "_store_group", side_effect=error), pytest.raises(JournalUnavailable):
        keep(journal, some(1, 1001))
    journal.close()
    assert is_read_whole(path)


# ------------------------------------------------------------------------------------------------------------ damage


def overwrite(path: Path, place: float, garbage: bytes) -> None:
    """place: a part of the file's length."""
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * place) // 4096 * 4096)
        file.write(garbage)


def other_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE events (x); INSERT INTO events VALUES (1);")


def changed(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(statement)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "header": lambda path: overwrite(path, 0, b"\xff" * 100),
    "first page": lambda path: overwrite(path, 0, bytes(4096)),
    "middle": lambda path: overwrite(path, 0.5, os.urandom(8192)),
    "zeros": lambda path: overwrite(path, 0.5, bytes(4096)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a piece of a page": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("this is no database\n" * 500),
    "another database": other_database,
    "no table": changed("DROP TABLE events"),
    "no column": changed("ALTER TABLE events DROP COLUMN at"),
    "no meta": changed("DROP TABLE meta"),
    "no epoch": changed("DELETE FROM meta"),
    "an epoch that is none": changed("UPDATE meta SET value = 7"),
    "an id that is no text": changed("UPDATE events SET id = CAST(x'ff' AS TEXT) WHERE offset = 500"),
    "a time that is none": changed("UPDATE events SET at = 'noon' WHERE offset = 500"),
    "another's mark": changed("PRAGMA application_id = 7"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside(path: Path, damage: str) -> None:
    """The damaged file is still there, byte for byte, under a new name that is said loudly; a new log begins."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(1000, size=200))
    DAMAGE[damage](path)
    old = path.read_bytes()
    with capture_logs() as logs, closing(open_journal(path, epoch="epoch-2")) as journal:
        assert (journal.epoch, journal.last_offset, journal.start_offset, read_all(journal)) == ("epoch-2", 0, 0, [])
        assert keep(journal, some(1)) == [1]
    aside = f"{path}.damaged-{STAMP}"
    assert Path(aside).read_bytes() == old
    assert [(entry["log_level"], entry["journal"], entry["set_aside"]) for entry in logs] == [
        ("critical", str(path), aside)
    ]
    with capture_logs() as logs, closing(open_journal(path, epoch="epoch-3")) as journal:
        assert (journal.epoch, journal.last_offset, logs) == ("epoch-2", 1, [])


def test_nothing_that_was_set_aside_is_overwritten(path: Path) -> None:
    """Damage three times within one second leaves three files."""
    for n in range(3):
        path.write_bytes(b"%d" % n * 5000)
        open_journal(path).close()
    asides = sorted(path.parent.glob("*.damaged-*"))
    assert [aside.read_bytes()[:1] for aside in asides] == [b"0", b"1", b"2"]
    assert [aside.name for aside in asides] == [f"{path.name}.damaged-{STAMP}{more}" for more in ("", ".2", ".3")]


def test_a_damaged_file_keeps_its_wal(path: Path) -> None:
    """What may still be got out of the old log is largely in its WAL, which goes with it, under a name that fits."""
    leave_wal(path)
    wal = Path(f"{path}-wal").read_bytes()
    overwrite(path, 0, b"\xff" * 100)
    open_journal(path, epoch="epoch-2").close()
    assert Path(f"{path}.damaged-{STAMP}-wal").read_bytes() == wal


def test_a_wal_without_its_file_is_damage(path: Path) -> None:
    """SQLite would delete it without a word: acknowledged events are in it."""
    leave_wal(path)
    wal = Path(f"{path}-wal").read_bytes()
    path.unlink()
    with capture_logs() as logs, closing(open_journal(path, epoch="epoch-2")) as journal:
        assert (journal.epoch, journal.last_offset, len(logs)) == ("epoch-2", 0, 1)
    assert Path(f"{path}.damaged-{STAMP}-wal").read_bytes() == wal


def leave_wal(path: Path) -> None:
    """A journal of 20 events as a killed process leaves it."""
    aside = path.with_name("copy")
    with closing(open_journal(path)) as journal:
        keep(journal, some(20))
        aside.mkdir()
        for part in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{part}", aside / f"{path.name}{part}")
    for copied in aside.iterdir():
        copied.replace(path.with_name(copied.name))
    aside.rmdir()


@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64))
@settings(max_examples=examples(60), deadline=None)
def test_any_damage_is_survived(tmp_path_factory: pytest.TempPathFactory, place: float, garbage: bytes) -> None:
    """Wherever bytes are wrong: the log goes on, or the file is set aside; reads answer, or say that they can't."""
    path = tmp_path_factory.mktemp("damage") / "journal.sqlite3"
    with closing(open_journal(path)) as journal:
        keep(journal, some(60, size=200))
    old = bytearray(path.read_bytes())
    at = int(len(old) * place)
    old[at : at + len(garbage)] = garbage
    path.write_bytes(old)
    try:
        journal = open_journal(path, epoch="epoch-2")
    except ConfigError:  # the version's number was hit: it may be a newer one's
        assert path.read_bytes() == old
        return
    with closing(journal):
        if journal.epoch == "epoch-2" and journal.last_offset == 0:
            assert Path(f"{path}.damaged-{STAMP}").read_bytes() == old
        else:
            try:
                assert len(journal.read(journal.start_offset, 100)) == journal.last_offset - journal.start_offset
            except JournalUnavailable as error:
                reason = str(error)
                assert "damaged" in reason or "decode" in reason
    shutil.rmtree(path.parent)


def test_damage_under_way_is_said_to_readers(path: Path) -> None:
    """Records that vanish while the router runs make reads fail; never is a part of the log returned as the whole."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(20))
    with closing(open_journal(path)) as journal:
        journal._db.execute("DELETE FROM events WHERE offset = 7")
        with pytest.raises(JournalUnavailable, match="missing"):
            journal.read(0, 20)
        with pytest.raises(JournalUnavailable, match="missing"):
            journal.read(6, 1)
        assert len(journal.read(7, 20)) == 13
        journal._db.execute("DROP TABLE events")
        with pytest.raises(JournalUnavailable, match="no such table"):
            journal.read(0, 1)
        with pytest.raises(JournalUnavailable, match="no such table"):
            journal.read_user("ann", 0, 9, 9)
        with pytest.raises(JournalUnavailable, match="no such table"):
            journal.latest_states(9, 9, 99)


# ------------------------------------------------------------------------------------------- what is not damage


ROWS = {
    "a body that is text": "body = 'text'",
    "a body that is a number": "body = 7",
    "a body of 300 MB": "body = zeroblob(300 * 1024 * 1024)",
    "a user that is no text": "user = x'ff00'",
    "a user that is a number": "user = 7",
    "a user that is no UTF-8": "user = CAST(x'ff' AS TEXT)",
    "a state that is no UTF-8": "state = CAST(x'ff' AS TEXT)",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_is_not_what_it_should_be_keeps_nobody_from_the_others(path: Path, row: str) -> None:
    """Its offset is there, with bytes that are no event, or nobody's own; what stands beside it is as it was."""
    with closing(open_journal(path)) as journal:
        keep(journal, [PublishedEvent(f"id-{n}", "ann", b"%d" % n, f"state-{n}") for n in range(1, 21)])
    changed(f"UPDATE events SET {ROWS[row]} WHERE offset = 7")(path)
    with closing(open_journal(path)) as journal:
        assert journal.epoch == "epoch-1"
        found = journal.read(0, 20)
        assert [record.offset for record in found] == list(range(1, 21))
        assert [r for r in found if r.offset != 7] == [Record(n, "ann", b"%d" % n) for n in range(1, 21) if n != 7]
        odd = found[6]
        assert isinstance(odd.body, bytes)
        assert len(odd.body) < 2**20
        assert odd.user is None or isinstance(odd.user, str)
        assert odd.user == "ann" or "user" in row
        assert len(journal.read_user("ann", 0, 20, 20)) >= 19
        assert len(journal.latest_states(20, 20, 10**6)) == 20
        assert keep(journal, some(1, 21)) == [21]


def test_a_hole_in_the_log_is_where_it_begins(path: Path) -> None:
    """Rows that are gone when the file is opened are said once: what is older is given up, and the rest is whole."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(50))
    changed("DELETE FROM events WHERE offset IN (7, 20, 21)")(path)
    with capture_logs() as logs, closing(open_journal(path)) as journal:
        assert (journal.epoch, journal.start_offset, journal.last_offset) == ("epoch-1", 21, 50)
        assert is_whole(journal)
        assert [(line["event"], line["log_begins"]) for line in logs] == [("journal_gap_detected", 22)]
        assert keep(journal, some(1, 51)) == [51]
    with closing(open_journal(path)) as journal:
        assert (journal.start_offset, journal.last_offset, is_whole(journal)) == (21, 51, True)


def test_a_hole_under_way_says_where_the_log_goes_on(path: Path) -> None:
    """Who reads can pass over it, wherever it is met: within what is read, at its beginning, or up to what is new."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(20))
    with closing(open_journal(path)) as journal:
        keep(journal, some(5, 21))
        journal._db.execute("DELETE FROM events WHERE offset IN (7, 8, 20)")
        for after, upto in ((0, 8), (6, 8), (7, 8), (8, 20), (19, 20)):
            with pytest.raises(JournalHole) as hole:
                journal.read(after, 20)
            assert hole.value.upto == upto
        assert [record.offset for record in journal.read(20, 20)] == list(range(21, 26))


@pytest.mark.parametrize("offset", [0, -5, 2**62])
def test_offsets_that_are_none_are_damage(path: Path, offset: int) -> None:
    """They would be given to nobody, or leave no room for the next: the file is set aside, and a new log begins."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(5))
    changed(f"UPDATE events SET offset = {offset} WHERE offset = 3")(path)
    with capture_logs() as logs, closing(open_journal(path, epoch="epoch-2")) as journal:
        assert (journal.epoch, journal.last_offset) == ("epoch-2", 0)
        assert keep(journal, some(1)) == [1]
    assert [line["event"] for line in logs] == ["journal_damaged"]


def test_a_newer_version_is_refused_and_untouched(path: Path) -> None:
    """One line says which version it is and the way out; not a byte of file or WAL changes."""
    leave_wal(path)
    with path.open("r+b") as file:
        file.seek(60)  # user_version in the header, https://www.sqlite.org/fileformat2.html
        file.write((VERSION + 1).to_bytes(4, "big"))
    Path(f"{path}-wal").unlink()
    old = path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"newer Solowire \(format 2, this one reads 1\); .*move the file away"
    ) as raised:
        open_journal(path)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == old
    assert not list(path.parent.glob("*.damaged*"))


def test_a_newer_version_s_wal_is_left_alone(path: Path) -> None:
    """The version counts as it stands in the WAL, which isn't even copied into the file."""
    with closing(open_journal(path)):
        aside = path.with_name("copy")
        aside.mkdir()
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 9")
        for part in ("", "-wal"):
            shutil.copy(f"{path}{part}", aside / f"{path.name}{part}")
    copy = aside / path.name
    old, wal = copy.read_bytes(), Path(f"{copy}-wal").read_bytes()
    assert (old[63], bool(wal)) == (VERSION, True)
    with pytest.raises(ConfigError, match="format 9"):
        open_journal(copy)
    assert (copy.read_bytes(), Path(f"{copy}-wal").read_bytes()) == (old, wal)


def test_a_missing_directory_is_the_operator_s_to_make(tmp_path: Path) -> None:
    """Not damage: one line that names the path and the reason."""
    with pytest.raises(ConfigError, match=r"journal .*/none/journal\.sqlite3: No such file or directory; "):
        open_journal(tmp_path / "none" / "journal.sqlite3")


def test_a_directory_in_its_place_is_not_set_aside(path: Path) -> None:
    """Not damage either: whoever made it did so on purpose, or by a wrong mount."""
    path.mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        open_journal(path)
    assert path.is_dir()


@pytest.mark.parametrize("forbidden", ["file", "directory"])
def test_a_file_that_may_not_be_written_is_not_set_aside(path: Path, forbidden: str) -> None:
    """A wrong owner or mode is the operator's to mend, and the log is as good as it was."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(3))
    old = path.read_bytes()
    path.chmod(0o444 if forbidden == "file" else 0o666)
    path.parent.chmod(0o777 if forbidden == "file" else 0o555)
    try:
        with as_nobody(path), pytest.raises(ConfigError, match=r"journal\.sqlite3: "):
            open_journal(path, epoch="epoch-2")
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == old
    assert not list(path.parent.glob("*.damaged*"))


@contextmanager
def as_nobody(path: Path) -> Iterator[None]:
    """Root may write everywhere: the rights to files are given up for a moment."""
    if os.geteuid() != 0:
        yield
        return
    closed = [(folder, folder.stat().st_mode) for folder in path.parents[1:] if not folder.stat().st_mode & 0o001]
    for folder, mode in closed:  # pytest's own, on the way to it
        folder.chmod(stat.S_IMODE(mode) | 0o001)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in closed:
            folder.chmod(stat.S_IMODE(mode))


# ------------------------------------------------------------------------------------------------------- a full disk


@contextmanager
def room(bytes_more: int, path: Path) -> Iterator[None]:
    """Neither file nor WAL may be written beyond the WAL's present end and so many bytes more, by the kernel's word."""
    wal = Path(f"{path}-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + bytes_more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        reject_machine("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    """A real ENOSPC: nothing of the refused groups is kept, reads go on, and with room again so do publishers."""
    path, ballast = small_disk / "journal.sqlite3", small_disk / "ballast"
    with closing(open_journal(path)) as journal:
        keep(journal, some(100, size=200))
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        reasons: list[str] = []
        while len(reasons) < 5:  # until what room the WAL has itself is full
            begin = journal.last_offset + 1
            try:
                keep(journal, some(50, begin, size=200))
            except JournalUnavailable as error:
                reasons.append(str(error))
            assert journal.pending_count == 0
            assert journal.last_offset == begin - 1 + (0 if reasons else 50)
            assert is_whole(journal)
        assert set(reasons) == {"the journal's disk is full"}
        ballast.unlink()
        begin = journal.last_offset + 1
        assert keep(journal, some(50, begin, size=200)) == list(range(begin, begin + 50))  # the ids were forgotten
    with closing(open_journal(path)) as journal:
        assert journal.last_offset == begin + 49
        assert is_whole(journal)


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 100)), min_size=1, max_size=12))
@settings(max_examples=examples(40), deadline=None)
def test_a_group_is_kept_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, groups: list[tuple[int, int]]
) -> None:
    """Wherever in the middle of a write room ends: the answer is true, now and after a restart, while trimming too."""
    path = tmp_path_factory.mktemp("room") / "journal.sqlite3"
    now = NOW
    with closing(open_journal(path, max_events=50)) as journal:
        keep(journal, some(60, size=300))
        reasons: set[str] = set()
        for bytes_more, count in groups:
            last = journal.last_offset
            journal.append(some(count, last + 1, size=300), now)
            now += 1.0
            try:
                with room(bytes_more, path), capture_logs():
                    journal.commit(now)
                expected = last + count
            except JournalUnavailable as error:
                reasons.add(str(error))
                expected = last
            assert journal.last_offset == expected
            assert is_whole(journal)
        assert reasons <= {"the journal's disk has an I/O error"}  # EFBIG, where a full disk says ENOSPC
    with closing(open_journal(path)) as journal:
        assert journal.last_offset == expected
        assert is_whole(journal)
    shutil.rmtree(path.parent)


def test_what_there_is_no_room_to_trim_costs_no_group(path: Path) -> None:
    """Deleting needs room in the WAL as inserting does: if it fails, the group is kept, and the trim comes later."""
    with closing(open_journal(path, max_events=10**6)) as journal:
        keep(journal, some(1000, size=300))
    with closing(open_journal(path, max_events=10)) as journal:
        keep(journal, some(1, begin=1001), NOW)  # makes the WAL
        floor = journal.start_offset
        journal._max_events = 10**6
        keep(journal, some(1000, begin=1002, size=300), NOW)
        journal._max_events = 10
        journal.append(some(1, begin=journal.last_offset + 1), NOW)
        with room(20_000, path), capture_logs() as logs:
            journal.commit(NOW)
        assert [entry["event"] for entry in logs] == ["journal_trim_failed"]
        assert (journal.start_offset, journal.last_offset) == (floor, 2002)
        keep(journal, some(1, begin=2003), NOW + 0.5)
        assert journal.start_offset == floor  # not with every group: it would fail again and again
        journal.commit(NOW + 1.5)
        assert journal.start_offset > floor
        assert is_whole(journal)


def test_a_note_without_room_is_kept_with_the_next_group(path: Path) -> None:
    """The router's words are remembered in the process at once, and on disk as soon as that can be written."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(1))
        with room(0, path), capture_logs():
            journal.put_metadata_item("ring", b"1")
        assert journal.get_metadata_item("ring") == b"1"
        journal.commit(NOW)
    with closing(open_journal(path)) as journal:
        assert journal.get_metadata_item("ring") == b"1"


def test_a_locked_file_refuses_and_recovers(path: Path) -> None:
    """Somebody's hand in the file, such as an open transaction of sqlite3's shell, is a refusal, not the end."""
    with closing(open_journal(path)) as journal, closing(sqlite3.connect(path, isolation_level=None)) as other:
        journal._db.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable, match="another process has locked"):
            keep(journal, some(1))
        other.execute("ROLLBACK")
        assert keep(journal, some(1)) == [1]


# --------------------------------------------------------------------------------------------------------- retention


def test_retention_by_count_goes_in_chunks(path: Path) -> None:
    """A bound that was lowered by much is reached step by step, while events come in and none gets lost."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(5000))
    with closing(open_journal(path, max_events=500)) as journal:
        for commit in range(1, 7):
            before = journal.start_offset
            keep(journal, some(10, begin=journal.last_offset + 1))
            assert journal.start_offset - before <= TRIM_ROWS
            assert journal.start_offset == min(commit * TRIM_ROWS, journal.last_offset - 500)
            assert is_whole(journal)


def test_a_large_group_is_trimmed_as_fast_as_it_comes(path: Path) -> None:
    """A chunk is twice the group if that is more than a thousand, so that no load outruns the retention."""
    with closing(open_journal(path, max_events=500)) as journal:
        for _ in range(5):
            keep(journal, some(3000, begin=journal.last_offset + 1))
            journal.commit(NOW)
        assert journal.last_offset - journal.start_offset <= 3500
        assert is_whole(journal)


def test_retention_by_age(path: Path) -> None:
    """What is older than it should be goes, with groups and without; what is not stays."""
    with closing(open_journal(path, max_age=60.0)) as journal:
        for second in range(0, 100, 10):
            keep(journal, some(100, begin=journal.last_offset + 1), NOW + second)
            assert journal.start_offset == max(0, second - 60) * 10
        journal.commit(NOW + 120)
        assert journal.start_offset == 600
        journal.commit(NOW + 1000)
        assert (journal.start_offset, journal.last_offset) == (999, 1000)
        assert is_whole(journal)


def test_a_clock_that_is_set_back_does_not_trim_what_is_young(path: Path) -> None:
    """Age goes by the record at the old end: what was written before the clock was set back holds the others up."""
    with closing(open_journal(path, max_age=60.0)) as journal:
        keep(journal, some(10), NOW)
        keep(journal, some(10, begin=11), NOW - 3000)
        journal.commit(NOW)
        assert journal.start_offset == 0
        journal.commit(NOW + 61)
        assert journal.start_offset == 19


def test_retention_by_bytes(path: Path) -> None:
    """The file's used pages stay near the bound, whatever the events' size, and freed pages are used again."""
    bound = 2**20
    with closing(open_journal(path, max_bytes=bound)) as journal:
        for n in range(150):
            keep(journal, some(100, begin=journal.last_offset + 1, size=(50, 500, 5000)[n % 3]))
            assert is_whole(journal)
            assert journal._used_bytes() < bound + 2 * 100 * 8192
        for _ in range(20):
            journal.commit(NOW)
        assert journal._used_bytes() <= bound
        assert journal.last_offset - journal.start_offset > 100
    assert path.stat().st_size < 3 * bound


def test_it_says_what_it_takes_and_what_its_disk_has_left(small_disk: Path) -> None:
    """Both change by what is published; the limit is that of the settings."""
    with closing(open_journal(small_disk / "journal.sqlite3", max_bytes=2**20)) as journal:
        before = journal.measure_size()
        keep(journal, some(1000, size=400))
        after = journal.measure_size()
    assert before.max_bytes == after.max_bytes == 2**20
    assert 400_000 < after.used_bytes - before.used_bytes < 1_500_000
    assert 400_000 < before.free_bytes - after.free_bytes < 1_500_000


def test_one_event_larger_than_the_log_is_kept_until_the_next(path: Path) -> None:
    """The newest record is never trimmed, so a log that is too small holds one."""
    with closing(open_journal(path, max_bytes=50_000)) as journal:
        for n in range(1, 4):
            keep(journal, some(1, begin=n, size=60_000))
            journal.commit(NOW)
            assert (journal.start_offset, journal.last_offset) == (n - 1, n)
            assert is_whole(journal)


@pytest.mark.parametrize(("records", "size"), [(50, 10**6), (10**6, 5_000)])
def test_what_is_kept_in_memory_of_the_log_has_a_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch, records: int, size: int
) -> None:
    """However long the log grows, only its newest records are in memory, by number and by size; the rest is on disk."""
    monkeypatch.setattr("solowire.router.log.sqlite_journal.TAIL_RECORDS", records)
    monkeypatch.setattr("solowire.router.log.sqlite_journal.TAIL_BYTES", size)
    with closing(open_journal(path)) as journal:
        for n in range(100):
            keep(journal, some(10, begin=1 + 10 * n, size=100))
            assert len(journal._tail) <= records
            assert sum(len(record.body) for record in journal._tail) <= size
        assert len(journal._tail) >= 20
        assert is_whole(journal)


def test_to_find_the_present_states_takes_no_longer_the_more_states_there_are(path: Path) -> None:
    """A publisher that made up 5 million had the router killed as stuck with each start of a shard: `up` never was up.

    What counts is what SQLite does, and not how fast this machine is.
    """

    def steps(states: int) -> tuple[int, list[int]]:
        journal = open_journal(path.with_name(f"{states}"))
        with closing(journal):
            for first in range(0, states, 10_000):
                names = [name_state("a", str(n * 7919 % states), None) for n in range(first, first + 10_000)]
                keep(journal, [PublishedEvent(f"{name}", None, b"x", name) for name in names])
            done = 0

            def count() -> None:
                nonlocal done
                done += 1

            journal._db.set_progress_handler(count, 1000)
            found = [record.offset for record in journal.latest_states(journal.last_offset, 1000, 10**6)]
            return done, found

    few, some_found = steps(200_000)
    many, found = steps(400_000)
    assert some_found == list(range(199_001, 200_001))
    assert found == list(range(399_001, 400_001))
    assert many < 1.2 * few


def read_trimmed_at(journal: SqliteJournal) -> float | None:
    with closing(journal.open_reader()) as reader:
        return reader.read_trimmed_at(reader.bounds().start)


def test_when_the_newest_trimmed_record_was_taken_outlives_a_restart(path: Path) -> None:
    """Also where the file is written anew at the start, and then it is the newest of what that left out."""
    with closing(open_journal(path, max_age=10.0)) as journal:
        keep(journal, some(1), NOW)
        keep(journal, some(1, begin=2), NOW + 30)
        assert read_trimmed_at(journal) == NOW
    with closing(open_journal(path, now=NOW + 30)) as journal:
        assert (journal.start_offset, read_trimmed_at(journal)) == (1, NOW)
        for begin in range(3, 20_000, 1000):
            keep(journal, some(1000, begin=begin, size=300), NOW + 30 + begin)
    with closing(open_journal(path, max_age=1e6, max_events=1000, now=NOW + 30_000)) as journal:
        assert journal.start_offset == 19_002
        assert read_trimmed_at(journal) == NOW + 30 + 18_003


@pytest.mark.parametrize("word", [None, b"1 5.0", b"no word of ours", b"3 nan"])
def test_a_journal_that_another_version_trimmed_does_not_say_when(path: Path, word: bytes | None) -> None:
    """It has no word of it, or an old one: nothing is taken from that, until it is trimmed again."""
    with closing(open_journal(path, max_events=3)) as journal:
        keep(journal, some(6))
        assert journal.start_offset == 3
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM meta WHERE name = 'trimmed'")
        if word is not None:
            db.execute("INSERT INTO meta VALUES ('trimmed', ?)", (word,))
    with closing(open_journal(path, max_events=3)) as journal:
        assert read_trimmed_at(journal) is None
        keep(journal, some(1, begin=7), NOW + 5)
        assert read_trimmed_at(journal) == NOW


# ------------------------------------------------------------------------------------------------------- disk space


@contextmanager
def made_by_an_older_version() -> Iterator[None]:
    """Journals that are made here can't give pages back, as it was before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_file, "SCHEMA", journal_file.SCHEMA.replace("PRAGMA auto_vacuum = INCREMENTAL;\n", ""))
        yield


def fill(path: Path, events: int = 20_000, size: int = 300) -> int:
    """A journal with so many events, as an hour has brought them; how long its file is."""
    with closing(open_journal(path)) as journal:
        journal.put_metadata_item("ring", b"\x01")
        for begin in range(1, events, 1000):
            keep(journal, some(1000, begin=begin, size=size), NOW + begin * 3600 / events)
    return path.stat().st_size


LOWERED: dict[str, dict[str, float]] = {
    "bytes": {"max_bytes": 2**20},
    "events": {"max_events": 1000},
    "age": {"max_age": 600.0},
}


@pytest.mark.parametrize("limit", LOWERED)
@pytest.mark.parametrize("age", ["old", "new"])
def test_a_limit_that_is_lowered_gives_the_disk_its_space_back(path: Path, age: str, limit: str) -> None:
    """With the next start, whenever the journal was made; what retention keeps is there, with epoch and notes."""
    with made_by_an_older_version() if age == "old" else contextlib.nullcontext():
        before = fill(path)
    with closing(open_journal(path, epoch="another", now=NOW + 3600, **LOWERED[limit])) as journal:  # type: ignore[arg-type]
        assert (journal.epoch, journal.last_offset, journal.get_metadata_item("ring")) == ("epoch-1", 20_000, b"\x01")
        assert 300 < journal.last_offset - journal.start_offset <= 5000
        assert is_whole(journal)
        assert keep(journal, some(1, begin=20_000), NOW + 3600) == [20_000], "a duplicate is known"
        assert keep(journal, some(10, begin=20_001), NOW + 3600)[0] == 20_001
        assert is_whole(journal)
    assert before > 6 * 2**20
    assert path.stat().st_size < 3 * 2**20
    assert not list(path.parent.glob("*.new*"))
    with closing(open_journal(path)) as journal:
        assert journal.last_offset == 20_010


def test_pages_that_are_free_go_back_bit_by_bit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large journal shrinks while it is used: each commit gives back a bounded part, until little is free."""
    monkeypatch.setattr(journal_file, "QUICK_BYTES", 0)
    before = fill(path)
    sizes = []
    with closing(open_journal(path, max_bytes=2**20, now=NOW + 3600)) as journal:
        pages = journal._pages()[0]
        for commit in range(60):
            keep(journal, some(1, begin=20_001 + commit), NOW + 3600)
            left = journal._pages()[0]
            assert pages - left <= RELEASED_PAGES
            pages = left
            sizes.append(path.stat().st_size)
        assert is_whole(journal)
    assert before > 6 * 2**20
    assert sizes[-1] < 3 * 2**20
    assert sizes == sorted(sizes, reverse=True)


def test_a_journal_that_has_nothing_over_is_not_written_anew(path: Path) -> None:
    """An old one that fits its limits is opened as it is, and goes on as it did."""
    with made_by_an_older_version():
        fill(path, events=5000)
    before = path.stat().st_ino
    with closing(open_journal(path, now=NOW + 3600)) as journal:
        assert keep(journal, some(1, begin=5001), NOW + 3600) == [5001]
        assert is_whole(journal)
    assert path.stat().st_ino == before


def test_an_old_journal_that_keeps_too_much_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take long at the start is not done, but said, with the way out."""
    with made_by_an_older_version():
        before = fill(path)
    monkeypatch.setattr(journal_file, "COMPACTED_BYTES", 2**20)
    with capture_logs() as logged, closing(open_journal(path, max_bytes=2 * 2**20, now=NOW + 3600)):
        pass
    assert [(entry["event"], bool(entry["hint"])) for entry in logged] == [("journal_shrink_skipped", True)]
    assert path.stat().st_size == before


def test_a_kill_in_the_midst_of_writing_anew_costs_nothing(path: Path) -> None:
    """Before the copy is whole the old file is there, and a copy that was left is none of the log."""
    with made_by_an_older_version():
        fill(path)
    with pytest.MonkeyPatch.context() as patch:

        def killed(self: Path, target: object) -> None:
            raise KeyboardInterrupt

        create = journal_file.create_file

        def create_and_patch(draft: Path, epoch: str) -> None:
            create(draft, epoch)
            patch.setattr(Path, "rename", killed)

        patch.setattr(journal_file, "create_file", create_and_patch)
        with pytest.raises(KeyboardInterrupt):
            open_journal(path, max_bytes=2**20, now=NOW + 3600)
    with closing(open_journal(path, max_bytes=2**20, now=NOW + 3600)) as journal:
        assert journal.last_offset == 20_000
        assert is_whole(journal)
    assert path.stat().st_size < 3 * 2**20


def test_without_room_for_a_copy_the_journal_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and the log goes on."""
    with made_by_an_older_version():
        before = fill(path)

    def full(draft: Path, epoch: str) -> None:
        draft.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_file, "create_file", full)
    with capture_logs() as logged, closing(open_journal(path, max_bytes=2**20, now=NOW + 3600)) as journal:
        assert keep(journal, some(1, begin=20_001), NOW + 3600) == [20_001]
    assert [entry["event"] for entry in logged] == ["journal_shrink_failed"]
    assert path.stat().st_size <= before + 2**20
    assert not list(path.parent.glob("*.new*"))


# ---------------------------------------------------------------------------------------- a file that somebody removes


@pytest.mark.parametrize("part", ["", "-wal"])
def test_a_file_that_is_removed_under_a_running_router(path: Path, part: str) -> None:
    """Nothing is acknowledged that would stand in a file without a name; what comes back under its name goes on."""
    with closing(open_journal(path)) as journal:
        assert keep(journal, some(2)) == [1, 2]
        aside = Path(f"{path}.aside")
        Path(f"{path}{part}").rename(aside)
        assert journal.is_gone
        journal.append(some(1, 3), NOW)
        with pytest.raises(JournalUnavailable, match="the journal's file is gone") as refused:
            journal.commit(NOW)
        assert str(path) in refused.value.hint
        assert not journal.put_metadata({"ring": b"x"})
        aside.rename(f"{path}{part}")
        assert not journal.is_gone
        assert keep(journal, some(1, 3)) == [3]
    with closing(open_journal(path)) as journal:
        assert is_whole(journal)
        assert journal.last_offset == 3


def test_a_file_that_is_replaced_under_a_running_router(path: Path) -> None:
    """Another file under its name is not the one that is written to, and its -wal is left alone."""
    with closing(open_journal(path)) as journal:
        keep(journal, some(2))
        for part in ("", "-wal"):
            shutil.copy(f"{path}{part}", f"{path}{part}.copy")
            Path(f"{path}{part}.copy").replace(f"{path}{part}")
        journal.append(some(1, 3), NOW)
        with pytest.raises(JournalUnavailable):
            journal.commit(NOW)
    with closing(open_journal(path)) as journal:
        assert journal.last_offset == 2
        assert is_whole(journal)


def test_a_file_that_goes_while_it_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written just then is not acknowledged either."""
    with closing(open_journal(path)) as journal:
        write = journal._write

        def write_and_remove(*arguments: object) -> None:
            write(*arguments)  # type: ignore[arg-type]
            path.unlink()

        monkeypatch.setattr(journal, "_write", write_and_remove)
        journal.append(some(1), NOW)
        with pytest.raises(JournalUnavailable, match="gone"):
            journal.commit(NOW)
