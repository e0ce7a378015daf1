"""The thread that reads history, beside the router's loop: `HistoryReader` at work.

What it keeps true: the router's loop hands over questions and gets answers, and never waits for the disk or for a lock
that is held while something is read. The thread works in slices, and rests for as long as it worked, times a factor:
in the long run it never has more than a part of a core, nor of the interpreter, which both threads share. That is a
fourth, and a seventeenth for questions while the log grows. A question that comes alone is answered without a rest
(BURST_SECONDS). When it fails, that is in the log, once a minute while it goes on, and the next question is answered
all the same.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

import structlog

from solowire.algorithms.log_sampler import LogSampler
from solowire.algorithms.work_pace import WorkPace
from solowire.backplane.messages import HistoryRequest, HistoryResponse
from solowire.router.history.history_queue import HistoryQueue
from solowire.router.history.history_reader import HistoryReader
from solowire.router.log.journal import JournalUnavailable

logger = structlog.get_logger("solowire.router")

REST_FACTOR = 3.0
GROWING_REST_FACTOR = 16.0
"""For questions, while somebody publishes. The index keeps the other: it has to follow what is published."""
GROWING_SECONDS = 1.0
"""So long after the last event somebody is taken to publish."""
SLICE_SECONDS = 0.001
"""So long the thread works between two rests, if they are due: who publishes waits for one slice at the most."""
BURST_SECONDS = 0.03
"""So much work may be done before the rest for it."""
FOLLOW_SECONDS = 0.25
"""How often the thread looks for what is new in the log, while there is something."""
QUIET_SECONDS = 2.0
"""How often it looks when there was nothing new the last time, and nobody says that there is (`note_log_end`)."""

REPORT_SECONDS = 60.0
"""Between two log lines of one kind of failure: it is tried again with every look."""

Send = Callable[[bytes, HistoryResponse], object]


class HistoryThread:
    """Runs the history reader in a thread of its own.

    make_reader: called in the thread. send: called in the loop.

    It is started at once, and ended by `close`.
    """

    def __init__(self, make_reader: Callable[[], HistoryReader], send: Send, loop: asyncio.AbstractEventLoop) -> None:
        self._make_reader = make_reader
        self._send = send
        self._loop = loop
        self._sampler = LogSampler(logger, loop.time, loop.call_later, period=REPORT_SECONDS)  # the loop's alone
        self._lock = threading.Lock()
        self._queue = HistoryQueue()
        self._news = threading.Event()
        self._is_closed = False
        self._is_quiet = False
        self._seen_offset = 0
        self.indexed_offset = 0
        self.index_error_count = 0
        self.answer_count = 0
        # From here on of the thread alone.
        self._pace = WorkPace(BURST_SECONDS)
        self._began_at = 0.0  # with the slice that it works at
        self._worked_s = 0.0  # CPU time of the thread, up to the last rest
        self._grew_at = -inf
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many questions wait."""
        with self._lock:
            return len(self._queue)

    def add_question(self, peer: bytes, question: HistoryRequest) -> None:
        with self._lock:
            self._queue.add_question(peer, question)
        self._news.set()

    def cancel_question(self, peer: bytes, request: int) -> None:
        with self._lock:
            self._queue.cancel_question(peer, request)

    def forget_peer(self, peer: bytes) -> None:
        """The shard has gone."""
        with self._lock:
            self._queue.forget_peer(peer)

    def note_log_end(self, last_offset: int) -> None:
        """The log ends there now: the thread looks, if it has not seen that yet."""
        if last_offset != self._seen_offset:
            self._news.set()

    def close(self) -> None:
        """Ends the thread, after the turn that it is at."""
        self._is_closed = True
        self._news.set()
        self._thread.join(timeout=5.0)

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        reader: HistoryReader | None = None
        self._began_at = time.monotonic()
        while not self._is_closed:
            is_busy = self._is_quiet = False
            try:
                if reader is None:
                    reader = self._make_reader()
                is_busy = self._take_turn(reader)
            except Exception as error:
                self._report_error(error)
            if not is_busy:
                self._end_slice()
                self._news.wait(QUIET_SECONDS if self._is_quiet else FOLLOW_SECONDS)
                self._news.clear()
                self._begin_slice(REST_FACTOR)
        if reader is not None:
            reader.close()

    def _take_turn(self, reader: HistoryReader) -> bool:
        """One step of the index, and one part of an answer; whether there is more to do."""
        known = reader.last_offset
        has_more = reader.follow_log()
        self._rest(REST_FACTOR)
        self._seen_offset, self._is_quiet = reader.last_offset, reader.last_offset == known
        if reader.last_offset > known:
            self._grew_at = time.monotonic()
        self.indexed_offset, self.index_error_count = reader.indexed_offset, reader.index_error_count
        with self._lock:
            taken = self._queue.take_next()
        if taken is None:
            return has_more
        peer, question = taken
        answer = reader.answer_question(question, self._pause)
        self._call_back(partial(self._send, peer, answer))
        self.answer_count += 1
        self._pause()
        return True

    def _pause(self) -> None:
        """Within an answer: rests, if a slice is over and a rest is due."""
        if time.monotonic() - self._began_at >= SLICE_SECONDS:
            is_growing = self._began_at - self._grew_at < GROWING_SECONDS
            self._rest(GROWING_REST_FACTOR if is_growing else REST_FACTOR)

    def _rest(self, factor: float) -> None:
        self._end_slice()
        if rest_s := self._pace.rest_s(factor):
            time.sleep(rest_s)
            self._begin_slice(factor)

    def _end_slice(self) -> None:
        worked_s = time.thread_time()
        self._pace.record_work(worked_s - self._worked_s)
        self._worked_s, self._began_at = worked_s, time.monotonic()

    def _begin_slice(self, factor: float) -> None:
        """After a rest."""
        now = time.monotonic()
        self._pace.record_rest(now - self._began_at, factor)
        self._began_at = now

    def _report_error(self, error: Exception) -> None:
        """Has the failure logged by the loop. Only what nobody has thought of comes with a traceback."""
        if isinstance(error, JournalUnavailable):
            event = "journal_unreadable"
            fields: dict[str, Any] = {"history": True, "reason": str(error), "hint": "see the disk"}
        else:
            hint = "questions about history are not answered meanwhile; it is tried again, and all else goes on"
            event = "history_failed"
            fields = {"reason": f"{type(error).__name__}: {error}", "hint": hint}
            if not isinstance(error, (OSError, sqlite3.Error)):
                fields["exc_info"] = error
        self._call_back(partial(self._sampler.write, "error", event, **fields))

    def _call_back(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self._loop.call_soon_threadsafe(call)
