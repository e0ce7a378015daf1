"""The files of a log that are held open: which there are, in which order, and which of them are copies of others.

What a `HeldFiles` keeps true:

* The newest file seen is always held open, so its inode can't be given to the next one: another inode is
  another file. Files that came and were renamed between two looks are found beside the log, behind the newest held.
* A file that was truncated is read again from its start; before that, the rest of what it held from the copy that was
  made of it, if there is one. Any other copy of what is read is left alone.
* FILES_HELD files are held. With so many, one that has been read to its end is let go for a newer; if there is none,
  the newer ones wait beside the log. Disk is bounded, too: of held files that nobody else has any more, REMOVED_BYTES
  are kept.
* What can't be had is counted, and told in `losses`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from pathlib import Path

import msgspec

from solowire.sources.files.checkpoint import Checkpoint
from solowire.sources.files.directory_watch import DirectoryWatch
from solowire.sources.files.held_file import HeldFile, check_kind, find_own, is_part, open_alike
from solowire.sources.files.log_file import HEAD_BYTES, FileMark, Line, LogFile, Place
from solowire.sources.files.rotated_files import RotatedFile, find_rotated

FILES_HELD = 256
REMOVED_BYTES = 2**30
_FINISHED_KEPT = 64
_ATTEMPTS = 5


class Loss(msgspec.Struct, frozen=True):
    """What could not be had. files: whole ones. size: bytes that are known to be lost. is_all: no more can be lost."""

    reason: str
    files: int = 0
    size: int = 0
    is_all: bool = True


class HeldFiles:
    """The files of the log at `path`, which need not exist yet. checkpoint, watch: as of `FileFollower`.

    held: the files, the one being read first. ended: last lines without a newline, of files that were left.
    passed_over: files that were rotated away unread. lost_bytes: that are known to be lost beside these. losses: what
    has been lost since the caller emptied it. trouble: why the path's present file can't be opened or read
    (permissions, not a regular file); None while all is well, or there is no file: then `is_missing`.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint | None, watch: DirectoryWatch | None) -> None:
        self.path = path
        self.held: list[HeldFile] = []
        self.ended: list[Line] = []
        self.passed_over = 0
        self.lost_bytes = 0
        self.losses: list[Loss] = []
        self.trouble: OSError | None = None
        self.is_missing = False
        self._watch = watch
        self._waiting: dict[tuple[int, int], int] = {}  # new files that there is no room to hold, and their sizes
        self._finished: deque[tuple[int, FileMark]] = deque(maxlen=_FINISHED_KEPT)  # numbered as they were finished
        self._number = 0
        self._came = 0  # of what the watch has counted: accounted for
        self._found = 0  # new files held or counted since then
        if checkpoint is None:
            self._since_ns = 1 + max((file.modified_ns for file in self._list_rotated()), default=-1)
        else:
            self._since_ns = checkpoint.modified_ns
            self._finished.extend((0, mark) for mark in checkpoint.finished)
            if checkpoint.file is not None:
                self._resume(checkpoint.file, checkpoint.offset)

    def close(self) -> None:
        """Let go of all files. Closing twice does no harm."""
        for held in self.held:
            os.close(held.file)
        self.held.clear()

    def take_ended(self) -> list[Line]:
        """The lines of `ended`, which are empty then."""
        ended, self.ended = self.ended, []
        return ended

    def make_checkpoint(self, place: Place | None, salt: str) -> Checkpoint:
        """What to write down, so that a follower goes on at `place`; None: where there was no file yet."""
        # A file that was finished, and is not acknowledged, is to be read again, with those after it.
        end = None if place is None else place.file.number
        finished = [mark for number, mark in self._finished if end is None or number < end]
        return Checkpoint(
            path=str(self.path),
            salt=salt,
            file=None if place is None else place.file.make_mark(place.offset),
            offset=0 if place is None else place.offset,
            modified_ns=self._since_ns if place is None else place.file.modified_ns,
            finished=finished,
        )

    def make_line(self, held: HeldFile, raw: bytes, start: int, end: int) -> Line:
        """A line of a held file: its raw bytes, which stand from `start` to `end`."""
        log = held.log
        if log.generation < 0:
            before = [mark.generation for _, mark in self._finished if mark.first == log.first]
            log.generation = max(before, default=-1) + 1
        return Line(raw.decode("utf-8", "replace"), log, start, end)

    # ------------------------------------------------------------------------------------------ new files

    def hold_new_files(self) -> None:
        """Hold on to new files at the path, without reading them."""
        try:
            for _ in range(_ATTEMPTS):
                if self._check_path():
                    break
        except FileNotFoundError:
            self.trouble = None
            self.is_missing = True
        except OSError as error:
            self.trouble = error
            self.is_missing = False
        else:
            self.trouble = None
            self.is_missing = False

    def _check_path(self) -> bool:
        """One look at the path. False if what it shows has changed meanwhile. Raises OSError."""
        if self._watch is not None:
            self._watch.read_events()
        status = os.stat(self.path)
        check_kind(self.path, status)
        newest = self.held[-1] if self.held else None
        if newest is not None and newest.identity == (status.st_dev, status.st_ino):
            if self._watch is not None:
                self._came, self._found = self._watch.came, 0  # it was renamed, and renamed back
            changed = status.st_mtime_ns != newest.log.modified_ns
            if status.st_size < newest.size or (changed and not newest.begins_as_before()):
                self.restart_file(newest)
            else:
                if not newest.log.head and (changed or status.st_size):  # times are no finer than a few milliseconds
                    self._hold_unseen_copies(newest, newest.log.modified_ns)
                newest.size = status.st_size
                newest.log.modified_ns = status.st_mtime_ns
                if not newest.log.head and newest.size:
                    newest.log.head = os.pread(newest.file, HEAD_BYTES, 0)
            return True
        return self._hold_new()

    def _hold_new(self) -> bool:
        newest = self.held[-1] if self.held else None
        removed = newest is not None and os.fstat(newest.file).st_nlink == 0
        new = self._find_new(newest)
        if new is None:
            return False
        for identity in self._waiting.keys() - {file.identity for file in new}:
            self._found += 1
            self._record_loss(Loss("rotated away before it was read", 1, self._waiting[identity]))
        self._waiting = {}
        for index, file in enumerate(new):
            if len(self.held) >= FILES_HELD and not self._let_go():
                self._waiting = {later.identity: later.size for later in new[index:]}
                return True
            if not self._hold(file):
                return False
        self._count_missed(removed)
        self._shed()
        return True

    def _find_new(self, newest: HeldFile | None) -> list[RotatedFile] | None:
        """The files after the newest that is held, the path's own last; None if they were renamed meanwhile."""
        own = find_own(self.path)
        if newest is not None and self._is_next():
            return [own]
        rotated = self._list_rotated()
        if find_own(self.path).identity != own.identity:
            return None
        rotated = [file for file in rotated if file.identity != own.identity]
        since = self._since_ns
        if newest is not None:
            places = [index for index, file in enumerate(rotated) if file.identity == newest.identity]
            rotated = rotated[places[-1] + 1 :] if places else rotated
            # By name and by time, so that strange names can't bring old files back; but a clock may be set back.
            since = min(os.fstat(newest.file).st_mtime_ns, own.modified_ns)
        held = {file.identity for file in self.held}
        return [file for file in rotated if file.modified_ns >= since and file.identity not in held] + [own]

    def _is_next(self) -> bool:
        """Whether the path's file, which was looked at before, is known to be the only one since the newest held."""
        watch = self._watch
        if watch is None or not watch.is_watching or watch.uncertain or self._waiting:
            return False
        watch.read_events()
        return not watch.uncertain and watch.came - self._came - self._found == 1

    def _hold(self, found: RotatedFile) -> bool:
        """Open a file that was found. False if it is another one by now."""
        is_own = found.path == self.path
        try:
            file = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError as error:
            if is_own or error.errno not in (errno.EACCES, errno.EPERM):  # others may pass: too many open files …
                raise
            self._found += 1
            self._record_loss(Loss("a rotated file can't be opened", 1, found.size))
            return True
        status = os.fstat(file)
        if (status.st_dev, status.st_ino) != found.identity:
            os.close(file)
            return False
        known = self._find_mark(file, status, is_own)
        if not is_own and ((known is not None and status.st_size <= known.end) or self._is_copy(file)):
            os.close(file)
            return True
        head = os.pread(file, HEAD_BYTES, 0)  # by which a copy is known, if it is truncated before it is read
        held = HeldFile(file, LogFile(*found.identity, head, modified_ns=status.st_mtime_ns), status)
        if known is not None and status.st_size >= known.end:  # it was away, or its writer is late
            held.log.generation = known.generation
            held.go_to(known.end)
        for copy in [one for one in self.held if not one.offset and is_part(one.file, file)]:
            self.held.remove(copy)
            os.close(copy.file)
        self.held.append(held)
        self._found += 1
        return True

    def _find_mark(self, file: int, status: os.stat_result, is_own: bool = False) -> FileMark | None:
        """The mark of a file that was finished, if it is that one, or a copy of it with nothing more in it."""
        for _, mark in reversed(self._finished):
            same = (mark.device, mark.inode) == (status.st_dev, status.st_ino)
            if (same or (status.st_size <= mark.end and not is_own)) and mark.length and mark.is_start_of(file):
                return mark
        return None

    def _is_copy(self, file: int) -> bool:
        """Whether an open file beside the log is a copy of what is, or will be, read under another name."""
        if any(is_part(file, held.file) for held in self.held):
            return True
        try:
            own = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return is_part(file, own)
        finally:
            os.close(own)

    def _list_rotated(self) -> list[RotatedFile]:
        try:
            return find_rotated(self.path)
        except OSError:  # a directory that can't be listed: then the path alone is looked at
            return []

    def _count_missed(self, removed: bool) -> None:
        """Say how many files came and went unseen, once what is held is all that there is."""
        if self._watch is None or not self._watch.is_watching or self._watch.uncertain:
            if self._watch is not None:
                self._watch.uncertain = not self._watch.is_watching
                self._came = self._watch.came
            self._found = 0
            if removed:
                self._record_loss(Loss("files may have come and gone between two looks", is_all=False))
            return
        self._watch.read_events()
        if find_own(self.path).identity == self.held[-1].identity:  # all that came until now has come before it
            missed = self._watch.came - self._came - self._found
            if missed > 0:
                self._record_loss(Loss("rotated away before it was seen", missed, is_all=False))
            self._came, self._found = self._watch.came, 0

    def _let_go(self) -> bool:
        """Leave the first file, if it has been read to its end and nobody can be writing there any more.

        That is so many rotations later.
        """
        first = self.held[0]
        if first.partial or os.fstat(first.file).st_size != first.offset:
            return False
        self.finish_file(first)
        return True

    def _shed(self) -> None:
        """Let go of the oldest of the files that have been removed, if they take too much of the disk."""
        states = [os.fstat(held.file) for held in self.held]
        sizes = [0 if state.st_nlink else state.st_size for state in states]
        total = sum(sizes)
        while total > REMOVED_BYTES and len(self.held) > 1:
            first = self.held[0]
            total -= sizes.pop(0)
            self._record_loss(
                Loss("too much was waiting to be read", 1, max(0, os.fstat(first.file).st_size - first.start))
            )
            self.finish_file(first)

    # ------------------------------------------------------------------------------------------ places

    def _resume(self, mark: FileMark, offset: int) -> None:
        """Hold the file that was read last, at the place read up to: under whatever name, or a copy of it."""
        candidates = self._list_rotated()
        with contextlib.suppress(OSError):
            candidates.append(find_own(self.path))
        same = [file for file in candidates if file.inode == mark.inode and (mark.length or file.device == mark.device)]
        others = [file for file in reversed(candidates) if mark.length and file not in same]
        for found in same + others:
            held = open_alike(found, mark, offset)
            if held is not None:
                held.is_copy = found in others
                self.held.append(held)
                if not mark.length and found.path == self.path:
                    self._hold_unseen_copies(held, self._since_ns)
                return
        self._record_loss(Loss("the file that was read last is gone, or was truncated", is_all=False))

    def restart_file(self, held: HeldFile) -> None:
        """A held file was truncated: read what is left of it elsewhere, and then what it holds now."""
        index = self.held.index(held)
        status = os.fstat(held.file)
        head = os.pread(held.file, HEAD_BYTES, 0)
        fresh = HeldFile(held.file, LogFile(*held.identity, head, modified_ns=status.st_mtime_ns), status)
        before: list[HeldFile] = []
        mark = held.log.make_mark(held.offset) if held.log.head else None
        rotated = [file for file in self._list_rotated() if file.identity not in {one.identity for one in self.held}]
        for place in reversed(range(len(rotated))):
            copy = open_alike(rotated[place], mark, held.offset, held.mark) if mark is not None else None
            if copy is not None:
                copy.log, copy.mark, copy.partial, copy.skipping = held.log, held.mark, held.partial, held.skipping
                copy.is_copy = True
                before = [copy, *self._hold_copies(rotated[place + 1 :])]
                self._record_loss(Loss("truncated", size=max(0, held.size - copy.size)))
                break
        else:
            self._record_loss(Loss("truncated", size=max(0, held.size - held.offset), is_all=False))
            if held.partial:
                self.ended.append(self.make_line(held, held.partial, held.start, held.offset))
            if mark is not None:
                self._keep_mark(held.log, mark)
        self.held[index : index + 1] = [*before, fresh]

    def _hold_unseen_copies(self, held: HeldFile, since_ns: int) -> None:
        """A held file was empty, and has been written to: whatever came and was truncated away before is in copies."""
        known = {one.identity for one in self.held}
        rotated = [file for file in self._list_rotated() if file.identity not in known]
        place = self.held.index(held)
        self.held[place:place] = self._hold_copies([file for file in rotated if file.modified_ns >= since_ns])

    def _hold_copies(self, later: list[RotatedFile]) -> list[HeldFile]:
        """Copies that were made after the one that was found: the file was truncated more than once."""
        copies = []
        for found in later:
            try:
                file = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            status = os.fstat(file)
            if self._find_mark(file, status) is not None or self._is_copy(file):
                os.close(file)
                continue
            log = LogFile(status.st_dev, status.st_ino, modified_ns=status.st_mtime_ns)
            copies.append(HeldFile(file, log, status, is_copy=True))
        return copies

    def finish_file(self, held: HeldFile) -> list[Line]:
        """Leave a file. A last line that never got its newline is handed out as it is."""
        lines = [self.make_line(held, held.partial, held.start, held.offset)] if held.partial else []
        if held.log.head:
            mark = held.log.make_mark(held.offset)
            self._keep_mark(held.log, mark)
            if held.identity != held.log.identity:
                device, inode = held.identity
                self._keep_mark(held.log, msgspec.structs.replace(mark, device=device, inode=inode))
        os.close(held.file)
        self.held.remove(held)
        self._since_ns = max(self._since_ns, held.log.modified_ns)
        return lines

    def _keep_mark(self, log: LogFile, mark: FileMark) -> None:
        self._number += 1
        if log.number is None:
            log.number = self._number
        self._finished.append((log.number, mark))

    def _record_loss(self, loss: Loss) -> None:
        self.losses.append(loss)
        self.passed_over += loss.files
        self.lost_bytes += loss.size
