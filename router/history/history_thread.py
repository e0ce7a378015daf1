"""The thread that reads history, beside the router's loop: `HistoryReader` at work.

What it keeps true: the router's loop hands over questions and gets answers, and never waits for the disk or for a lock
that is held while something is read. The thread rests for as long as it worked, times REST_FACTOR, so that in the long
run it never has more than a part of a core, nor of the interpreter, which both threads share; a question that comes
alone is answered without a rest (BURST_SECONDS). When it fails, that is in the log, and the next question is answered
all the same.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from solowire.backplane.messages import HistoryRequest, HistoryResponse
from solowire.router.history.history_queue import HistoryQueue
from solowire.router.history.history_reader import HistoryReader
from solowire.router.log.journal import JournalUnavailable

logger = structlog.get_logger("solowire.router")

REST_FACTOR = 3.0
BURST_SECONDS = 0.05
"""So much work may be done before the rest for it."""
FOLLOW_SECONDS = 0.25
"""How often the thread looks for what is new in the log."""

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
        self._lock = threading.Lock()
        self._queue = HistoryQueue()
        self._news = threading.Event()
        self._is_closed = False
        self.indexed_offset = 0
        self.index_error_count = 0
        self.answer_count = 0
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many questions wait."""
        with self._lock:
            return len(self._queue)

    def add(self, peer: bytes, question: HistoryRequest) -> None:
        with self._lock:
            self._queue.add(peer, question)
        self._news.set()

    def cancel(self, peer: bytes, request: int) -> None:
        with self._lock:
            self._queue.cancel(peer, request)

    def forget(self, peer: bytes) -> None:
        """The shard has gone."""
        with self._lock:
            self._queue.forget(peer)

    def close(self) -> None:
        """Ends the thread, after the turn that it is at."""
        self._is_closed = True
        self._news.set()
        self._thread.join(timeout=5.0)

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        reader: HistoryReader | None = None
        owed, at = 0.0, time.monotonic()  # of rest, and when that was reckoned
        while not self._is_closed:
            is_busy = False
            try:
                if reader is None:
                    reader = self._make_reader()
                is_busy = self._take_turn(reader)
            except JournalUnavailable as error:
                logger.error("journal_unreadable", history=True, reason=str(error), hint="see the disk")
            except Exception:
                logger.exception("history_failed")
            now = time.monotonic()
            owed, at = owed + (now - at) * REST_FACTOR, now
            if not is_busy:
                self._news.wait(FOLLOW_SECONDS)
                self._news.clear()
            elif owed > BURST_SECONDS:
                time.sleep(owed - BURST_SECONDS)
            now = time.monotonic()
            owed, at = max(0.0, owed - (now - at)), now
        if reader is not None:
            reader.close()

    def _take_turn(self, reader: HistoryReader) -> bool:
        """One step of the index, and one part of an answer; whether there is more to do."""
        has_more = reader.follow_log()
        self.indexed_offset, self.index_error_count = reader.indexed_offset, reader.index_error_count
        with self._lock:
            taken = self._queue.take_next()
        if taken is None:
            return has_more
        peer, question = taken
        self._call_back(peer, reader.answer(question))
        self.answer_count += 1
        return True

    def _call_back(self, peer: bytes, answer: HistoryResponse) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self._loop.call_soon_threadsafe(self._send, peer, answer)
