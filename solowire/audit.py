"""The audit log: who connected, was refused, changed subscriptions, was disconnected, published, administered.

What it keeps true: one event is one line of JSON, and no line holds a token, a ticket or what an event says. Each
process writes a file of its own, which only its owner may read. A line that can't be written is lost and counted, and
nothing else happens: no event waits for the disk, and no process stops or ends for want of it. A thread writes
(`line_writer`), all that has come within GATHER_SECONDS at a time. A process that is killed loses what it had gathered.
A flood of refusals costs a few lines a second: after REFUSALS_A_SECOND of one code, the rest of that second is one line
with a `count`.

It goes through structlog, like the logs, with an encoder and a file of its own beneath: a line costs the loop
some 5 µs, and the thread 2.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from solowire.data_directory import make_private
from solowire.line_writer import CLOSE_SECONDS, LineSink, LineWriter, StderrSink
from solowire.settings import Settings

REFUSALS_A_SECOND = 5
ASKED_BY = "x-solowire-asked-by"
"""The header with which a gateway asks a shard for an administrator: it has written a line about it, too."""
GATHER_SECONDS = 0.05
"""To wake the thread for each line would cost more than all the rest of a small request."""

log = structlog.get_logger("solowire.audit")


class _File:
    """Appends lines to a file of at most `max_bytes`, and keeps `files` of them: the newest, then `.1`, `.2` and so on.

    Two processes may share one: each line is one write, and who finds that the other has begun a new file follows it.
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

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        fd = self._fd if self._fd is not None else self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            fd = self._begin_another(fd)
        if self._torn:
            line = b"\n" + line
        written = os.write(fd, line)
        self._size += written
        self._torn = written < len(line) and (written > 0 or self._torn)
        if written < len(line):
            raise OSError("only a part of the line could be written")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

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


class _Nowhere:
    def write(self, line: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(LineWriter):
    """structlog's logger beneath: takes finished lines, and loses what can't be written."""

    def __init__(self, sink: LineSink, clock: Callable[[], float]) -> None:
        super().__init__(sink, clock, name="audit", gather_s=GATHER_SECONDS, lost=_tell)

    msg = LineWriter.write_line


def _tell(reason: str, lost: int) -> None:
    log.error("audit_line_lost", reason=reason, lost=lost, hint="make room on the disk of the data directory")


class Audit:
    """Call it with an event and its fields. `second` is to be called about once a second; clock: seconds, monotonic."""

    def __init__(self, sink: LineSink, clock: Callable[[], float] = time.monotonic, **context: Any) -> None:
        self._lines = _Lines(sink, clock)
        self._clock = clock
        encoder = msgspec.json.Encoder(enc_hook=str)

        def written(_: object, __: str, fields: Any) -> bytes:
            return encoder.encode({"time": fields.pop("time"), "event": fields.pop("event"), **fields})

        self._off = isinstance(sink, _Nowhere)
        self._logger = structlog.wrap_logger(
            self._lines,
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"), written],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
        ).bind(**context)
        self._second = float("-inf")  # when the present second began
        self._refusals: Counter[str] = Counter()  # of the present second, by code

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._lines.lost_count

    def __call__(self, event: str, **fields: Any) -> None:
        if self._off:
            return
        if event == "refused" and self._too_many(str(fields.get("code", ""))):
            return
        try:
            self._logger.msg(event, **fields)
        except UnicodeEncodeError:  # half a character, in a name that nobody has checked yet
            self._lines.count_lost()

    def _too_many(self, code: str) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self.second()
            self._second = now
        self._refusals[code] += 1
        return self._refusals[code] > REFUSALS_A_SECOND

    def second(self) -> None:
        """Says how many refusals had no line of their own, if their second is over."""
        if self._clock() - self._second >= 1.0 and self._refusals:
            for code, count in self._refusals.items():
                if count > REFUSALS_A_SECOND:
                    self._logger.msg("refused", code=code, count=count - REFUSALS_A_SECOND)
            self._refusals.clear()

    def flush(self, within: float = CLOSE_SECONDS) -> bool:
        """Waits until all lines so far are written, or lost; False after `within` seconds. Blocks."""
        return self._lines.flush(within)

    def close(self) -> None:
        """Ends it: what waits is written within CLOSE_SECONDS, or lost. Blocks for as long."""
        self._second = float("-inf")
        self.second()
        self._lines.close()


def open_audit(settings: Settings, name: str, **context: Any) -> Audit:
    """The audit log of one process, as the settings say. name: of its file. Never fails: it loses lines instead."""
    if settings.audit == "off":
        return Audit(_Nowhere())
    if settings.audit == "stderr":
        return Audit(StderrSink(), log="audit", **context)
    path = settings.need_data_dir() / "audit" / f"{name}.jsonl"
    return Audit(_File(path, settings.audit_bytes, settings.audit_files), **context)
