"""What each shard gets of the log: every event that is its business once and in order, or a jump that it sees."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solowire.algorithms.hash_ring import Ring
from solowire.backplane.messages import LogBatch, PublishedEvent
from solowire.router.log.journal import MemoryJournal
from solowire.router.log.shard_cursor import BYTES_A_MESSAGE, BYTES_UNDER_WAY, EVENTS_A_MESSAGE, ShardCursor
from tests.support.examples import examples

RING = Ring([0, 1])
HERE = next(f"user{n}" for n in range(100) if RING.owner(f"user{n}") == 0)
ELSEWHERE = next(f"user{n}" for n in range(100) if RING.owner(f"user{n}") == 1)


def journal(max_events: int = 100_000) -> MemoryJournal:
    return MemoryJournal("epoch", max_events=max_events, max_bytes=10**9, window=0.0)


def publish(log: MemoryJournal, *users: str | None, body: bytes = b"body") -> None:
    log.append([PublishedEvent(f"{log.last_offset}-{n}", user, body) for n, user in enumerate(users)], 0.0)
    log.commit(0.0)


def send_all(outlet: ShardCursor, log: MemoryJournal) -> list[LogBatch]:
    messages = []
    while (message := outlet.next_batch(log)) is not None:
        outlet.mark_sent(message)
        messages.append(message)
    return messages


def offsets(messages: list[LogBatch]) -> list[int]:
    return [offset for message in messages for offset, _ in message.events]


def test_a_shard_gets_what_is_for_all_and_for_its_own_users() -> None:
    """A personal event goes to the shard of its user alone."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    publish(log, None, HERE, ELSEWHERE, None)
    assert offsets(send_all(outlet, log)) == [1, 2, 4]


def test_events_go_in_batches() -> None:
    """What is new goes out in few messages of a bounded number of events, which is what makes it fast."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 10_000, RING, 1)
    publish(log, *[None] * 500)
    messages = send_all(outlet, log)
    assert [len(message.events) for message in messages] == [EVENTS_A_MESSAGE, EVENTS_A_MESSAGE, 100]
    assert [(m.prev_offset, m.end_offset) for m in messages] == [(0, 200), (200, 400), (400, 500)]


def test_a_message_is_bounded_in_bytes() -> None:
    """Large events make small batches, so that no message grows without bound."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 10_000, RING, 1)
    publish(log, *[None] * 20, body=b"x" * 60_000)
    messages = send_all(outlet, log)
    assert offsets(messages) == list(range(1, 21))
    assert all(sum(len(body) for _, body in m.events) < BYTES_A_MESSAGE + 60_000 for m in messages)


def test_no_more_than_the_credit_is_under_way() -> None:
    """A shard that doesn't ack is sent its credit and nothing more; its acks free the next."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 150, RING, 1)
    publish(log, *[None] * 400)
    assert len(offsets(send_all(outlet, log))) == 150
    assert outlet.next_batch(log) is None
    outlet.ack(150, 150)
    assert offsets(send_all(outlet, log)) == list(range(151, 301))


def test_no_more_than_so_many_bytes_are_under_way() -> None:
    """A shard that reads nothing costs the router little memory, however large events are and whatever its credit."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 10_000, RING, 1)
    publish(log, *[None] * 500, body=b"x" * 60_000)
    sent = send_all(outlet, log)
    assert BYTES_UNDER_WAY <= outlet.bytes_in_flight < BYTES_UNDER_WAY + BYTES_A_MESSAGE + 60_000
    outlet.ack(sent[-1].end_offset, 10_000)
    assert outlet.bytes_in_flight == 0
    assert offsets(send_all(outlet, log))[0] == sent[-1].end_offset + 1


