"""The audit log: who connected, was refused, changed subscriptions, was disconnected, published, administered.

What it keeps true: one event is one line of JSON, and no line holds a token, a ticket or what an event says. Each
process writes a file of its own, which only its owner may read. A line that can't be written is lost and counted, and
nothing else happens: no event waits for the disk, and no process stops or ends for want of it. A thread writes
(`line_writer`), all that has come within GATHER_SECONDS at a time. A process that is killed loses what it had gathered.
A flood costs a few lines a second, so that it can't push out what others did: after REFUSALS_A_SECOND of one code, or
LINES_A_SECOND of one kind about one user, the rest of that second is one line with a `count`. What administrators do
has a line each time.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from solowire.runtime.data_directory import make_private
from solowire.runtime.line_writer import LineSink, LineWriter, StderrSink
from solowire.runtime.settings import Settings

REFUSALS_A_SECOND = 5
LINES_A_SECOND = 10
MAX_TEXT = 256
"""Characters of a text: a line may say what a stranger has sent, such as a path of 16 KB."""
SUMMED_EVENTS = frozenset({"published", "connected", "subscribed", "disconnected"})
"""What somebody may do often: of these the many of one user are summed up."""
ASKED_BY = "x-solowire-asked-by"
"""The header with which a gateway asks a shard for an administrator: it has written a line about it, too."""
GATHER_SECONDS = 0.05
"""To wake the thread for each line would cost more than all the rest of a small request."""

logger = structlog.get_logger("solowire.audit")


class _AuditFile:
    """Appends lines to a file of at most `max_bytes`, and keeps `files` of them: the newest, then `.1`, `.2` and so on.

    Two processes may share one: whole lines are written at a time, and who finds that the other has begun a new file
    follows it.
    """

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._fd: int | None = None
        self._size = 0
        self._torn = False  # the last line stands there in part
        with suppress(OSError):  # the first line will say so
            self._open()

    def write(self, lines: bytes) -> None:
        """Writes a record. Raises OSError."""
        fd = self._reopen() if self._fd is None or self._is_gone(self._fd) else self._fd
        if self._size and self._size + len(lines) > self._max_bytes:
            fd = self._begin_another(fd)
        if self._torn:
            lines = b"\n" + lines
        written = os.write(fd, lines)
        self._size += written
        self._torn = written < len(lines) and (written > 0 or self._torn)
        if written < len(lines):
            raise OSError("only a part could be written")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_gone(self, fd: int) -> bool:
        """Whether the file under its name is another, or none: somebody has removed or moved it, or begun a new one."""
        mine = os.fstat(fd)
        try:
            named = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino)

    def _reopen(self) -> int:
        self.close()
        self._torn = False
        return self._open()

    def _open(self) -> int:
        make_private(self._path.parent.parent)  # the data directory
        make_private(self._path.parent)
        fd = self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(fd).st_size
        return fd

    def _begin_another(self, fd: int) -> int:
        mine = os.fstat(fd).st_ino
        self.close()
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # two that began another at the same moment would rename one away
            self._rename(mine)
        finally:
            os.close(folder)
        return self._open()

    def _rename(self, mine: int) -> None:
        if self._path.exists() and self._path.stat().st_ino == mine:
            for number in range(self._files - 2, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            if self._files > 1:
                self._path.replace(self._numbered(1))
            else:
                self._path.unlink()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class _LineGroup:
    """The lines of one second that are alike. It knows what those were about that are not written one by one."""

    def __init__(self, about: dict[str, Any], most: int) -> None:
        self._about = about
        self._most = most
        self._seen = 0
        self._sums: dict[str, int] = {}

    def admit(self, fields: dict[str, Any]) -> bool:
        """Whether the line is to be written; else it is counted."""
        self._seen += 1
        if self._seen <= self._most:
            return True
        sums = self._sums
        for name in ("events", "duplicates"):
            if name in fields:
                sums[name] = sums.get(name, 0) + fields[name]
        if "first" in fields and "last" in fields:
            sums["first"] = min(sums.get("first", fields["first"]), fields["first"])
            sums["last"] = max(sums.get("last", fields["last"]), fields["last"])
        return False

    def summarise(self) -> dict[str, Any] | None:
        """The fields of the line for all that had none, None if there are none."""
        if self._seen <= self._most:
            return None
        return {**self._about, "count": self._seen - self._most, **self._sums}


class NullSink:
    def write(self, lines: bytes) -> None:
        pass

    def close(self) -> None:
        pass


def _report_lost(reason: str, lost: int) -> None:
    logger.error(
        "audit_record_dropped",
        reason=reason,
        lost=lost,
        hint="make room on the disk of the data directory, where audit/ must be a directory that can be written",
    )


class AuditWriter:
    """Call it with an event and its fields.

    `flush_suppressed` is to be called about once a second; clock: seconds, monotonic.
    """

    def __init__(self, sink: LineSink, clock: Callable[[], float] = time.monotonic, **context: Any) -> None:
        self._lines = LineWriter(sink, clock, name="audit", gather_s=GATHER_SECONDS, lost=_report_lost)
        self._clock = clock
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._context = context
        self._is_off = isinstance(sink, NullSink)
        self._second_began_at = float("-inf")  # when the present second began
        self._line_groups: dict[tuple[str, str], _LineGroup] = {}  # of the present second

    @property
    def lost_count(self) -> int:
        """Lines that could not be written."""
        return self._lines.lost_count

    def __call__(self, event: str, **fields: Any) -> None:
        if self._is_off:
            return
        if not self._admit(event, fields):
            return
        try:
            self._write(event, fields)
        except UnicodeEncodeError:  # half a character, in a name that nobody has checked yet
            self._lines.count_lost()

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        for name, value in fields.items():
            if type(value) is str and len(value) > MAX_TEXT:
                fields[name] = value[:MAX_TEXT] + "…"
        self._lines.write_line(self._encode({"time": f"{now[:-6]}Z", "event": event, **self._context, **fields}))

    def _admit(self, event: str, fields: dict[str, Any]) -> bool:
        by = "code" if event == "refused" else "user" if event in SUMMED_EVENTS else None
        if by is None or by not in fields:
            return True
        now = self._clock()
        if now - self._second_began_at >= 1.0:
            self.flush_suppressed()
            self._second_began_at = now
        key = (event, str(fields[by]))
        group = self._line_groups.get(key)
        if group is None:
            most = REFUSALS_A_SECOND if event == "refused" else LINES_A_SECOND
            group = self._line_groups[key] = _LineGroup({by: key[1]}, most)
        return group.admit(fields)

    def flush_suppressed(self) -> None:
        """Says how many had no line of their own, if their second is over."""
        if self._clock() - self._second_began_at >= 1.0 and self._line_groups:
            for (event, _), group in self._line_groups.items():
                summary = group.summarise()
                if summary is not None:
                    self._write(event, summary)
            self._line_groups.clear()

    def close(self) -> None:
        """Ends it, as `LineWriter.close` does."""
        self._second_began_at = float("-inf")
        self.flush_suppressed()
        self._lines.close()


def open_audit(settings: Settings, name: str, **context: Any) -> AuditWriter:
    """The audit log of one process, as the settings say. name: of its file. Never fails: it loses lines instead."""
    if settings.audit.output == "off":
        return AuditWriter(NullSink())
    if settings.audit.output == "stderr":
        return AuditWriter(StderrSink(), log="audit", **context)
    path = settings.need_data_dir() / "audit" / f"{name}.jsonl"
    return AuditWriter(_AuditFile(path, settings.audit.max_file_bytes, settings.audit.max_files), **context)
