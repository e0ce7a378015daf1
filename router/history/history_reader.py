"""Answers to questions about history, part by part.

What it keeps true: an answer is of this epoch and of what the log still has, between its two bounds and without a hole,
or it is refused with the reason. Nobody is given another user's own events. Each part has a bound, in events, bytes and
time, and says up to where it goes; whoever asks on from there gets all of the rest, whatever is written and trimmed
meanwhile. The index (`attribute_index`) only ever saves work: without it, and where it knows nothing yet, each record
is looked at. It follows the log in steps of its own, and begins anew when something is wrong with it.

All of it is for one thread, which is not the one that writes the log.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from pathlib import Path

import structlog

from solowire.backplane.messages import HistoryBound, HistoryRequest, HistoryResponse
from solowire.router.history.attribute_index import AttributeIndex, Part, remove_files
from solowire.router.history.indexed_event import ClauseFilter
from solowire.router.log.journal import Bounds, JournalReader, JournalUnavailable, Record, find_last_before

logger = structlog.get_logger("solowire.router")

READ_RECORDS = 100
"""So many records are read at a time, as long as a part has room for more and its time isn't over."""

PART_SECONDS = 0.1
"""Rests and all: so long the journal is held, and a question waits for each that comes before it."""

PART_BYTES = 256 * 1024
STEP_RECORDS = 500
"""A step of the index: some milliseconds."""

REBUILD_SECONDS = 30.0
"""After something was wrong with the index it is made anew, but not sooner."""


def _go_on() -> None:
    """For who has nobody to give way to."""