def test_the_offset_that_is_owed_is_the_oldest_that_is_its_business() -> None:
    """What was passed over is owed by nobody; what was sent, or could not be, is until it is acked."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 2, RING, 1)
    publish(log, ELSEWHERE, ELSEWHERE)
    send_all(outlet, log)
    assert outlet.first_unacked == log.last_offset + 1
    publish(log, None, None, None)
    send_all(outlet, log)
    outlet.ack(0, 2)
    assert outlet.first_unacked == 1
    outlet.ack(4, 2)
    assert outlet.first_unacked == 5


def test_an_ack_of_a_part_frees_whole_messages_only() -> None:
    """Credit is given back for what has arrived in full."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 1000, RING, 1)
    publish(log, *[None] * 400)
    send_all(outlet, log)
    outlet.ack(250, 1000)
    assert (outlet.in_flight, outlet.acked) == (200, 250)


def test_an_old_ack_takes_nothing_back() -> None:
    """Acks that come late or twice do no harm."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 1000, RING, 1)
    publish(log, *[None] * 100)
    send_all(outlet, log)
    outlet.ack(100, 1000)
    outlet.ack(40, 1000)
    assert (outlet.in_flight, outlet.acked) == (0, 100)


def test_others_personal_events_cost_no_message() -> None:
    """A flood of other users' events sends this shard nothing, and one message then tells how far the log is."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    publish(log, *[ELSEWHERE] * 1000)
    assert send_all(outlet, log) == []
    message = outlet.progress_message("epoch")
    assert message == LogBatch("epoch", 0, 1000, [])
    outlet.mark_sent(message)
    assert outlet.progress_message("epoch") is None


def test_a_message_that_was_not_taken_is_made_again() -> None:
    """What ZeroMQ refuses isn't lost: the same events go out the next time."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    publish(log, None, ELSEWHERE, None)
    message = outlet.next_batch(log)
    assert message is not None
    outlet.mark_not_sent(message)
    assert outlet.in_flight == 0
    assert outlet.next_batch(log) == message


def test_a_shard_that_fell_out_of_the_log_sees_a_jump() -> None:
    """What was trimmed before a shard got it shows as a gap between `upto` and the next `after`."""
    log, outlet = journal(max_events=10), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    publish(log, None, None)
    assert [m.end_offset for m in send_all(outlet, log)] == [2]
    publish(log, *[None] * 50)
    [message] = send_all(outlet, log)
    assert (message.prev_offset, message.end_offset) == (42, 52)


def test_users_who_wait_for_their_turn_to_move_miss_nothing() -> None:
    """A shard gets the own events of users whom a ring has taken away, until it says that all of them are gone."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    outlet.add_ring(Ring([1]), 2)
    publish(log, HERE, None)
    assert (offsets(send_all(outlet, log)), outlet.personal_since) == ([1, 2], 1)
    outlet.rebalance_done(2)
    publish(log, HERE, None)
    assert (offsets(send_all(outlet, log)), outlet.personal_since) == ([4], 2)


def test_a_ring_that_gives_users_makes_the_log_be_looked_at_again() -> None:
    """What was passed over, and not yet told, is this shard's business when its user is."""
    log, outlet = journal(), ShardCursor(0, b"shard-0", 0, 100, RING, 1)
    publish(log, ELSEWHERE)
    assert send_all(outlet, log) == []
    outlet.add_ring(Ring([0]), 2)
    assert offsets(send_all(outlet, log)) == [1]


