"""The thread that reads history: what becomes of its failures."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs

from solowire.backplane.messages import HistoryRequest, HistoryResponse, PublishedEvent
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
        thread.add_question(b"shard", HistoryRequest(1, "ann", None, None, False, None, 10))
        answer = await answers.get()
        thread.close()
    assert (answer.request, answer.refusal, maker.calls) == (1, None, 101)
    [line] = lines
    found: dict[str, Any] = dict(line)
    assert (found["event"], found["log_level"], found["count"], "exc_info" in found) == (event, "error", 1, is_traced)
    assert str(error) in found["reason"]
    assert found["hint"]


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_quiet_thread_looks_when_it_is_told_of_news() -> None:
    """It looks at a log that does not grow every other second, and at once when somebody says that it has grown."""
    journal = MemoryJournal("epoch", max_events=10, max_bytes=10_000, window=0)
    with mock.patch.object(history_thread, "QUIET_SECONDS", 3600.0):
        thread = HistoryThread(
            lambda: HistoryReader(journal.open_reader(), "epoch", None, lambda: 0.0),
            lambda peer, answer: None,
            asyncio.get_running_loop(),
        )
        await wait_until(lambda: thread._is_quiet)
        journal.append([PublishedEvent("id", None, b"", None)], 0.0)
        journal.commit(0.0)
        thread.note_log_end(journal.last_offset)
        await wait_until(lambda: thread.indexed_offset == 1)
        thread.close()
