"""Backups of a data directory, made while the system runs, and new data directories made of them.

What it keeps true: a directory under a backup's name is a whole one, and so is a journal that was restored: both are
made under another name first, checked, and on the disk before they are called that. The copy is of one moment, and the
router goes on meanwhile. What is restored is a log of its own: others have perhaps written on where the backup ends, so
that its epoch is a new one, which knows that it goes on from the old one (`solowire.router.log.earlier_epochs`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.errors import ConfigError
from solowire.router.log.earlier_epochs import KEY, decode_epochs, encode_epochs
from solowire.router.log.journal_file import DamagedError, check_file, check_offsets, connect, explain_error
from solowire.runtime.data_directory import (
    JOURNAL_FILE,
    SECRET_FILE,
    give_to_owner,
    make_directories,
    read_secret_file,
    write_private,
)
from solowire.runtime.directory_lock import router_lock
from solowire.runtime.settings import Settings

MANIFEST_FILE = "backup.json"
FORMAT = 1
STEP_PAGES = 256
"""1 MB. Between two of them it rests for as long as the last took, so that the router's fsyncs get their turn."""


class BackupManifest(msgspec.Struct, frozen=True):
    """What a backup holds. Offsets: kept are those behind `start_offset`, up to and with `last_offset`."""

    format: int
    made_at: str
    epoch: str
    start_offset: int
    last_offset: int
    has_secret: bool


class RestoredJournal(msgspec.Struct, frozen=True):
    """A journal made of a backup. has_secret: whether the secret came with it, and the directory had none."""

    manifest: BackupManifest
    epoch: str
    has_secret: bool


def make_backup(settings: Settings, target: Path, rest: Callable[[float], None] = time.sleep) -> BackupManifest:
    """Copies journal and secret of a data directory into `target`, which this makes. Raises ConfigError.

    rest: waits for so many seconds.
    """
    directory = settings.need_data_dir()
    journal = directory / JOURNAL_FILE
    if not journal.exists():
        raise ConfigError(f"{directory} has no journal: name the data directory of a router with --data-dir")
    if target.exists():
        raise ConfigError(f"{target} exists already: name a directory that is not there yet, and it is made")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(mode=0o700, parents=True)
        try:
            _copy_journal(journal, draft / JOURNAL_FILE, rest)
            has_secret = settings.secret is None and (directory / SECRET_FILE).exists()
            if has_secret:
                write_private(draft / SECRET_FILE, _read_secret(directory / SECRET_FILE, read_secret_file))
            manifest = _describe_journal(draft / JOURNAL_FILE, has_secret, format_unix_time(time.time()))
            write_private(draft / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest)).decode() + "\n")
            _sync_directory(draft)
            draft.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, sqlite3.Error, DamagedError) as error:
        raise ConfigError(f"no backup was made: {_explain(error)}") from None
    return manifest


def restore_backup(settings: Settings, backup: Path, epoch: str) -> RestoredJournal:
    """Makes the journal of a data directory of a backup. epoch: of the restored log. Raises ConfigError."""
    manifest = _read_manifest(backup)
    directory = settings.need_data_dir()
    if directory.resolve() == backup.resolve():
        raise ConfigError(f"{directory} is the backup itself: name the data directory to be made with --data-dir")
    make_directories(settings)
    journal = directory / JOURNAL_FILE
    with router_lock(settings):
        if journal.exists() or Path(f"{journal}-wal").exists():
            raise ConfigError(
                f"{directory} has a journal: move {JOURNAL_FILE} and {JOURNAL_FILE}-wal away first, or name another "
                "directory with --data-dir"
            )
        draft = directory / f"{JOURNAL_FILE}.restored"
        try:
            _remove_database(draft)
            draft.touch(mode=0o600)
            shutil.copyfile(
                backup / JOURNAL_FILE, draft
            )  # it has no -wal, and perhaps stands where nothing may be made
            _check_copy(draft)
            if _describe_journal(draft, manifest.has_secret, manifest.made_at) != manifest:
                raise DamagedError(f"{backup}: {JOURNAL_FILE} is not the one that {MANIFEST_FILE} describes")
            _begin_epoch(draft, manifest, epoch)
            has_secret = manifest.has_secret and not (directory / SECRET_FILE).exists()
            if has_secret:
                write_private(directory / SECRET_FILE, _read_secret(backup / SECRET_FILE, Path.read_text))
            give_to_owner(directory)
            _sync_directory(directory)
            draft.rename(journal)  # last of all: a router may start as soon as it is there
            _sync(directory)
        except (OSError, sqlite3.Error, DamagedError, msgspec.MsgspecError) as error:
            raise ConfigError(f"nothing was restored of {backup}: {_explain(error)}") from None
        finally:
            _remove_database(draft)
    return RestoredJournal(manifest, epoch, has_secret)


