"""One file that a log was written to, known again under another name, after a restart, or as a copy.

A name says nothing, since rotation moves it; device and inode say little, since both are used again. So a file is known
by them and by how it begins. Of how it begins come the ids of its events, and not of device and inode: a copy of it,
which is all that copytruncate leaves, gives the same line the same id.
"""

from __future__ import annotations

import hashlib
import os
from typing import Annotated

import msgspec

HEAD_BYTES = 4096
_FIRST_BYTES = 1024  # of a first line


class FileMark(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of a file.

    first: digest of its first line. length, digest: of how it begins. end: what was read up to. generation: how many
    files before it had the same first line; -1 if that isn't known yet.
    """

    device: int
    inode: int
    first: str
    length: Annotated[int, msgspec.Meta(ge=0, le=HEAD_BYTES)]
    digest: str
    end: Annotated[int, msgspec.Meta(ge=0)]
    generation: int

    def is_start_of(self, file: int) -> bool:
        """Whether the open file `file` begins as the marked one did. Raises OSError."""
        return _digest(os.pread(file, self.length, 0)) == self.digest


class LogFile:
    """A file while it is read.

    head: its first bytes, as far as they have been seen, HEAD_BYTES at most. modified_ns: when it was written to last,
    as far as is known.
    """

    def __init__(self, device: int, inode: int, head: bytes = b"", generation: int = -1, modified_ns: int = 0) -> None:
        self.device = device
        self.inode = inode
        self.head = head
        self.generation = generation
        self.modified_ns = modified_ns
        self.number: int | None = None  # of those that were finished; None as long as it isn't
        self._key = ""

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode

    @property
    def first(self) -> str:
        """The digest of the first line, which must have been read."""
        end = self.head.find(b"\n", 0, _FIRST_BYTES)
        return _digest(self.head[: end + 1 if end >= 0 else _FIRST_BYTES])

    def extend(self, offset: int, data: bytes) -> None:
        """`data` was read at `offset`."""
        if offset <= len(self.head) < HEAD_BYTES:
            self.head = (self.head[:offset] + data)[:HEAD_BYTES]

    def make_mark(self, offset: int) -> FileMark:
        """Makes the mark of the file to be written down. offset: what has been read up to."""
        head = self.head if self.head.strip(b"\0") else b""  # a hole says nothing of what the file is
        return FileMark(
            device=self.device,
            inode=self.inode,
            first=self.first,
            length=len(head),
            digest=_digest(head),
            end=offset,
            generation=self.generation,
        )

    def make_event_id(self, offset: int, salt: str) -> str:
        """The id of the event of the line that begins at `offset`. salt: sets apart different logs."""
        if not self._key:
            names = f"{salt}\0{self.generation}\0{self.first}"
            self._key = _digest(names.encode("utf-8", "surrogateescape"))
        return f"{self._key}-{offset}"


class Place(msgspec.Struct, frozen=True):
    """Up to where a log has been read: `offset` of `file`, and all files before it."""

    file: LogFile
    offset: int


class Line(msgspec.Struct, frozen=True):
    """One line. start: its offset in `file`. end: that of what comes after it."""

    text: str
    file: LogFile
    start: int
    end: int


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
