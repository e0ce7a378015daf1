"""The agent's place in a log, on disk: what is published and acknowledged, over kills, restarts and new versions.

One small JSON file per log, replaced whole (`state_file`). A lock of its own file, which the kernel gives back when its
holder dies, keeps a second agent away.
Where somebody has removed the directory, or the lock's file, both are made again with the next place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import Annotated

import msgspec
import structlog

from solowire.errors import ConfigError
from solowire.sources.files.log_file import FileMark
from solowire.sources.files.state_file import replace_file

FORMAT = 1

logger = structlog.get_logger()


class Checkpoint(msgspec.Struct, kw_only=True):
    """A place in a log.

    salt: of the events' ids, see `LogFile.make_event_id`. file: None if there was none yet. offset: read up to.
    modified_ns: of the file, or of what was there when there was no file: what is newer has not been read. finished:
    the files that were read before it, the newest last.
    """

    format: int = FORMAT
    path: str
    salt: str
    file: FileMark | None
    offset: Annotated[int, msgspec.Meta(ge=0)]
    modified_ns: int
    finished: list[FileMark]


class _Versioned(msgspec.Struct):
    format: int


class CheckpointStore:
    """The place of one log, held from `load_checkpoint()` to `close()` by this process alone."""

    def __init__(self, state_dir: Path, log_path: Path) -> None:
        name = name_log(log_path)
        self.log_path = log_path
        self.path = state_dir / f"{_short(name)}.json"
        # Also under the name of what a link leads to now, so that nobody reads the same file under another.
        self._lock_paths = [state_dir / f"{_short(path)}.lock" for path in {name, os.path.realpath(log_path)}]
        self._locks: list[int] = []

    def load_checkpoint(self) -> Checkpoint | None:
        """Takes the lock and returns the place, None if there is none yet.

        Raises ConfigError: another agent holds it, the directory can't be used, or the file is of a newer version. A
        damaged file is set aside, and said so.
        """
        try:
            self._take_locks()
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"the agent's state can't be kept in {self.path.parent}: {error.strerror}; choose another directory "
                "with --state-dir"
            ) from None
        if _format(data) > FORMAT:
            raise ConfigError(
                f"the agent's state {self.path} is of a newer version; run that one, or remove the file to begin anew"
            )
        try:
            return msgspec.json.decode(data, type=Checkpoint)
        except (msgspec.DecodeError, UnicodeError) as error:
            aside = self.path.with_suffix(".damaged")
            try:
                self.path.replace(aside)
            except OSError as refused:
                raise ConfigError(
                    f"the agent's state {self.path} is damaged ({error}), and it can't be set aside: "
                    f"{refused.strerror}; remove it, or choose another directory with --state-dir"
                ) from None
            logger.error(
                "checkpoint_damaged",
                path=str(aside),
                reason=str(error),
                hint="set aside: lines may be missed, or published again if more than 10 minutes old",
            )
            return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the place; on disk when it returns. Raises OSError, and then the old one is still there.

        Raises ConfigError if the lock's file was removed, and another agent holds its successor.
        """
        if not self._has_locks():
            self.close()
            self._take_locks()
        replace_file(self.path, msgspec.json.encode(checkpoint))

    def close(self) -> None:
        """Gives the lock back. Closing twice does no harm."""
        while self._locks:
            os.close(self._locks.pop())

    def _take_locks(self) -> None:
        """Takes the locks of the places. Raises OSError, ConfigError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            for path in self._lock_paths:
                self._take_lock(path)
        except BaseException:
            self.close()
            raise

    def _has_locks(self) -> bool:
        """Whether the files that are locked are those under their names: else nobody is kept away."""
        try:
            named = [os.stat(path) for path in self._lock_paths]
        except FileNotFoundError:
            return False
        held = [os.fstat(lock) for lock in self._locks]
        return [(file.st_dev, file.st_ino) for file in named] == [(file.st_dev, file.st_ino) for file in held]

    def _take_lock(self, path: Path) -> None:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise ConfigError(
                f"another agent (process {holder or 'unknown'}) reads {self.log_path} already, with its state in "
                f"{self.path.parent}; end that one first"
            ) from None
        except OSError:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._locks.append(lock)


def name_log(path: Path) -> str:
    """The log's whole name. If it is a link it is the link's: that stays when it leads to another file each day."""
    return os.path.join(os.path.realpath(path.absolute().parent), path.name)


def _short(path: str) -> str:
    """A file name for a path, readable, and another one for each."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path))[:64]
    return f"{name}-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"


def _format(data: bytes) -> int:
    try:
        return msgspec.json.decode(data, type=_Versioned).format
    except (msgspec.DecodeError, UnicodeError):
        return 0