class HistoryReader:
    """Reads the parts of the log that history asks for.

    index_path: None keeps the index in memory. stopwatch: reads a clock, in seconds. unindexed: attributes that nothing
    is looked up by. index_error_count: how often something was wrong with the index. last_offset: the log's newest, as
    the last step found it.
    """

    def __init__(
        self,
        journal: JournalReader,
        epoch: str,
        index_path: Path | None,
        stopwatch: Callable[[], float],
        unindexed: frozenset[str] = frozenset(),
    ) -> None:
        self._unindexed = unindexed
        self._journal = journal
        self._epoch = epoch
        self._index_path = index_path
        self._stopwatch = stopwatch
        self._index: AttributeIndex | None = None
        self._index_due_at = -inf
        self.index_error_count = self.last_offset = 0

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
        self._journal.close()

    @property
    def indexed_offset(self) -> int:
        """Up to where the log is in the index."""
        return self._index.covered_offset if self._index is not None else 0

    # ----------------------------------------------------------------------------------------- the index

    def follow_log(self) -> bool:
        """Takes one step of the log into the index; whether there is more to take now."""
        if self._index is None and self._stopwatch() < self._index_due_at:
            return False
        try:
            with self._journal.hold():
                return self._follow(self._journal.bounds())
        except JournalUnavailable:
            return False  # whoever asks is told; the next step may have more luck
        except (sqlite3.Error, OSError) as error:
            self._drop_index(error)
            return False

    def _follow(self, bounds: Bounds) -> bool:
        self.last_offset = bounds.last
        index = self._index or self._open_index(bounds)
        self._index = index
        index.forget_trimmed(bounds.start)
        if index.covered_offset < bounds.start:  # all that it had is gone from the log
            self._index = None
            index.close()
            if self._index_path is not None:
                remove_files(self._index_path)
            return True
        upto = min(bounds.last, index.covered_offset + min(STEP_RECORDS, index.room_count))
        if upto > index.covered_offset:
            index.add_records(self._journal.read(index.covered_offset, upto, STEP_RECORDS), upto)
        if not index.room_count:
            index.seal_segment(self._journal.read_time(index.covered_offset) or 0.0)
        return bounds.last > index.covered_offset

    def _open_index(self, bounds: Bounds) -> AttributeIndex:
        index = AttributeIndex(self._index_path, self._epoch, bounds.start, self._unindexed)
        sealed = index.last_sealed
        if sealed is not None and sealed[0] > bounds.start and self._journal.read_time(sealed[0]) != sealed[1]:
            # An older copy of the log was put in its place: what was written since then is something else.
            index.close()
            if self._index_path is not None:
                remove_files(self._index_path)
            index = AttributeIndex(self._index_path, self._epoch, bounds.start, self._unindexed)
        return index

    def _drop_index(self, error: Exception) -> None:
        self.index_error_count += 1
        hint = "it is made anew from the log; until then questions about history take longer"
        logger.error("history_index_lost", reason=str(error), hint=hint)
        index, self._index = self._index, None
        self._index_due_at = self._stopwatch() + REBUILD_SECONDS
        try:
            if index is not None:
                index.close()
            if self._index_path is not None:
                remove_files(self._index_path)
        except (sqlite3.Error, OSError):
            pass  # it is tried again with the next one

    # ----------------------------------------------------------------------------------------- questions

    def answer_question(self, question: HistoryRequest, pause: Callable[[], None] = _go_on) -> HistoryResponse:
        """The next part of what is asked for. pause: called between two reads, so that others have their turn."""
        try:
            with self._journal.hold():
                return self._answer_within(question, self._journal.bounds(), pause)
        except JournalUnavailable as error:
            logger.error("journal_unreadable", history=True, reason=str(error), hint="see the disk")
            return HistoryResponse(question.request, self._epoch, 0, 0, 0, [], "unreadable")

    def _answer_within(self, question: HistoryRequest, bounds: Bounds, pause: Callable[[], None]) -> HistoryResponse:
        for bound in (question.since, question.until):
            if bound is not None and bound.offset is not None:
                if bound.epoch != self._epoch:
                    return self._make_refusal(question, bounds, "epoch")
                if bound.offset > bounds.last:
                    return self._make_refusal(question, bounds, "future")
        while (start := self._find_start(question.since, bounds)) is not None:
            end = max(start, self._find_end(question.until, bounds))
            events, reached = self._collect_events(question, start, end, pause)
            bounds = self._journal.bounds()
            if bounds.start <= start:
                return HistoryResponse(question.request, self._epoch, start, end, reached, events)
            # Some of it was trimmed while it was read: what is asked for from the oldest on is read again.
        return self._make_refusal(question, bounds, "retention")

    def _make_refusal(self, question: HistoryRequest, bounds: Bounds, reason: str) -> HistoryResponse:
        at = self._journal.read_time(bounds.start + 1)
        return HistoryResponse(question.request, self._epoch, bounds.start, bounds.last, 0, [], reason, at or 0.0)

    def _find_start(self, since: HistoryBound | None, bounds: Bounds) -> int | None:
        """Behind which offset the question begins; None if something of it may be trimmed."""
        if since is None:
            return bounds.start
        if since.offset is not None:
            return since.offset if since.offset >= bounds.start else None
        if since.at is None:
            return bounds.start
        found = find_last_before(self._journal, since.at)
        if found > bounds.start or not bounds.start:
            return found
        # No older record is kept: it is complete if all that was trimmed was taken before.
        trimmed_at = self._journal.read_trimmed_at(bounds.start)
        return found if trimmed_at is not None and trimmed_at < since.at else None

    def _find_end(self, until: HistoryBound | None, bounds: Bounds) -> int:
        if until is None:
            return bounds.last
        if until.offset is not None:
            return until.offset
        return bounds.last if until.at is None else find_last_before(self._journal, until.at)

    def _collect_events(
        self, question: HistoryRequest, start: int, end: int, pause: Callable[[], None]
    ) -> tuple[list[tuple[int, bytes]], int]:
        """Events of the range, and up to where it has been looked at: the other bound, if that is all."""
        is_descending = question.is_descending
        whole = ClauseFilter(question.clauses) if question.clauses is not None else None
        events: list[tuple[int, bytes]] = []
        size = 0
        began = self._stopwatch()
        for records, reached in self._read_parts(question, start, end):
            for offset, owner, body in records:
                if owner is not None and owner != question.user:
                    continue
                if whole is not None and not whole.accepts(body):
                    continue
                events.append((offset, body))
                size += len(body)
                if len(events) >= question.limit or size >= PART_BYTES:
                    return events, offset - 1 if is_descending else offset
            if self._stopwatch() - began >= PART_SECONDS:
                return events, reached
            pause()
        return events, start if is_descending else end

    def _read_parts(self, question: HistoryRequest, start: int, end: int) -> Iterator[tuple[list[Record], int]]:
        """Records of the range that may be wanted, in order, each time with up to where that was all."""
        is_descending = question.is_descending
        for low, high, offsets in self._find_parts(question, start, end):
            if offsets is None:
                yield from self._scan_log(low, high, is_descending=is_descending)
                continue
            rest = iter(offsets)
            while chunk := list(islice(rest, READ_RECORDS)):
                yield list(self._journal.read_at(chunk)), chunk[-1] - 1 if is_descending else chunk[-1]
            yield [], low if is_descending else high

    def _find_parts(self, question: HistoryRequest, start: int, end: int) -> Iterator[Part]:
        """As the index says; without it, everywhere."""
        is_descending = question.is_descending
        index, at = self._index, end if is_descending else start
        if index is not None:
            try:
                for part in index.find_parts(question.user, question.clauses, start, end, is_descending=is_descending):
                    yield part
                    at = part[0] if is_descending else part[1]
            except sqlite3.Error as error:
                self._drop_index(error)
            else:
                return
        low, high = (start, at) if is_descending else (at, end)
        if low < high:
            yield low, high, None

    def _scan_log(self, low: int, high: int, *, is_descending: bool) -> Iterator[tuple[list[Record], int]]:
        while low < high:
            records = list(self._journal.read(low, high, READ_RECORDS, is_descending=is_descending))
            is_all = len(records) < READ_RECORDS
            if is_descending:
                high = low if is_all else records[-1].offset - 1
            else:
                low = high if is_all else records[-1].offset
            yield records, high if is_descending else low
