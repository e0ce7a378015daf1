"""The router's log: what it promises to publishers and shards, on its in-memory form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.journal import Journal, MemoryJournal, Record
from solowire.backplane import PublishedEvent

MakeJournal = Callable[..., Journal]


@pytest.fixture
def make() -> MakeJournal:
    """Makes a journal; its bounds can be chosen."""

    def make(max_events: int = 1000, max_bytes: int = 1_000_000, window: float = 60.0) -> Journal:
        return MemoryJournal("epoch", max_events=max_events, max_bytes=max_bytes, window=window)

    return make


def event(id: str, user: str | None = None, body: bytes = b"body") -> PublishedEvent:
    return PublishedEvent(id, user, body)


def some(count: int, begin: int = 0) -> list[PublishedEvent]:
    return [event(f"id-{n}", body=b"%d" % n) for n in range(begin, begin + count)]


def read_all(journal: Journal) -> Sequence[Record]:
    return journal.read(journal.floor, 1_000_000)


def test_an_empty_log_begins_at_offset_one(make: MakeJournal) -> None:
    """A new log holds nothing, stands at 0, and its first event gets offset 1."""
    journal = make()
    assert (journal.last, journal.floor, list(journal.read(0, 10))) == (0, 0, [])
    assert journal.append(some(1), 0.0) == ([1], [])
    assert (journal.last, journal.floor) == (1, 0)


def test_offsets_follow_each_other_across_batches(make: MakeJournal) -> None:
    """A publisher's events get one offset each, in their order, without a hole between requests."""
    journal = make()
    assert journal.append(some(3), 0.0).offsets == [1, 2, 3]
    assert journal.append(some(2, begin=3), 0.0).offsets == [4, 5]
    assert [record.body for record in read_all(journal)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_record_keeps_user_and_body(make: MakeJournal) -> None:
    """What is read is what was published: offset, whose it is, and the bytes."""
    journal = make()
    journal.append([event("a", "ann", b"for ann"), event("b", None, b"for all")], 0.0)
    assert list(read_all(journal)) == [Record(1, "ann", b"for ann"), Record(2, None, b"for all")]


def test_an_empty_batch_changes_nothing(make: MakeJournal) -> None:
    """Publishing nothing is answered with nothing."""
    journal = make()
    assert journal.append([], 0.0) == ([], [])
    assert journal.last == 0


def test_a_batch_published_again_is_all_duplicates(make: MakeJournal) -> None:
    """A publisher that repeats a request gets the same offsets, and the log has each event once."""
    journal = make()
    first = journal.append(some(3), 0.0)
    again = journal.append(some(3), 1.0)
    assert again == (first.offsets, [0, 1, 2])
    assert len(read_all(journal)) == 3


def test_a_duplicate_within_a_batch_is_named_by_its_index(make: MakeJournal) -> None:
    """The same id twice in one request is one event: the second is a duplicate of the first."""
    journal = make()
    assert journal.append([event("a"), event("b"), event("a"), event("c")], 0.0) == ([1, 2, 1, 3], [2])


def test_a_batch_of_old_and_new_keeps_the_order_of_its_events(make: MakeJournal) -> None:
    """Where some events of a request are known already, the new ones get the next offsets, each at its place."""
    journal = make()
    journal.append(some(2), 0.0)
    assert journal.append([event("new-1"), event("id-1"), event("new-2"), event("id-0")], 1.0) == ([3, 2, 4, 1], [1, 3])


def test_an_id_is_forgotten_after_the_window(make: MakeJournal) -> None:
    """Within the window an id is a duplicate; later it is a new event, as the setting says."""
    journal = make(window=10.0)
    journal.append([event("a")], 100.0)
    assert journal.append([event("a")], 110.0) == ([1], [0])
    assert journal.append([event("a")], 110.1) == ([2], [])


def test_a_duplicate_does_not_lengthen_the_window(make: MakeJournal) -> None:
    """The window counts from the event, not from its last repetition, so that it ends for a stubborn publisher."""
    journal = make(window=10.0)
    journal.append([event("a")], 0.0)
    journal.append([event("a")], 9.0)
    assert journal.append([event("a")], 11.0).duplicates == []


def test_a_duplicate_is_known_after_its_event_was_trimmed(make: MakeJournal) -> None:
    """Idempotence does not depend on how much the log holds."""
    journal = make(max_events=2)
    journal.append([event("old")], 0.0)
    journal.append(some(5), 1.0)
    assert journal.floor >= 1
    assert journal.append([event("old")], 2.0) == ([1], [0])


def test_the_number_of_events_is_bounded(make: MakeJournal) -> None:
    """Over its bound the log loses its oldest events, and says so in its floor."""
    journal = make(max_events=10)
    for batch in range(5):
        journal.append(some(7, begin=batch * 7), 0.0)
    assert (journal.last, journal.floor) == (35, 25)
    assert [record.offset for record in read_all(journal)] == list(range(26, 36))


def test_the_bytes_are_bounded(make: MakeJournal) -> None:
    """Large events push out old ones just as many events do."""
    journal = make(max_bytes=1000)
    for n in range(10):
        journal.append([event(f"big-{n}", body=b"x" * 300)], 0.0)
    assert (journal.last, journal.floor) == (10, 7)
    assert sum(len(record.body) for record in read_all(journal)) <= 1000


def test_a_batch_larger_than_the_log_keeps_its_end(make: MakeJournal) -> None:
    """A single request beyond the bound is accepted; what does not fit is behind the floor."""
    journal = make(max_events=10)
    assert journal.append(some(25), 0.0).offsets == list(range(1, 26))
    assert journal.floor == 15
    assert [record.offset for record in read_all(journal)] == list(range(16, 26))


def test_an_event_larger_than_the_log_leaves_it_empty(make: MakeJournal) -> None:
    """An event that can't be held at all gets its offset, and readers see by the floor that it is gone."""
    journal = make(max_bytes=100)
    journal.append([event("huge", body=b"x" * 1000)], 0.0)
    assert (journal.last, journal.floor, list(read_all(journal))) == (1, 1, [])
    assert journal.append([event("small")], 0.0).offsets == [2]


def test_reading_begins_behind_the_cursor_and_ends_at_the_limit(make: MakeJournal) -> None:
    """A reader gets what is behind its cursor, and no more than it asks for."""
    journal = make()
    journal.append(some(10), 0.0)
    assert [record.offset for record in journal.read(4, 3)] == [5, 6, 7]
    assert [record.offset for record in journal.read(8, 100)] == [9, 10]
    assert list(journal.read(10, 5)) == []


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12), st.integers(1, 20))
def test_every_id_has_one_offset_and_every_offset_one_event(batches: list[list[int]], max_events: int) -> None:
    """Whatever is repeated in whatever order: one id, one offset; offsets without holes; the newest ones readable."""
    journal = MemoryJournal("epoch", max_events=max_events, max_bytes=10**6, window=1e9)
    offset_of: dict[int, int] = {}
    for batch in batches:
        appended = journal.append([event(str(n), body=b"%d" % n) for n in batch], 0.0)
        for index, (n, offset) in enumerate(zip(batch, appended.offsets, strict=True)):
            assert (n in offset_of) == (index in appended.duplicates)
            assert offset_of.setdefault(n, offset) == offset
    assert sorted(offset_of.values()) == list(range(1, journal.last + 1))
    readable = read_all(journal)
    assert [record.offset for record in readable] == list(range(journal.floor + 1, journal.last + 1))
    assert all(offset_of[int(record.body)] == record.offset for record in readable)
    assert len(readable) == min(max_events, journal.last)
