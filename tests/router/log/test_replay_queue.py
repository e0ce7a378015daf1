"""Questions for what clients have missed: in which turn they are answered, and how much an answer takes."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from solowire.backplane.messages import (
    REPLAY_RECORDS,
    VERSION,
    Join,
    Leave,
    LogBatch,
    PublishedEvent,
    PublishRequest,
    ReplayCancel,
    ReplayRequest,
    ReplayResponse,
    RouterMessage,
    ShardAddress,
)
from solowire.router.log.journal import JournalUnavailable, MemoryJournal
from solowire.router.log.replay_queue import (
    MAX_WAITING,
    PART_SECONDS,
    PASSED_OVER_SECONDS,
    READ_RECORDS,
    REST_FACTOR,
    RETRY_SECONDS,
    ReplayQueue,
    read_part,
)
from solowire.router.log.shard_cursor import BYTES_A_MESSAGE
from solowire.router.router import Router


class Clock:
    """Each look at it says that so much more time has passed."""

    def __init__(self, each: float = 0.0) -> None:
        self.each = each
        self.time = 0.0

    def __call__(self) -> float:
        self.time += self.each
        return self.time


def journal_of(count: int, body: bytes = b"body", user: str | None = None) -> MemoryJournal:
    journal = MemoryJournal("epoch", max_events=10**6, max_bytes=10**9, window=60.0)
    journal.append([PublishedEvent(f"id-{n}", user, body) for n in range(count)], 0.0)
    journal.commit(0.0)
    return journal


def question(
    request: int = 1, after: int = 0, upto: int = 10**6, user: str = "ann", personal: bool = False
) -> ReplayRequest:
    return ReplayRequest(request, "epoch", user, after, upto, personal)


class Shards:
    """A queue, what it has sent, and which shards have to get something live first."""

    def __init__(self, journal: MemoryJournal | None = None, each: float = 0.0) -> None:
        self.behind: set[bytes] = set()
        self.sent: list[tuple[bytes, int]] = []
        self.queue = ReplayQueue(journal or journal_of(10), self._send, lambda s: s not in self.behind, Clock(each))

    def _send(self, peer: bytes, answer: ReplayResponse) -> bool:
        self.sent.append((peer, answer.request))
        return True

    def serve_all(self, now: float = 0.0) -> list[tuple[bytes, int]]:
        """All that is answered at once, without a wait."""
        while (again := self.queue.serve_next(now)) is not None and again <= now:
            pass
        sent, self.sent = self.sent, []
        return sent


def test_shards_take_turns() -> None:
    """However much one shard asks for, another's question is the next but one."""
    shards = Shards()
    for request in range(3):
        shards.queue.add(b"a", question(request), 0.0)
    shards.queue.add(b"b", question(9), 0.0)
    assert shards.serve_all() == [(b"a", 0), (b"b", 9), (b"a", 1), (b"a", 2)]
    assert not shards.queue


def test_what_is_live_goes_first_but_not_for_ever() -> None:
    """A shard that has to get live events is passed over, another is served; after a second it gets its answer, too."""
    shards = Shards()
    shards.queue.add(b"a", question(1), 0.0)
    shards.queue.add(b"b", question(2), 0.0)
    shards.behind.add(b"a")
    assert shards.serve_all() == [(b"b", 2)]
    assert shards.queue.serve_next(0.5) == 0.5 + RETRY_SECONDS
    assert shards.sent == []
    assert shards.queue.serve_next(PASSED_OVER_SECONDS) is None
    assert shards.sent == [(b"a", 1)]


def test_after_an_answer_there_is_a_rest() -> None:
    """Answers take a share of the router's time, also if each question comes when the one before is answered."""
    shards = Shards(each=0.003)
    shards.queue.add(b"a", question(1), 0.0)
    assert shards.queue.serve_next(0.0) is None
    took = shards.queue._stopwatch.time - 0.003  # type: ignore[attr-defined]
    shards.queue.add(b"a", question(2), 0.0)
    again = shards.queue.serve_next(0.001)
    assert again == pytest.approx(took * (1 + REST_FACTOR))
    assert [request for _, request in shards.sent] == [1]
    shards.queue.serve_next(again or 0.0)
    assert [request for _, request in shards.sent] == [1, 2]


def test_a_client_that_has_gone_is_not_answered() -> None:
    """What was asked for one that has gone is taken back, whether or not it is there, and so is all of a lost shard."""
    shards = Shards()
    for request in (1, 2):
        shards.queue.add(b"a", question(request), 0.0)
    shards.queue.add(b"b", question(3), 0.0)
    shards.queue.cancel(b"a", 1)
    shards.queue.cancel(b"a", 7)
    shards.queue.cancel(b"c", 1)
    shards.queue.forget(b"b")
    shards.queue.forget(b"c")
    assert shards.serve_all() == [(b"a", 2)]