def _copy_journal(source: Path, target: Path, rest: Callable[[float], None]) -> None:
    """A sound copy of one moment, for its owner alone. Raises OSError, sqlite3.Error, DamagedError."""
    target.touch(mode=0o600)
    began = time.monotonic()

    def pause(status: int, left: int, pages: int) -> None:
        nonlocal began
        rest(time.monotonic() - began)
        began = time.monotonic()

    with contextlib.closing(connect(source, "ro")) as old, contextlib.closing(connect(target, "rw")) as new:
        # A reader's transaction holds the moment over all steps: without it each commit would have it begin anew.
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM meta").fetchone()
        old.backup(new, pages=STEP_PAGES, progress=pause)
        old.execute("COMMIT")
    _check_copy(target)


def _check_copy(journal: Path) -> None:
    """Reads the whole file. Raises DamagedError, ConfigError."""
    if not check_file(journal):
        raise DamagedError("the copy is not there")


def _describe_journal(journal: Path, has_secret: bool, made_at: str) -> BackupManifest:
    with contextlib.closing(connect(journal, "rw")) as db:  # whoever may only read would leave its -wal there
        [epoch] = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        first, last = check_offsets(db) or (1, 0)
    return BackupManifest(FORMAT, made_at, epoch.decode(), first - 1, last, has_secret)


def _read_manifest(backup: Path) -> BackupManifest:
    try:
        manifest = msgspec.json.decode((backup / MANIFEST_FILE).read_bytes(), type=BackupManifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{backup} is no backup: {MANIFEST_FILE}: {_explain(error)}; name a directory that `solowire backup` made"
        ) from None
    if manifest.format > FORMAT:
        raise ConfigError(f"{backup} was made by a newer Solowire (format {manifest.format}): install that again")
    return manifest


def _begin_epoch(journal: Path, manifest: BackupManifest, epoch: str) -> None:
    """Makes the copy a log of its own that goes on from the one that was backed up."""
    with contextlib.closing(connect(journal, "rw")) as db:
        kept = db.execute("SELECT value FROM meta WHERE name = ?", (f"note.{KEY}",)).fetchone()
        earlier = encode_epochs(decode_epochs(kept[0] if kept else None), manifest.epoch, manifest.last_offset)
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch.encode(),))
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note.{KEY}", earlier))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _read_secret(path: Path, read: Callable[[Path], str]) -> str:
    """The secret of a directory. Raises OSError, ConfigError, and DamagedError if it is no text."""
    try:
        return read(path)
    except UnicodeDecodeError:
        raise DamagedError(f"{path}: it is no text") from None


def _remove_database(path: Path) -> None:
    for part in ("", "-wal", "-shm"):
        Path(f"{path}{part}").unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    for path in (*(entry for entry in directory.iterdir() if entry.is_file()), directory):
        _sync(path)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _explain(error: Exception) -> str:
    if isinstance(error, OSError):
        path = error.filename2 or error.filename or ""  # the second one is what was written to
        return f"{path}: {error.strerror or error}".removeprefix(": ")
    return explain_error(error)
