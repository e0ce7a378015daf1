"""When a shard acknowledges: soon enough for publishers, and so seldom that a busy router needn't hear of each part."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from solowire.algorithms.hash_ring import Ring
from solowire.backplane.messages import PublishedEvent
from solowire.router.log.journal import MemoryJournal
from solowire.router.log.shard_cursor import BYTES_UNDER_WAY, ShardCursor
from solowire.workers.delivery.ack_schedule import ACK_BYTES, ACK_SECONDS, QUIET_SECONDS, AckSchedule

CREDIT = 10_000


def test_after_a_pause_it_is_told_at_once() -> None:
    """What comes alone is acknowledged as it comes, as most is in a calm system."""
    acks = AckSchedule(CREDIT)
    for now in (1.0, 1.0 + ACK_SECONDS, 9.0):
        assert acks.record_batch(1, 100, now)
        acks.mark_sent(now)
        assert acks.due_at == inf


def test_what_comes_soon_after_waits_until_nothing_more_comes() -> None:
    """It is due shortly after the last, and an acknowledgement's interval after the one before at the latest."""
    acks = AckSchedule(CREDIT)
    acks.mark_sent(1.0)
    assert not acks.record_batch(1, 100, 1.05)
    assert acks.due_at == 1.05 + QUIET_SECONDS
    assert not acks.record_batch(1, 100, 1.0 + ACK_SECONDS - QUIET_SECONDS / 2)
    assert acks.due_at == 1.0 + ACK_SECONDS
    assert acks.record_batch(1, 100, 1.0 + ACK_SECONDS)


def test_half_of_what_may_be_under_way_is_told_at_once() -> None:
    """Else the router would have to wait, in events or in bytes."""
    for events, size in ((CREDIT // 2, 1), (1, ACK_BYTES)):
        acks = AckSchedule(CREDIT)
        acks.mark_sent(1.0)
        assert not acks.record_batch(events // 2, size // 2, 1.0)
        assert acks.record_batch(events - events // 2, size - size // 2, 1.0)
    assert ACK_BYTES <= BYTES_UNDER_WAY // 2


@given(st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 200), st.integers(1, 2**18)), max_size=100))
def test_nothing_waits_for_longer_than_the_interval(arrivals: list[tuple[float, int, int]]) -> None:
    """However things come, and with a timer that is exact."""
    acks, now, oldest, told = AckSchedule(CREDIT), 0.0, inf, 0
    for pause, events, size in arrivals:
        if acks.due_at <= now + pause:
            assert acks.due_at - oldest <= ACK_SECONDS
            acks.mark_sent(acks.due_at)
            oldest = inf
        now += pause
        oldest = min(oldest, now)
        if acks.record_batch(events, size, now):
            acks.mark_sent(now)
            oldest, told = inf, told + 1
        assert acks.due_at < inf or oldest == inf
    assert told or not arrivals


def test_a_router_that_is_flooded_keeps_up_with_idle_shards() -> None:
    """It takes one message of each peer in turn: megabytes of the gateway, one acknowledgement of a shard."""
    journal = MemoryJournal("epoch", max_events=10**6, max_bytes=2**30, window=0.0)
    outlet = ShardCursor(0, b"shard", 0, CREDIT, Ring((0,)), 1)
    acks, now = AckSchedule(CREDIT), 0.0
    waiting: list[int] = []
    behind = []
    for request in range(60):
        now += 0.05  # what a request takes of the router's time
        for number in range(120):
            journal.append([PublishedEvent(f"{request}-{number}", None, b"x" * 31_000)], now)
        journal.commit(now)
        if waiting:
            outlet.ack(waiting.pop(0), CREDIT)
        while (message := outlet.next_batch(journal)) is not None:
            outlet.mark_sent(message)
            size = sum(len(body) for _, body in message.events)
            if acks.record_batch(len(message.events), size, now):  # the shard is idle, and takes it at once
                acks.mark_sent(now)
                waiting.append(message.end_offset)
        if acks.due_at <= now + 0.05:
            acks.mark_sent(acks.due_at)
            waiting.append(outlet.last_sent)
        behind.append(journal.last_offset - outlet.last_sent)
    assert max(behind[10:]) <= 240, "more than two requests wait"
