"""The thread that reads history: what becomes of its failures."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs

from solowire.backplane.messages import HistoryRequest, HistoryResponse
from solowire.router.history import history_thread
from solowire.router.history.history_reader import HistoryReader
from solowire.router.history.history_thread import HistoryThread
from solowire.router.log.journal import JournalUnavailable, MemoryJournal

FAILURES = [
    (JournalUnavailable("another process has locked the journal"), "journal_unreadable", False),
    (sqlite3.OperationalError("unable to open database file"), "history_failed", False),
    (PermissionError(13, "Permission denied"), "history_failed", False),
    (KeyError("what nobody has thought of"), "history_failed", True),
]


class FailingMaker:
    """Makes a reader from its hundredth call on."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def __call__(self) -> HistoryReader:
        self.calls += 1
        if self.calls <= 100:
            raise self.error
        journal = MemoryJournal("epoch", max_events=10, max_bytes=1000, window=0)
        return HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0)


@pytest.mark.parametrize(("error", "event", "is_traced"), FAILURES, ids=lambda value: type(value).__name__)
async def test_what_keeps_failing_is_one_line_a_minute(error: Exception, event: str, is_traced: bool) -> None:
    """In plain words, and only what is a fault of the program's own with a traceback; it goes on when it can."""
    answers: asyncio.Queue[HistoryResponse] = asyncio.Queue()
    maker = FailingMaker(error)

    def send(peer: bytes, answer: HistoryResponse) -> None:
        answers.put_nowait(answer)

    with capture_logs() as lines, mock.patch.object(history_thread, "FOLLOW_SECONDS", 0.001):
        thread = HistoryThread(maker, send, asyncio.get_running_loop())
        thread.add(b"shard", HistoryRequest(1, "ann", None, None, False, None, 10))
        answer = await answers.get()
        thread.close()
    assert (answer.request, answer.refusal, maker.calls) == (1, None, 101)
    [line] = lines
    found: dict[str, Any] = dict(line)
    assert (found["event"], found["log_level"], found["count"], "exc_info" in found) == (event, "error", 1, is_traced)
    assert str(error) in found["reason"]
    assert found["hint"]