class Dispatch(RuleBasedStateMachine):
    """One shard's outlet, a lossless link and a model of the shard, under any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.log = journal(max_events=40)
        self.business: list[int] = []
        self.credit = 100
        self.outlet = ShardCursor(0, b"shard-0", 0, self.credit, RING, 1)
        self.link: deque[LogBatch] = deque()
        self.position = 0
        self.received: list[int] = []
        self.lost: list[range] = []
        self.highest_floor = 0

    @initialize(credit=st.integers(1, 60))
    def shard_grants(self, credit: int) -> None:
        self.credit = credit
        self.outlet = ShardCursor(0, b"shard-0", 0, credit, RING, 1)

    @rule(users=st.lists(st.sampled_from([None, HERE, ELSEWHERE]), min_size=1, max_size=30))
    def publish(self, users: list[str | None]) -> None:
        begin = self.log.last_offset + 1
        publish(self.log, *users)
        self.business += [begin + n for n, user in enumerate(users) if user != ELSEWHERE]

    @rule(taken=st.integers(0, 3))
    def pump(self, taken: int) -> None:
        """The bus takes `taken` messages and refuses the next."""
        while (message := self.outlet.next_batch(self.log)) is not None:
            assert self.outlet.in_flight + len(message.events) <= self.outlet.credit
            assert message.events
            if taken == 0:
                self.outlet.mark_not_sent(message)
                return
            taken -= 1
            self.outlet.mark_sent(message)
            self.link.append(message)

    @rule(taken=st.booleans())
    def catch_up(self, taken: bool) -> None:
        message = self.outlet.progress_message("epoch")
        if message is not None and taken:
            self.outlet.mark_sent(message)
            self.link.append(message)

    @precondition(lambda self: self.link)
    @rule()
    def arrive(self) -> None:
        message = self.link.popleft()
        if message.prev_offset > self.position:
            self.lost.append(range(self.position + 1, message.prev_offset + 1))
        fresh = [offset for offset, _ in message.events if offset > self.position]
        assert fresh == sorted(fresh)
        assert not fresh or fresh[-1] <= message.end_offset
        self.received += fresh
        self.position = max(self.position, message.end_offset, message.prev_offset)

    @rule(credit=st.integers(1, 60))
    def ack(self, credit: int) -> None:
        self.credit = credit
        self.outlet.ack(self.position, credit)

    @rule(clean=st.booleans())
    def hello_again(self, clean: bool) -> None:
        """The shard is asked who it is; what was on its way arrives all the same, or (a new link) never."""
        if clean:
            self.link.clear()
        self.outlet = ShardCursor(0, b"shard-0", min(self.position, self.log.last_offset), self.credit, RING, 1)

    @invariant()
    def what_holds(self) -> None:
        assert self.received == sorted(set(self.received))
        assert set(self.received) <= set(self.business)
        assert self.position <= self.log.last_offset
        missing = {offset for offset in self.business if offset <= self.position} - set(self.received)
        assert all(any(offset in hole for hole in self.lost) for offset in missing)
        assert all(hole[-1] <= self.log.start_offset for hole in self.lost)
        assert self.outlet.last_sent <= self.outlet.cursor <= self.log.last_offset
        assert self.outlet.in_flight == sum(events for _, events, _ in self.outlet._unacked)
        assert self.outlet.bytes_in_flight == sum(size for _, _, size in self.outlet._unacked)

    def teardown(self) -> None:
        """At the end everything that can still be had arrives, whatever happened before."""
        for _ in range(200):
            self.pump(taken=1)
            self.catch_up(taken=True)
            while self.link:
                self.arrive()
            self.outlet.ack(self.position, self.credit)
        assert self.position == self.log.last_offset
        self.what_holds()


TestDispatch = Dispatch.TestCase
TestDispatch.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)


def test_of_large_events_no_more_are_read_than_are_sent() -> None:
    """Else a shard that begins with a log of them would have the router read it many times over, and serve nobody."""
    log = journal()
    for _ in range(10):
        publish(log, *[None] * 100, body=b"x" * 31_000)
    read = []

    class Counting:
        epoch, start_offset, last_offset = log.epoch, log.start_offset, log.last_offset

        def read(self, after: int, limit: int) -> object:
            records = log.read(after, limit)
            read.append(len(records))
            return records

    outlet = ShardCursor(0, b"shard", 0, 10_000, RING, 1)
    sent: list[int] = []
    while outlet.cursor < log.last_offset:
        message = outlet.next_batch(Counting())  # type: ignore[arg-type]
        if message is not None:
            outlet.mark_sent(message)
            sent += [offset for offset, _ in message.events]
        outlet.ack(outlet.last_sent, 10_000)
    assert sent == list(range(1, log.last_offset + 1))
    assert sum(read) < 1.5 * len(sent) + EVENTS_A_MESSAGE
