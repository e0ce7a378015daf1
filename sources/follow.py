"""Following a log file that grows, is rotated and is truncated: each line once and in order.

What a `Follower` keeps true:

* A file is left only when a later one at the same path has content. One process writes the log, so it is done
  with the old file by then; before, it may still write there, though the path names a new and empty file
  (logrotate renames, creates, and only then signals). So nothing that is written around a rotation is lost or
  out of order.
* The newest file seen is always held open, so its inode can't be given to the next one: another inode is
  another file.
* `_mark`, the last bytes before the place read up to, must still stand there at the next read. If not, the
  file was truncated, even if it has since grown past that place, and is read again from its start.
* Memory is bounded: READ_BYTES per call, LINE_BYTES of an unfinished line, FILES_HELD files. With so many held, one
  that has been read to its end is let go for a newer; if there is none, the files in between are passed over,
  and counted.

The path is polled with `os.stat`, not watched with inotify: a watch is lost with the rename and says nothing
of writes from elsewhere on a network file system, and it saves nothing: ten calls a second cost microseconds,
and readers want batches anyway.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path

READ_BYTES = 256 * 1024
LINE_BYTES = 64 * 1024
FILES_HELD = 8
_MARK_BYTES = 64


class Follower:
    """Reads the lines that are added to the file at `path`, which need not exist yet.

    from_start: read also what the file holds already; otherwise begin at its end. A file that comes later is
    always read from its start. Raises OSError if the file is there and can't be read.

    dropped: lines left out because they are longer than LINE_BYTES. passed_over: files that were rotated away unread,
    because FILES_HELD before them were not read yet. trouble: why the path's present file
    can't be opened (permissions, not a regular file); None while all is well, or there is no file.
    """

    def __init__(self, path: Path, from_start: bool = False) -> None:
        self.path = path
        self.dropped = 0
        self.passed_over = 0
        self.trouble: OSError | None = None
        self._files: deque[int] = deque()  # descriptors, the one being read first
        self._newest: tuple[int, int] | None = None  # device and inode of the last of them
        self._waits: tuple[int, int] | None = None  # the file at the path, while there is no room to hold it
        self._offset = 0
        self._mark = b""
        self._partial = b""
        self._skipping = False  # until the next newline
        self.notice()
        if self.trouble is not None:
            raise self.trouble
        if self._files and not from_start:
            self._go_to_end(self._files[0])

    def read(self) -> list[str]:
        """The lines that have ended since the last call, without their newlines; at most READ_BYTES are read.

        Bytes that aren't UTF-8 become U+FFFD. Doesn't wait; an empty list means that there is nothing more
        for now.
        """
        self.notice()
        lines: list[str] = []
        while self._files and not lines:
            # Asked before reading: what the old file holds *after* this answer is all that it will ever hold.
            superseded = any(os.fstat(later).st_size for later in list(self._files)[1:])
            data = os.pread(self._files[0], len(self._mark) + READ_BYTES, self._offset - len(self._mark))
            if not data.startswith(self._mark):
                lines = self._begin()
            elif len(data) > len(self._mark):
                return self._take(data)
            elif superseded:
                os.close(self._files.popleft())
                lines = self._begin()
            else:
                break
        return lines

    def notice(self) -> None:
        """Hold on to a new file at the path, without reading it. For callers that can't read for a while."""
        try:
            found = _identity(os.stat(self.path))
            if self._newest == found:
                self.trouble = None
                return
            self.passed_over += self._waits not in (None, found)
            self._waits = None
            if len(self._files) >= FILES_HELD and not self._let_go():
                self._waits = found
                return
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self.trouble = None
            return
        except OSError as error:
            self.trouble = error
            return
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            os.close(file)
            self.trouble = OSError(errno.EINVAL, "not a regular file", str(self.path))
            return
        self.trouble = None
        self._files.append(file)
        self._newest = _identity(status)

    def close(self) -> None:
        """Let go of all files. Closing twice does no harm."""
        while self._files:
            os.close(self._files.popleft())
        self._newest = None

    def _let_go(self) -> bool:
        """Leave the first file, if it has been read to its end and nobody can be writing there any more, so many
        rotations later."""
        if self._partial or os.fstat(self._files[0]).st_size != self._offset:
            return False
        os.close(self._files.popleft())
        self._begin()
        return True

    def _go_to_end(self, file: int) -> None:
        self._offset = os.fstat(file).st_size
        self._mark = os.pread(file, min(_MARK_BYTES, self._offset), max(0, self._offset - _MARK_BYTES))
        self._skipping = bool(self._mark) and not self._mark.endswith(b"\n")  # its first half was before our time

    def _begin(self) -> list[str]:
        """Go to the start of the first file. A last line that never got its newline is handed out as it
        is."""
        lines = [self._partial.decode("utf-8", "replace")] if self._partial else []
        self._offset, self._mark, self._partial, self._skipping = 0, b"", b"", False
        return lines

    def _take(self, data: bytes) -> list[str]:
        """data: the mark, then what is new."""
        self._offset += len(data) - len(self._mark)
        *ended, rest = (self._partial + data[len(self._mark) :]).split(b"\n")
        self._mark = data[-_MARK_BYTES:]
        if ended and self._skipping:
            self._skipping = False
            del ended[0]
        if self._skipping:
            rest = b""
        lines = [line.decode("utf-8", "replace") for line in ended if len(line) <= LINE_BYTES]
        self.dropped += len(ended) - len(lines)
        if len(rest) > LINE_BYTES:
            self.dropped += 1
            self._skipping = True
            rest = b""
        self._partial = rest
        return lines


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
