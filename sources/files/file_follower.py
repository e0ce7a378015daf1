"""A follower of a log file that grows, is rotated and is truncated: each line once and in order.

What a `FileFollower` keeps true:

* A file is left only when a later one at the same path has content. One process writes the log, so it is done
  with the old file by then; before, it may still write there, though the path names a new and empty file
  (logrotate renames, creates, and only then signals). So nothing that is written around a rotation is lost or
  out of order.
* `mark`, the last bytes before the place read up to, must still stand there at the next read, and the file must begin
  as it did. If not, the file was truncated, even if it has since grown past that place: `HeldFiles` says what is read
  then.
* NUL bytes are no text: they stand where a writer went on at its old place in a file that was truncated, or where a
  machine has crashed. A line begins behind them.
* Memory is bounded: READ_BYTES per call, LINE_BYTES of an unfinished line, and what `HeldFiles` holds.
* What can't be had is counted, and told in `files.losses`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from solowire.sources.files.checkpoint import Checkpoint
from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.held_file import MARK_BYTES, HeldFile
from solowire.sources.files.held_files import HeldFiles
from solowire.sources.files.log_file import Line, Place

READ_BYTES = 256 * 1024
LINE_BYTES = 64 * 1024


class FileFollower:
    """Reads the lines that are added to the file at `path`, which need not exist yet.

    from_start: read also what the file holds already; otherwise begin at its end. A file that comes later is
    always read from its start. checkpoint: where to go on instead. watch: of `path`'s directory; without one, files
    that came and went between two looks can't be counted. Raises OSError if the file is there and can't be read.

    files: those that are held, what is wrong with them, and what was lost. dropped: lines left out because they are
    longer than LINE_BYTES. is_behind: there is more to be read at once.
    """

    def __init__(
        self,
        path: Path,
        from_start: bool = False,
        *,
        checkpoint: Checkpoint | None = None,
        watch: DirectoryWatch | None = None,
    ) -> None:
        self.path = path
        self.dropped = 0
        self.is_behind = False
        self.files = HeldFiles(path, checkpoint, watch)
        self.files.hold_new_files()
        if self.files.trouble is not None:
            self.close()
            raise self.files.trouble
        held = self.files.held
        if checkpoint is None and held and not from_start:
            held[0].go_to(os.fstat(held[0].file).st_size)

    def read(self) -> list[str]:
        """`read_lines` without the places."""
        return [line.text for line in self.read_lines()]

    def read_lines(self) -> list[Line]:
        """The lines that have ended since the last call, without their newlines; at most READ_BYTES are read.

        Bytes that aren't UTF-8 become U+FFFD. Doesn't wait; an empty list means that there is nothing more
        for now.
        """
        self.files.hold_new_files()
        self.is_behind = False
        files = self.files
        lines = files.take_ended()
        while files.held and not lines:
            first = files.held[0]
            # Asked before reading: what the old file holds *after* this answer is all that it will ever hold.
            superseded = first.is_copy or any(os.fstat(later.file).st_size for later in files.held[1:])
            try:
                data = os.pread(first.file, len(first.mark) + READ_BYTES, first.offset - len(first.mark))
            except OSError as error:
                files.trouble = error
                if error.errno == errno.ESTALE:  # of a network file system: opened anew by the next look
                    files.finish_file(first)
                break
            if not data.startswith(first.mark):
                files.restart_file(first)
                lines = files.take_ended()
            elif len(data) > len(first.mark):
                self.is_behind = superseded or len(data) >= READ_BYTES
                return self._split_lines(first, data)
            elif superseded:
                lines = files.finish_file(first)
            else:
                return lines
        self.is_behind = bool(lines)
        return lines

    def current_place(self) -> Place | None:
        """Up to where all lines have been handed out; None if that can't be said, or there is no file yet."""
        if not self.files.held or self.files.ended:
            return None
        first = self.files.held[0]
        return Place(first.log, first.start)

    def close(self) -> None:
        """Let go of all files. Closing twice does no harm."""
        self.files.close()

    def _split_lines(self, held: HeldFile, data: bytes) -> list[Line]:
        """Splits new bytes into lines. data: the mark, then what is new."""
        new = data[len(held.mark) :]
        held.log.extend(held.offset, new)
        start = held.start
        held.offset += len(new)
        held.size = max(held.size, held.offset)
        *ended, rest = (held.partial + new).split(b"\n")
        held.mark = data[-MARK_BYTES:]
        lines = []
        has_nuls = b"\0" in new
        for raw in ended:
            end = start + len(raw) + 1
            if has_nuls and b"\0" in raw:
                place, raw = _cut_nuls(start, raw.rstrip(b"\0"))
                held.skipping, start = held.skipping and place == start, place
            if held.skipping:
                held.skipping = False
            elif len(raw) > LINE_BYTES:
                self.dropped += 1
            else:
                lines.append(self.files.make_line(held, raw, start, end))
            start = end
        if has_nuls and b"\0" in rest:
            rest = _cut_nuls(0, rest)[1]
            held.skipping = False
        if held.skipping:
            rest = b""
        if len(rest) > LINE_BYTES:
            self.dropped += 1
            held.skipping = True
            rest = b""
        held.partial = rest
        return lines


def _cut_nuls(start: int, raw: bytes) -> tuple[int, bytes]:
    """What stands behind the last NUL byte, and where it begins."""
    length = raw.rfind(b"\0") + 1
    return start + length, raw[length:]
