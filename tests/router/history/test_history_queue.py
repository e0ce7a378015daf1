"""Whose question about history is answered next."""

from __future__ import annotations

from structlog.testing import capture_logs

from solowire.backplane.messages import HistoryRequest
from solowire.router.history.history_queue import MAX_WAITING, HistoryQueue


def question(request: int, user: str) -> HistoryRequest:
    return HistoryRequest(request, user, None, None, False, None, 100)


def drain(queue: HistoryQueue) -> list[tuple[bytes, int]]:
    found = []
    while (taken := queue.take_next()) is not None:
        found.append((taken[0], taken[1].request))
    return found


def test_users_take_turns_whatever_shard_asks() -> None:
    """One with many questions has one answered for each of another's."""
    queue = HistoryQueue()
    for number in range(3):
        queue.add_question(b"one", question(number, "ann"))
    queue.add_question(b"two", question(7, "ann"))
    queue.add_question(b"two", question(8, "bob"))
    assert len(queue) == 5
    assert drain(queue) == [(b"one", 0), (b"two", 8), (b"one", 1), (b"one", 2), (b"two", 7)]
    assert queue.take_next() is None


def test_what_nobody_waits_for_is_not_answered() -> None:
    """Questions that are cancelled, or whose shard has gone."""
    queue = HistoryQueue()
    for number in range(3):
        queue.add_question(b"one", question(number, "ann"))
        queue.add_question(b"two", question(number, "bob"))
    queue.cancel_question(b"one", 0)
    queue.cancel_question(b"one", 9)
    queue.cancel_question(b"three", 0)
    queue.forget_peer(b"two")
    assert drain(queue) == [(b"one", 1), (b"one", 2)]


def test_a_shard_s_questions_are_bounded() -> None:
    """One too many takes the place of the oldest, and is said."""
    queue = HistoryQueue()
    with capture_logs() as logs:
        for number in range(MAX_WAITING + 1):
            queue.add_question(b"one", question(number, f"user-{number}"))
    assert len(queue) == MAX_WAITING
    assert drain(queue)[0] == (b"one", 1)
    assert [line["event"] for line in logs] == ["history_request_dropped"]
