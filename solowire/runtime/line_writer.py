"""A thread that writes lines, so that nobody else waits for a disk or for whoever reads a pipe.

What it keeps true: `write_line` never blocks and never fails. What waits is bounded (WAITING_BYTES); beyond it lines
are lost and counted, and so are those that can't be written, with those of the same write. Lines are written whole and
in their order. At the end the thread has CLOSE_SECONDS.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Event, Thread
from typing import Protocol

STDERR = 2
CLOSE_SECONDS = 1.0
REPORT_SECONDS = 1.0
"""Lines that could not be written in time are reported so often, and not once a line."""
RETRY_SECONDS = 1.0
"""A sink that takes nothing is asked so often, and not once a line."""
WRITE_BYTES = 4096
"""What is written at a time, since a call costs more than a line: so much a pipe that others write to takes whole."""
WAITING_BYTES = 4 * 2**20
"""Some 20,000 lines."""


class LineSink(Protocol):
    """Where lines end up."""

    def write(self, lines: bytes) -> None:
        """Writes whole lines, the last one's end included. May block. Raises OSError."""

    def close(self) -> None: ...


class StderrSink:
    """Standard error, past `sys.stderr`: the end of a process would wait for its buffer, and so for whoever reads."""

    def write(self, lines: bytes) -> None:
        while lines:
            lines = lines[os.write(STDERR, lines) :]

    def close(self) -> None:
        pass


class LineWriter:
    """Writes lines to a file descriptor by a thread, so that no caller waits for it.

    clock: seconds, monotonic. gather_s: how long lines are gathered: to wake the thread for each costs the caller.

    lost(reason, count): called, by either side, when lines have been lost: count of them since the start.
    That caller and thread never wait for each other is why each counts for itself.
    """

    def __init__(
        self,
        sink: LineSink,
        clock: Callable[[], float],
        *,
        name: str,
        gather_s: float,
        lost: Callable[[str, int], None],
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._gather_s = gather_s
        self._report_lost = lost
        self._queue: deque[bytes | Event | None] = deque()
        self._is_asleep = True  # the thread, until `_has_come` is set
        self._has_come, self._hurry = Event(), Event()
        self._put = self._taken = 0  # bytes, ever
        self._overflown = self._failed = 0  # lines
        self._writing = 0  # lines of the write that is under way
        self._reported = 0
        self._silent_until = self._reports_at = float("-inf")
        self._writer = Thread(target=self._write, name=name, daemon=True)
        self._writer.start()

    @property
    def lost_count(self) -> int:
        """How many lines were lost."""
        return self._overflown + self._failed

    def write_line(self, line: bytes) -> None:
        """Takes a line, without its end."""
        if self._put - self._taken > WAITING_BYTES:
            self._overflown += 1
            return
        self._put += len(line)
        self._queue.append(line)
        if self._is_asleep:
            self._is_asleep = False
            self._has_come.set()

    def count_lost(self) -> None:
        """A line could not even be made."""
        self._overflown += 1

    def flush(self, within: float) -> bool:
        """Waits until what has come so far is written, or lost; False if that took longer than `within` seconds."""
        done = Event()
        self._wake_for(done)
        return done.wait(within)

    def close(self) -> None:
        """Ends it: what waits is written within CLOSE_SECONDS, or lost. Blocks for as long."""
        self._wake_for(None)
        self._writer.join(CLOSE_SECONDS)
        if self._writer.is_alive():
            self._overflown += self._writing + len(self._queue) - 1  # without the None

    def _wake_for(self, what: Event | None) -> None:
        self._queue.append(what)
        self._hurry.set()
        self._has_come.set()

    def _write(self) -> None:
        """The thread."""
        while True:
            self._has_come.wait()
            self._has_come.clear()
            if self._gather_s:
                self._hurry.wait(self._gather_s)
                self._hurry.clear()
            self._is_asleep = True  # before it looks: whatever comes later wakes it again
            lines: list[bytes] = []
            size = 0
            while self._queue:
                line = self._queue[0]  # and it stays there, to be counted, as long as those before it are written
                if not isinstance(line, bytes) or size + len(line) >= WRITE_BYTES:
                    self._write_lines(lines, size)
                    lines, size = [], 0
                self._queue.popleft()
                if line is None:
                    self._sink.close()
                    return
                if isinstance(line, Event):
                    line.set()
                else:
                    lines.append(line)
                    size += len(line) + 1
            self._write_lines(lines, size)

    def _write_lines(self, lines: list[bytes], size: int) -> None:
        """Writes some lines at once. size: theirs together, their ends included."""
        if lines:
            self._writing = len(lines)
            self._try_to_write(lines)
            self._writing = 0
            self._taken += size - len(lines)

    def _try_to_write(self, lines: list[bytes]) -> None:
        now = self._clock()
        if now < self._silent_until:
            self._failed += len(lines)
            return
        try:
            self._sink.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._failed += len(lines)
            self._silent_until = now + RETRY_SECONDS
            self._report(str(error))
        else:
            if self.lost_count > self._reported and now >= self._reports_at:
                self._report("it could not be written in time")

    def _report(self, reason: str) -> None:
        self._reported = self.lost_count
        self._reports_at = self._clock() + REPORT_SECONDS
        self._report_lost(reason, self._reported)