def test_the_questions_of_a_shard_have_a_bound() -> None:
    """Of more than MAX_WAITING questions of one shard the oldest is dropped, loudly; another shard's stay."""
    shards = Shards()
    shards.queue.add(b"b", question(0), 0.0)
    with capture_logs() as lines:
        for request in range(MAX_WAITING + 2):
            shards.queue.add(b"a", question(request), 0.0)
    assert [line["event"] for line in lines] == ["replay_request_dropped"] * 2
    assert len(shards.queue) == MAX_WAITING + 1
    answered = shards.serve_all()
    assert (b"b", 0) in answered
    assert min(request for peer, request in answered if peer == b"a") == 2


def test_a_journal_that_cannot_be_read_answers_nobody_and_goes_on() -> None:
    """A question whose answer can't be read is given up, and the next one is served."""

    class Broken(MemoryJournal):
        def read(self, after: int, limit: int) -> list[object]:  # type: ignore[override]
            if after == 1:
                raise JournalUnavailable("the disk has an I/O error")
            return super().read(after, limit)  # type: ignore[return-value]

    broken = Broken("epoch", max_events=100, max_bytes=10**6, window=60.0)
    broken.append([PublishedEvent(f"id-{n}", None, b"x") for n in range(5)], 0.0)
    broken.commit(0.0)
    shards = Shards(broken)
    shards.queue.add(b"a", question(1, after=1), 0.0)
    shards.queue.add(b"a", question(2, after=2), 0.0)
    assert shards.serve_all() == [(b"a", 2)]


# ------------------------------------------------------------------------------------------------------ one answer


def test_an_answer_has_a_bound_in_records() -> None:
    """At most REPLAY_RECORDS of the log are read, whosever they are."""
    answer = read_part(journal_of(REPLAY_RECORDS + 50, user="bob"), question())
    assert (answer.end_offset, answer.events) == (REPLAY_RECORDS, [])


def test_an_answer_has_a_bound_in_bytes() -> None:
    """One event that reaches the bound is the last, and all that were read before are given."""
    answer = read_part(journal_of(20, bytes(BYTES_A_MESSAGE // 4)), question())
    assert (answer.end_offset, len(answer.events)) == (4, 4)


@pytest.mark.parametrize("personal", [False, True])
def test_an_answer_has_a_bound_in_time(personal: bool) -> None:
    """On a slow disk an answer is what could be read meanwhile, and that is whole."""
    answer = read_part(journal_of(500, user="ann"), question(personal=personal), Clock(PART_SECONDS))
    assert (answer.end_offset, len(answer.events)) == (READ_RECORDS, READ_RECORDS)


def test_a_users_own_events_are_whole_when_there_are_no_more() -> None:
    """An answer with all of a user's own says that it goes up to where it was asked for."""
    journal = journal_of(READ_RECORDS, user="ann")
    journal.append([PublishedEvent(f"more-{n}", "bob", b"x") for n in range(5)], 0.0)
    journal.commit(0.0)
    answer = read_part(journal, question(upto=READ_RECORDS + 3, personal=True))
    assert (answer.end_offset, len(answer.events)) == (READ_RECORDS + 3, READ_RECORDS)


# -------------------------------------------------------------------------------------------------------- the router


def test_a_question_is_answered_after_what_is_live() -> None:
    """What was published before a question is served leaves first; one that is taken back costs nothing."""
    sent: list[RouterMessage] = []
    journal = MemoryJournal("epoch", max_events=1000, max_bytes=10**9, window=60.0)

    def send(peer: bytes, message: RouterMessage) -> bool:
        sent.append(message)
        return True

    router = Router(journal, send)
    router.receive(b"s", Join(VERSION, "b", ShardAddress(0, "127.0.0.1", 9000, "b"), credit=100), 0.0)
    router.receive(b"s", question(1), 0.0)
    router.receive(b"s", question(2), 0.0)
    router.receive(b"s", ReplayCancel(1), 0.0)
    router.receive(b"g", PublishRequest(1, [PublishedEvent("a", None, b"x")]), 0.0)
    assert not [m for m in sent if isinstance(m, ReplayResponse)]
    router.dispatch(0.0)
    router.replays.serve_next(0.0)
    assert [type(m) for m in sent if isinstance(m, (LogBatch, ReplayResponse))] == [LogBatch, ReplayResponse]
    assert [m.request for m in sent if isinstance(m, ReplayResponse)] == [2]
    router.receive(b"s", question(3), 0.0)
    router.receive(b"s", Leave(), 0.0)
    assert not router.replays
