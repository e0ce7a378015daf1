"""One open file of a log, and how far it has been read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from solowire.sources.files.log_file import HEAD_BYTES, FileMark, LogFile
from solowire.sources.files.rotated_files import RotatedFile

MARK_BYTES = 64


class HeldFile:
    """An open file.

    identity: of the open one, while `log` is of the one that it is a copy of. offset: read up to. partial: of that, a
    line without its end. size: the most that it was seen to have.
    """

    def __init__(self, file: int, log: LogFile, status: os.stat_result, is_copy: bool = False) -> None:
        self.file = file
        self.log = log
        self.identity = (status.st_dev, status.st_ino)
        self.size = status.st_size
        self.offset = 0
        self.is_copy = is_copy
        self.mark = b""
        self.partial = b""
        self.skipping = False  # until the next newline

    @property
    def start(self) -> int:
        """Where the first line begins that has not ended."""
        return self.offset - len(self.partial)

    def go_to(self, offset: int) -> None:
        """Go on at `offset`; if it is amid a line, behind that."""
        self.offset = offset
        self.mark = os.pread(self.file, min(MARK_BYTES, offset), max(0, offset - MARK_BYTES))
        self.skipping = bool(self.mark) and not self.mark.endswith((b"\n", b"\0"))
        self.log.head = os.pread(self.file, HEAD_BYTES, 0)

    def begins_as_before(self) -> bool:
        """Whether its first bytes are still those that were seen. Raises OSError."""
        return os.pread(self.file, len(self.log.head), 0) == self.log.head


def is_part(copy: int, file: int) -> bool:
    """Whether an open file has what another one begins with, as far as can be told, and no more. Raises OSError."""
    size = os.fstat(copy).st_size
    if not size or size > os.fstat(file).st_size:
        return False
    places = (0, max(0, size - HEAD_BYTES))
    return all(os.pread(file, HEAD_BYTES, at)[: size - at] == os.pread(copy, HEAD_BYTES, at) for at in places)


def find_own(path: Path) -> RotatedFile:
    status = os.stat(path)
    return RotatedFile(path, "", status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def open_alike(found: RotatedFile, mark: FileMark, offset: int, tail: bytes | None = None) -> HeldFile | None:
    """Open a file at `offset` if it begins as `mark` says, and has `tail` before that place; None if it doesn't."""
    try:
        file = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_size >= offset and mark.is_start_of(file):
            log = LogFile(mark.device, mark.inode, generation=mark.generation, modified_ns=status.st_mtime_ns)
            held = HeldFile(file, log, status)
            held.go_to(offset)
            if tail is None or held.mark == tail:
                return held
    os.close(file)
    return None


def check_log(path: Path) -> None:
    """Raises OSError for what is there and can't be read as a log; what isn't there may come."""
    with contextlib.suppress(FileNotFoundError):
        check_kind(path, os.stat(path))
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def check_kind(path: Path, status: os.stat_result) -> None:
    """Raises OSError for what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"not a regular file but {name_kind(status.st_mode)}", str(path))


def explain_way_out(error: OSError) -> str:
    """What to do about a log that can't be read."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "let the agent's user read it, and enter its directory (named's group often can)"
    if "a directory" in str(error.strerror):
        return "name the file in it that named writes"
    if "a FIFO" in str(error.strerror):
        return "name the file that named writes: a FIFO keeps nothing while nobody reads"
    return "name the file that named writes"


def name_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
