"""The present states that a new shard is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unittest import mock

import pytest

from solowire.backplane.messages import PublishedEvent
from solowire.model.events import Delivery, Event, Priority, encode_event, name_state
from solowire.router.log.journal import JournalHole, JournalUnavailable, MemoryJournal, Record
from solowire.router.log.present_states import PresentStates


def state(publisher: str, key: str, size: int = 0, name: str = "forwarder_health") -> PublishedEvent:
    """As a gateway sends it on."""
    event = Event(
        f"{publisher} {key} {size}",
        name,
        b'{"x":"%s"}' % (b"x" * size),
        Priority.normal,
        Delivery.state,
        "2026-12-01T12:00:00Z",
        key=key,
        publisher=publisher,
    )
    return PublishedEvent(event.id, None, encode_event(event), name_state(name, key, None))


class KeptStates:
    """A journal and the states in it."""

    def __init__(self, max_events: int = 100_000) -> None:
        self.journal = MemoryJournal("epoch", max_events=max_events, max_bytes=10**9, window=60.0)
        self.states = PresentStates(self.journal)

    def publish(self, publisher: str, events: Iterable[PublishedEvent]) -> None:
        whole = list(events)
        self.states.note(whole, self.journal.append(whole, 0.0, publisher), publisher)
        self.journal.commit(0.0)
        self.states.keep_group()

    def offsets(self, upto: int | None = None) -> list[int]:
        snapshot = self.states.make_snapshot(self.journal.last_offset if upto is None else upto)
        return [offset for offset, _ in snapshot.events]


def test_a_new_shard_is_given_the_newest_of_each_state() -> None:
    """Up to where its log begins, oldest first, as far as the journal has them; repetitions change nothing."""
    kept = KeptStates(max_events=3)
    kept.publish("ann", [state("ann", "a"), state("ann", "b"), state("ann", "a", 1)])
    kept.publish("ann", [state("ann", "b")])
    assert (kept.offsets(), kept.offsets(2)) == ([2, 3], [2])
    kept.publish("ann", [state("ann", "c"), PublishedEvent("durable", None, b"x")])
    assert kept.offsets() == [3, 4]
    assert kept.states.make_snapshot(5).events[1] == (4, state("ann", "c").body)


@pytest.mark.parametrize(("count", "size"), [(12_000, 100), (1_000, 30_000)])
def test_no_publisher_takes_the_states_from_others(count: int, size: int) -> None:
    """Also after the router was started again; and the shard is told that there are more."""
    kept = KeptStates()
    kept.publish("honest", (state("honest", f"honest-{n}") for n in range(20)))
    for first in range(0, count, 1000):
        kept.publish("eve", (state("eve", f"made-up-{n}", size) for n in range(first, first + 1000)))
    for states in (kept.states, PresentStates(kept.journal)):
        snapshot = states.make_snapshot(kept.journal.last_offset)
        assert [offset for offset, _ in snapshot.events[:20]] == list(range(1, 21))
        assert snapshot.events[-1][0] == kept.journal.last_offset
        assert sum(len(body) for _, body in snapshot.events) <= 8 * 2**20
        assert snapshot.forgotten_types == ["forwarder_health"]


def test_a_type_lacks_states_no_longer_than_the_journal_would_have_them() -> None:
    """What is told to be missing is what the log has and a shard is not given; it does not stay for ever."""
    kept = KeptStates(max_events=1500)
    for first in range(0, 4000, 1000):
        kept.publish("eve", (state("eve", f"made-up-{n}", 8000) for n in range(first, first + 1000)))
    assert kept.states.make_snapshot(kept.journal.last_offset).forgotten_types == ["forwarder_health"]
    for first in range(0, 2000, 500):
        kept.publish("ann", [PublishedEvent(f"durable-{first + n}", None, b"x") for n in range(500)])
    assert kept.states.make_snapshot(kept.journal.last_offset).forgotten_types == []


def test_what_was_not_kept_is_no_state() -> None:
    """A group that the journal could not keep is forgotten here too."""
    kept = KeptStates()
    events = [state("ann", "a")]
    kept.states.note(events, kept.journal.append(events, 0.0, "ann"), "ann")
    kept.states.forget_group()
    kept.states.keep_group()
    kept.journal.commit(0.0)
    assert kept.offsets() == []


def test_a_record_that_is_missing_keeps_no_other_from_a_shard() -> None:
    """Where the journal is damaged a new shard is given all states that are left."""
    kept = KeptStates()
    kept.publish("ann", [state("ann", key) for key in "abc"])
    read = kept.journal.read

    def read_damaged(after: int, limit: int) -> Sequence[Record]:
        if after == 1:
            raise JournalHole(after, 2)
        return read(after, limit)

    with mock.patch.object(kept.journal, "read", read_damaged):
        assert kept.offsets() == [1, 3]


def test_a_journal_that_cannot_be_read_gives_none() -> None:
    """A shard starts all the same, and so does the router."""
    kept = KeptStates()
    kept.publish("ann", [state("ann", "a")])
    with mock.patch.object(MemoryJournal, "read", side_effect=JournalUnavailable("broken")):
        assert kept.offsets() == []
    with mock.patch.object(MemoryJournal, "latest_states", side_effect=JournalUnavailable("broken")):
        assert PresentStates(kept.journal).make_snapshot(1).events == []
